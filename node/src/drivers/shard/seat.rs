//! A seat: everything of one shard's replica on this node that its machine, its owner task and its readers share.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::{LogPosition, Offset, PartitionId, ShardId};
use weft_cluster::shard::State;

use super::dispatch::Dispatchers;
use super::queue::Queue;
use super::readpoint::ReadPoints;
use super::{Commons, refusal};
use crate::drivers::raft::{Group, Leadership};
use crate::drivers::storage::Segments;

/// The replica's state and what goes with it. Locked for as long as one entry takes to apply.
pub(super) struct Replica {
    pub(super) state: State,
    /// The position that the last durable checkpoint has.
    pub(super) frozen: Option<LogPosition>,
    /// A snapshot is being installed: no checkpoint now.
    pub(super) installing: bool,
}

/// What readers of a partition watch.
#[derive(Default)]
pub(super) struct Tail {
    /// The offset after the last event that may be read.
    end: AtomicU64,
    readers: AtomicUsize,
    bells: Mutex<Vec<Weak<Notify>>>,
}

/// One shard's replica on this node.
pub(super) struct Seat {
    pub(super) shard: ShardId,
    pub(super) commons: Arc<Commons>,
    pub(super) segments: Segments,
    pub(super) queue: Arc<Queue>,
    pub(super) dispatchers: Dispatchers,
    pub(super) read_points: ReadPoints,
    /// Cancelled when the replica leaves this node.
    pub(super) gone: CancellationToken,
    replica: Mutex<Replica>,
    tails: Mutex<BTreeMap<PartitionId, Arc<Tail>>>,
    group: OnceLock<(Group, watch::Receiver<Leadership>)>,
    /// The newest position that a durable checkpoint covers, until the group is known.
    checkpointed: Mutex<Option<LogPosition>>,
}

impl Seat {
    pub(super) fn new(shard: ShardId, commons: Arc<Commons>, segments: Segments, replica: Replica) -> Self {
        let seat = Seat {
            shard,
            queue: Queue::new(commons.room.clone(), commons.shard_queue_bytes()),
            commons,
            segments,
            dispatchers: Dispatchers::default(),
            read_points: ReadPoints::default(),
            gone: CancellationToken::new(),
            replica: Mutex::new(replica),
            tails: Mutex::default(),
            group: OnceLock::new(),
            checkpointed: Mutex::default(),
        };
        seat.reload();
        seat
    }

