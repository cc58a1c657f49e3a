//! Code that translates a protocol. Gateways use the drivers' handles and the core, never each other.

pub mod admin;
pub mod door;
pub mod events;
pub mod peer;
pub mod proxy;
pub mod services;
pub mod status;
