use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_batch::Producer;
use weft_proto::v1::ErrorCode;

use super::Refusal;
use crate::ids::{Epoch, Millis, Offset, ProducerId};

/// Batches of a producer, per partition, that are answered with their first receipt when they come again. A client
/// keeps at most as many unanswered.
pub const PRODUCER_BATCHES_KEPT: usize = 16;

/// Producers remembered per partition; the one whose newest batch is the oldest goes first.
///
/// Nothing is forgotten by time: a clock that jumps would take the sessions of producers that are just sending
/// again, and their batches would be stored twice.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 10_000;

/// The sessions of the producers that write to a partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Producers {
    sessions: BTreeMap<ProducerId, Session>,
    /// The same, by the offset of the newest batch.
    by_age: BTreeSet<(Offset, ProducerId)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Session {
    pub(super) epoch: u32,
    /// The newest batches, oldest first, at least one.
    pub(super) batches: VecDeque<KeptBatch>,
    /// Log time of the newest.
    pub(super) last: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct KeptBatch {
    pub(super) first_sequence: u64,
    pub(super) count: u32,
    pub(super) base_offset: Offset,
    pub(super) epoch: Epoch,
}

impl Session {
    fn next_sequence(&self) -> u64 {
        self.batches.back().map_or(0, |batch| batch.first_sequence + u64::from(batch.count))
    }

    fn newest(&self) -> Offset {
        self.batches.back().map_or(Offset(0), |batch| batch.base_offset)
    }
}

impl Producers {
    /// Whether a batch is the next of its session (`None`), or was stored before: its offset, count and epoch.
    ///
    /// `gaps`: one after the next is as good (ACCEPTED). Its producer is never told of a batch that was lost, and all
    /// that came later would be lost with it, untold as well.
    ///
    /// # Errors
    /// `PRODUCER_FENCED`; `SEQUENCE_GAP` if it is after the next; `FAILED_PRECONDITION` if its numbers are taken and
    /// the receipt is forgotten or another batch's.
    pub(super) fn find(
        &self,
        batch: Producer,
        count: u32,
        gaps: bool,
    ) -> Result<Option<(Offset, u32, Epoch)>, Refusal> {
        let id = ProducerId(batch.id);
        let first = batch.first_sequence;
        let session = self.sessions.get(&id);
        if let Some(session) = session.filter(|session| session.epoch > batch.epoch) {
            let message = format!("session {} of producer {id} has ended, {} writes now", batch.epoch, session.epoch);
            return Err(Refusal::new(ErrorCode::ProducerFenced, message));
        }
        let session = session.filter(|session| session.epoch == batch.epoch);
        let next = session.map_or(0, Session::next_sequence);
        if first == next || gaps && first > next {
            return Ok(None);
        }
        let kept = session.and_then(|session| session.batches.iter().find(|kept| kept.first_sequence == first));
        if first > next {
            let message = format!("sequence of producer {id}: {first} is not the next, {next}");
            return Err(Refusal::new(ErrorCode::SequenceGap, message));
        }
        // What is below the next was stored before, whether its receipt is known or not. It is never a gap: that
        // would say that it is not stored.
        let Some(kept) = kept else {
            let message = format!("sequence {first} of producer {id} was stored before; its receipt is forgotten");
            return Err(Refusal::new(ErrorCode::FailedPrecondition, message));
        };
        if kept.count != count {
            let before = kept.count;
            let message = format!("sequence {first} of producer {id} was stored with {before} events, now {count}");
            return Err(Refusal::new(ErrorCode::FailedPrecondition, message));
        }
        Ok(Some((kept.base_offset, kept.count, kept.epoch)))
    }

    /// Notes a stored batch, and makes room for its producer.
    pub(super) fn stored(&mut self, batch: Producer, count: u32, base_offset: Offset, epoch: Epoch, now: Millis) {
        let id = ProducerId(batch.id);
        let known = self.take(id).filter(|session| session.epoch == batch.epoch);
        self.make_room();
        let mut batches = known.map(|session| session.batches).unwrap_or_default();
        if batches.len() == PRODUCER_BATCHES_KEPT {
            batches.pop_front();
        }
        batches.push_back(KeptBatch { first_sequence: batch.first_sequence, count, base_offset, epoch });
        self.put(id, Session { epoch: batch.epoch, batches, last: now });
    }

    pub(super) fn put(&mut self, id: ProducerId, session: Session) {
        self.by_age.insert((session.newest(), id));
        self.sessions.insert(id, session);
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = (ProducerId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    fn take(&mut self, id: ProducerId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        self.by_age.remove(&(session.newest(), id));
        Some(session)
    }

    /// For one more.
    fn make_room(&mut self) {
        while self.sessions.len() >= PRODUCERS_PER_PARTITION_MAX
            && let Some((_, id)) = self.by_age.first().copied()
        {
            self.take(id);
        }
    }
}
