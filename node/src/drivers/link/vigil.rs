//! Watches one link: pure, time and what was heard come in, pings and verdicts go out.

use std::time::Duration;

use tokio::time::Instant;

/// Pings of a probe.
const PROBE_PINGS: u32 = 3;
/// Between them, and the least wait after the last.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// Turns of the watch that may be missed before this node holds itself, not the peer, for the silent one.
const STALL_TURNS: u32 = 3;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Send a ping that only its receipt by QUIC answers.
    Ping,
    /// Send a ping that the peer must answer with this number.
    Probe(u64),
    /// The peer is heard again.
    Up,
    /// The peer is silent.
    Suspect,
    /// No ping of a probe was answered.
    Dead,
}

/// The watch over one link.
pub(super) struct Vigil {
    turn: Duration,
    ping_after: Duration,
    suspect_after: Duration,
    heard_at: Instant,
    pinged_at: Instant,
    looked_at: Instant,
    datagrams: u64,
    suspect: bool,
    /// What is thought of the peer comes from another link: what is heard here next is news.
    news: bool,
    probe: Option<Probe>,
    probes: u64,
}

struct Probe {
    number: u64,
    sent: u32,
    next_at: Instant,
}

impl Vigil {
    pub(super) fn new(now: Instant, ping_after: Duration, suspect_after: Duration) -> Self {
        Vigil {
            turn: ping_after / 2,
            ping_after,
            suspect_after,
            heard_at: now,
            pinged_at: now,
            looked_at: now,
            datagrams: 0,
            suspect: false,
            news: false,
            probe: None,
            probes: 0,
        }
    }

    /// When `look` wants to be called next.
    pub(super) fn next_deadline(&self) -> Instant {
        let turn = self.looked_at + self.turn;
        self.probe.as_ref().map_or(turn, |probe| probe.next_at.min(turn))
    }

    /// The link is in use again, after another one that may have ended as dead: that is not true of this one if anything
    /// is heard on it from now on.
    pub(super) fn promoted(&mut self) {
        self.news = true;
    }

    /// Something casts doubt on the peer: probe it, unless that is under way.
    pub(super) fn doubt(&mut self, now: Instant) {
        if self.probe.is_none() {
            self.probes += 1;
            self.probe = Some(Probe { number: self.probes, sent: 0, next_at: now });
        }
    }

    /// The peer answered a probe.
    pub(super) fn answered(&mut self, number: u64) {
        if self.probe.as_ref().is_some_and(|probe| probe.number == number) {
            self.probe = None;
        }
    }

    /// Looks at the link: `datagrams` received on it so far, `rtt` as measured.
    pub(super) fn look(&mut self, now: Instant, datagrams: u64, rtt: Duration, effects: &mut Vec<Effect>) {
        if now > self.looked_at + self.turn * STALL_TURNS {
            // This node stood still: what the peer said meanwhile is still to be read.
            self.heard_at = now;
            if let Some(probe) = &mut self.probe {
                (probe.sent, probe.next_at) = (0, now);
            }
        }
        self.looked_at = now;
        if datagrams != self.datagrams {
            (self.datagrams, self.heard_at) = (datagrams, now);
            if std::mem::take(&mut self.suspect) | std::mem::take(&mut self.news) {
                effects.push(Effect::Up);
            }
        }
        self.probe(now, rtt, effects);
        let silence = now - self.heard_at;
        if silence >= self.suspect_after && !self.suspect {
            self.suspect = true;
            effects.push(Effect::Suspect);
        }
        if silence >= self.ping_after && now - self.pinged_at >= self.ping_after {
            self.pinged_at = now;
            effects.push(Effect::Ping);
        }
    }

