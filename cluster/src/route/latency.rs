//! How long an instance takes to answer: a moving average that fades while nothing is asked.

/// The average fades to a half in this time, in microseconds, so that an instance that was slow is tried again.
const FADE_US: u64 = 10_000_000;
/// The least share of a new sample is one of so many.
const SAMPLES: u64 = 16;

/// A moving average of latency. 0: nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Microseconds, as of `at_us`.
    pub average_us: u64,
    /// When the newest sample was taken, in microseconds of the caller's clock.
    pub at_us: u64,
}

impl Latency {
    /// The average as of `now_us`.
    pub fn at(self, now_us: u64) -> u64 {
        let age = now_us.saturating_sub(self.at_us);
        self.average_us.saturating_mul(FADE_US) / FADE_US.saturating_add(age)
    }

    /// With a new sample. The longer nothing was heard, the more the sample counts.
    #[must_use]
    pub fn with(self, now_us: u64, sample_us: u64) -> Latency {
        let age = now_us.saturating_sub(self.at_us).min(FADE_US);
        // From a sixteenth, when samples come thick and fast, to all, after a long silence.
        let share = age.max(FADE_US / SAMPLES);
        let (old, new) = (u128::from(self.average_us), u128::from(sample_us.max(1)));
        let (share, all) = (u128::from(share), u128::from(FADE_US));
        let average = if self.average_us == 0 { new } else { (old * (all - share) + new * share) / all };
        Latency { average_us: u64::try_from(average).unwrap_or(u64::MAX).max(1), at_us: now_us }
    }
}
