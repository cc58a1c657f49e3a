//! FORMAT: who a data folder belongs to. Made once, its generation raised at each open.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use weft_cluster::ids::{Generation, NodeId};

use super::envelope::{self, Magic};
use crate::host::{Disk, Host};

const MAGIC: &Magic = b"WEFTNODE";
/// The version of all files of a folder together.
const VERSION: u32 = 1;
const FILE: &str = "FORMAT";

/// Who this data folder belongs to (the FORMAT file).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The store id, made at the folder's creation.
    pub node: NodeId,
    /// The cluster; `None` until the node has joined one.
    pub cluster: Option<u64>,
    /// Raised and synced at each open.
    pub generation: Generation,
    /// A secret made at creation, for stable QUIC reset keys.
    pub secret: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = f.debug_struct("Identity");
        parts.field("node", &self.node).field("cluster", &self.cluster).field("generation", &self.generation);
        parts.finish_non_exhaustive()
    }
}

/// Reads FORMAT; `None` in a new folder.
///
/// # Errors
/// `InvalidData`: damaged, of an unknown version, or missing beside other files of ours.
pub(super) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Identity>> {
    let path = dir.join(FILE);
    if disk.exists(&path) {
        let bytes = envelope::read_file(disk, &path)?;
        return envelope::unseal(&path, MAGIC, VERSION, &bytes).map(Some);
    }
    for other in ["journal", "CURRENT"] {
        if disk.exists(&dir.join(other)) {
            return Err(envelope::invalid(format!(
                "{} is missing beside {other}: the folder is damaged; restore it, or start with an empty folder as a new node",
                path.display()
            )));
        }
    }
    Ok(None)
}

/// The identity of this folder with its generation raised; made if the folder is new. Durable on return.
pub(super) fn open(host: &dyn Host, disk: &dyn Disk, dir: &Path) -> io::Result<Identity> {
    let mut identity = match read(disk, dir)? {
        Some(identity) => identity,
        None => {
            let mut secret = [0; 32];
            host.entropy(&mut secret);
            Identity { node: NodeId(host.random_id()), cluster: None, generation: Generation(0), secret }
        }
    };
    identity.generation.0 += 1;
    write(disk, dir, &identity)?;
    Ok(identity)
}

/// Writes FORMAT; durable on return.
pub(super) fn write(disk: &dyn Disk, dir: &Path, identity: &Identity) -> io::Result<()> {
    envelope::replace(disk, &dir.join(FILE), &envelope::seal(MAGIC, VERSION, identity)?)
}
