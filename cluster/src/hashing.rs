//! Where keys and partitions go. Published with vectors in docs/protocol.md; never changed once released.

pub use weft_batch::hashing::partition_of;
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{PartitionId, ShardId};

/// The shard of a partition: the leading bits of xxh3(topic ‖ index), both little-endian u32, so that a
/// later split of a shard divides its own range. `shards` must be a power of two.
pub fn shard_of(partition: PartitionId, shards: u32) -> ShardId {
    assert!(shards.is_power_of_two(), "shards are a power of two, checked at bootstrap");
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&partition.topic.0.to_le_bytes());
    bytes[4..].copy_from_slice(&partition.index.to_le_bytes());
    let bits = shards.trailing_zeros();
    let shard = xxh3_64(&bytes).checked_shr(64 - bits).unwrap_or(0);
    ShardId(u32::try_from(shard).expect("at most 31 bits are kept"))
}
