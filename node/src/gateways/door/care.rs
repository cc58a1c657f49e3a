//! What becomes of a connection: decided from what it has done so far, with time as an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::ApiConfig;

/// A connection that receives a whole window in less than this would be faster with a larger one, unless the way to
/// its client takes longer.
const WINDOW_TIME: Duration = Duration::from_millis(500);

/// What is seen of a connection at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Bytes read from the client so far.
    pub(super) read_bytes: u64,
    /// Bytes that the system has taken so far.
    pub(super) written_bytes: u64,
    /// Bytes wait that the system does not take.
    pub(super) blocked: bool,
    /// A stream is open.
    pub(super) streams: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is to be done.
    Well,
    /// Ask the client whether it is there.
    Ping,
    /// No stream for long: let it go in order.
    Idle,
    /// The client does not answer.
    Silent,
    /// The client does not read.
    Stalled,
}

/// The state of a connection's care.
#[derive(Debug)]
pub(super) struct Care {
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
    last: Seen,
    heard_at: Instant,
    busy_at: Instant,
    pinged_at: Option<Instant>,
    stalled_at: Option<Instant>,
    resets: Bucket,
    window_mark: (u64, Instant),
}

impl Care {
    pub(super) fn new(config: &ApiConfig, now: Instant) -> Care {
        Care {
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
            idle_timeout: config.idle_timeout,
            write_timeout: config.write_timeout,
            last: Seen::default(),
            heard_at: now,
            busy_at: now,
            pinged_at: None,
            stalled_at: None,
            resets: Bucket::new(config.resets_burst, config.resets_per_second, now),
            window_mark: (0, now),
        }
    }

    /// How often to `look`: each limit holds with half of its time as error.
    pub(super) fn period(&self) -> Duration {
        let shortest =
            self.keepalive_interval.min(self.keepalive_timeout).min(self.idle_timeout).min(self.write_timeout);
        shortest / 2
    }

    /// The regular look at a connection.
    pub(super) fn look(&mut self, now: Instant, seen: Seen) -> Verdict {
        if seen.read_bytes != self.last.read_bytes {
            (self.heard_at, self.pinged_at) = (now, None);
        }
        if seen.streams {
            self.busy_at = now;
        }
        let stalls = seen.blocked && self.last.blocked && seen.written_bytes == self.last.written_bytes;
        self.stalled_at = stalls.then(|| self.stalled_at.unwrap_or(now));
        self.last = seen;
        let is_over = |since: Instant, patience| now.duration_since(since) >= patience;
        if self.stalled_at.is_some_and(|at| is_over(at, self.write_timeout)) {
            return Verdict::Stalled;
        }
        if let Some(at) = self.pinged_at {
            return if is_over(at, self.keepalive_timeout) { Verdict::Silent } else { Verdict::Well };
        }
        if !seen.streams && is_over(self.busy_at, self.idle_timeout) {
            return Verdict::Idle;
        }
        if is_over(self.heard_at, self.keepalive_interval) {
            self.pinged_at = Some(now);
            return Verdict::Ping;
        }
        Verdict::Well
    }

    /// Whether `resets` so far are more than a client in its right mind needs.
    pub(super) fn is_flooded(&mut self, now: Instant, resets: u64) -> bool {
        self.resets.is_over(now, resets)
    }

    /// Whether a connection that has received `read_bytes` so far is held up by its `window`.
    pub(super) fn wants_window(&mut self, now: Instant, read_bytes: u64, window: u32) -> bool {
        let (bytes, at) = self.window_mark;
        if read_bytes - bytes < u64::from(window) {
            return false;
        }
        self.window_mark = (read_bytes, now);
        now.duration_since(at) < WINDOW_TIME
    }

    /// Whether it is time to ask `wants_window`: cheap, without a clock.
    pub(super) fn window_is_through(&self, read_bytes: u64, window: u32) -> bool {
        read_bytes - self.window_mark.0 >= u64::from(window)
    }
}

/// Lets a burst through, and a steady rate after it.
#[derive(Debug)]
struct Bucket {
    burst: f64,
    per_second: f64,
    left: f64,
    seen: u64,
    at: Instant,
}

