//! Tests of the simulator itself.

mod host;
mod instances;
mod scenarios;
