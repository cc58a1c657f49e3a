//! A disk in memory that loses what was not synced.
//!
//! Power loss: of each file, any subset of the 512-byte blocks written since its last sync survives; of the
//! changes to folders that no `sync_dir` covers, a prefix does; of a disk that lies, nothing does. A kill keeps everything: the page cache outlives
//! the process. Faults (a flipped bit, a disk that lies about sync, hangs, fails or is full) are set, and contents
//! read, from outside the simulated host; that is why this is not turmoil's file system.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use weft_node::host::{Disk, DiskFile, Open};

/// What a disk writes at once or not at all.
const BLOCK: usize = 512;

/// A simulated disk. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, Entry>,
    /// Changes of names that no `sync_dir` covers yet, oldest first.
    unsynced: Vec<Vec<Change>>,
    locks: BTreeMap<PathBuf, u64>,
    next: u64,
    /// Grows when the process that uses the disk dies; its handles are void from then on.
    boot: u64,
    faults: Faults,
    syncs: u64,
}

/// What is wrong with a disk.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Syncs say yes and do nothing.
    pub lies: bool,
    /// Work on the disk does not return.
    pub hangs: bool,
    /// Work on the disk takes so much longer.
    pub slow: Duration,
    /// Writes and syncs fail.
    pub fails: bool,
    /// Bytes that fit.
    pub capacity: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Faults { lies: false, hangs: false, slow: Duration::ZERO, fails: false, capacity: 8 << 30 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    File(u64),
}

struct Change {
    path: PathBuf,
    before: Option<Entry>,
}

#[derive(Default)]
struct Inode {
    data: Vec<u8>,
    /// Length at the last sync.
    synced_len: u64,
    /// What each block written since the last sync held before.
    before: BTreeMap<usize, [u8; BLOCK]>,
}

impl Inode {
    /// Remembers what blocks `from..to` (bytes) hold, before they change.
    fn remember(&mut self, from: usize, to: usize) {
        for block in from / BLOCK..to.div_ceil(BLOCK) {
            self.before.entry(block).or_insert_with(|| {
                let mut old = [0; BLOCK];
                let start = (block * BLOCK).min(self.data.len());
                let end = (start + BLOCK).min(self.data.len());
                old[..end - start].copy_from_slice(&self.data[start..end]);
                old
            });
        }
    }

    fn write(&mut self, data: &[u8], at: usize) {
        let end = at + data.len();
        self.remember(at.min(self.data.len()), end);
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[at..end].copy_from_slice(data);
    }

    fn set_len(&mut self, len: usize) {
        self.remember(len.min(self.data.len()), len.max(self.data.len()));
        self.data.resize(len, 0);
    }

    fn synced(&mut self) {
        self.before.clear();
        self.synced_len = self.data.len() as u64;
    }

    /// Each block written since the last sync survives with the probability `kept`.
    fn lose_power(&mut self, dice: &mut StdRng, kept: f64) {
        let len = if dice.random_bool(kept) { self.data.len() } else { self.synced_len as usize };
        self.data.resize(self.data.len().max(self.synced_len as usize), 0);
        for (block, old) in std::mem::take(&mut self.before) {
            let start = (block * BLOCK).min(self.data.len());
            let end = (start + BLOCK).min(self.data.len());
            if !dice.random_bool(kept) {
                self.data[start..end].copy_from_slice(&old[..end - start]);
            }
        }
        self.data.resize(len, 0);
        self.synced_len = len as u64;
    }
}

impl State {
    fn usable(&self, boot: u64) -> io::Result<()> {
        if self.boot == boot { Ok(()) } else { Err(io::Error::other("the process that opened this is gone")) }
    }