impl Bucket {
    fn new(burst: u32, per_second: u32, now: Instant) -> Bucket {
        let (burst, per_second) = (f64::from(burst), f64::from(per_second));
        Bucket { burst, per_second, left: burst, seen: 0, at: now }
    }

    fn is_over(&mut self, now: Instant, total: u64) -> bool {
        let gained = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + gained).min(self.burst) - (total - self.seen) as f64;
        (self.seen, self.at) = (total, now);
        self.left < 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> ApiConfig {
        ApiConfig {
            keepalive_interval: 20 * SECOND,
            keepalive_timeout: 10 * SECOND,
            idle_timeout: 100 * SECOND,
            write_timeout: 30 * SECOND,
            resets_burst: 10,
            resets_per_second: 2,
            ..ApiConfig::default()
        }
    }

    /// Looks every five seconds and returns when something else than `Well` was said, and what.
    fn until(care: &mut Care, from: Instant, mut seen: impl FnMut(u64) -> Seen) -> (u64, Verdict) {
        for seconds in (5..).step_by(5) {
            let verdict = care.look(from + Duration::from_secs(seconds), seen(seconds));
            if verdict != Verdict::Well {
                return (seconds, verdict);
            }
            assert!(seconds < 1000, "nothing was ever said");
        }
        unreachable!("the loop returns")
    }

    #[test]
    fn a_quiet_client_is_pinged_and_then_given_up() {
        let now = Instant::now();
        let mut care = Care::new(&config(), now);
        assert_eq!(care.period(), 5 * SECOND);
        let seen = Seen { streams: true, ..Seen::default() };
        assert_eq!(until(&mut care, now, |_| seen), (20, Verdict::Ping));
        let answered = Seen { read_bytes: 17, ..seen };
        assert_eq!(care.look(now + 25 * SECOND, answered), Verdict::Well);
        assert_eq!(until(&mut care, now + 25 * SECOND, |_| answered), (20, Verdict::Ping));
        assert_eq!(until(&mut care, now + 45 * SECOND, |_| answered), (10, Verdict::Silent));
    }

    #[test]
    fn a_client_without_streams_is_let_go() {
        let now = Instant::now();
        let mut care = Care::new(&config(), now);
        let pings = |seconds| Seen { read_bytes: seconds, ..Seen::default() };
        assert_eq!(until(&mut care, now, pings), (100, Verdict::Idle));
        let mut care = Care::new(&config(), now);
        let late = |seconds| Seen { read_bytes: seconds, streams: seconds < 50, ..Seen::default() };
        assert_eq!(until(&mut care, now, late), (145, Verdict::Idle));
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off_and_a_slow_one_is_not() {
        let now = Instant::now();
        let stalled = |seconds| Seen { read_bytes: seconds, written_bytes: 5, blocked: true, streams: true };
        assert_eq!(until(&mut Care::new(&config(), now), now, stalled), (40, Verdict::Stalled));
        let mut care = Care::new(&config(), now);
        for seconds in (5..1000).step_by(5) {
            let slow = Seen { written_bytes: seconds / 20, ..stalled(seconds) };
            assert_eq!(care.look(now + Duration::from_secs(seconds), slow), Verdict::Well);
        }
    }

    #[test]
    fn resets_are_borne_up_to_a_rate() {
        let now = Instant::now();
        let mut care = Care::new(&config(), now);
        assert!(!care.is_flooded(now, 10));
        for second in 1..100 {
            assert!(!care.is_flooded(now + Duration::from_secs(second), 10 + 2 * second));
        }
        assert!(care.is_flooded(now + 99 * SECOND, 10 + 2 * 99 + 1));
    }

    #[test]
    fn a_window_that_is_used_up_fast_is_too_small() {
        let now = Instant::now();
        let mut care = Care::new(&config(), now);
        assert!(!care.window_is_through(999, 1000) && care.window_is_through(1000, 1000));
        assert!(care.wants_window(now + SECOND / 10, 1000, 1000));
        assert!(!care.wants_window(now + SECOND / 10, 1500, 1000), "half of it");
        assert!(!care.wants_window(now + 2 * SECOND, 2500, 1000), "slowly");
    }
}
