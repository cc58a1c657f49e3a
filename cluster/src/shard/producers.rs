use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_batch::Producer;
use weft_proto::v1::ErrorCode;

use super::Refusal;
use crate::ids::{Epoch, Millis, Offset, ProducerId};

/// Batches of a producer, per partition, that are answered with their first receipt when they come again. A client
/// keeps at most as many unanswered.
pub const PRODUCER_BATCHES_KEPT: usize = 16;

/// A producer that has been silent for so long, by log time, is forgotten: 7 days.
pub const PRODUCER_IDLE_MS_MAX: i64 = 7 * 24 * 3600 * 1000;

/// Producers remembered per partition; the one silent for longest goes first.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 10_000;

/// The sessions of the producers that write to a partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Producers {
    sessions: BTreeMap<ProducerId, Session>,
    /// The same, by the log time of the newest batch.
    by_age: BTreeSet<(Millis, ProducerId)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Session {
    pub(super) epoch: u32,
    /// The newest batches, oldest first, at least one.
    pub(super) batches: VecDeque<KeptBatch>,
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
}

impl Producers {
    /// Whether a batch is the next of its session (`None`), or was stored before: its offset, count and epoch.
    ///
    /// # Errors
    /// `PRODUCER_FENCED`; `SEQUENCE_GAP` if it is neither the next nor one of the newest kept.
    pub(super) fn find(&self, batch: Producer, count: u32) -> Result<Option<(Offset, u32, Epoch)>, Refusal> {
        let id = ProducerId(batch.id);
        let first = batch.first_sequence;
        let session = self.sessions.get(&id);
        if let Some(session) = session.filter(|session| session.epoch > batch.epoch) {
            let message = format!("session {} of producer {id} has ended, {} writes now", batch.epoch, session.epoch);
            return Err(Refusal::new(ErrorCode::ProducerFenced, message));
        }
        let session = session.filter(|session| session.epoch == batch.epoch);
        let next = session.map_or(0, Session::next_sequence);
        if first == next {
            return Ok(None);
        }
        let kept = session.and_then(|session| session.batches.iter().find(|kept| kept.first_sequence == first));
        match kept {
            Some(kept) if kept.count == count => Ok(Some((kept.base_offset, kept.count, kept.epoch))),
            Some(kept) => Err(gap(id, format!("{first} was sent with {} events before, now {count}", kept.count))),
            None => Err(gap(id, format!("{first} is not the next, {next}, nor one of the newest batches"))),
        }
    }

    /// Notes a stored batch, and forgets the producers whose time is over.
    pub(super) fn stored(&mut self, batch: Producer, count: u32, base_offset: Offset, epoch: Epoch, now: Millis) {
        let id = ProducerId(batch.id);
        let known = self.take(id).filter(|session| session.epoch == batch.epoch);
        self.forget(now);
        let mut batches = known.map(|session| session.batches).unwrap_or_default();
        if batches.len() == PRODUCER_BATCHES_KEPT {
            batches.pop_front();
        }
        batches.push_back(KeptBatch { first_sequence: batch.first_sequence, count, base_offset, epoch });
        self.put(id, Session { epoch: batch.epoch, batches, last: now });
    }

    pub(super) fn put(&mut self, id: ProducerId, session: Session) {
        self.by_age.insert((session.last, id));
        self.sessions.insert(id, session);
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = (ProducerId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    fn take(&mut self, id: ProducerId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        self.by_age.remove(&(session.last, id));
        Some(session)
    }

    /// Makes room for one. By log time alone, so that every replica forgets the same.
    fn forget(&mut self, now: Millis) {
        while let Some((last, id)) = self.by_age.first().copied() {
            let idle = now.0.saturating_sub(last.0) > PRODUCER_IDLE_MS_MAX;
            if !idle && self.sessions.len() < PRODUCERS_PER_PARTITION_MAX {
                break;
            }
            self.take(id);
        }
    }
}

fn gap(id: ProducerId, what: String) -> Refusal {
    Refusal::new(ErrorCode::SequenceGap, format!("sequence of producer {id}: {what}"))
}
