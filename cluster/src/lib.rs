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

/// Where the time of a test begins; it goes on as the test says.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the only way to have an instant at all; it is not looked at")]
fn origin() -> std::time::Instant {
    std::time::Instant::now()
}
