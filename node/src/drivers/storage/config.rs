//! `[storage]` of weft.toml.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Sizes and times of the storage; every field is a key of `[storage]` in weft.toml.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// Bytes of one journal file; at least 64 KiB. A larger entry gets a larger file. Default 64 MiB.
    pub journal_slot_bytes: ByteSize,
    /// Journal files kept pre-written; more are added when needed, and given back with later checkpoints. Default 4.
    pub journal_slots: u32,
    /// Bytes of journal that force a checkpoint. Default 256 MiB.
    pub checkpoint_bytes: ByteSize,
    /// Time between checkpoints while anything is dirty. Default 15 s.
    #[serde(with = "humantime_serde")]
    pub checkpoint_interval: Duration,
    /// A segment rolls at this size. The same on all nodes, so that replicas' files compare. Default 64 MiB.
    pub segment_bytes: ByteSize,
    /// Segment files kept open; the least recently used is closed first. Fewer where `ulimit -n` is low. Default 256.
    pub files_open_max: u32,
    /// Publishes are refused when less is free. Default 1 GiB.
    pub free_bytes_min: ByteSize,
    /// Bytes of the ballast file, released when the disk fills; 0 for none. Default 64 MiB.
    pub ballast_bytes: ByteSize,
    /// A journal write longer than this aborts the process. Default 2 s.
    #[serde(with = "humantime_serde")]
    pub hang_after: Duration,
    /// Bytes of log entries kept in memory over all groups. Default 64 MiB.
    pub log_cache_bytes: ByteSize,
    /// Bytes of segments that the scrub reads and checks per second; 0 for no scrub. Default 4 MiB.
    pub scrub_bytes_per_second: ByteSize,
    /// A pass of the scrub over all segments begins at most once in this time. Default 1 day.
    #[serde(with = "humantime_serde")]
    pub scrub_interval: Duration,
}

impl Default for StorageConfig {
    fn default() -> Self {
        StorageConfig {
            journal_slot_bytes: ByteSize::mib(64),
            journal_slots: 4,
            checkpoint_bytes: ByteSize::mib(256),
            checkpoint_interval: Duration::from_secs(15),
            segment_bytes: ByteSize::mib(64),
            files_open_max: 256,
            free_bytes_min: ByteSize::gib(1),
            ballast_bytes: ByteSize::mib(64),
            hang_after: Duration::from_secs(2),
            log_cache_bytes: ByteSize::mib(64),
            scrub_bytes_per_second: ByteSize::mib(4),
            scrub_interval: Duration::from_secs(24 * 3600),
        }
    }
}
