//! What waits for a shard's next proposal, in the order in which it came, within byte limits.
//!
//! Work takes its place when it comes, whether there is room for it or not: what comes later goes behind it. As room is
//! given back, the line moves up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use weft_cluster::ids::PartitionId;
use weft_proto::internal::v1::AckCommand;
use weft_proto::v1::{Error, Receipt};

/// What an ack command counts against the limits, in bytes.
const ACK_BYTES: usize = 256;

/// Bytes that may wait over all shards of the node. Shards that find no room stand in line for it.
pub(super) struct NodeRoom {
    bytes_max: usize,
    state: Mutex<NodeState>,
}

struct NodeState {
    free: usize,
    line: VecDeque<Weak<Queue>>,
}

/// Room for what waits: a share of the node's limit and of the shard's.
pub(super) struct Permit {
    // Weak: what waits in a queue holds its permits, and ends with it.
    queue: Weak<Queue>,
    node: Arc<NodeRoom>,
    bytes: usize,
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
    /// `None` until there is room.
    pub(super) permit: Option<Permit>,
}

/// Offsets that a group has handled, in one command.
pub(super) struct Ack {
    pub(super) command: AckCommand,
    /// Told what came of it.
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
    /// `None` until there is room.
    pub(super) permit: Option<Permit>,
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Work::Append(append) => append.packed.len(),
            Work::Ack(_) => ACK_BYTES,
        }
    }

    fn permit(&mut self) -> &mut Option<Permit> {
        match self {
            Work::Append(append) => &mut append.permit,
            Work::Ack(ack) => &mut ack.permit,
        }
    }
}

/// The queue of one shard.
pub(super) struct Queue {
    state: Mutex<State>,
    bell: Notify,
    node: Arc<NodeRoom>,
}

struct State {
    free: usize,
    /// Work that has its room.
    waiting: VecDeque<Work>,
    /// Work that waits for room, behind all that has it.
    line: VecDeque<InLine>,
    /// Counts what has stood in line.
    tickets: u64,
}

struct InLine {
    ticket: u64,
    work: Work,
    admitted: oneshot::Sender<()>,
}

/// A place in the line of those that wait for room. Dropped before there was room, it gives the place up.
pub(super) struct Place {
    queue: Arc<Queue>,
    ticket: u64,
    admitted: oneshot::Receiver<()>,
}

impl NodeRoom {
    pub(super) fn new(bytes_max: usize) -> Arc<NodeRoom> {
        let state = Mutex::new(NodeState { free: bytes_max, line: VecDeque::new() });
        Arc::new(NodeRoom { bytes_max, state })
    }

    /// Bytes that are taken.
    pub(super) fn taken(&self) -> usize {
        self.bytes_max - self.lock().free
    }

    /// Takes room for `queue`, or lets it stand in line.
    fn take(&self, bytes: usize, queue: &Arc<Queue>) -> bool {
        let mut state = self.lock();
        let place = state.line.iter().position(|other| other.as_ptr() == Arc::as_ptr(queue));
        let next = place.map_or(state.line.is_empty(), |place| place == 0);
        if next && state.free >= bytes {
            state.free -= bytes;
            // Its next work goes behind that of the shards that have waited.
            if place.is_some() {
                state.line.pop_front();
            }
            return true;
        }
        if place.is_none() {
            state.line.push_back(Arc::downgrade(queue));
        }
        false
    }

    fn leave(&self, queue: &Queue) {
        self.lock().line.retain(|other| !std::ptr::eq(other.as_ptr(), queue));
    }

    /// Lets the shards in line take what is free, the first first.
    fn serve(&self) {
        loop {
            let first = {
                let mut state = self.lock();
                while state.line.front().is_some_and(|queue| queue.strong_count() == 0) {
                    state.line.pop_front();
                }
                state.line.front().and_then(Weak::upgrade)
            };
            let Some(first) = first else { return };
            // One that takes nothing and stays leaves nothing to those behind it.
            let stays = |queue: &Weak<Queue>| queue.as_ptr() == Arc::as_ptr(&first);
            if !first.admit() && self.lock().line.front().is_some_and(stays) {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().expect("no code panics while it holds the node's room")
    }
}

impl Queue {
    pub(super) fn new(node: Arc<NodeRoom>, bytes_max: usize) -> Arc<Self> {
        let state = State { free: bytes_max, waiting: VecDeque::new(), line: VecDeque::new(), tickets: 0 };
        Arc::new(Queue { state: Mutex::new(state), bell: Notify::new(), node })
    }

    /// Adds work at the end of the queue. Without room for it now it stands in line: the place is returned.
    pub(super) fn enter(self: &Arc<Self>, work: Work) -> Option<Place> {
        let (admitted, told) = oneshot::channel();
        let ticket = {
            let mut state = self.lock();
            state.tickets += 1;
            let ticket = state.tickets;
            state.line.push_back(InLine { ticket, work, admitted });
            ticket
        };
        self.admit();
        let mut place = Place { queue: self.clone(), ticket, admitted: told };
        match place.admitted.try_recv() {
            Ok(()) => None,
            Err(_) => Some(place),
        }
    }

    /// Moves up what there is room for, in order, and wakes the owner. False if nothing moved.
    fn admit(self: &Arc<Self>) -> bool {
        let mut moved = false;
        {
            let mut state = self.lock();
            while let Some(bytes) = state.line.front().map(|first| first.work.bytes()) {
                if state.free < bytes {
                    // The node's room is no use before there is the shard's.
                    self.node.leave(self);
                    break;
                }
                if !self.node.take(bytes, self) {
                    break;
                }
                let mut first = state.line.pop_front().expect("it was just looked at");
                state.free -= bytes;
                *first.work.permit() = Some(Permit { queue: Arc::downgrade(self), node: self.node.clone(), bytes });
                state.waiting.push_back(first.work);
                // Whoever has gone does not want to know.
                let _ = first.admitted.send(());
                moved = true;
            }
            if state.line.is_empty() {
                self.node.leave(self);
            }
        }
        if moved {
            self.bell.notify_one();
        }
        moved
    }

    /// Whether it is this shard's own limit that leaves no room for `bytes`.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        self.lock().free < bytes
    }

    /// What is waiting, from the oldest on, while it fits `bytes_max` (at least one).
    pub(super) fn take(&self, bytes_max: usize) -> Vec<Work> {
        let mut state = self.lock();
        let mut bytes = 0;
        let fits = state.waiting.iter().take_while(|work| {
            let first = bytes == 0;
            bytes += work.bytes();
            first || bytes <= bytes_max
        });
        let count = fits.count();
        state.waiting.drain(..count).collect()
    }

    /// All that waits, with room or without.
    pub(super) fn take_all(&self) -> Vec<Work> {
        let mut state = self.lock();
        let mut works: Vec<Work> = state.waiting.drain(..).collect();
        works.extend(state.line.drain(..).map(|first| first.work));
        self.node.leave(self);
        works
    }

    /// Resolves when something was admitted since it last did.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the queue")
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.node.lock().free += self.bytes;
        if let Some(queue) = self.queue.upgrade() {
            queue.lock().free += self.bytes;
            queue.admit();
        }
        self.node.serve();
    }
}

