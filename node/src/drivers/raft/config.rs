//! Times and limits of the Raft groups: `[raft]` in weft.toml.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times and limits of the Raft groups.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftConfig {
    /// A cluster is founded only when this many empty nodes have met; 0: never, only join.
    pub bootstrap_expect: u32,
    /// Shards of a cluster founded by this node: a power of two, fixed for its life.
    pub shards: u32,
    /// Replicas of each shard, at most the number of nodes at the founding.
    pub replication: u32,
    /// Time between heartbeats of the registry's leader.
    #[serde(with = "humantime_serde")]
    pub registry_heartbeat: Duration,
    /// The registry elects a new leader by itself after one to two times this silence.
    #[serde(with = "humantime_serde")]
    pub registry_election: Duration,
    /// Time between heartbeats of a shard's owner.
    #[serde(with = "humantime_serde")]
    pub shard_heartbeat: Duration,
    /// A shard elects a new owner by itself after one to two times this silence; the detector is faster.
    #[serde(with = "humantime_serde")]
    pub shard_election: Duration,
    /// A node that is down for longer than this is replaced in the shard table.
    #[serde(with = "humantime_serde")]
    pub forget_after: Duration,
    /// Log entries kept behind a checkpoint for replicas that lag.
    pub entries_kept: u64,
    /// Largest append message, in bytes.
    pub append_bytes: bytesize::ByteSize,
}

impl Default for RaftConfig {
    fn default() -> Self {
        RaftConfig {
            bootstrap_expect: 0,
            shards: 64,
            replication: 3,
            registry_heartbeat: Duration::from_millis(250),
            registry_election: Duration::from_secs(1),
            shard_heartbeat: Duration::from_secs(2),
            shard_election: Duration::from_secs(6),
            forget_after: Duration::from_secs(600),
            entries_kept: 64,
            append_bytes: bytesize::ByteSize::mib(4),
        }
    }
}
