//! Whole Weft clusters under turmoil: one thread, simulated time, every fault from one seed.
//!
//! [`run::run`] takes a [`plan::Plan`] through founding, storm, healing and reading; [`promises`] judge the
//! [`history::History`]. A pause is a host whose messages are all held: turmoil cannot stop a host's own clock.

pub mod cluster;
pub mod disk;
pub mod entropy;
pub mod history;
pub mod host;
pub mod net;
mod network;
mod ondisk;
pub mod plan;
pub mod promises;
pub mod run;
pub mod trace;
pub mod workload;
