//! A host for unit tests: tokio's current thread, inline blocking work, seeded dice, and a file system in
//! memory that loses, tears, flips and fills as it is told.

#![allow(clippy::disallowed_methods, reason = "a host spawns the tasks")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_cluster::ids::Millis;

use super::descriptors::out_of_descriptors;
use super::{Connection, Disk, DiskFile, Host, Listener, Open, Promise, SocketBuffers, Work};

/// Sectors of this size are written whole or not at all when the power goes.
const SECTOR_BYTES: u64 = 512;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A small seeded generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next random number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }
}

/// A host without network. `abort` panics in the task that called it and is noted.
pub struct TestHost {
    disk: MemoryDisk,
    dice: Mutex<Dice>,
    wall: Mutex<i64>,
    aborted: Mutex<Option<String>>,
}

impl TestHost {
    /// A host on `disk` whose dice start from `seed`.
    pub fn new(disk: MemoryDisk, seed: u64) -> Arc<TestHost> {
        Arc::new(TestHost {
            disk,
            dice: Mutex::new(Dice(seed)),
            wall: Mutex::new(1_700_000_000_000),
            aborted: Mutex::new(None),
        })
    }

    /// Why the process would have ended, if it would have.
    pub fn aborted(&self) -> Option<String> {
        locked(&self.aborted).clone()
    }

    /// Moves the wall clock.
    pub fn set_wall(&self, millis: i64) {
        *locked(&self.wall) = millis;
    }
}

impl Host for TestHost {
    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }
    fn quic<'a>(
        &'a self,
        _bind: SocketAddr,
        _buffers: SocketBuffers,
        _config: quinn::EndpointConfig,
        _server: quinn::ServerConfig,
    ) -> Promise<'a, io::Result<(quinn::Endpoint, SocketBuffers)>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
    fn listen<'a>(&'a self, _bind: SocketAddr) -> Promise<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
    fn connect<'a>(&'a self, _to: SocketAddr) -> Promise<'a, io::Result<Connection>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
    fn resolve<'a>(&'a self, _name: &'a str) -> Promise<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
    fn wall(&self) -> Millis {
        Millis(*locked(&self.wall))
    }
    fn entropy(&self, buffer: &mut [u8]) {
        let mut dice = locked(&self.dice);
        buffer.iter_mut().for_each(|byte| *byte = dice.roll() as u8);
    }
    fn blocking(&self, work: Work) -> Promise<'static, ()> {
        let hang = locked(&self.disk.state).hang;
        Box::pin(async move {
            if hang {
                std::future::pending::<()>().await;
            }
            // Others run first, as they would while a thread works.
            tokio::task::yield_now().await;
            work();
        })
    }
    fn spawn(&self, task: Promise<'static, ()>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(task)
    }
    fn abort(&self, reason: &str) -> ! {
        *locked(&self.aborted) = Some(reason.to_owned());
        panic!("abort: {reason}");
    }
}

/// What a crash keeps of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing.
    LoseAll,
    /// A seeded choice, per sector and per directory entry.
    Some(u64),
}

/// A file system in memory that keeps what is not synced apart. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    /// What processes see, and what a power loss would leave. `None`: a folder.
    live: BTreeMap<PathBuf, Option<u64>>,
    durable: BTreeMap<PathBuf, Option<u64>>,
    entries: Vec<EntryChange>,
    locks: BTreeSet<PathBuf>,
    inode_next: u64,
    capacity: Option<u64>,
    broken: Option<String>,
    hang: bool,
    syncs: u64,
    no_descriptors: bool,
}

#[derive(Default)]
struct Inode {
    path: PathBuf,
    live: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
}

enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

enum EntryChange {
    Link(PathBuf, Option<u64>),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

impl EntryChange {
    fn folder(&self) -> Option<&Path> {
        match self {
            EntryChange::Link(path, _) | EntryChange::Unlink(path) | EntryChange::Rename(_, path, _) => path.parent(),
        }
    }

    fn apply(self, entries: &mut BTreeMap<PathBuf, Option<u64>>) {
        match self {
            EntryChange::Link(path, inode) => drop(entries.insert(path, inode)),
            EntryChange::Unlink(path) => drop(entries.remove(&path)),
            EntryChange::Rename(from, to, inode) => {
                if entries.get(&from) == Some(&Some(inode)) {
                    entries.remove(&from);
                }
                entries.insert(to, Some(inode));
            }
        }
    }
}

fn write_into(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let end = at as usize + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at as usize..end].copy_from_slice(data);
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, data) => write_into(bytes, *at, data),
            Change::Length(length) => bytes.resize(*length as usize, 0),
        }
    }
}

