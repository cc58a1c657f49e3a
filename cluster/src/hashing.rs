//! Where keys and partitions go. Published with vectors in docs/protocol.md; never changed once released.

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{PartitionId, ShardId};

/// The partition of a key: jump hash of xxh3(key) over the topic's partitions.
///
/// `partitions` must be at least 1.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    jump(xxh3_64(key), partitions)
}

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

/// Jump consistent hash. Source: Lamping and Veach, arXiv:1406.2294.
fn jump(mut hash: u64, buckets: u32) -> u32 {
    assert!(buckets > 0, "a topic has at least one partition");
    let (mut bucket, mut next) = (0i64, 0i64);
    while next < i64::from(buckets) {
        bucket = next;
        hash = hash.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let scale = (1u64 << 31) as f64 / ((hash >> 33) + 1) as f64;
        next = ((bucket + 1) as f64 * scale) as i64;
    }
    u32::try_from(bucket).expect("below the bucket count")
}
