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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicId;

    /// Key, xxh3_64(key), and the partition of the key among 1, 2, 8, 12, 64 and 1024. Published in
    /// docs/protocol.md; made by another implementation (Python's xxhash and the paper's jump hash).
    const KEYS: [(&[u8], u64, [u32; 6]); 6] = [
        (b"", 0x2d06800538d394c2, [0, 0, 0, 0, 52, 241]),
        (b"a", 0xe6c632b61e964e1f, [0, 1, 1, 8, 14, 350]),
        (b"abc", 0x78af5f94892f3950, [0, 1, 2, 2, 2, 780]),
        (b"NA", 0x6b941a7027c4611b, [0, 1, 6, 6, 29, 727]),
        (b"N14228", 0x045bf808ce8196a6, [0, 1, 1, 1, 1, 397]),
        (b"weft", 0x15d05235f1304082, [0, 0, 0, 0, 29, 617]),
    ];

    /// Topic id, partition, and their shard among 1, 2, 64, 256 and 1024. Published in docs/protocol.md.
    const PARTITIONS: [(u32, u32, [u32; 5]); 6] = [
        (1, 0, [0, 0, 11, 47, 190]),
        (1, 1, [0, 0, 21, 87, 349]),
        (1, 7, [0, 1, 32, 129, 518]),
        (2, 0, [0, 0, 8, 32, 130]),
        (1000, 1023, [0, 0, 18, 75, 303]),
        (u32::MAX, 0, [0, 1, 60, 240, 960]),
    ];

    #[test]
    fn keys_go_where_the_vectors_say() {
        for (key, hash, partitions) in KEYS {
            assert_eq!(xxh3_64(key), hash, "{key:?}");
            assert_eq!([1, 2, 8, 12, 64, 1024].map(|count| partition_of(key, count)), partitions, "{key:?}");
        }
    }

    #[test]
    fn partitions_go_where_the_vectors_say() {
        for (topic, index, shards) in PARTITIONS {
            let partition = PartitionId { topic: TopicId(topic), index };
            assert_eq!([1, 2, 64, 256, 1024].map(|count| shard_of(partition, count).0), shards, "{partition}");
        }
    }

    #[test]
    fn a_split_shard_divides_its_own_partitions() {
        for index in 0..1_000 {
            let partition = PartitionId { topic: TopicId(7), index };
            assert_eq!(shard_of(partition, 128).0 / 2, shard_of(partition, 64).0);
        }
    }

    #[test]
    fn partitions_spread_over_shards() {
        let mut held = [0u32; 64];
        for topic in 1..=100 {
            for index in 0..64 {
                held[shard_of(PartitionId { topic: TopicId(topic), index }, 64).0 as usize] += 1;
            }
        }
        let (least, most) = (held.iter().min().expect("64"), held.iter().max().expect("64"));
        assert!(*least > 60 && *most < 150, "{least}..{most} for an average of 100");
    }
}
