//! One partition's way through the producer: pack, number, send, send again. No I/O; time is an argument.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_batch::{BatchError, HEADER_BYTES, Header, Limits, Packer, Producer};
use weft_proto::v1::{Event, Receipt};

use super::EventReceipt;
use crate::error::{Error, ErrorCode, Retry};

/// Batches of one partition from the first unanswered one to the last that may be sent, those answered in between
/// included. The shard remembers this many receipts per producer, so a batch that is sent again is always known.
pub(crate) const BATCHES_AHEAD_MAX: u64 = 16;

pub(crate) type Reply = oneshot::Sender<Result<EventReceipt, Error>>;

/// Who numbers the batches of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    pub(crate) epoch: u32,
}

/// A sealed batch that has no final answer yet.
pub(crate) struct Batch {
    /// Counts the batches of its lane.
    number: u64,
    packed: Bytes,
    first_sequence: u64,
    count: u32,
    /// What it takes of the producer's bytes.
    pub(crate) bytes: usize,
    /// The flush that it belongs to.
    pub(crate) generation: u64,
    /// For each event that wants its receipt: its index.
    replies: Vec<(u32, Reply)>,
    sealed: Instant,
    /// The request that it is out with.
    request: Option<(u64, Instant)>,
    /// No earlier batch was unanswered when it was sent last.
    was_first: bool,
    /// The outcome of some try is not known.
    unknown: bool,
    /// The numbers in its header are no longer right.
    renumber: bool,
}

impl Batch {
    /// Events in it.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Whether some try of it had no answer that says that it is not.
    pub(crate) fn may_be_stored(&self) -> bool {
        self.unknown
    }

    /// Tells each event's future its receipt, or all of them the error.
    pub(crate) fn answer(self, result: Result<Receipt, Error>) {
        if self.replies.is_empty() {
            return;
        }
        let result = result.map(Arc::new);
        for (index, reply) in self.replies {
            let told = result.as_ref().map(|batch| EventReceipt::new(batch, index)).map_err(Error::clone);
            // Nobody waits if the future was dropped.
            let _ = reply.send(told);
        }
    }
}

/// What a lane may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Send what is due.
    Flowing,
    /// Something was refused: wait for the other answers, or later batches would overtake it.
    Draining,
    /// All is answered; send again from the first at this time.
    Resting(Instant),
    /// Numbers cannot go on: ask for a new identity first.
    Unnumbered,
}

/// What an answer did to its lane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Final: the batch is to be told and forgotten.
    Done,
    /// It stays and will be sent again.
    Again,
    /// The producer as a whole cannot go on.
    Fatal,
}

/// A partition.
pub(crate) struct Lane {
    pub(crate) partition: u32,
    packer: Packer,
    replies: Vec<(u32, Reply)>,
    open_bytes: usize,
    opened: Instant,
    queue: VecDeque<Batch>,
    /// The first so many of the queue have been sent since the lane last began at its head.
    sent: usize,
    mode: Mode,
    tries: u32,
    identity: Identity,
    next_sequence: u64,
    next_number: u64,
}

impl Lane {
    pub(crate) fn new(partition: u32, limits: Limits, identity: Identity, now: Instant) -> Lane {
        Lane {
            partition,
            packer: Packer::new(limits),
            replies: Vec::new(),
            open_bytes: 0,
            opened: now,
            queue: VecDeque::new(),
            sent: 0,
            mode: Mode::Flowing,
            tries: 0,
            identity,
            next_sequence: 0,
            next_number: 0,
        }
    }

    /// Packs an event, after sealing the batch that has no room for it.
    pub(crate) fn push(
        &mut self,
        event: &Event,
        reply: Option<Reply>,
        now_ms: i64,
        generation: u64,
    ) -> Result<Pushed, BatchError> {
        let mut sealed = false;
        let mut before = self.packer.len_bytes();
        let mut wake = self.packer.is_empty();
        match self.packer.push(event, now_ms) {
            Err(BatchError::Full) => {
                sealed = self.seal(generation, Instant::now());
                wake = true;
                before = self.packer.len_bytes();
                self.packer.push(event, now_ms)?;
            }
            pushed => pushed?,
        }
        if self.packer.count() == 1 {
            self.opened = Instant::now();
        }
        if let Some(reply) = reply {
            let index = u32::try_from(self.packer.count() - 1).expect("a batch has at most BATCH_EVENTS_MAX events");
            self.replies.push((index, reply));
        }
        let bytes = self.packer.len_bytes() - before;
        self.open_bytes += bytes;
        Ok(Pushed { bytes, wake, sealed })
    }