    fn probe(&mut self, now: Instant, rtt: Duration, effects: &mut Vec<Effect>) {
        let Some(probe) = self.probe.as_mut().filter(|probe| now >= probe.next_at) else { return };
        if probe.sent == PROBE_PINGS {
            self.probe = None;
            effects.push(Effect::Dead);
            return;
        }
        probe.sent += 1;
        // The last one gets the time that an answer takes.
        let last = probe.sent == PROBE_PINGS;
        probe.next_at = now + if last { PROBE_INTERVAL.max(rtt * 2) } else { PROBE_INTERVAL };
        effects.push(Effect::Probe(probe.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(1);

    struct Play {
        start: Instant,
        vigil: Vigil,
    }

    impl Play {
        fn new() -> Self {
            let start = Instant::now();
            Play { start, vigil: Vigil::new(start, Duration::from_millis(200), Duration::from_millis(600)) }
        }

        fn look(&mut self, ms: u64, datagrams: u64) -> Vec<Effect> {
            let mut effects = Vec::new();
            self.vigil.look(self.start + Duration::from_millis(ms), datagrams, RTT, &mut effects);
            effects
        }
    }

    #[test]
    fn silence_is_pinged_then_suspected_then_forgiven() {
        let mut play = Play::new();
        assert_eq!(play.look(100, 1), []);
        assert_eq!(play.look(200, 1), []);
        assert_eq!(play.look(300, 1), [Effect::Ping]);
        assert_eq!(play.look(400, 1), []);
        assert_eq!(play.look(500, 1), [Effect::Ping]);
        assert_eq!(play.look(600, 1), []);
        assert_eq!(play.look(700, 1), [Effect::Suspect, Effect::Ping]);
        assert_eq!(play.look(800, 1), []);
        assert_eq!(play.look(900, 2), [Effect::Up]);
    }

    #[test]
    fn a_link_that_is_in_use_again_says_up_once_it_hears_something() {
        let mut play = Play::new();
        assert_eq!(play.look(100, 1), []);
        play.vigil.promoted();
        assert_eq!(play.look(200, 1), []);
        assert_eq!(play.look(300, 2), [Effect::Up]);
        assert_eq!(play.look(400, 3), []);
    }

    #[test]
    fn a_busy_link_is_never_pinged() {
        let mut play = Play::new();
        for turn in 1..100 {
            assert_eq!(play.look(turn * 100, turn), []);
        }
    }

    #[test]
    fn a_probe_without_answer_is_death_in_60_ms() {
        let mut play = Play::new();
        play.look(100, 1);
        play.vigil.doubt(play.start + Duration::from_millis(110));
        assert_eq!(play.look(110, 1), [Effect::Probe(1)]);
        assert_eq!(play.look(130, 2), [Effect::Probe(1)]);
        assert_eq!(play.look(150, 2), [Effect::Probe(1)]);
        assert_eq!(play.look(160, 2), []);
        assert_eq!(play.look(170, 2), [Effect::Dead]);
    }

    #[test]
    fn an_answer_ends_a_probe_and_a_late_one_does_not_end_the_next() {
        let mut play = Play::new();
        play.vigil.doubt(play.start);
        assert_eq!(play.look(0, 1), [Effect::Probe(1)]);
        play.vigil.answered(1);
        assert_eq!(play.look(100, 2), []);
        play.vigil.doubt(play.start + Duration::from_millis(100));
        play.vigil.answered(1);
        assert_eq!(play.look(101, 3), [Effect::Probe(2)]);
    }

    #[test]
    fn a_stall_of_this_node_is_not_held_against_the_peer() {
        let mut play = Play::new();
        play.vigil.doubt(play.start);
        assert_eq!(play.look(0, 1), [Effect::Probe(1)]);
        assert_eq!(play.look(20, 1), [Effect::Probe(1)]);
        assert_eq!(play.look(40, 1), [Effect::Probe(1)]);
        assert_eq!(play.look(2_000, 1), [Effect::Probe(1)]);
        assert!(!play.look(2_020, 1).contains(&Effect::Suspect));
    }
}
