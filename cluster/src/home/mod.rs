//! What a home node does for its instances: when each is checked, when its health flips, when its lease runs out. And
//! which node becomes the home of instances whose home is gone.
//!
//! Instances, renewals, doubts and the results of checks go in; checks to make, flips to write and leases to end come
//! out. The registry holds the truth that callers see; what is decided here and not yet written there stays due.

mod doors;
mod heirs;
mod leases;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_proto::internal::v1::{InstanceFlip, InstanceRecord};
use xxhash_rust::xxh3::xxh3_64;

pub use doors::door_at;
pub use heirs::{Homes, rehome};
use leases::Leases;

use crate::ids::{InstanceId, Millis};

/// Flips of one command of the registry.
pub const FLIPS_MAX: usize = 1_000;
/// Leases that are being ended at a time; more wait.
pub const REMOVALS_MAX: usize = 32;
/// Between two writes of flips: what happens meanwhile goes into one command.
const WRITE_PAUSE: Duration = Duration::from_millis(20);
/// A write or removal that the registry did not take is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Least time between the beginnings of two checks of one instance, however often it is doubted.
const CHECK_PAUSE: Duration = Duration::from_millis(100);

/// What has happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// This node is the home of this instance, which stands in the registry like this now.
    Put(Arc<InstanceRecord>),
    /// It is not, or not any more.
    Gone(InstanceId),
    /// A call could not reach an instance: a failure that no check has seen.
    Doubt(InstanceId),
    /// The check with this number has ended; `Err` says why it failed. Every check is answered once.
    Checked {
        /// Of which instance.
        id: InstanceId,
        /// As in `Effect::Check`.
        number: u64,
        /// How it ended.
        result: Result<(), String>,
    },
    /// The registry has taken the flips given out last, and what it took has been put in; or it has not.
    Written(bool),
    /// The registry has ended this lease, or has refused to; or (false) it did not answer.
    Removed(InstanceId, bool),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Check an instance, as its record says.
    Check {
        /// Which.
        id: InstanceId,
        /// To be given back with the result.
        number: u64,
    },
    /// Write these flips to the registry. The next come after `Input::Written`.
    Write(Vec<InstanceFlip>),
    /// The lease has run out: take the instance out, if it has not been registered anew since.
    Remove(InstanceId, Millis),
}

/// How many instances there are, and in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instances whose home this node is.
    pub instances: usize,
    /// Of these, those that pass their checks.
    pub healthy: usize,
    /// Checks in flight.
    pub checking: usize,
    /// Flips that the registry does not have yet.
    pub unwritten: usize,
}

/// The instances of one home node.
#[derive(Debug)]
pub struct Home {
    checks_max: usize,
    watched: BTreeMap<InstanceId, Watched>,
    due: BTreeSet<(Instant, InstanceId)>,
    running: usize,
    numbers: u64,
    healthy: usize,
    /// Instances whose health in the registry is not the one known here.
    unwritten: BTreeSet<InstanceId>,
    writing: bool,
    write_after: Option<Instant>,
    leases: Leases,
    /// Leases that have run out and wait for their removal.
    expired: BTreeSet<InstanceId>,
    removals: usize,
}

#[derive(Debug)]
struct Watched {
    record: Arc<InstanceRecord>,
    healthy: bool,
    reason: String,
    /// Results in a row that speak against `healthy`.
    against: u32,
    /// A call has failed since the last check began: the next failed check decides.
    doubted: bool,
    /// Failed checks since the registration, until one passes: they follow each other faster at first.
    unproven: Option<u32>,
    stage: Stage,
    began: Option<Instant>,
    /// Its lease has run out.
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Due(Instant),
    /// The check with this number; `doubted_since`: a call failed while it ran.
    Running(u64, bool),
}

impl Home {
    /// A node without instances. `checks_max`: checks in flight at a time, at least 1; more wait.
    pub fn new(now: Instant, checks_max: usize) -> Home {
        Home {
            checks_max: checks_max.max(1),
            watched: BTreeMap::new(),
            due: BTreeSet::new(),
            running: 0,
            numbers: 0,
            healthy: 0,
            unwritten: BTreeSet::new(),
            writing: false,
            write_after: None,
            leases: Leases::new(now),
            expired: BTreeSet::new(),
            removals: 0,
        }
    }