    /// Closes the batch being packed, if there is one, and gives it its numbers. True if there was one.
    pub(crate) fn seal(&mut self, generation: u64, now: Instant) -> bool {
        if self.packer.is_empty() {
            return false;
        }
        let Identity { id, epoch } = self.identity;
        let producer = Producer { id, epoch, first_sequence: self.next_sequence };
        let packed = self.packer.finish(None, Some(producer)).expect("it has events, and 2^64 numbers do not run out");
        let count = Header::read(&packed).expect("the packer has just written it").count;
        self.queue.push_back(Batch {
            number: self.next_number,
            packed,
            first_sequence: self.next_sequence,
            count,
            bytes: std::mem::take(&mut self.open_bytes),
            generation,
            replies: std::mem::take(&mut self.replies),
            sealed: now,
            request: None,
            was_first: false,
            unknown: false,
            renumber: false,
        });
        self.next_sequence += u64::from(count);
        self.next_number += 1;
        true
    }

    /// What to send next, if anything is due. `request` is the id that it goes out with, `generation` the one
    /// that a batch sealed for it belongs to. While an earlier batch is unanswered, events wait up to `linger`
    /// for company; a partition with nothing out sends at once.
    pub(crate) fn next(&mut self, request: u64, now: Instant, linger: Duration, generation: u64) -> Option<Next> {
        if let Mode::Resting(until) = self.mode
            && now >= until
        {
            self.mode = Mode::Flowing;
        }
        if self.mode != Mode::Flowing || !self.has_room() {
            return None;
        }
        let mut sealed = false;
        if self.sent == self.queue.len() {
            let due = self.queue.is_empty() || now >= self.opened + linger;
            if !due || !self.seal(generation, now) {
                return None;
            }
            sealed = true;
        }
        let first = self.sent == 0;
        let batch = &mut self.queue[self.sent];
        if batch.renumber {
            batch.packed = renumbered(&batch.packed, self.identity, batch.first_sequence);
            batch.renumber = false;
        }
        batch.request = Some((request, now));
        batch.was_first = first;
        self.sent += 1;
        Some(Next { packed: batch.packed.clone(), sealed })
    }

    /// When `next` may have something, if nothing else happens.
    pub(crate) fn deadline(&self, linger: Duration) -> Option<Instant> {
        match self.mode {
            Mode::Resting(until) => Some(until),
            Mode::Flowing if self.has_room() && !self.packer.is_empty() => Some(self.opened + linger),
            _ => None,
        }
    }

    /// Whether the batch after those sent may go, too.
    fn has_room(&self) -> bool {
        let next = self.queue.get(self.sent).map_or(self.next_number, |batch| batch.number);
        self.queue.front().is_none_or(|first| next - first.number < BATCHES_AHEAD_MAX)
    }

