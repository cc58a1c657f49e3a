//! The Weft node: drivers do, gateways translate, `run` wires.

pub mod config;
pub mod drivers;
pub mod gateways;
pub mod host;
pub mod wire;