impl Place {
    /// Resolves when the work has its room. Cancel-safe.
    pub(super) async fn admitted(&mut self) {
        // An error: the work was taken out of the line, to be refused.
        let _ = (&mut self.admitted).await;
    }

    /// Gives the place up; false if there was room meanwhile.
    pub(super) fn give_up(&self) -> bool {
        let left = {
            let mut state = self.queue.lock();
            let at = state.line.iter().position(|other| other.ticket == self.ticket);
            at.and_then(|at| state.line.remove(at))
        };
        let was_there = left.is_some();
        drop(left);
        if was_there {
            // What was behind it may want less.
            self.queue.admit();
            self.queue.node.serve();
        }
        was_there
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use weft_cluster::ids::TopicId;

    use super::*;

    fn append(bytes: usize) -> Work {
        let partition = PartitionId { topic: TopicId(1), index: 0 };
        Work::Append(Append { partition, packed: vec![0; bytes].into(), reply: None, permit: None })
    }

    fn sizes(works: &[Work]) -> Vec<usize> {
        works.iter().map(Work::bytes).collect()
    }

    #[test]
    fn takes_what_fits_and_gives_room_back_with_the_work() {
        let node = NodeRoom::new(100);
        let queue = Queue::new(node.clone(), 60);
        for _ in 0..3 {
            assert!(queue.enter(append(20)).is_none(), "room for 60");
        }
        assert!(queue.enter(append(20)).is_some(), "and its place is given up");
        assert!(queue.is_full(20));
        assert_eq!(node.taken(), 60, "a refused one leaves nothing taken");
        let first = queue.take(45);
        assert_eq!(first.len(), 2);
        drop(first);
        assert_eq!(queue.take(1).len(), 1, "at least one");
        assert_eq!(queue.take(1).len(), 0);
        assert_eq!(node.taken(), 0);
    }

    #[tokio::test]
    async fn what_comes_later_goes_behind_what_waits_whether_that_was_woken_or_not() {
        let queue = Queue::new(NodeRoom::new(100), 60);
        assert!(queue.enter(append(50)).is_none());
        let mut second = queue.enter(append(30)).expect("no room");
        let third = queue.enter(append(5)).expect("no overtaking");
        drop(queue.take(usize::MAX));
        // Nobody has polled the second yet, and the room is its own.
        assert!(queue.enter(append(7)).is_none());
        assert_eq!(sizes(&queue.take(usize::MAX)), [30, 5, 7]);
        second.admitted().await;
        assert!(!second.give_up() && !third.give_up(), "both had room");
    }

    #[test]
    fn shards_take_turns_at_the_nodes_room_and_the_large_are_not_starved() {
        let node = NodeRoom::new(100);
        let (one, two) = (Queue::new(node.clone(), 100), Queue::new(node.clone(), 100));
        assert!(one.enter(append(90)).is_none());
        let large = two.enter(append(50)).expect("no room");
        let behind = one.enter(append(5)).expect("the other shard came first");
        drop(one.take(usize::MAX));
        assert_eq!((sizes(&two.take(usize::MAX)), sizes(&one.take(usize::MAX))), (vec![50], vec![5]));
        assert!(!large.give_up() && !behind.give_up());
        assert_eq!(node.taken(), 0);
    }

    #[test]
    fn who_gives_up_makes_way() {
        let node = NodeRoom::new(100);
        let (one, two) = (Queue::new(node.clone(), 60), Queue::new(node.clone(), 60));
        assert!(one.enter(append(60)).is_none());
        let large = two.enter(append(60)).expect("no room");
        let small = one.enter(append(10)).expect("the shard has no room");
        let other = two.enter(append(20)).expect("behind the large one");
        drop(large);
        assert_eq!(sizes(&two.take(usize::MAX)), [20]);
        assert!(!other.give_up());
        drop(one.take(usize::MAX));
        assert_eq!(sizes(&one.take(usize::MAX)), [10]);
        drop(small);
        assert_eq!(node.taken(), 0);
    }
}
