//! What waits for a shard's next proposal, in the order in which it came, within byte limits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use weft_cluster::ids::PartitionId;
use weft_proto::internal::v1::AckCommand;
use weft_proto::v1::{Error, Receipt};

/// What an ack command counts against the limits, in bytes.
const ACK_BYTES: u32 = 256;

/// Room for what waits: a share of the node's limit and of the shard's.
pub(super) struct Permit {
    _node: OwnedSemaphorePermit,
    _shard: OwnedSemaphorePermit,
}

/// Work for the owner.
pub(super) enum Work {
    Append(Append),
    Ack(Ack),
}

/// A checked batch.
pub(super) struct Append {
    pub(super) partition: PartitionId,
    pub(super) packed: Bytes,
    /// `None` with ACCEPTED: answered already.
    pub(super) reply: Option<oneshot::Sender<Result<Receipt, Error>>>,
    pub(super) permit: Permit,
}

/// Offsets that a group has handled, in one command.
pub(super) struct Ack {
    pub(super) command: AckCommand,
    /// Told what came of it.
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
    pub(super) permit: Permit,
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Work::Append(append) => append.packed.len(),
            Work::Ack(_) => ACK_BYTES as usize,
        }
    }
}

/// The queue of one shard.
pub(super) struct Queue {
    waiting: Mutex<VecDeque<Work>>,
    bell: Notify,
    node: Arc<Semaphore>,
    shard: Arc<Semaphore>,
}

impl Queue {
    /// `node`: bytes free over all shards of this node.
    pub(super) fn new(node: Arc<Semaphore>, bytes_max: usize) -> Self {
        let shard = Arc::new(Semaphore::new(bytes_max.min(Semaphore::MAX_PERMITS)));
        Queue { waiting: Mutex::default(), bell: Notify::new(), node, shard }
    }

    /// Room for an append of `bytes`, if there is some at once.
    pub(super) fn try_room(&self, bytes: usize) -> Option<Permit> {
        let bytes = u32::try_from(bytes).ok()?;
        let shard = self.shard.clone().try_acquire_many_owned(bytes);
        let node = self.node.clone().try_acquire_many_owned(bytes);
        Some(Permit { _shard: shard.ok()?, _node: node.ok()? })
    }

    /// Room for an append of `bytes`, waiting in line for it.
    pub(super) async fn room(&self, bytes: usize) -> Option<Permit> {
        let bytes = u32::try_from(bytes).ok()?;
        let shard = self.shard.clone().acquire_many_owned(bytes).await.ok()?;
        let node = self.node.clone().acquire_many_owned(bytes).await.ok()?;
        Some(Permit { _node: node, _shard: shard })
    }

    /// Room for an ack, if there is some at once.
    pub(super) fn try_ack_room(&self) -> Option<Permit> {
        self.try_room(ACK_BYTES as usize)
    }

    /// The same, waiting in line for it.
    pub(super) async fn ack_room(&self) -> Option<Permit> {
        self.room(ACK_BYTES as usize).await
    }

    /// Whether it is this shard's own limit that leaves no room for `bytes`.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        self.shard.available_permits() < bytes
    }

    /// Adds work and wakes the owner.
    pub(super) fn push(&self, work: Work) {
        self.lock().push_back(work);
        self.bell.notify_one();
    }

    /// What is waiting, from the oldest on, while it fits `bytes_max` (at least one).
    pub(super) fn take(&self, bytes_max: usize) -> Vec<Work> {
        let mut waiting = self.lock();
        let mut bytes = 0;
        let fits = waiting.iter().take_while(|work| {
            let first = bytes == 0;
            bytes += work.bytes();
            first || bytes <= bytes_max
        });
        let count = fits.count();
        waiting.drain(..count).collect()
    }

    /// Resolves when something was pushed since it last did.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Work>> {
        self.waiting.lock().expect("no code panics while it holds the queue")
    }
}

#[cfg(test)]
mod tests {
    use weft_cluster::ids::TopicId;

    use super::*;

    fn append(queue: &Queue, bytes: usize) -> Option<Work> {
        let permit = queue.try_room(bytes)?;
        let partition = PartitionId { topic: TopicId(1), index: 0 };
        Some(Work::Append(Append { partition, packed: vec![0; bytes].into(), reply: None, permit }))
    }

    #[test]
    fn takes_what_fits_and_gives_room_back_with_the_work() {
        let node = Arc::new(Semaphore::new(100));
        let queue = Queue::new(node.clone(), 60);
        for _ in 0..3 {
            queue.push(append(&queue, 20).expect("room for 60"));
        }
        assert!(append(&queue, 20).is_none());
        assert!(queue.is_full(20));
        assert_eq!(node.available_permits(), 40, "a refused one leaves nothing taken");
        let first = queue.take(45);
        assert_eq!(first.len(), 2);
        drop(first);
        assert_eq!(queue.take(1).len(), 1, "at least one");
        assert_eq!(queue.take(1).len(), 0);
        assert_eq!(node.available_permits(), 100);
    }

    #[tokio::test]
    async fn who_waits_for_room_is_served_before_those_who_come_later() {
        let queue = Arc::new(Queue::new(Arc::new(Semaphore::new(100)), 60));
        let held = append(&queue, 50);
        let mut room = std::pin::pin!(queue.room(30));
        assert!(futures::poll!(room.as_mut()).is_pending());
        assert!(queue.try_room(5).is_none(), "no overtaking");
        drop(held);
        assert!(room.await.is_some());
    }
}
