//! Open segment files, a bounded number of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use prometheus_client::metrics::gauge::Gauge;

use super::space::Space;
use super::{StorageConfig, locked};
use crate::host::descriptors::is_out_of_descriptors;
use crate::host::{Disk, DiskFile, Open};

/// The segment files of all replicas.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) segment_bytes: u64,
    pub(super) space: Arc<Space>,
    /// Files kept open; the least recently used is closed first.
    open_max: usize,
    pub(super) open_count: Gauge,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    open: BTreeMap<PathBuf, (Arc<dyn DiskFile>, u64)>,
    tick: u64,
}

impl Files {
    pub(super) fn new(disk: Arc<dyn Disk>, config: &StorageConfig, space: Arc<Space>) -> Files {
        let (segment_bytes, open_max) = (config.segment_bytes.0, config.files_open_max.max(1) as usize);
        Files { disk, segment_bytes, space, open_max, open_count: Gauge::default(), cache: Mutex::default() }
    }

    /// An open file, for reading and writing.
    pub(super) fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = locked(&self.cache).get(path) {
            return Ok(file);
        }
        self.opened(path, Open::Write)
    }

    /// A new, empty file; its folder is made if it is missing.
    pub(super) fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(folder) = path.parent() {
            self.disk.create_dir_all(folder)?;
        }
        self.opened(path, Open::Replace)
    }

    /// Opens a file and keeps it. When no descriptor is left, those that are kept here are given up for it.
    fn opened(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let file = match self.disk.open(path, how) {
            Err(error) if is_out_of_descriptors(&error) && self.give_up() => self.disk.open(path, how)?,
            opened => opened?,
        };
        let mut cache = locked(&self.cache);
        cache.put(path, &file, self.open_max);
        self.open_count.set(cache.open.len() as i64);
        Ok(file)
    }

    /// Closes all files that nobody works with. Returns whether there were any.
    fn give_up(&self) -> bool {
        let mut cache = locked(&self.cache);
        let before = cache.open.len();
        cache.open.retain(|_, (file, _)| Arc::strong_count(file) > 1);
        self.open_count.set(cache.open.len() as i64);
        cache.open.len() < before
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

    fn put(&mut self, path: &Path, file: &Arc<dyn DiskFile>, open_max: usize) {
        self.tick += 1;
        if self.open.len() >= open_max && !self.open.contains_key(path) {
            let oldest = self.open.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            oldest.map(|path| self.open.remove(&path));
        }
        self.open.insert(path.to_owned(), (Arc::clone(file), self.tick));
    }
}
