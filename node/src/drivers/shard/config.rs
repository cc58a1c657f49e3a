//! The keys of `[shards]` in weft.toml.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Limits of the owner's side of partitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShardConfig {
    /// Bytes of batches that wait or are being committed, over all shards of this node.
    pub queue_bytes_max: ByteSize,
    /// The same for one shard. At least the largest batch (9 MiB).
    pub shard_queue_bytes_max: ByteSize,
    /// How long a batch may wait for room in the queue before it is refused as overloaded.
    #[serde(with = "humantime_serde")]
    pub queue_patience: Duration,
    /// Bytes of one proposal: what is waiting is gathered up to this.
    pub proposal_bytes_max: ByteSize,
    /// Bytes of newly committed batches kept in memory for live subscribers, over all partitions.
    pub tail_bytes_max: ByteSize,
}

impl Default for ShardConfig {
    fn default() -> Self {
        ShardConfig {
            queue_bytes_max: ByteSize::mib(256),
            shard_queue_bytes_max: ByteSize::mib(32),
            queue_patience: Duration::from_secs(1),
            proposal_bytes_max: ByteSize::mib(1),
            tail_bytes_max: ByteSize::mib(64),
        }
    }
}

impl ShardConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence that names the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        let proposal = self.proposal_bytes_max;
        if proposal == ByteSize(0) || proposal > ByteSize::mib(8) {
            return Err(format!("shards.proposal_bytes_max is {proposal}; use up to 8 MiB, so that it fits a frame"));
        }
        if self.queue_bytes_max < self.shard_queue_bytes_max {
            let (all, one) = (self.queue_bytes_max, self.shard_queue_bytes_max);
            return Err(format!("shards.queue_bytes_max is {all}; use at least shards.shard_queue_bytes_max ({one})"));
        }
        Ok(())
    }
}
