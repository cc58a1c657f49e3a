//! Storage: the journal that all Raft groups of a node share, the segments that hold the events, and the
//! checkpoints that let the journal be recycled. It knows bytes and positions, not Raft and not protobuf
//! of others' making.

mod checkpoint;
mod config;
mod dump;
mod envelope;
mod files;
mod frame;
mod group;
mod identity;
mod inner;
mod journal;
mod meta;
mod metrics;
mod open;
mod recovery;
mod scan;
mod scrub;
mod segments;
mod slots;
mod space;
mod staging;
mod starts;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;
use weft_cluster::ids::{LogPosition, NodeId, Offset, PartitionId, RaftGroup, Start};

pub use config::StorageConfig;
pub use dump::{DumpReport, dump};
pub use identity::Identity;
pub use metrics::Metrics;
pub use space::is_full;
pub(crate) use space::{FULL_PAUSE, lack};
pub use staging::Staging;

use crate::host::{Host, Tasks};
use group::Group;
use inner::Inner;
use segments::ShardFiles;

/// Locks a leaf mutex. A panic while it was held leaves plain data behind, so that poison says nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Called once, from the journal's task, when what it belongs to is durable, or will never be.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A log entry: `payload` is opaque here (an encoded `internal.v1.EntryPayload`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Term and index.
    pub at: LogPosition,
    /// The bytes.
    pub payload: Bytes,
}

/// A Raft vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredVote {
    /// The term.
    pub term: u64,
    /// The replica id voted for, if any.
    pub voted_for: Option<u64>,
    /// Whether that replica is known to lead the term.
    pub committed: bool,
}

/// What a group's log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// All up to here is purged.
    pub purged: Option<LogPosition>,
    /// The last entry, or `purged`.
    pub last: Option<LogPosition>,
    /// The last vote saved.
    pub vote: Option<StoredVote>,
    /// The last committed position saved; may be behind.
    pub committed: Option<LogPosition>,
}

/// A group found on disk at the start.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    /// Which.
    pub group: RaftGroup,
    /// The replica id this data belongs to.
    pub replica: u64,
    /// The state of its last checkpoint (an encoded `ShardState` or `RegistryState`), if there was one, and
    /// the position it reflects. Entries after it are in the log and are applied again by Raft.
    pub checkpoint: Option<(LogPosition, Bytes)>,
    /// If set, its data failed a check: it must not vote, ack or serve; the reason for a person.
    pub fenced: Option<String>,
}

/// A replica that takes part in checkpoints.
pub trait Checkpointed: Send + Sync + 'static {
    /// The applied position and the encoded state at it, consistent with what has been written to the
    /// group's segments so far. `None`: nothing applied since the last checkpoint, or no room for it.
    fn freeze(&self) -> Option<(LogPosition, Bytes)>;
    /// A checkpoint that covers `at` is durable: the log up to it may be purged.
    fn checkpointed(&self, at: LogPosition);
}

/// The storage of this node. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<Inner>,
}

impl Storage {
    /// Locks and opens (or creates) a data folder, recovers it and starts the journal and checkpoint tasks.
    ///
    /// # Errors
    /// Another process holds it; its format is unknown or of another node; the disk fails. The message
    /// names the file and says what would be right.
    pub async fn open(
        host: Arc<dyn Host>,
        dir: PathBuf,
        config: StorageConfig,
        tasks: &Tasks,
    ) -> io::Result<(Storage, Vec<RecoveredGroup>)> {
        let (inner, recovered) = Inner::open(host, dir, config, tasks).await?;
        Ok((Storage { inner }, recovered))
    }

    /// Who this folder belongs to.
    pub fn identity(&self) -> Identity {
        locked(&self.inner.identity).clone()
    }

    /// The newest start of each peer that this folder remembers.
    pub async fn starts(&self) -> BTreeMap<NodeId, Start> {
        self.inner.starts().await
    }

    /// Remembers starts of peers. A disk that does not take them is logged: what is known in memory stays known.
    pub async fn keep_starts(&self, starts: BTreeMap<NodeId, Start>) {
        self.inner.keep_starts(starts).await;
    }

    /// Writes the cluster id into FORMAT, once.
    ///
    /// # Errors
    /// `AlreadyExists` if another cluster's is there; the disk's.
    pub async fn join_cluster(&self, cluster: u64) -> io::Result<()> {
        self.inner.join_cluster(cluster).await
    }

