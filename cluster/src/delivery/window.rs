use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use super::ConsumerId;
use crate::shard::Cursor;

/// The events of one partition from the first whose ack is not committed, as far as they are looked at.
///
/// Events of one key form a lane, linked by `next`: its first is ready or given out, the others wait.
#[derive(Debug)]
pub(super) struct Window {
    /// Offset of the first slot; all before is committed.
    base: u64,
    slots: VecDeque<Slot>,
    /// Key hash to the offset of the lane's last event. Never iterated.
    lanes: BTreeMap<u64, u64>,
    /// What was acked when the epoch began.
    acked_before: Cursor,
    /// `WantMore` was said and not answered.
    pub(super) wanted: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key_hash: u64,
    /// The next event of its key.
    next: Option<u64>,
    /// Deliveries so far.
    attempt: u32,
    /// Those that failed: nacked, past their deadline, or lost with their consumer.
    failures: u32,
    phase: Phase,
}

/// Where an event is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Behind another of its key.
    Waiting,
    /// To be given out.
    Ready,
    /// Given out.
    InFlight(ConsumerId, Instant),
    /// Nacked, until then.
    Backoff(Instant),
    /// Its ack has come.
    Acked,
    /// Its ack is committed.
    Committed,
}

impl Window {
    pub(super) fn new(cursor: Cursor) -> Window {
        Window {
            base: cursor.acked_below(),
            slots: VecDeque::new(),
            lanes: BTreeMap::new(),
            acked_before: cursor,
            wanted: false,
        }
    }

    /// Offset after the last slot: the next that is wanted.
    pub(super) fn next_offset(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// Offset of the first slot; the acks of all before are committed.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Whether the ack of an event is committed.
    pub(super) fn is_committed(&self, offset: u64) -> bool {
        offset < self.base || self.acked_before.contains(offset) || self.phase(offset) == Some(Phase::Committed)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Offsets with a slot, within first..=last.
    pub(super) fn clip(&self, first: u64, last: u64) -> Range<u64> {
        first.max(self.base)..last.saturating_add(1).min(self.next_offset())
    }

    pub(super) fn phase(&self, offset: u64) -> Option<Phase> {
        let index = usize::try_from(offset.checked_sub(self.base)?).ok()?;
        self.slots.get(index).map(|slot| slot.phase)
    }

    /// Takes events that follow the last slot until there are `slots_max`. `ready` gets those that begin a lane.
    pub(super) fn extend(&mut self, base: u64, key_hashes: &[u64], slots_max: usize, mut ready: impl FnMut(u64)) {
        let known = self.next_offset().checked_sub(base).and_then(|known| usize::try_from(known).ok());
        let fresh = known.and_then(|known| key_hashes.get(known..)).unwrap_or_default();
        let room = slots_max.saturating_sub(self.slots.len());
        for key_hash in fresh.iter().take(room) {
            self.wanted = false;
            let offset = self.next_offset();
            let phase = self.enter(offset, *key_hash);
            self.slots.push_back(Slot { key_hash: *key_hash, next: None, attempt: 0, failures: 0, phase });
            if phase == Phase::Ready {
                ready(offset);
            }
        }
        self.trim();
    }

    fn enter(&mut self, offset: u64, key_hash: u64) -> Phase {
        if self.acked_before.contains(offset) {
            return Phase::Committed;
        }
        if key_hash == 0 {
            return Phase::Ready;
        }
        match self.lanes.insert(key_hash, offset) {
            Some(tail) => {
                self.slot(tail).next = Some(offset);
                Phase::Waiting
            }
            None => Phase::Ready,
        }
    }

    /// Gives a ready event out; returns which attempt this is.
    pub(super) fn deliver(&mut self, offset: u64, consumer: ConsumerId, deadline: Instant) -> u32 {
        let slot = self.slot(offset);
        assert_eq!(slot.phase, Phase::Ready, "only what is ready is given out");
        slot.phase = Phase::InFlight(consumer, deadline);
        slot.attempt = slot.attempt.saturating_add(1);
        slot.attempt
    }

    /// Moves an event that is in flight or backing off. Its lane stays where it is.
    pub(super) fn set(&mut self, offset: u64, phase: Phase) {
        let slot = self.slot(offset);
        assert!(matches!(slot.phase, Phase::InFlight(..) | Phase::Backoff(_)), "it is out");
        slot.phase = phase;
    }

    /// The delivery of an event has failed; returns how many have.
    pub(super) fn failed(&mut self, offset: u64) -> u32 {
        let slot = self.slot(offset);
        slot.failures = slot.failures.saturating_add(1);
        slot.failures
    }

    /// Offsets in flight, with their consumers.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = (u64, ConsumerId)> {
        (self.base..).zip(&self.slots).filter_map(|(offset, slot)| match slot.phase {
            Phase::InFlight(consumer, _) => Some((offset, consumer)),
            _ => None,
        })
    }

    /// An event is handled: `phase` is `Acked` or `Committed`. Returns the next of its key, which is ready now.
    pub(super) fn finish(&mut self, offset: u64, phase: Phase) -> Option<u64> {
        let slot = self.slot(offset);
        let was = std::mem::replace(&mut slot.phase, phase);
        let key_hash = slot.key_hash;
        match was {
            // It has let its lane go on already, or the one before it will.
            Phase::Acked | Phase::Committed | Phase::Waiting => None,
            Phase::Ready | Phase::InFlight(..) | Phase::Backoff(_) => self.release(key_hash, offset),
        }
    }

    fn release(&mut self, key_hash: u64, offset: u64) -> Option<u64> {
        let mut next = self.slot(offset).next;
        while let Some(offset) = next {
            let slot = self.slot(offset);
            if slot.phase == Phase::Waiting {
                slot.phase = Phase::Ready;
                return Some(offset);
            }
            next = slot.next;
        }
        self.lanes.remove(&key_hash);
        None
    }

    /// Forgets the committed events at the front.
    pub(super) fn trim(&mut self) {
        while self.slots.pop_front_if(|slot| slot.phase == Phase::Committed).is_some() {
            self.base += 1;
        }
    }

    fn slot(&mut self, offset: u64) -> &mut Slot {
        let index = offset.checked_sub(self.base).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.slots.get_mut(index)).expect("the offset was clipped, or looked up, before")
    }
}
