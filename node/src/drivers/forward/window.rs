//! The order of one publish stream's batches of one partition: what is sent when, and what is sent again.
//!
//! Batches are sent in order, a bounded number at a time. When one has to be sent again, nothing more is sent
//! until all that are under way have answered; then, after a pause, all that have no answer go again, in order.
//! Decides only: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use weft_cluster::ids::NodeId;
use weft_proto::v1::{Ack, Error, ErrorCode, Receipt, Retry};

use crate::drivers::shard::refusal;

/// Batches of one partition from the first without an answer to the last that is sent, those answered in between
/// included. Shards remember as many per producer, so one that is sent again is known.
pub(super) const IN_FLIGHT_MAX: usize = 16;

/// How long a batch waits for this node's link to an owner that lives. Then its publisher is told to go elsewhere; a link
/// that has just broken comes back sooner, and an owner that has died is known to be dead by then.
const CUT_OFF_PATIENCE: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// A batch that has no answer yet.
pub(super) struct Slot<T> {
    pub(super) packed: Bytes,
    pub(super) ack: Ack,
    pub(super) deadline: Instant,
    tag: T,
    /// Counts the batches of its window.
    number: u64,
    /// Stored at most once however often it is sent.
    idempotent: bool,
    state: State,
    /// When it was sent for the first time.
    sent_at: Option<Instant>,
    /// An attempt's outcome is not known.
    maybe_stored: bool,
    /// Nothing before it was under way when it was sent last: a gap is a gap.
    first: bool,
    refused: Option<Error>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Sent { attempt: u64, to: Option<NodeId> },
}

/// Whom to ask instead of the owner that the view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    /// What the view showed when the refusal came.
    pub(super) believed: Option<NodeId>,
    pub(super) to: NodeId,
}

/// The batches of one partition.
pub(super) struct Window<T> {
    slots: VecDeque<Slot<T>>,
    next_number: u64,
    under_way: usize,
    retry_at: Option<Instant>,
    pause: Duration,
    /// A node that a refusal named, while the view does not know better.
    pub(super) redirect: Option<Redirect>,
    /// The owner that the view showed when a batch was sent last, and the node that it was sent to.
    believed: Option<NodeId>,
    tried: Option<NodeId>,
    /// A batch was answered with an error after which the client may send again, and none was stored since.
    broken: bool,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Window {
            slots: VecDeque::new(),
            next_number: 0,
            under_way: 0,
            retry_at: None,
            pause: PAUSE_MIN,
            redirect: None,
            believed: None,
            tried: None,
            broken: false,
        }
    }
}

/// A batch's answer, for whoever published it.
pub(super) type Answer<T> = (T, Result<Receipt, Error>);

impl<T> Window<T> {
    pub(super) fn push(&mut self, packed: Bytes, ack: Ack, deadline: Instant, tag: T) {
        let idempotent = weft_batch::Header::read(&packed).is_ok_and(|header| header.producer.is_some());
        let number = self.next_number;
        self.next_number += 1;
        let (state, sent_at, maybe_stored, first, refused) = (State::Waiting, None, false, false, None);
        let slot =
            Slot { packed, ack, deadline, tag, number, idempotent, state, sent_at, maybe_stored, first, refused };
        self.slots.push_back(slot);
    }

    /// Batches without an answer.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether a batch pushed now would be sent at once.
    pub(super) fn open(&self) -> bool {
        self.retry_at.is_none() && self.slots.len() < IN_FLIGHT_MAX
    }

    /// The next batch to send now, marked as sent under `attempt`.
    pub(super) fn send(&mut self, now: Instant, attempt: u64) -> Option<&Slot<T>> {
        if self.retry_at.is_some_and(|at| self.under_way > 0 || at > now) || self.under_way >= IN_FLIGHT_MAX {
            return None;
        }
        self.retry_at = None;
        let index = self.slots.iter().position(|slot| slot.state == State::Waiting)?;
        if self.slots[index].number - self.slots[0].number >= IN_FLIGHT_MAX as u64 {
            return None;
        }
        self.under_way += 1;
        let slot = &mut self.slots[index];
        slot.state = State::Sent { attempt, to: None };
        slot.first = index == 0;
        slot.sent_at.get_or_insert(now);
        Some(slot)
    }

