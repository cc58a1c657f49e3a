//! The keys of `[events]` in weft.toml.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Limits of publishing and subscribing at this node's door.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsConfig {
    /// Bytes of publishes that have no answer yet, over all clients of this node.
    pub publish_bytes_max: ByteSize,
    /// The same for one publish stream; more is not read from it.
    pub stream_bytes_max: ByteSize,
    /// How long a single publish waits for room before it is refused as overloaded.
    #[serde(with = "humantime_serde")]
    pub publish_patience: Duration,
    /// Bytes of a batch that the node packs from single events.
    pub batch_bytes_max: ByteSize,
    /// How long a subscription, or a producer's session, waits for the registry and for owners when it opens.
    #[serde(with = "humantime_serde")]
    pub open_patience: Duration,
}

impl Default for EventsConfig {
    fn default() -> Self {
        EventsConfig {
            publish_bytes_max: ByteSize::mib(256),
            stream_bytes_max: ByteSize::mib(32),
            publish_patience: Duration::from_secs(5),
            batch_bytes_max: ByteSize::kib(128),
            open_patience: Duration::from_secs(8),
        }
    }
}

impl EventsConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence that names the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        let (all, one) = (self.publish_bytes_max, self.stream_bytes_max);
        if one > all {
            return Err(format!("events.publish_bytes_max is {all}; use at least events.stream_bytes_max ({one})"));
        }
        if all > ByteSize::gib(3) {
            return Err(format!("events.publish_bytes_max is {all}; use at most 3 GiB"));
        }
        if all < ByteSize::mib(16) {
            return Err(format!("events.publish_bytes_max is {all}; use at least 16 MiB, to fit the largest batch"));
        }
        if self.batch_bytes_max > ByteSize::mib(8) {
            return Err(format!("events.batch_bytes_max is {}; use at most 8 MiB", self.batch_bytes_max));
        }
        Ok(())
    }
}
