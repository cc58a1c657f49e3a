//! Clusters of real processes, for checks and for benchmarks.

pub mod cluster;