    /// Notes the node that an attempt went to, and the owner as the view showed it.
    pub(super) fn sent(&mut self, attempt: u64, node: Option<NodeId>, believed: Option<NodeId>) {
        (self.tried, self.believed) = (node, believed);
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.is(attempt)) {
            slot.state = State::Sent { attempt, to: node };
        }
    }

    /// An attempt has ended. Returns the batch's answer unless it is to be sent again; one given up already
    /// is ignored.
    pub(super) fn ended(
        &mut self,
        now: Instant,
        attempt: u64,
        outcome: Result<Receipt, Error>,
        jitter: f64,
    ) -> Option<Answer<T>> {
        let index = self.slots.iter().position(|slot| slot.is(attempt))?;
        self.under_way -= 1;
        let error = match outcome {
            Ok(receipt) => {
                (self.pause, self.broken) = (PAUSE_MIN, false);
                return Some((self.remove(index).tag, Ok(receipt)));
            }
            Err(error) => error,
        };
        let slot = &mut self.slots[index];
        slot.state = State::Waiting;
        slot.maybe_stored |= error.retry() == Retry::IfIdempotent;
        let cut_off = error.code() == ErrorCode::NotReady
            && slot.sent_at.is_some_and(|at| now.duration_since(at) >= CUT_OFF_PATIENCE);
        if slot.repeats(&error) && now < slot.deadline && !cut_off {
            let believed = self.believed;
            self.redirect = (error.owner != 0).then_some(Redirect { believed, to: NodeId(error.owner) });
            slot.refused = Some(error);
            self.retry_at.get_or_insert(now + self.pause.mul_f64(0.75 + jitter / 2.0));
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            return None;
        }
        Some(self.fail(index, error))
    }

    /// The owner is another now: what went elsewhere and may be sent twice is given up, and sent again.
    pub(super) fn moved(&mut self, now: Instant, owner: NodeId) {
        for slot in &mut self.slots {
            if let State::Sent { to: Some(to), .. } = slot.state
                && to != owner
                && slot.idempotent
            {
                (slot.state, slot.maybe_stored) = (State::Waiting, true);
                self.under_way -= 1;
                self.retry_at = Some(now);
            }
        }
        if self.retry_at.is_some() && self.tried != Some(owner) {
            (self.retry_at, self.pause) = (Some(now), PAUSE_MIN);
        }
    }

    /// Batches that wait to be sent again and whose time is over, with their last error.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Answer<T>> {
        let mut answers = Vec::new();
        while let Some(index) = self.slots.iter().position(|slot| slot.state == State::Waiting && slot.deadline <= now)
        {
            let message = "the deadline passed before the batch could be sent";
            let late = || refusal::refusal(ErrorCode::Deadline, Retry::Same, message);
            let error = self.slots[index].refused.take().unwrap_or_else(late);
            answers.push(self.fail(index, error));
        }
        answers
    }

    /// When to look again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.slots.iter().filter(|slot| slot.state == State::Waiting);
        let expiry = waiting.map(|slot| slot.deadline).min();
        let retry = self.retry_at.filter(|_| self.under_way == 0);
        retry.into_iter().chain(expiry).min()
    }

    fn fail(&mut self, index: usize, mut error: Error) -> Answer<T> {
        let slot = self.remove(index);
        if slot.maybe_stored && error.retry() == Retry::Same {
            error = refusal::outcome_unknown(&error.message);
        }
        if error.code() == ErrorCode::SequenceGap && self.broken {
            // The gap is there because an earlier batch failed: after that one it may be sent again.
            error.retry = Retry::Same.into();
        }
        self.broken |= error.retry() != Retry::Never;
        (slot.tag, Err(error))
    }

    fn remove(&mut self, index: usize) -> Slot<T> {
        self.slots.remove(index).expect("the index was found in the same call")
    }
}

impl<T> Slot<T> {
    fn is(&self, attempt: u64) -> bool {
        matches!(self.state, State::Sent { attempt: sent, .. } if sent == attempt)
    }

    /// Whether this batch is to be sent again after `error`.
    fn repeats(&self, error: &Error) -> bool {
        match error.code() {
            ErrorCode::NotOwner | ErrorCode::NoOwner | ErrorCode::NotReady => true,
            ErrorCode::OutcomeUnknown | ErrorCode::Deadline => self.idempotent,
            // One before it is on its way again.
            ErrorCode::SequenceGap => !self.first,
            _ => false,
        }
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