    /// Takes in what has happened and says what is to be done.
    pub fn handle(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        self.leases.look(now);
        match input {
            Input::Put(record) => self.put(now, record),
            Input::Gone(id) => self.gone(id),
            Input::Doubt(id) => self.doubt(now, id),
            Input::Checked { id, number, result } => self.checked(now, id, number, result),
            Input::Written(taken) => {
                self.writing = false;
                self.write_after = Some(now + if taken { WRITE_PAUSE } else { AGAIN_AFTER });
            }
            Input::Removed(id, answered) => self.removed(now, id, answered),
            Input::Tick => {}
        }
        self.end_leases(now, effects);
        self.start_checks(now, effects);
        self.write(now, effects);
    }

    /// Keeps a lease; false if there is no such instance here, or its lease has run out.
    pub fn renew(&mut self, now: Instant, id: InstanceId) -> bool {
        self.leases.look(now);
        let Some(watched) = self.watched.get(&id).filter(|watched| !watched.ended) else { return false };
        self.leases.grant(now, id, watched.record.ttl_ms);
        true
    }

    /// When `Input::Tick` is due, at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let check = self.due.first().map(|(at, _)| *at).filter(|_| self.running < self.checks_max);
        let write = self.write_after.filter(|_| !self.writing && !self.unwritten.is_empty());
        [check, write, self.leases.next()].into_iter().flatten().min()
    }

    /// The record of an instance that this node is the home of.
    pub fn record(&self, id: InstanceId) -> Option<&Arc<InstanceRecord>> {
        self.watched.get(&id).map(|watched| &watched.record)
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        Counts {
            instances: self.watched.len(),
            healthy: self.healthy,
            checking: self.running,
            unwritten: self.unwritten.len(),
        }
    }

    fn put(&mut self, now: Instant, record: Arc<InstanceRecord>) {
        let id = InstanceId(record.id);
        if let Some(known) =
            self.watched.get_mut(&id).filter(|known| known.record.registered_ms == record.registered_ms)
        {
            // An echo of a flip: what is known here is newer.
            known.record = record;
            return self.compare(id);
        }
        self.gone(id);
        self.leases.grant(now, id, record.ttl_ms);
        self.healthy += usize::from(record.healthy);
        self.due.insert((now, id));
        let watched = Watched {
            healthy: record.healthy,
            reason: record.reason.clone(),
            against: 0,
            doubted: false,
            unproven: (!record.healthy).then_some(0),
            stage: Stage::Due(now),
            began: None,
            ended: false,
            record,
        };
        self.watched.insert(id, watched);
    }

    fn gone(&mut self, id: InstanceId) {
        let Some(watched) = self.watched.remove(&id) else { return };
        if let Stage::Due(at) = watched.stage {
            self.due.remove(&(at, id));
        }
        self.healthy -= usize::from(watched.healthy);
        self.unwritten.remove(&id);
        self.leases.end(id);
        self.expired.remove(&id);
    }

    fn doubt(&mut self, now: Instant, id: InstanceId) {
        let Some(watched) = self.watched.get_mut(&id).filter(|watched| watched.healthy) else { return };
        watched.doubted = true;
        match &mut watched.stage {
            Stage::Running(_, since) => *since = true,
            Stage::Due(at) => {
                let soon = watched.began.map_or(now, |began| now.max(began + CHECK_PAUSE)).min(*at);
                self.due.remove(&(*at, id));
                self.due.insert((soon, id));
                *at = soon;
            }
        }
    }

    fn checked(&mut self, now: Instant, id: InstanceId, number: u64, result: Result<(), String>) {
        self.running -= 1;
        let Some(watched) = self.watched.get_mut(&id) else { return };
        let Stage::Running(_, doubted_since) = watched.stage else { return };
        // Another number: it was registered anew meanwhile, and this result is of its past.
        if watched.stage != Stage::Running(number, doubted_since) {
            return;
        }
        let was = watched.healthy;
        watched.judge(result, doubted_since);
        let at = now.max(watched.next_check(doubted_since));
        watched.stage = Stage::Due(at);
        self.due.insert((at, id));
        self.healthy = self.healthy + usize::from(watched.healthy) - usize::from(was);
        self.compare(id);
    }

    /// Notes whether the registry has another health than the one known here.
    fn compare(&mut self, id: InstanceId) {
        let differs = self.watched.get(&id).is_some_and(|watched| watched.healthy != watched.record.healthy);
        match differs {
            true => self.unwritten.insert(id),
            false => self.unwritten.remove(&id),
        };
    }

    fn start_checks(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while self.running < self.checks_max && self.due.first().is_some_and(|(at, _)| *at <= now) {
            let (_, id) = self.due.pop_first().expect("it was looked at");
            let watched = self.watched.get_mut(&id).expect("what is due is watched");
            self.numbers += 1;
            self.running += 1;
            watched.stage = Stage::Running(self.numbers, false);
            watched.began = Some(now);
            effects.push(Effect::Check { id, number: self.numbers });
        }
    }

    fn write(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.writing || self.unwritten.is_empty() || self.write_after.is_some_and(|after| after > now) {
            return;
        }
        let flip = |id: &InstanceId| {
            let watched = &self.watched[id];
            InstanceFlip { id: id.0, healthy: watched.healthy, reason: watched.reason.clone() }
        };
        effects.push(Effect::Write(self.unwritten.iter().take(FLIPS_MAX).map(flip).collect()));
        self.writing = true;
    }

    fn end_leases(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some(id) = self.leases.pop(now) {
            if let Some(watched) = self.watched.get_mut(&id) {
                watched.ended = true;
                self.expired.insert(id);
            }
        }
        while self.removals < REMOVALS_MAX
            && let Some(id) = self.expired.pop_first()
        {
            self.removals += 1;
            effects.push(Effect::Remove(id, Millis(self.watched[&id].record.registered_ms)));
        }
    }

    fn removed(&mut self, now: Instant, id: InstanceId, answered: bool) {
        self.removals -= 1;
        // Where it was ended, or registered anew, the registry says so by `Put` or `Gone`.
        if !answered && self.watched.get(&id).is_some_and(|watched| watched.ended) {
            self.leases.grant_for(now, id, AGAIN_AFTER);
        }
    }
}

