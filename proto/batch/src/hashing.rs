//! Where keys go. Published with vectors in docs/protocol.md; never changed once released.

use xxhash_rust::xxh3::xxh3_64;

/// The partition of a key: jump hash of xxh3_64(key) over the topic's partitions.
///
/// `partitions` must be at least 1.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    jump(xxh3_64(key), partitions)
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
