//! Tests of the simulator itself.

mod calls;
mod host;
mod instances;
mod scenarios;