    /// Makes a group with its replica id; durable when it returns. Made again with the same replica, it is returned.
    ///
    /// # Errors
    /// `AlreadyExists`: the group is there with another replica id, or fenced: delete it first.
    pub async fn create_group(&self, group: RaftGroup, replica: u64) -> io::Result<GroupLog> {
        let group = self.inner.create_group(group, replica).await?;
        Ok(GroupLog { inner: Arc::clone(&self.inner), group })
    }

    /// The log of a group that exists.
    pub fn log(&self, group: RaftGroup) -> Option<GroupLog> {
        let group = self.inner.group(group)?;
        Some(GroupLog { inner: Arc::clone(&self.inner), group })
    }

    /// Removes a group, its log and its segments. Without effect if it is not there.
    pub async fn delete_group(&self, group: RaftGroup) -> io::Result<()> {
        self.inner.delete_group(group).await
    }

    /// The segments of a shard's replica. Of a group that does not exist: nothing can be read or written.
    pub fn segments(&self, group: RaftGroup) -> Segments {
        Segments { inner: Arc::clone(&self.inner), group: self.inner.group(group) }
    }

    /// Registers a replica for checkpoints; it is asked until the group is deleted.
    pub fn register(&self, group: RaftGroup, replica: Arc<dyn Checkpointed>) {
        locked(&self.inner.registered).insert(group.0, replica);
    }

    /// What was found wrong with a group's segments by a reader or the scrub, until the group is deleted. Its log is
    /// sound, so that its replica can hand over before it is fenced.
    pub fn damage(&self, group: RaftGroup) -> Option<String> {
        self.inner.group(group)?.damage()
    }

    /// Whether this folder has ever lost frames of its journal of which it is not known whom they concern. A group that
    /// is not here may have been created, and have voted, in one of them: it must not come back under the replica id
    /// that it may have had.
    pub fn lost(&self) -> bool {
        self.inner.lost
    }

    /// Nothing of the group is read or written any more.
    pub fn fence(&self, group: RaftGroup, reason: &str) {
        if let Some(group) = self.inner.group(group) {
            group.fence(&mut locked(&group.log), &self.inner, reason.to_owned());
        }
    }

    /// Takes a checkpoint now and waits for it (stop, snapshot).
    pub async fn checkpoint(&self) -> io::Result<()> {
        self.inner.checkpoint().await
    }

    /// True while free space is under the watermark: publishes are refused, all else goes on.
    pub fn full(&self) -> bool {
        self.inner.space.full()
    }

    /// Whether `full` was true at the last look (every second), published on change.
    pub fn full_watch(&self) -> watch::Receiver<bool> {
        self.inner.space.watch()
    }

    /// True while the disk is full and the journal has no file left to go on in: what can be left out is left out.
    pub fn cramped(&self) -> bool {
        self.inner.space.scarce() && self.inner.journal.slots.count().1 == 0
    }

    /// What the storage counts, to be registered.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Flushes, takes a last checkpoint, writes a seal and releases the lock. To be called before the tasks are
    /// told to stop: after that there is nobody left to write.
    pub async fn close(&self) {
        self.inner.close().await;
    }
}

/// The log of one group. Cheap to clone. Writes are ordered as called, over all kinds.
#[derive(Clone)]
pub struct GroupLog {
    inner: Arc<Inner>,
    group: Arc<Group>,
}

impl GroupLog {
    /// What the log holds.
    pub fn state(&self) -> LogState {
        locked(&self.group.log).state()
    }

    /// The term of an entry that is here, or was purged last.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        locked(&self.group.log).term_at(index)
    }

    /// The replica id given at creation.
    pub fn replica(&self) -> u64 {
        self.group.replica
    }

    /// Appends entries, dense after the last. Readable when this returns; durable when `done` is called. Entries
    /// that do not follow the last are refused through `done`, all of them. A payload is at most 1 GiB.
    pub fn append(&self, entries: Vec<LogEntry>, done: Done) {
        self.group.append(&self.inner, entries, done);
    }

    /// Saves a vote; binding once `done` is called.
    pub fn save_vote(&self, vote: StoredVote, done: Done) {
        self.group.save_vote(&self.inner, vote, done);
    }

    /// Notes what is committed, with the next frame that is written anyway.
    pub fn save_committed(&self, at: LogPosition) {
        self.group.save_committed(&self.inner, at);
    }

    /// Removes all entries after `last` (all, if `None`).
    pub fn truncate_after(&self, last: Option<LogPosition>, done: Done) {
        self.group.truncate_after(&self.inner, last, done);
    }

    /// Forgets entries up to and including `at`; without effect on what a checkpoint does not cover.
    pub fn purge(&self, at: LogPosition, done: Done) {
        self.group.purge(&self.inner, at, done);
    }

    /// Entries of `range` that exist, in order, from the first on while they fit `bytes_max` (at least one).
    /// An entry read back from disk has its CRC checked; a mismatch is `InvalidData` and fences the group.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        self.group.read(&self.inner, range, bytes_max)
    }
}

