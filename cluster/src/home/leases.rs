//! Leases on a clock that stands still while this node does: a node that was paused could not hear renewals.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::ids::InstanceId;

/// While there are leases, this node looks at its clock at least so often.
const TURN: Duration = Duration::from_millis(500);
/// A longer time without a look was a pause, and is not held against the leases.
const PAUSE: Duration = Duration::from_millis(1_500);

/// Which lease ends when.
#[derive(Debug)]
pub(super) struct Leases {
    origin: Instant,
    looked_at: Instant,
    paused: Duration,
    /// Ends, on the clock that stands still.
    ends: BTreeMap<InstanceId, Duration>,
    order: BTreeSet<(Duration, InstanceId)>,
}

impl Leases {
    pub(super) fn new(now: Instant) -> Leases {
        Leases { origin: now, looked_at: now, paused: Duration::ZERO, ends: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Looks at the clock.
    pub(super) fn look(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.looked_at);
        if gap > PAUSE {
            self.paused += gap;
        }
        self.looked_at = self.looked_at.max(now);
    }

    /// Gives an instance `ttl_ms` from now; 0: its lease has no end.
    pub(super) fn grant(&mut self, now: Instant, id: InstanceId, ttl_ms: u32) {
        if ttl_ms != 0 {
            self.grant_for(now, id, Duration::from_millis(ttl_ms.into()));
        }
    }

    pub(super) fn grant_for(&mut self, now: Instant, id: InstanceId, time: Duration) {
        self.end(id);
        let end = self.clock(now) + time;
        self.ends.insert(id, end);
        self.order.insert((end, id));
    }

    pub(super) fn end(&mut self, id: InstanceId) {
        if let Some(end) = self.ends.remove(&id) {
            self.order.remove(&(end, id));
        }
    }

    /// The next lease that has run out.
    pub(super) fn pop(&mut self, now: Instant) -> Option<InstanceId> {
        let clock = self.clock(now);
        let (_, id) = self.order.first().copied().filter(|(end, _)| *end <= clock)?;
        self.end(id);
        Some(id)
    }

    /// When to look again.
    pub(super) fn next(&self) -> Option<Instant> {
        let (end, _) = self.order.first()?;
        Some((self.origin + self.paused + *end).min(self.looked_at + TURN))
    }

    fn clock(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.origin).saturating_sub(self.paused)
    }
}
