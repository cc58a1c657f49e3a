//! The `[gossip]` table of the configuration.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_cluster::membership::Timing;

/// Settings of the gossip between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GossipConfig {
    /// How often a member is probed.
    #[serde(with = "humantime_serde")]
    pub probe_period: Duration,
    /// How long a probe may take before others are asked to probe too.
    #[serde(with = "humantime_serde")]
    pub probe_timeout: Duration,
    /// How long a member may defend itself before it is declared down.
    #[serde(with = "humantime_serde")]
    pub suspect_to_down: Duration,
    /// How often news travel.
    #[serde(with = "humantime_serde")]
    pub gossip_period: Duration,
    /// How often a member is asked for the others it knows.
    #[serde(with = "humantime_serde")]
    pub announce_period: Duration,
    /// How often members that are down are tried, so that a healed partition heals.
    #[serde(with = "humantime_serde")]
    pub announce_to_down_period: Duration,
    /// How often what is known of the members is compared with one of them.
    #[serde(with = "humantime_serde")]
    pub digest_period: Duration,
    /// How often the seeds are asked while nobody has answered.
    #[serde(with = "humantime_serde")]
    pub seed_retry: Duration,
    /// How long a member that is down is remembered.
    #[serde(with = "humantime_serde")]
    pub forget_down_after: Duration,
}

impl Default for GossipConfig {
    fn default() -> Self {
        GossipConfig {
            probe_period: Duration::from_millis(500),
            probe_timeout: Duration::from_millis(150),
            suspect_to_down: Duration::from_millis(1_500),
            gossip_period: Duration::from_millis(200),
            announce_period: Duration::from_secs(10),
            announce_to_down_period: Duration::from_secs(5),
            digest_period: Duration::from_secs(10),
            seed_retry: Duration::from_secs(1),
            forget_down_after: Duration::from_secs(24 * 3_600),
        }
    }
}

impl GossipConfig {
    pub(super) fn timing(&self) -> Timing {
        Timing {
            probe_period: self.probe_period,
            probe_timeout: self.probe_timeout,
            suspect_to_down: self.suspect_to_down,
            gossip_period: self.gossip_period,
            announce_period: self.announce_period,
            announce_to_down_period: self.announce_to_down_period,
            forget_down_after: self.forget_down_after,
        }
    }

    /// Checks the ranges. The error is one sentence that names the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        if self.probe_timeout.is_zero() || self.probe_period < self.probe_timeout * 2 {
            return Err(format!(
                "gossip.probe_period is {:?}, but must be at least twice gossip.probe_timeout ({:?}), which must not be 0",
                self.probe_period, self.probe_timeout
            ));
        }
        for (key, value) in [
            ("suspect_to_down", self.suspect_to_down),
            ("gossip_period", self.gossip_period),
            ("announce_period", self.announce_period),
            ("announce_to_down_period", self.announce_to_down_period),
            ("digest_period", self.digest_period),
            ("seed_retry", self.seed_retry),
            ("forget_down_after", self.forget_down_after),
        ] {
            if value < Duration::from_millis(10) {
                return Err(format!("gossip.{key} is {value:?}, but must be at least 10ms"));
            }
        }
        Ok(())
    }
}
