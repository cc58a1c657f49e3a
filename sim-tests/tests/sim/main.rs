//! Tests of the simulator itself.

mod host;
mod scenarios;
