//! The core of Weft: decisions only. Synchronous, no I/O, no clock, no dice of its own, no tokio.
//!
//! Time and randomness come in as arguments; what is to be done goes out as effects or outcomes.

pub mod caller;
pub mod clock;
pub mod delivery;
pub mod errors;
pub mod hashing;
pub mod home;
pub mod ids;
pub mod membership;
pub mod placement;
pub mod registry;
pub mod route;
pub mod shard;
pub mod view;