    fn writable(&self, boot: u64) -> io::Result<()> {
        self.usable(boot)?;
        if self.faults.fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|inode| inode.data.len() as u64).sum()
    }

    fn room_for(&self, more: u64) -> io::Result<()> {
        // Summing all files is only needed when the disk is small enough to fill.
        if self.faults.capacity < 1 << 30 && self.used() + more > self.faults.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn set(&mut self, path: &Path, entry: Option<Entry>) -> Change {
        let before = match entry {
            Some(entry) => self.names.insert(path.to_owned(), entry),
            None => self.names.remove(path),
        };
        Change { path: path.to_owned(), before }
    }

    fn change(&mut self, path: &Path, entry: Option<Entry>) {
        let change = self.set(path, entry);
        self.unsynced.push(vec![change]);
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Entry::File(inode)) => Ok(*inode),
            Some(Entry::Folder) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn parent_exists(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() || parent == Path::new("/") => Ok(()),
            Some(parent) if self.names.get(parent) == Some(&Entry::Folder) => Ok(()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&mut self, path: &Path) -> io::Result<u64> {
        self.parent_exists(path)?;
        self.room_for(0)?;
        self.next += 1;
        let inode = self.next;
        self.inodes.insert(inode, Inode::default());
        self.change(path, Some(Entry::File(inode)));
        Ok(inode)
    }

    fn below(&self, path: &Path) -> Vec<PathBuf> {
        self.names
            .range(path.to_owned()..)
            .map(|(name, _)| name)
            .take_while(|name| name.starts_with(path))
            .cloned()
            .collect()
    }
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The process is gone: its handles are void, its locks are free, what it wrote stays.
    pub fn process_gone(&self) {
        let mut state = self.state();
        state.boot += 1;
        state.locks.clear();
    }

    /// The power fails: what was not synced survives in part.
    pub fn lose_power(&self, dice: &mut StdRng) {
        self.process_gone();
        let mut state = self.state();
        // A disk that lies has a cache of its own, and loses the whole of it.
        let lies = state.faults.lies;
        let names_kept = if lies { 0 } else { dice.random_range(0..=state.unsynced.len()) };
        for changes in state.unsynced.split_off(names_kept).into_iter().rev() {
            for Change { path, before } in changes.into_iter().rev() {
                if before.is_none() {
                    // A folder that never was takes with it what is in it.
                    for name in state.below(&path) {
                        state.names.remove(&name);
                    }
                } else if let Some(entry) = before {
                    state.names.insert(path, entry);
                }
            }
        }
        state.unsynced.clear();
        let State { inodes, names, .. } = &mut *state;
        inodes.values_mut().for_each(|inode| inode.lose_power(dice, if lies { 0.0 } else { 0.5 }));
        let named: BTreeSet<u64> = names
            .values()
            .filter_map(|entry| if let Entry::File(inode) = entry { Some(*inode) } else { None })
            .collect();
        inodes.retain(|inode, _| named.contains(inode));
    }

    /// Changes what is wrong with the disk.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// Makes the disk so small that so many bytes more fit.
    pub fn leave_room(&self, bytes: u64) {
        let mut state = self.state();
        state.faults.capacity = state.used() + bytes;
    }

    /// What is wrong with the disk.
    pub fn faults(&self) -> Faults {
        self.state().faults.clone()
    }

    /// All files with their lengths, by name.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state();
        let files = state.names.iter().filter_map(|(path, entry)| match entry {
            Entry::File(inode) => Some((path.clone(), state.inodes.get(inode)?.data.len() as u64)),
            Entry::Folder => None,
        });
        files.collect()
    }

    /// A whole file, as the page cache has it.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        let inode = state.file(path)?;
        Ok(state.inodes[&inode].data.clone())
    }

    /// Puts a file there, durable, with the folders above it.
    pub fn place(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        for folder in path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            state.names.entry(folder.to_owned()).or_insert(Entry::Folder);
        }
        state.next += 1;
        let inode = state.next;
        let mut content = Inode { data: data.to_vec(), ..Inode::default() };
        content.synced();
        state.inodes.insert(inode, content);
        state.names.insert(path.to_owned(), Entry::File(inode));
        Ok(())
    }

    /// Flips one bit of a file, on the medium.
    pub fn flip(&self, path: &Path, at: u64, bit: u8) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.file(path)?;
        let data = &mut state.inodes.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?.data;
        *data.get_mut(at as usize).ok_or(io::ErrorKind::UnexpectedEof)? ^= 1 << (bit % 8);
        Ok(())
    }

    /// Removes all that is below a folder, durably. No process may use it.
    pub fn clear(&self, folder: &Path) {
        let mut state = self.state();
        for name in state.below(folder) {
            state.names.remove(&name);
        }
        // Who may have changed what matters no more.
        state.unsynced.clear();
    }

    /// File syncs so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// A handle for a process that starts now.
    pub(crate) fn mount(&self) -> Arc<dyn Disk> {
        Arc::new(Mount { boot: self.state().boot, disk: self.clone() })
    }
}

