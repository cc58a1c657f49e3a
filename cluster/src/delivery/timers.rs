use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::Config;
use super::dice::Dice;

/// An event: (partition, offset).
pub(super) type Place = (u32, u64);

/// When events are given out again. Entries whose event has moved on meanwhile are passed over by whoever asks.
#[derive(Debug)]
pub(super) struct Timers {
    /// Ack deadlines. All wait equally long, so they are in order as they come.
    deadlines: VecDeque<(Instant, Place)>,
    /// Nacked events.
    backoffs: BTreeSet<(Instant, Place)>,
    dice: Dice,
}

/// Stale deadlines kept before they are swept out.
const STALE_MAX: usize = 1_024;

impl Timers {
    pub(super) fn new(seed: u64) -> Timers {
        Timers { deadlines: VecDeque::new(), backoffs: BTreeSet::new(), dice: Dice::new(seed) }
    }

    pub(super) fn deadline(&mut self, at: Instant, place: Place) {
        self.deadlines.push_back((at, place));
    }

    pub(super) fn backoff(&mut self, at: Instant, place: Place) {
        self.backoffs.insert((at, place));
    }

    /// The next deadline that has passed.
    pub(super) fn pop_deadline(&mut self, now: Instant) -> Option<(Instant, Place)> {
        self.deadlines.pop_front_if(|(at, _)| *at <= now)
    }

    /// The next backoff that is over.
    pub(super) fn pop_backoff(&mut self, now: Instant) -> Option<(Instant, Place)> {
        if self.backoffs.first()?.0 > now {
            return None;
        }
        self.backoffs.pop_first()
    }

    /// Throws away deadlines of events that are no longer in flight: at the front always, so that nobody wakes for
    /// them; elsewhere once they are more than those `in_flight`, so that memory is bounded.
    pub(super) fn sweep(&mut self, in_flight: usize, live: impl Fn(Instant, Place) -> bool) {
        while self.deadlines.pop_front_if(|(at, place)| !live(*at, *place)).is_some() {}
        if self.deadlines.len() > 2 * in_flight + STALE_MAX {
            self.deadlines.retain(|(at, place)| live(*at, *place));
        }
    }

    pub(super) fn forget(&mut self, partition: u32) {
        self.deadlines.retain(|(_, place)| place.0 != partition);
        self.backoffs.retain(|(_, place)| place.0 != partition);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let backoff = self.backoffs.first().map(|(at, _)| *at);
        deadline.into_iter().chain(backoff).min()
    }

    /// How long to wait after an event's last of so many failures: doubling, with jitter between half and all of it.
    pub(super) fn backoff_of(&mut self, failures: u32, config: &Config) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = config.backoff_min.saturating_mul(1 << doublings).min(config.backoff_max);
        let half = full / 2;
        half + half.mul_f64(self.dice.roll())
    }
}