impl MemoryDisk {
    /// The power goes: what was not synced is lost, or kept in part. No process may use the disk meanwhile.
    pub fn crash(&self, crash: Crash) {
        let mut state = locked(&self.state);
        let state = &mut *state;
        let mut dice = Dice(match crash {
            Crash::LoseAll => 0,
            Crash::Some(seed) => seed,
        });
        let mut keep = |out_of: u64| crash != Crash::LoseAll && dice.below(out_of) != 0;
        for inode in state.inodes.values_mut() {
            for change in inode.changes.drain(..) {
                match change {
                    Change::Length(_) if keep(2) => change.apply(&mut inode.durable),
                    Change::Length(_) => {}
                    Change::Write(at, data) => {
                        let mut done = 0;
                        while done < data.len() {
                            let to_edge = (SECTOR_BYTES - (at + done as u64) % SECTOR_BYTES) as usize;
                            let count = to_edge.min(data.len() - done);
                            if keep(3) {
                                write_into(&mut inode.durable, at + done as u64, &data[done..done + count]);
                            }
                            done += count;
                        }
                    }
                }
            }
            inode.live = inode.durable.clone();
        }
        for change in state.entries.drain(..) {
            if keep(2) {
                change.apply(&mut state.durable);
            }
        }
        state.live = state.durable.clone();
        state.locks.clear();
    }

    /// Flips one bit of a file, on the platter.
    pub fn flip(&self, path: &Path, byte: u64, bit: u8) {
        self.corrupt(path, |bytes| bytes[byte as usize] ^= 1 << bit);
    }

    /// Changes a file's bytes behind everyone's back.
    pub fn corrupt(&self, path: &Path, change: impl Fn(&mut Vec<u8>)) {
        let mut state = locked(&self.state);
        let inode = state.live.get(path).copied().flatten().expect("the file exists");
        let inode = state.inodes.get_mut(&inode).expect("entries name inodes");
        change(&mut inode.live);
        inode.durable = inode.live.clone();
        inode.changes.clear();
    }

    /// A file's bytes as processes see them.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = locked(&self.state);
        let inode = state.live.get(path).copied().flatten()?;
        state.inodes.get(&inode).map(|inode| inode.live.clone())
    }

    /// All files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        locked(&self.state).live.iter().filter(|(_, inode)| inode.is_some()).map(|(path, _)| path.clone()).collect()
    }

    /// Writes fail with `StorageFull` beyond this many bytes in all files; `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        locked(&self.state).capacity = bytes;
    }

    /// Writes and syncs of files whose path contains `part` fail as a broken disk does; `None`: healed.
    pub fn set_broken(&self, part: Option<&str>) {
        locked(&self.state).broken = part.map(str::to_owned);
    }

    /// Blocking work that starts from now on never ends.
    pub fn set_hang(&self, hang: bool) {
        locked(&self.state).hang = hang;
    }

    /// Opens find no descriptor.
    pub fn set_no_descriptors(&self, none: bool) {
        locked(&self.state).no_descriptors = none;
    }

    /// How often a file was synced.
    pub fn syncs(&self) -> u64 {
        locked(&self.state).syncs
    }
}

impl State {
    fn used(&self) -> u64 {
        self.live
            .values()
            .flatten()
            .filter_map(|inode| self.inodes.get(inode))
            .map(|inode| inode.live.len() as u64)
            .sum()
    }

    fn descriptor(&self, path: &Path) -> io::Result<()> {
        match self.no_descriptors {
            true => Err(out_of_descriptors(format!("open {}: too many open files", path.display()))),
            false => Ok(()),
        }
    }

    fn check(&self, path: &Path) -> io::Result<()> {
        match &self.broken {
            Some(part) if path.to_string_lossy().contains(part.as_str()) => {
                Err(io::Error::other(format!("input/output error on {}", path.display())))
            }
            _ => Ok(()),
        }
    }

