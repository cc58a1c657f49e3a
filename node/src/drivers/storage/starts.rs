//! STARTS: which start of each peer was met last. Without it a node that was away could take a peer's old copy for new.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use weft_cluster::ids::{NodeId, Start};

use super::envelope::{self, Magic};
use crate::host::Disk;

const MAGIC: &Magic = b"WEFTSTRT";
const VERSION: u32 = 1;
const FILE: &str = "STARTS";

/// What the folder remembers; nothing if it is new, or if the file is damaged (which is logged: the registry's copy and
/// links tell the same, a little later).
pub(super) fn read(disk: &dyn Disk, dir: &Path) -> BTreeMap<NodeId, Start> {
    let path = dir.join(FILE);
    if !disk.exists(&path) {
        return BTreeMap::new();
    }
    let read = envelope::read_file(disk, &path).and_then(|bytes| envelope::unseal(&path, MAGIC, VERSION, &bytes));
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, "what was known of the starts of other nodes is lost; they are met anew");
        BTreeMap::new()
    })
}

/// Writes it; durable on return.
pub(super) fn write(disk: &dyn Disk, dir: &Path, starts: &BTreeMap<NodeId, Start>) -> io::Result<()> {
    envelope::replace(disk, &dir.join(FILE), &envelope::seal(MAGIC, VERSION, starts)?)
}
