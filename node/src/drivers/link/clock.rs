//! Peers tell each other their wall clocks; log time comes from here.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use weft_cluster::clock::{Clocks, Judgement};
use weft_cluster::ids::{Millis, NodeId};

use super::peers::{Link, lock};
use super::{Inner, Links};

/// How often a node tells each peer its wall clock.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(2);
/// A clock that stays wrong is logged once per so long.
const LOG_EVERY: Duration = Duration::from_secs(600);

/// The peers' clocks, and this node's steady one.
pub(super) struct Clock {
    origin: Instant,
    clocks: Mutex<Clocks>,
    logged: Mutex<Option<Instant>>,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock { origin: Instant::now(), clocks: Mutex::default(), logged: Mutex::default() }
    }

    pub(super) fn forget(&self, peer: NodeId) {
        lock(&self.clocks).forget(peer);
    }
}

impl Inner {
    /// This node's wall clock as it is told to peers.
    pub(super) fn wall_ms(&self) -> u64 {
        u64::try_from(self.host.wall().0).unwrap_or(0)
    }

    /// A peer has told its wall clock, in its Hello or later: so the clocks of those who vote for a leader are known to
    /// it before it leads. 0: it did not tell.
    pub(super) fn clock_heard(&self, link: &Link, wall_ms: u64) {
        if wall_ms == 0 {
            return;
        }
        let wall = i64::try_from(wall_ms).unwrap_or(i64::MAX);
        let now = self.clock.origin.elapsed();
        // It is older by the way here.
        let wall = Millis(wall.saturating_add((link.connection.rtt() / 2).as_millis() as i64));
        lock(&self.clock.clocks).heard(now, link.peer.id, wall);
        let ahead_ms = wall.0.saturating_sub(self.host.wall().0);
        self.metrics.clock_ahead_seconds.get_or_create(&link.label()).set(ahead_ms as f64 / 1000.0);
    }
}

impl Links {
    /// Log time for an entry of a group that this node leads: the wall clock, or the median of the voters' where this
    /// node's is further than `link.clock_tolerance` from it; never before `previous`.
    ///
    /// `voters` is asked only when some peer's clock is far from this node's.
    pub fn log_time(&self, previous: Millis, voters: impl FnOnce() -> Vec<NodeId>) -> Millis {
        let inner = &self.inner;
        let (now, mine, tolerance) = (inner.clock.origin.elapsed(), inner.host.wall(), inner.config.clock_tolerance);
        let judgement = {
            let clocks = lock(&inner.clock.clocks);
            match clocks.agree(now, mine, tolerance) {
                true => Judgement::Taken(mine),
                false => clocks.judge(now, inner.me.id, mine, voters(), tolerance),
            }
        };
        let time = match judgement {
            Judgement::Taken(mine) => mine,
            Judgement::Refused { median } => {
                self.clock_refused(mine, median);
                median
            }
        };
        time.max(previous)
    }

    fn clock_refused(&self, mine: Millis, median: Millis) {
        self.inner.metrics.clock_refused.inc();
        let mut logged = lock(&self.inner.clock.logged);
        if logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return;
        }
        *logged = Some(Instant::now());
        tracing::error!(
            wall_ms = mine.0,
            median_ms = median.0,
            "this node's wall clock is {} s from the median of its shards' voters: their median is used; set the clock",
            (mine.0.saturating_sub(median.0)) / 1000
        );
    }
}
