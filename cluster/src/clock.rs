//! Which time a log gets: its owner's wall clock, unless it is far from the median of the voters' clocks.
//!
//! A peer's clock is kept as its distance from this node's steady clock, which never jumps. So a jump of this node's
//! own wall clock shows at once, and not only when the next peer has told its time. Time decides when, never who:
//! nothing here is needed for safety.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{Millis, NodeId};

/// What a peer said is forgotten after this: its clock may have been set since.
pub const READING_LIFETIME: Duration = Duration::from_secs(60);

/// What a node knows of its peers' wall clocks.
#[derive(Debug, Default)]
pub struct Clocks {
    readings: BTreeMap<NodeId, Reading>,
}

#[derive(Debug)]
struct Reading {
    /// The peer's wall clock when this node's steady clock was 0.
    base_ms: i64,
    /// When it was heard, on the steady clock.
    at: Duration,
}

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The node's own clock is good, or there is no majority to compare it with.
    Taken(Millis),
    /// It is far from the voters' median, which is to be used.
    Refused {
        /// The voters' median.
        median: Millis,
    },
}

impl Clocks {
    /// A peer's wall clock shows `wall` at `now` of this node's steady clock.
    pub fn heard(&mut self, now: Duration, peer: NodeId, wall: Millis) {
        self.readings.retain(|_, reading| now < reading.at + READING_LIFETIME);
        self.readings.insert(peer, Reading { base_ms: wall.0.saturating_sub(millis(now)), at: now });
    }

    /// Drops what is known of a peer.
    pub fn forget(&mut self, peer: NodeId) {
        self.readings.remove(&peer);
    }

    /// True if no peer's clock is further than `tolerance` from `mine`: then no median of any voters is.
    pub fn agree(&self, now: Duration, mine: Millis, tolerance: Duration) -> bool {
        self.fresh(now).all(|(_, wall)| mine.0.abs_diff(wall) <= tolerance.as_millis() as u64)
    }

    /// Compares this node's wall clock `mine` with the median of the voters' clocks, its own among them.
    ///
    /// Of an even number the lower middle one counts: log time that stands still for a while can go on, log time
    /// that is a year ahead cannot go back. With clocks of less than a majority there is nothing to compare with.
    pub fn judge(
        &self,
        now: Duration,
        me: NodeId,
        mine: Millis,
        voters: impl IntoIterator<Item = NodeId>,
        tolerance: Duration,
    ) -> Judgement {
        let mut count = 0;
        let known: BTreeMap<NodeId, i64> = self.fresh(now).collect();
        let mut walls = Vec::new();
        for voter in voters {
            count += 1;
            walls.extend(if voter == me { Some(mine.0) } else { known.get(&voter).copied() });
        }
        if walls.len() * 2 <= count {
            return Judgement::Taken(mine);
        }
        walls.sort_unstable();
        let median = walls[(walls.len() - 1) / 2];
        match mine.0.abs_diff(median) <= tolerance.as_millis() as u64 {
            true => Judgement::Taken(mine),
            false => Judgement::Refused { median: Millis(median) },
        }
    }

    /// The wall clocks of the peers heard lately, as they show now.
    fn fresh(&self, now: Duration) -> impl Iterator<Item = (NodeId, i64)> {
        let heard = self.readings.iter().filter(move |(_, reading)| now < reading.at + READING_LIFETIME);
        heard.map(move |(peer, reading)| (*peer, reading.base_ms.saturating_add(millis(now))))
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Duration = Duration::from_secs(60);
    const YEAR_MS: i64 = 365 * 24 * 3_600_000;
    const START_MS: i64 = 1_767_225_600_000;
    const ME: NodeId = NodeId(1);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What is judged of a clock that shows `mine` ms after the start, 10 s in, by `peers` heard 5 s in.
    fn judge(mine: i64, peers: &[(u64, i64)], voters: u64) -> Judgement {
        let mut clocks = Clocks::default();
        for (peer, ahead) in peers {
            clocks.heard(at(5), NodeId(*peer), Millis(START_MS + 5_000 + ahead));
        }
        let mine = Millis(START_MS + mine);
        clocks.judge(at(10), ME, mine, (1..=voters).map(NodeId), TOLERANCE)
    }

    #[test]
    fn a_clock_far_from_the_median_is_refused() {
        let taken = |ms| Judgement::Taken(Millis(START_MS + ms));
        let refused = |ms| Judgement::Refused { median: Millis(START_MS + ms) };
        let table: &[(&str, i64, &[(u64, i64)], u64, Judgement)] = &[
            ("alone", 10_000 + YEAR_MS, &[], 1, taken(10_000 + YEAR_MS)),
            ("all agree", 10_200, &[(2, 0), (3, 400)], 3, taken(10_200)),
            ("near the tolerance", 69_000, &[(2, 0), (3, 0)], 3, taken(69_000)),
            ("a year ahead", 10_000 + YEAR_MS, &[(2, 0), (3, 400)], 3, refused(10_400)),
            ("a year behind", 10_000 - YEAR_MS, &[(2, 0), (3, 400)], 3, refused(10_000)),
            ("a peer is a year ahead", 10_000, &[(2, 0), (3, YEAR_MS)], 3, taken(10_000)),
            ("a peer is a year behind", 10_000, &[(2, -YEAR_MS), (3, 100)], 3, taken(10_000)),
            ("one of two peers is known, and lower", 10_000 + YEAR_MS, &[(2, 0)], 3, refused(10_000)),
            ("one of two peers is known, and higher", 10_000, &[(2, YEAR_MS)], 3, taken(10_000)),
            ("no majority is known", 10_000 + YEAR_MS, &[(2, 0)], 5, taken(10_000 + YEAR_MS)),
            ("others than voters do not count", 10_000, &[(7, YEAR_MS), (8, YEAR_MS)], 1, taken(10_000)),
        ];
        for (what, mine, peers, voters, expected) in table {
            assert_eq!(judge(*mine, peers, *voters), *expected, "{what}");
        }
    }

    #[test]
    fn readings_are_forgotten() {
        let mut clocks = Clocks::default();
        clocks.heard(at(0), NodeId(2), Millis(START_MS));
        clocks.heard(at(0), NodeId(3), Millis(START_MS));
        let ahead = Millis(START_MS + YEAR_MS);
        let judged = |clocks: &Clocks, now| clocks.judge(now, ME, ahead, (1..=3).map(NodeId), TOLERANCE);
        assert_eq!(judged(&clocks, at(59)), Judgement::Refused { median: Millis(START_MS + 59_000) });
        assert!(!clocks.agree(at(59), ahead, TOLERANCE));
        assert_eq!(judged(&clocks, at(60)), Judgement::Taken(ahead));
        assert!(clocks.agree(at(60), ahead, TOLERANCE));
        clocks.heard(at(61), NodeId(2), Millis(START_MS + 61_000));
        assert_eq!(clocks.readings.len(), 1);
        clocks.forget(NodeId(2));
        assert_eq!(judged(&clocks, at(61)), Judgement::Taken(ahead));
    }

    #[test]
    fn no_clock_that_a_peer_tells_overflows() {
        let mut clocks = Clocks::default();
        for wall in [i64::MIN, i64::MAX] {
            clocks.heard(at(1_000_000), NodeId(2), Millis(wall));
            clocks.heard(at(1_000_000), NodeId(3), Millis(wall));
            let now = Millis(START_MS);
            assert!(matches!(
                clocks.judge(at(1_000_001), ME, now, (1..=3).map(NodeId), TOLERANCE),
                Judgement::Refused { .. }
            ));
        }
    }
}
