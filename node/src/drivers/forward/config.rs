//! The keys of `[forward]` in weft.toml.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long forwarded work is tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForwardConfig {
    /// How long a publish is tried, failovers included, when its client names no deadline.
    #[serde(with = "humantime_serde")]
    pub publish_patience: Duration,
    /// How long one attempt at an owner may take.
    #[serde(with = "humantime_serde")]
    pub attempt_patience: Duration,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        ForwardConfig { publish_patience: Duration::from_secs(30), attempt_patience: Duration::from_secs(10) }
    }
}

impl ForwardConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence that names the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        if self.attempt_patience < Duration::from_millis(100) {
            let patience = humantime_serde::re::humantime::format_duration(self.attempt_patience);
            return Err(format!("forward.attempt_patience is {patience}; use at least 100ms"));
        }
        Ok(())
    }
}