    /// Nothing packed, nothing queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.packer.is_empty() && self.queue.is_empty()
    }

    /// The receipt for a request: takes its batch out.
    pub(crate) fn stored(&mut self, request: u64) -> Option<Batch> {
        let place = self.place_of(request)?;
        self.sent -= 1;
        self.tries = 0;
        let batch = self.queue.remove(place);
        self.rest_if_drained(Instant::now(), Duration::ZERO);
        batch
    }

    /// An error for a request. With `Done` the batch comes out, too: it will not be stored.
    ///
    /// `pause`: before all that is unanswered is sent again.
    pub(crate) fn refused(
        &mut self,
        request: u64,
        error: &Error,
        now: Instant,
        pause: Duration,
    ) -> (Outcome, Option<Batch>) {
        let Some(place) = self.place_of(request) else { return (Outcome::Again, None) };
        let batch = &mut self.queue[place];
        batch.request = None;
        let (gap, retry) = (error.code() == ErrorCode::SequenceGap, error.retry());
        // A topic that is gone takes nothing any more, on no partition.
        if matches!(error.code(), ErrorCode::ProducerFenced | ErrorCode::UnknownTopic) {
            return (Outcome::Fatal, None);
        }
        batch.unknown |= retry == Retry::IfIdempotent;
        if gap && batch.was_first || retry == Retry::Never && !gap && batch.unknown {
            // What came before it is gone or forgotten; or it may be stored by an earlier try, and nobody knows which
            // number is next. The numbers cannot go on.
            self.mode = Mode::Unnumbered;
            return (Outcome::Again, None);
        }
        if self.mode == Mode::Flowing {
            self.mode = Mode::Draining;
        }
        if gap || retry != Retry::Never {
            self.tries = self.tries.saturating_add(u32::from(!gap));
            self.rest_if_drained(now, pause);
            return (Outcome::Again, None);
        }
        let taken = self.take(place);
        self.rest_if_drained(now, Duration::ZERO);
        (Outcome::Done, taken)
    }

    /// Takes a batch out that is certainly not stored; those after it move up into its numbers.
    fn take(&mut self, place: usize) -> Option<Batch> {
        let batch = self.queue.remove(place)?;
        self.sent = self.sent.saturating_sub(usize::from(place < self.sent));
        let count = u64::from(batch.count);
        for later in self.queue.range_mut(place..) {
            later.first_sequence -= count;
            later.renumber = true;
        }
        self.next_sequence -= count;
        Some(batch)
    }

    fn rest_if_drained(&mut self, now: Instant, pause: Duration) {
        let drained = self.queue.iter().take(self.sent).all(|batch| batch.request.is_none());
        if self.mode == Mode::Draining && drained {
            self.mode = Mode::Resting(now + pause);
            self.sent = 0;
        }
    }

    /// The stream is gone: all that was out is unanswered, and begins again at the head.
    pub(crate) fn lost(&mut self) {
        for batch in self.queue.iter_mut().take(self.sent) {
            batch.unknown |= batch.request.take().is_some();
        }
        self.sent = 0;
        if self.mode == Mode::Draining {
            self.mode = Mode::Flowing;
        }
    }

    /// How often the lane was refused in a row.
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }

    /// Whether the lane waits for a new identity. All of its batches have been answered or lost by then.
    pub(crate) fn needs_identity(&self) -> bool {
        self.mode == Mode::Unnumbered && self.queue.iter().take(self.sent).all(|batch| batch.request.is_none())
    }

    /// Numbers what is queued anew, from 0, and returns what must not be: under another identity a batch that may
    /// be stored could be stored twice.
    pub(crate) fn renumber(&mut self, identity: Identity) -> Vec<Batch> {
        self.identity = identity;
        let (unknown, known): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(|batch| batch.unknown);
        self.queue.extend(known);
        let mut next = 0;
        for batch in &mut self.queue {
            batch.first_sequence = next;
            batch.renumber = true;
            next += u64::from(batch.count);
        }
        self.next_sequence = next;
        self.sent = 0;
        self.mode = Mode::Flowing;
        unknown
    }

    /// Takes the head out if it was sealed before `limit`, and says whether it may be stored. Then the lane needs a
    /// new identity, because nobody knows which number is next.
    pub(crate) fn expire(&mut self, limit: Instant) -> Option<(Batch, bool)> {
        let head = self.queue.front()?;
        if head.sealed > limit {
            return None;
        }
        let unknown = head.unknown || head.request.is_some();
        if !unknown {
            return self.take(0).map(|batch| (batch, false));
        }
        self.mode = Mode::Unnumbered;
        self.sent = self.sent.saturating_sub(1);
        self.queue.pop_front().map(|batch| (batch, true))
    }

    /// When the head was sealed.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.queue.front().map(|batch| batch.sealed)
    }

    /// When the oldest request that is out was sent.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.queue.iter().take(self.sent).filter_map(|batch| batch.request).map(|(_, at)| at).min()
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self, generation: u64, now: Instant) -> Vec<Batch> {
        self.seal(generation, now);
        self.sent = 0;
        self.queue.drain(..).collect()
    }

    fn place_of(&self, request: u64) -> Option<usize> {
        let is_it = |batch: &Batch| batch.request.is_some_and(|(id, _)| id == request);
        self.queue.iter().take(self.sent).position(is_it)
    }
}

/// What became of an event that was packed.
pub(crate) struct Pushed {
    /// Bytes it takes.
    pub(crate) bytes: usize,
    /// The sender should look at this lane.
    pub(crate) wake: bool,
    /// A batch was sealed to make room.
    pub(crate) sealed: bool,
}

/// What to send.
pub(crate) struct Next {
    pub(crate) packed: Bytes,
    /// It was sealed just now.
    pub(crate) sealed: bool,
}

/// The same body under a header with other numbers.
fn renumbered(packed: &Bytes, identity: Identity, first_sequence: u64) -> Bytes {
    let mut header = Header::read(packed).expect("the packer wrote it");
    header.producer = Some(Producer { id: identity.id, epoch: identity.epoch, first_sequence });
    let mut batch = BytesMut::with_capacity(packed.len());
    batch.put_slice(&header.write());
    batch.put_slice(&packed[HEADER_BYTES..]);
    batch.freeze()
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