    /// The replica, locked.
    pub(super) fn replica(&self) -> MutexGuard<'_, Replica> {
        self.replica.lock().expect("an apply that failed has stopped the node")
    }

    /// The group runs.
    pub(super) fn started(&self, group: Group) {
        let leadership = group.leadership();
        if let Some(at) = self.lock_checkpointed().take() {
            group.checkpointed(at);
        }
        // A second call would be a fault of the raft driver; the first group stays.
        let _ = self.group.set((group, leadership));
    }

    /// A durable checkpoint covers `at`.
    pub(super) fn checkpointed(&self, at: LogPosition) {
        match self.group.get() {
            Some((group, _)) => group.checkpointed(at),
            None => *self.lock_checkpointed() = Some(at),
        }
    }

    /// The group, once it runs.
    pub(super) fn group(&self) -> Option<&Group> {
        self.group.get().map(|(group, _)| group)
    }

    /// Who leads, as this replica knows it. Not acting while the group does not run.
    pub(super) fn leadership(&self) -> Leadership {
        match self.group.get() {
            Some((_, leadership)) if !self.gone.is_cancelled() => leadership.borrow().clone(),
            _ => Leadership::default(),
        }
    }

    /// Who leads, on change. `None` while the group does not run.
    pub(super) fn leaderships(&self) -> Option<watch::Receiver<Leadership>> {
        self.group.get().map(|(_, leadership)| leadership.clone())
    }

    /// The leadership under which this node acts, or the refusal to answer with.
    pub(super) fn acting(&self) -> Result<Leadership, weft_proto::v1::Error> {
        let leadership = self.leadership();
        if leadership.acting {
            return Ok(leadership);
        }
        // A leader that does not act yet is no better hint than none.
        let hint = leadership.leader.filter(|leader| *leader != self.commons.me());
        Err(refusal::not_owner(hint))
    }

    /// Makes the ends of these partitions visible to readers and wakes them.
    pub(super) fn publish(&self, ends: impl IntoIterator<Item = (PartitionId, Offset)>) {
        for (partition, end) in ends {
            let tail = self.tail(partition);
            tail.end.store(end.0, Ordering::Release);
            tail.bells().retain(|bell| bell.upgrade().map(|bell| bell.notify_one()).is_some());
        }
    }

    /// Publishes what the whole state holds: after a start or a snapshot.
    pub(super) fn reload(&self) {
        let ends: Vec<_> = {
            let replica = self.replica();
            replica.state.partitions().map(|(id, partition)| (id, partition.end())).collect()
        };
        for (partition, _) in &ends {
            self.commons.cache.forget(*partition);
        }
        self.publish(ends);
    }

    /// Forgets a partition that was dropped.
    pub(super) fn drop_partition(&self, partition: PartitionId) -> io::Result<()> {
        self.commons.cache.forget(partition);
        let tail = self.tails().remove(&partition);
        if let Some(tail) = tail {
            tail.end.store(0, Ordering::Release);
        }
        self.segments.drop_partition(partition)
    }

    /// The offset after the last event that may be read.
    pub(super) fn end(&self, partition: PartitionId) -> u64 {
        self.tail(partition).end.load(Ordering::Acquire)
    }

    /// Whether somebody reads the partition live.
    pub(super) fn has_readers(&self, partition: PartitionId) -> bool {
        self.tails().get(&partition).is_some_and(|tail| tail.readers.load(Ordering::Relaxed) > 0)
    }

    /// Rings `bell` whenever more of the partition may be read, until the guard drops.
    pub(super) fn listen(&self, partition: PartitionId, bell: &Arc<Notify>) -> Reader {
        let tail = self.tail(partition);
        tail.readers.fetch_add(1, Ordering::Relaxed);
        tail.bells().push(Arc::downgrade(bell));
        Reader { tail }
    }

    /// Stored batches from the one that contains `from` on, whole and committed, while they fit `bytes_max`
    /// (at least one); empty at the end.
    pub(super) async fn read(
        self: &Arc<Self>,
        partition: PartitionId,
        from: u64,
        bytes_max: usize,
    ) -> io::Result<Vec<Bytes>> {
        let end = self.end(partition);
        if from >= end {
            return Ok(Vec::new());
        }
        if let Some(batches) = self.commons.cache.read(partition, from, end, bytes_max) {
            self.commons.metrics.tail_hits.inc();
            return Ok(batches);
        }
        self.commons.metrics.tail_misses.inc();
        let segments = self.segments.clone();
        let read = move || segments.read(partition, Offset(from), bytes_max);
        let mut batches = self.commons.host.run_blocking(read).await?;
        // The segments may already hold what is appended but not published.
        while batches.last().is_some_and(|batch| !ends_by(batch, end)) {
            batches.pop();
        }
        Ok(batches)
    }

    fn tail(&self, partition: PartitionId) -> Arc<Tail> {
        self.tails().entry(partition).or_default().clone()
    }

    fn tails(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Arc<Tail>>> {
        self.tails.lock().expect("no code panics while it holds the tails")
    }

    fn lock_checkpointed(&self) -> MutexGuard<'_, Option<LogPosition>> {
        self.checkpointed.lock().expect("no code panics while it holds the position")
    }
}

impl Tail {
    fn bells(&self) -> MutexGuard<'_, Vec<Weak<Notify>>> {
        self.bells.lock().expect("no code panics while it holds the bells")
    }
}

/// Keeps a partition's newest batches in memory while it lives.
pub(super) struct Reader {
    tail: Arc<Tail>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tail.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn ends_by(batch: &[u8], end: u64) -> bool {
    weft_batch::Header::read(batch).is_ok_and(|header| header.end_offset() <= end)
}