/// The disk as one process sees it.
struct Mount {
    disk: SimDisk,
    boot: u64,
}

struct SimFile {
    disk: SimDisk,
    boot: u64,
    inode: u64,
    writable: bool,
}

struct LockGuard {
    disk: SimDisk,
    path: PathBuf,
    token: u64,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.locks.get(&self.path) == Some(&self.token) {
            state.locks.remove(&self.path);
        }
    }
}

impl Disk for Mount {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.disk.state();
        state.usable(self.boot)?;
        let there = state.file(path);
        let inode = match (how, there) {
            (Open::Read | Open::Write, there) => there?,
            (Open::Create, Ok(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Open::Replace, Ok(inode)) => {
                state.writable(self.boot)?;
                state.inodes.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?.set_len(0);
                inode
            }
            (Open::Create | Open::Replace, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                state.writable(self.boot)?;
                state.create(path)?
            }
            (Open::Create | Open::Replace, Err(error)) => return Err(error),
        };
        let writable = how != Open::Read;
        Ok(Arc::new(SimFile { disk: self.disk.clone(), boot: self.boot, inode, writable }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.boot)?;
        let mut missing: Vec<&Path> = path
            .ancestors()
            .filter(|folder| !folder.as_os_str().is_empty() && *folder != Path::new("/"))
            .filter(|folder| !state.names.contains_key(*folder))
            .collect();
        missing.reverse();
        missing.iter().for_each(|folder| state.change(folder, Some(Entry::Folder)));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.boot)?;
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.parent_exists(to)?;
        let mut changes = Vec::new();
        for old in state.below(from) {
            let inside = old.strip_prefix(from).map_err(io::Error::other)?;
            let new = if inside.as_os_str().is_empty() { to.to_owned() } else { to.join(inside) };
            let entry = state.names.get(&old).copied();
            changes.push(state.set(&old, None));
            changes.push(state.set(&new, entry));
        }
        state.unsynced.push(changes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.boot)?;
        state.file(path)?;
        state.change(path, None);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.boot)?;
        if state.names.get(path) != Some(&Entry::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let changes = state.below(path).iter().rev().map(|name| state.set(name, None)).collect();
        state.unsynced.push(changes);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.disk.state();
        state.usable(self.boot)?;
        if path != Path::new("/") && state.names.get(path) != Some(&Entry::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = state.below(path);
        Ok(names
            .iter()
            .filter(|name| name.parent() == Some(path))
            .filter_map(|name| name.file_name().map(PathBuf::from))
            .collect())
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.state().names.contains_key(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.boot)?;
        if !state.faults.lies {
            state.unsynced.retain(|changes| !changes.iter().all(|change| change.path.parent() == Some(path)));
        }
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.disk.state();
        state.usable(self.boot)?;
        Ok(state.faults.capacity.saturating_sub(state.used()))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.disk.state();
        state.usable(self.boot)?;
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if state.file(path).is_err() {
            state.create(path)?;
        }
        state.next += 1;
        let token = state.next;
        state.locks.insert(path.to_owned(), token);
        Ok(Box::new(LockGuard { disk: self.disk.clone(), path: path.to_owned(), token }))
    }
}

impl SimFile {
    fn change<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        state.writable(self.boot)?;
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        work(&mut state)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.state();
        state.usable(self.boot)?;
        let data = &state.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?.data;
        let start = (at as usize).min(data.len());
        let count = buffer.len().min(data.len() - start);
        buffer[..count].copy_from_slice(&data[start..start + count]);
        Ok(count)
    }

    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.change(|state| {
            let len = state.inodes.get(&self.inode).map_or(0, |inode| inode.data.len() as u64);
            state.room_for((at + data.len() as u64).saturating_sub(len))?;
            state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?.write(data, at as usize);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.boot)?;
        state.syncs += 1;
        if !state.faults.lies {
            state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?.synced();
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.usable(self.boot)?;
        Ok(state.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?.data.len() as u64)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.change(|state| {
            let inode = state.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
            state.room_for(bytes.saturating_sub(inode.data.len() as u64))?;
            state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?.set_len(bytes as usize);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
