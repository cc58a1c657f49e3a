//! Stands in for `base2histogram`, of which openraft keeps some twenty histograms per group. They are shown by its
//! feature `runtime-stats` alone, which is off here, and still cost memory: the first one makes tables for all 16
//! widths, 27 MiB that stay resident, although only those of one width (2 KiB) are ever looked at.
//!
//! What openraft needs of the crate is here and counts nothing. Should `runtime-stats` be wanted, drop the patch in the
//! workspace's `Cargo.toml`.

use std::fmt;
use std::marker::PhantomData;

/// A histogram that counts nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Histogram<T> {
    /// An empty one; it stays empty.
    #[expect(clippy::new_without_default, reason = "openraft makes them this way only")]
    pub const fn new() -> Self {
        Histogram(PhantomData)
    }

    /// Does nothing.
    #[inline]
    pub fn record(&mut self, _value: u64) {}

    /// Does nothing.
    #[inline]
    pub fn record_n(&mut self, _value: u64, _count: u64) {}

    /// Those of no samples.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

/// Percentiles: all 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after what they would hold")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[samples: 0]")
    }
}

/// A chart of nothing.
#[derive(Clone, Debug)]
pub struct AsciiChart;

impl AsciiChart {
    /// An empty one; it stays empty.
    #[expect(clippy::new_without_default, reason = "openraft makes them this way only")]
    pub const fn new() -> Self {
        AsciiChart
    }

    /// Adds nothing.
    pub fn add(self, _name: impl Into<String>, _histogram: Histogram) -> Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