/// The segments of one shard's replica: per partition, an append-only series of files of batches. Cheap to clone.
#[derive(Clone)]
pub struct Segments {
    inner: Arc<Inner>,
    group: Option<Arc<Group>>,
}

/// A segment file that a snapshot names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The partition.
    pub partition: PartitionId,
    /// The offset of its first event; with the partition it names the file.
    pub base: Offset,
    /// Bytes that count.
    pub bytes: u64,
    /// CRC-32C of those bytes.
    pub crc: u32,
}

impl Segments {
    fn files(&self) -> io::Result<&ShardFiles> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the group does not exist here");
        self.group.as_ref().map(|group| &*group.files).ok_or_else(missing)
    }

    /// Appends a stamped batch (weft-batch: `header` and `body` are parts of one batch) to a partition.
    /// Readers see it at once. Buffered until `flush`; not durable before the next checkpoint: the journal still has it. Writing
    /// what is already there again (after recovery) is accepted if it is byte for byte the same.
    ///
    /// # Errors
    /// `InvalidData`: header, body and `base` do not belong together, `base` does not follow, or another batch is
    /// stored there.
    pub fn append(&self, partition: PartitionId, base: Offset, header: Bytes, body: Bytes) -> io::Result<()> {
        self.files()?.append(partition, base, header, body)
    }

    /// Writes what `append` buffered if it is 128 KiB or more; else it waits for more, at most until the next checkpoint.
    ///
    /// # Errors
    /// As `flush`.
    pub fn flush_much(&self) -> io::Result<()> {
        self.files()?.flush_much()
    }

    /// Writes what `append` buffered, one write per file.
    ///
    /// # Errors
    /// One of which [`is_full`] is true: nothing is lost, the next call tries again. Any other is the disk's.
    pub fn flush(&self) -> io::Result<()> {
        self.files()?.flush()
    }

    /// Stored batches from the one that contains `from` on, while they fit `bytes_max` (at least one), in
    /// order; empty at the end. Each batch's CRCs are checked: a bad one is `InvalidData`, never returned, and noted
    /// as damage of the group.
    pub fn read(&self, partition: PartitionId, from: Offset, bytes_max: usize) -> io::Result<Vec<Bytes>> {
        let read = self.files()?.read(partition, from, bytes_max);
        if let (Err(error), Some(group)) = (&read, &self.group)
            && error.kind() == io::ErrorKind::InvalidData
        {
            group.note_damage(&self.inner, error);
        }
        read
    }

    /// Stored bytes of a partition.
    pub fn bytes(&self, partition: PartitionId) -> u64 {
        self.files().map_or(0, |files| files.bytes(partition))
    }

    /// Removes a partition's files (unlinked once no checkpoint or pin needs them).
    pub fn drop_partition(&self, partition: PartitionId) -> io::Result<()> {
        self.files()?.drop_partition(partition);
        Ok(())
    }

    /// The files that hold all appended so far; pinned until the returned guard drops.
    pub fn manifest(&self) -> io::Result<(Vec<SegmentInfo>, Box<dyn Send + Sync>)> {
        self.files()?.manifest()
    }

    /// Reads a part of a named file, for a peer that installs a snapshot; shorter at the end of what was named.
    pub fn read_file(&self, file: &SegmentInfo, at: u64, bytes: usize) -> io::Result<Bytes> {
        self.files()?.read_file(file, at, bytes)
    }

    /// Starts to receive a snapshot: says which files of `wanted` are missing or differ here.
    ///
    /// # Errors
    /// One of which [`is_full`] is true: they would take the disk to its watermark.
    pub fn stage(&self, wanted: &[SegmentInfo]) -> io::Result<Staging> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the group does not exist here");
        let group = self.group.as_ref().ok_or_else(missing)?;
        // What waits may be what is missing.
        group.files.flush()?;
        let staging = Staging::start(&self.inner, group, wanted);
        let bytes = staging.missing.iter().map(|file| file.bytes).sum();
        if bytes > 0 && !self.inner.space.has_room_for(bytes) {
            let message = format!("the disk has no room for a snapshot of {bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        }
        Ok(staging)
    }
}
