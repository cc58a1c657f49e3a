//! Storage: the journal that all Raft groups of a node share, the segments that hold the events, and the
//! checkpoints that let the journal be recycled. It knows bytes and positions, not Raft and not protobuf
//! of others' making.

mod config;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use weft_cluster::ids::{Generation, LogPosition, NodeId, Offset, PartitionId, RaftGroup};

pub use config::StorageConfig;

use crate::host::{Host, Tasks};

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

/// Who this data folder belongs to (the FORMAT file).
#[derive(Clone, Debug)]
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

/// A replica that takes part in checkpoints.
pub trait Checkpointed: Send + Sync + 'static {
    /// The applied position and the encoded state at it, consistent with what has been written to the
    /// group's segments so far. `None`: nothing applied since the last call.
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
        _host: Arc<dyn Host>,
        _dir: PathBuf,
        _config: StorageConfig,
        _tasks: &Tasks,
    ) -> io::Result<(Storage, Vec<RecoveredGroup>)> {
        panic!("contract only")
    }

    /// Who this folder belongs to.
    pub fn identity(&self) -> Identity {
        panic!("contract only")
    }

    /// Writes the cluster id into FORMAT, once. An error if another is there.
    pub async fn join_cluster(&self, _cluster: u64) -> io::Result<()> {
        panic!("contract only")
    }

    /// Makes a group with its replica id; durable when it returns.
    pub async fn create_group(&self, _group: RaftGroup, _replica: u64) -> io::Result<GroupLog> {
        panic!("contract only")
    }

    /// The log of a group that exists.
    pub fn log(&self, _group: RaftGroup) -> Option<GroupLog> {
        panic!("contract only")
    }

    /// Removes a group, its log and its segments.
    pub async fn delete_group(&self, _group: RaftGroup) -> io::Result<()> {
        panic!("contract only")
    }

    /// The segments of a shard's replica.
    pub fn segments(&self, _group: RaftGroup) -> Segments {
        panic!("contract only")
    }

    /// Registers a replica for checkpoints; it is asked until the group is deleted.
    pub fn register(&self, _group: RaftGroup, _replica: Arc<dyn Checkpointed>) {
        panic!("contract only")
    }

    /// Takes a checkpoint now and waits for it (stop, snapshot).
    pub async fn checkpoint(&self) -> io::Result<()> {
        panic!("contract only")
    }

    /// True while free space is under the watermark: publishes are refused, all else goes on.
    pub fn full(&self) -> bool {
        panic!("contract only")
    }

    /// Flushes, takes a last checkpoint, writes a seal and releases the lock.
    pub async fn close(&self) {
        panic!("contract only")
    }
}

/// The log of one group. Cheap to clone. Writes are ordered as called, over all kinds.
#[derive(Clone)]
pub struct GroupLog {
    inner: Arc<Inner>,
}

impl GroupLog {
    /// What the log holds.
    pub fn state(&self) -> LogState {
        panic!("contract only")
    }
    /// The replica id given at creation.
    pub fn replica(&self) -> u64 {
        panic!("contract only")
    }
    /// Appends entries, dense after the last. Readable when this returns; durable when `done` is called.
    pub fn append(&self, _entries: Vec<LogEntry>, _done: Done) {
        panic!("contract only")
    }
    /// Saves a vote; binding once `done` is called.
    pub fn save_vote(&self, _vote: StoredVote, _done: Done) {
        panic!("contract only")
    }
    /// Notes what is committed, with the next frame that is written anyway.
    pub fn save_committed(&self, _at: LogPosition) {
        panic!("contract only")
    }
    /// Removes all entries after `last` (all, if `None`).
    pub fn truncate_after(&self, _last: Option<LogPosition>, _done: Done) {
        panic!("contract only")
    }
    /// Forgets entries up to and including `at`; without effect on what a checkpoint does not cover.
    pub fn purge(&self, _at: LogPosition, _done: Done) {
        panic!("contract only")
    }
    /// Entries of `range` that exist, in order, from the first on while they fit `bytes_max` (at least one).
    /// An entry read back from disk has its CRC checked; a mismatch is `InvalidData` and fences the group.
    pub fn read(&self, _range: Range<u64>, _bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        panic!("contract only")
    }
}

/// The segments of one shard's replica: per partition, an append-only series of files of batches. Cheap to clone.
#[derive(Clone)]
pub struct Segments {
    inner: Arc<Inner>,
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
    /// Appends a stamped batch (weft-batch: `header` and `body` are parts of one batch) to a partition.
    /// Buffered until `flush`; not durable before the next checkpoint: the journal still has it. Writing
    /// what is already there again (after recovery) is accepted if it is byte for byte the same.
    pub fn append(&self, _partition: PartitionId, _base: Offset, _header: Bytes, _body: Bytes) -> io::Result<()> {
        panic!("contract only")
    }
    /// Writes what `append` buffered, one write per partition; readers see it from now on.
    pub fn flush(&self) -> io::Result<()> {
        panic!("contract only")
    }
    /// Stored batches from the one that contains `from` on, while they fit `bytes_max` (at least one), in
    /// order; empty at the end. Each batch's CRCs are checked: a bad one is `InvalidData`, never returned.
    pub fn read(&self, _partition: PartitionId, _from: Offset, _bytes_max: usize) -> io::Result<Vec<Bytes>> {
        panic!("contract only")
    }
    /// Stored bytes of a partition.
    pub fn bytes(&self, _partition: PartitionId) -> u64 {
        panic!("contract only")
    }
    /// Removes a partition's files (unlinked once no checkpoint or pin needs them).
    pub fn drop_partition(&self, _partition: PartitionId) -> io::Result<()> {
        panic!("contract only")
    }
    /// The files that hold all appended so far; pinned until the returned guard drops.
    pub fn manifest(&self) -> io::Result<(Vec<SegmentInfo>, Box<dyn Send + Sync>)> {
        panic!("contract only")
    }
    /// Reads a part of a named file, for a peer that installs a snapshot.
    pub fn read_file(&self, _file: &SegmentInfo, _at: u64, _bytes: usize) -> io::Result<Bytes> {
        panic!("contract only")
    }
    /// Starts to receive a snapshot: says which files of `wanted` are missing or differ here.
    pub fn stage(&self, _wanted: &[SegmentInfo]) -> io::Result<Staging> {
        panic!("contract only")
    }
}

/// A snapshot that is being received; dropped before `commit`, it leaves no trace.
pub struct Staging {
    /// The files still to be written, whole.
    pub missing: Vec<SegmentInfo>,
}

impl Staging {
    /// Writes a part of a missing file.
    pub fn write(&mut self, _file: &SegmentInfo, _at: u64, _data: &[u8]) -> io::Result<()> {
        panic!("contract only")
    }
    /// Checks every file's CRC, syncs, and switches the replica to these files, `state` and `at` in one
    /// journal record: after a crash it is the old or the new, never a mixture. The log before `at` is purged.
    pub async fn commit(self, _at: LogPosition, _state: Bytes) -> io::Result<()> {
        panic!("contract only")
    }
}

struct Inner;