    fn missing(path: &Path) -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = locked(&self.state);
        state.descriptor(path)?;
        let found = state.live.get(path).copied();
        let inode = match (found, how) {
            (Some(None), _) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(Some(_)), Open::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(Some(inode)), _) => inode,
            (None, Open::Read | Open::Write) => return Err(State::missing(path)),
            (None, Open::Create | Open::Replace) => {
                if path.parent().is_none_or(|folder| state.live.get(folder) != Some(&None)) {
                    return Err(State::missing(path.parent().unwrap_or(path)));
                }
                state.inode_next += 1;
                let inode = state.inode_next;
                state.inodes.insert(inode, Inode { path: path.to_owned(), ..Inode::default() });
                state.live.insert(path.to_owned(), Some(inode));
                state.entries.push(EntryChange::Link(path.to_owned(), Some(inode)));
                inode
            }
        };
        let file = MemoryFile { disk: self.clone(), inode };
        drop(state);
        if how == Open::Replace {
            file.set_len(0)?;
        }
        Ok(Arc::new(file))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        let mut above: Vec<_> = path.ancestors().filter(|folder| !folder.as_os_str().is_empty()).collect();
        above.reverse();
        for folder in above {
            if !state.live.contains_key(folder) {
                state.live.insert(folder.to_owned(), None);
                state.entries.push(EntryChange::Link(folder.to_owned(), None));
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        state.check(to)?;
        let inode = state.live.get(from).copied().flatten().ok_or_else(|| State::missing(from))?;
        state.live.remove(from);
        state.live.insert(to.to_owned(), Some(inode));
        state.entries.push(EntryChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        state.live.get(path).copied().flatten().ok_or_else(|| State::missing(path))?;
        state.live.remove(path);
        state.entries.push(EntryChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        if state.live.get(path) != Some(&None) {
            return Err(State::missing(path));
        }
        let gone: Vec<_> = state.live.keys().filter(|name| name.starts_with(path)).cloned().collect();
        for name in gone {
            state.live.remove(&name);
            state.entries.push(EntryChange::Unlink(name));
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let state = locked(&self.state);
        if state.live.get(path) != Some(&None) {
            return Err(State::missing(path));
        }
        let names = state.live.keys().filter(|name| name.parent() == Some(path));
        Ok(names.filter_map(|name| name.file_name()).map(PathBuf::from).collect())
    }

    fn exists(&self, path: &Path) -> bool {
        locked(&self.state).live.contains_key(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        let state = &mut *state;
        state.descriptor(path)?;
        state.check(path)?;
        let (now, later) = std::mem::take(&mut state.entries)
            .into_iter()
            .partition::<Vec<_>, _>(|change| change.folder() == Some(path));
        state.entries = later;
        now.into_iter().for_each(|change| change.apply(&mut state.durable));
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = locked(&self.state);
        Ok(state.capacity.unwrap_or(u64::MAX / 2).saturating_sub(state.used()))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        if !locked(&self.state).locks.insert(path.to_owned()) {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("{} is held by another process", path.display()),
            ));
        }
        Ok(Box::new(MemoryLock { disk: self.clone(), path: path.to_owned() }))
    }
}

struct MemoryLock {
    disk: MemoryDisk,
    path: PathBuf,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        locked(&self.disk.state).locks.remove(&self.path);
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    inode: u64,
}

impl MemoryFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = locked(&self.disk.state);
        let inode = state.inodes.get(&self.inode).expect("inodes stay");
        state.check(&inode.path)?;
        if let Some(capacity) = state.capacity {
            let end = match &change {
                Change::Write(at, data) => at + data.len() as u64,
                Change::Length(length) => *length,
            };
            if state.used() + end.saturating_sub(inode.live.len() as u64) > capacity {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"));
            }
        }
        let inode = state.inodes.get_mut(&self.inode).expect("inodes stay");
        change.apply(&mut inode.live);
        inode.changes.push(change);
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = locked(&self.disk.state);
        let live = &state.inodes.get(&self.inode).expect("inodes stay").live;
        let from = live.len().min(at as usize);
        let count = buffer.len().min(live.len() - from);
        buffer[..count].copy_from_slice(&live[from..from + count]);
        Ok(count)
    }
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.change(Change::Write(at, data.to_vec()))
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut state = locked(&self.disk.state);
        state.syncs += 1;
        let inode = state.inodes.get(&self.inode).expect("inodes stay");
        state.check(&inode.path)?;
        let inode = state.inodes.get_mut(&self.inode).expect("inodes stay");
        for change in std::mem::take(&mut inode.changes) {
            change.apply(&mut inode.durable);
        }
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.disk.state).inodes.get(&self.inode).expect("inodes stay").live.len() as u64)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.change(Change::Length(bytes))
    }
}
