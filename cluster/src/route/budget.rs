//! How many calls may be made again: a share of all calls, so that retries cannot multiply an overload.

/// Thousandths of a retry.
const UNIT: u64 = 1_000;
/// Saved up at most: this many seconds of `per_second_min`, and at least one retry.
const SAVED_SECONDS: u64 = 10;

/// The retries left to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    percent: u64,
    per_second_min: u64,
    saved: u64,
    calls: u64,
    at_ms: u64,
}

impl Budget {
    /// `percent` of the calls may be retries, and `per_second_min` in any case. It begins full.
    pub fn new(percent: u32, per_second_min: u32, now_ms: u64) -> Budget {
        let (percent, per_second_min) = (u64::from(percent), u64::from(per_second_min));
        let mut budget = Budget { percent, per_second_min, saved: 0, calls: 0, at_ms: now_ms };
        budget.saved = budget.saved_max();
        budget
    }

    /// Takes one retry, if one is left. `calls`: all calls of the service so far, retries left out.
    pub fn take(&mut self, now_ms: u64, calls: u64) -> bool {
        let new_calls = calls.saturating_sub(self.calls);
        let millis = now_ms.saturating_sub(self.at_ms);
        (self.calls, self.at_ms) = (calls.max(self.calls), now_ms.max(self.at_ms));
        let earned =
            (new_calls.saturating_mul(self.percent) * (UNIT / 100)).saturating_add(millis * self.per_second_min);
        self.saved = self.saved.saturating_add(earned).min(self.saved_max());
        let enough = self.saved >= UNIT;
        if enough {
            self.saved -= UNIT;
        }
        enough
    }

    fn saved_max(&self) -> u64 {
        let most = (self.per_second_min * SAVED_SECONDS).max(self.percent);
        if most == 0 { 0 } else { most.max(1) * UNIT }
    }
}
