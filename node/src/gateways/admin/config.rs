//! What operators can set: `[admin]` in weft.toml.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Limits of the door for operators.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Connections open at once; one more waits in the system's backlog.
    pub connections_max: u32,
    /// Bytes of a request's headers.
    pub headers_bytes_max: ByteSize,
    /// A client that has not sent its request's headers after this is cut off.
    #[serde(with = "humantime_serde")]
    pub headers_patience: Duration,
    /// A connection is closed in order after this, so that none is held for ever.
    #[serde(with = "humantime_serde")]
    pub connection_lifetime: Duration,
    /// And cut off when it does not end within this: a client that never reads.
    #[serde(with = "humantime_serde")]
    pub close_patience: Duration,
}

impl Default for AdminConfig {
    fn default() -> Self {
        AdminConfig {
            connections_max: 64,
            headers_bytes_max: ByteSize::kib(16),
            headers_patience: Duration::from_secs(5),
            connection_lifetime: Duration::from_secs(60),
            close_patience: Duration::from_secs(5),
        }
    }
}

impl AdminConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// The first key that is out of its range, and what would be right.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.connections_max == 0 {
            return Err("admin.connections_max is 0, but must be at least 1".into());
        }
        // The HTTP library reads into one buffer of at least 8 KiB.
        if !(8 << 10..=1 << 20).contains(&self.headers_bytes_max.as_u64()) {
            return Err(format!("admin.headers_bytes_max is {}, but must be 8 KiB to 1 MiB", self.headers_bytes_max));
        }
        for (key, value) in [
            ("headers_patience", self.headers_patience),
            ("connection_lifetime", self.connection_lifetime),
            ("close_patience", self.close_patience),
        ] {
            if value.is_zero() {
                return Err(format!("admin.{key} is 0, but must be longer, for example 5s"));
            }
        }
        Ok(())
    }
}
