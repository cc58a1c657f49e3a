//! Whole Weft clusters under turmoil: one thread, simulated time, every fault from one seed.
//!
//! [`promises`] judge the [`history::History`] of a run. A pause is a host whose messages are all held: turmoil cannot stop a host's own clock.

pub mod disk;
pub mod entropy;
pub mod history;
pub mod host;
pub mod net;
pub mod plan;
pub mod promises;
pub mod trace;
