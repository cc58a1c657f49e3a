//! When openraft's timers fire: the ticks of all groups together, so that a node that does nothing wakes up twice a
//! second for them and not 160 times, and the heartbeats that a tick sends share their datagrams.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, Sleep};

/// Ticks fall on multiples of this. A shard's tick, a fifth of its heartbeat of 2 s, comes that often then; its election
/// timeout leaves room for it.
const EVERY: Duration = Duration::from_millis(500);
/// Shorter waits are as long as they say: the registry's ticks, whose elections are quick.
const LONG: Duration = Duration::from_millis(300);
/// Since when each runtime counts. In simulation every node has a runtime, and a clock, of its own.
static BEGAN: Mutex<Vec<(Id, Instant)>> = Mutex::new(Vec::new());

/// Sleeps for `wait`, or until the next common tick after it. Never shorter: openraft would tick again at once for the
/// instant that it waits for, until that has come.
pub(super) fn sleep(wait: Duration) -> Sleep {
    let now = Instant::now();
    tokio::time::sleep_until(now + aligned(now - began(now), wait))
}

fn began(now: Instant) -> Instant {
    let (mut all, here) = (BEGAN.lock().unwrap_or_else(PoisonError::into_inner), Handle::current().id());
    let known = all.iter().find(|(runtime, _)| *runtime == here).map(|(_, began)| *began);
    known.unwrap_or_else(|| {
        all.push((here, now));
        now
    })
}

/// How long to wait, `since` the runtime began to count.
fn aligned(since: Duration, wait: Duration) -> Duration {
    if wait < LONG {
        return wait;
    }
    let ticks = (since + wait).as_nanos().div_ceil(EVERY.as_nanos());
    let at = EVERY * u32::try_from(ticks).unwrap_or(u32::MAX);
    at.saturating_sub(since).max(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn long_waits_end_together_and_never_early() {
        assert_eq!(aligned(ms(7_123), ms(50)), ms(50), "the registry's tick");
        for (since, wait) in [(0, 406), (90, 406), (94, 406), (95, 500), (1_234, 5_000)] {
            let (since, wait) = (ms(since), ms(wait));
            let end = since + aligned(since, wait);
            assert_eq!(end.as_millis() % EVERY.as_millis(), 0, "{since:?} {wait:?}");
            assert!(end >= since + wait && end - (since + wait) < EVERY);
        }
        let long = EVERY * u32::MAX;
        assert_eq!(aligned(long, ms(406)), ms(406), "after 68 years everybody ticks alone");
    }
}
