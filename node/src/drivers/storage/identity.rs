//! FORMAT and FORMAT.copy: who a data folder belongs to. Made once, its generation raised at each open.

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
/// The same again: a damaged FORMAT is no reason for a node to lose its name.
const COPY: &str = "FORMAT.copy";

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
    /// Drawn at each open.
    #[serde(skip)]
    pub start: u64,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = f.debug_struct("Identity");
        parts.field("node", &self.node).field("cluster", &self.cluster).field("generation", &self.generation);
        parts.finish_non_exhaustive()
    }
}

/// Reads FORMAT and its copy; `None` in a new folder. Of two that can be read the newer counts: the other was damaged, or a
/// crash came between their writes.
///
/// # Errors
/// `InvalidData`: neither can be read, they are of two folders, of an unknown version, or missing beside other files of ours.
pub(super) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Identity>> {
    let mut found: Vec<Identity> = Vec::new();
    let mut failed = None;
    for path in [dir.join(FILE), dir.join(COPY)] {
        if !disk.exists(&path) {
            continue;
        }
        let read = envelope::read_file(disk, &path).and_then(|bytes| envelope::unseal(&path, MAGIC, VERSION, &bytes));
        match read {
            Ok(identity) => found.push(identity),
            Err(error) => failed = Some(error),
        }
    }
    if let [first, second] = &found[..]
        && first.node != second.node
    {
        let (path, nodes) = (dir.display(), (first.node, second.node));
        return Err(envelope::invalid(format!(
            "{path}/{FILE} is of data folder {}, {path}/{COPY} of {}: files of two nodes are mixed here; put back the right \
             one, or start with an empty folder as a new node",
            nodes.0, nodes.1
        )));
    }
    if let Some(newest) = found.into_iter().max_by_key(|identity| (identity.generation, identity.cluster.is_some())) {
        if let Some(error) = failed {
            tracing::error!(%error, "its copy is used, and it is written anew");
        }
        return Ok(Some(newest));
    }
    if let Some(error) = failed {
        return Err(error);
    }
    for other in ["journal", "CURRENT"] {
        if disk.exists(&dir.join(other)) {
            return Err(envelope::invalid(format!(
                "{} is missing beside {other}: the folder is damaged; restore it, or start with an empty folder as a new node",
                dir.join(FILE).display()
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
            Identity { node: NodeId(host.random_id()), cluster: None, generation: Generation(0), secret, start: 0 }
        }
    };
    identity.generation.0 += 1;
    identity.start = host.random_id();
    write(disk, dir, &identity)?;
    Ok(identity)
}

/// Writes FORMAT and its copy; durable on return.
pub(super) fn write(disk: &dyn Disk, dir: &Path, identity: &Identity) -> io::Result<()> {
    let bytes = envelope::seal(MAGIC, VERSION, identity)?;
    envelope::replace(disk, &dir.join(FILE), &bytes)?;
    envelope::replace(disk, &dir.join(COPY), &bytes)
}
