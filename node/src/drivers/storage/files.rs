//! Open segment files, a bounded number of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::locked;
use super::space::Space;
use crate::host::{Disk, DiskFile, Open};

/// Segment files kept open; the least recently used is closed first.
const FILES_OPEN_MAX: usize = 512;

/// The segment files of all replicas.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) segment_bytes: u64,
    pub(super) space: Arc<Space>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    open: BTreeMap<PathBuf, (Arc<dyn DiskFile>, u64)>,
    tick: u64,
}

impl Files {
    pub(super) fn new(disk: Arc<dyn Disk>, segment_bytes: u64, space: Arc<Space>) -> Files {
        Files { disk, segment_bytes, space, cache: Mutex::default() }
    }

    /// An open file, for reading and writing.
    pub(super) fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = locked(&self.cache).get(path) {
            return Ok(file);
        }
        let file = self.disk.open(path, Open::Write)?;
        locked(&self.cache).put(path, &file);
        Ok(file)
    }

    /// A new, empty file; its folder is made if it is missing.
    pub(super) fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(folder) = path.parent() {
            self.disk.create_dir_all(folder)?;
        }
        let file = self.disk.open(path, Open::Replace)?;
        locked(&self.cache).put(path, &file);
        Ok(file)
    }

    /// Removes a file; a failure only costs space.
    pub(super) fn remove(&self, path: &Path) {
        locked(&self.cache).open.remove(path);
        if let Err(error) = self.disk.remove(path) {
            tracing::warn!(%error, "a segment that nobody needs cannot be removed");
        }
    }

    /// Forgets the open files under a folder.
    pub(super) fn forget(&self, folder: &Path) {
        locked(&self.cache).open.retain(|path, _| !path.starts_with(folder));
    }
}

impl Cache {
    fn get(&mut self, path: &Path) -> Option<Arc<dyn DiskFile>> {
        self.tick += 1;
        let (file, used) = self.open.get_mut(path)?;
        *used = self.tick;
        Some(Arc::clone(file))
    }

    fn put(&mut self, path: &Path, file: &Arc<dyn DiskFile>) {
        self.tick += 1;
        if self.open.len() >= FILES_OPEN_MAX {
            let oldest = self.open.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            oldest.map(|path| self.open.remove(&path));
        }
        self.open.insert(path.to_owned(), (Arc::clone(file), self.tick));
    }
}