impl Watched {
    fn judge(&mut self, result: Result<(), String>, doubted_since: bool) {
        let check = self.record.check.as_ref();
        let (passed, needed) = match &result {
            Ok(()) => (true, check.map_or(1, |check| check.healthy_after)),
            // What no call could reach and no check either is not tried a second time.
            Err(_) if self.doubted => (false, 1),
            Err(_) => (false, check.map_or(1, |check| check.unhealthy_after)),
        };
        self.unproven = self.unproven.filter(|_| !passed).map(|failed| failed + 1);
        self.doubted = self.doubted && passed && doubted_since;
        self.against = if passed == self.healthy { 0 } else { self.against + 1 };
        if self.against >= needed.max(1) {
            self.healthy = passed;
            self.against = 0;
            self.doubted = false;
        }
        self.reason = match result {
            Ok(()) if self.healthy => String::new(),
            Ok(()) => format!("passes again, {} of {needed} times", self.against),
            Err(reason) => reason,
        };
    }

    /// When the next check begins: an interval after the last one did, or a little less, so that instances registered
    /// together do not stay together.
    fn next_check(&self, doubted_since: bool) -> Instant {
        let began = self.began.expect("a check that ended had begun");
        let interval = u64::from(self.record.check.as_ref().map_or(1_000, |check| check.interval_ms));
        let interval = Duration::from_millis(interval);
        if doubted_since && self.doubted {
            return began + CHECK_PAUSE.min(interval);
        }
        if let Some(failed) = self.unproven {
            return began + CHECK_PAUSE.saturating_mul(1 << failed.min(16)).min(interval);
        }
        let Stage::Running(number, _) = self.stage else { return began + interval };
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&self.record.id.to_le_bytes());
        seed[8..].copy_from_slice(&number.to_le_bytes());
        let less = u32::try_from(xxh3_64(&seed) % 128).expect("below 128");
        began + interval - interval * less / 1_024
    }
}

#[cfg(test)]
mod tests;
