//! Whole Weft clusters under turmoil: one thread, simulated time, every fault from one seed.

pub mod disk;
pub mod entropy;
pub mod host;
pub mod net;
pub mod trace;
