//! Times and limits of the Raft groups: `[raft]` in weft.toml.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_cluster::ids::RaftGroup;
use weft_cluster::registry::limits::{REPLICATION_MAX, SHARDS_MAX};

/// The part of the default log filter that quiets the Raft library: it warns of every try to reach a dead peer.
pub const RAFT_LOG_FILTER: &str = "openraft=error";

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
    /// Voters of the registry at most: 3, 5 or 7. There are 3 up to 4 nodes, 5 from 5 nodes up, 7 from 7 up.
    pub registry_voters_max: u32,
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
            registry_voters_max: 5,
            entries_kept: 64,
            append_bytes: bytesize::ByteSize::mib(4),
        }
    }
}

impl RaftConfig {
    /// Refuses what cannot work, in one sentence that names the key.
    ///
    /// # Errors
    /// The sentence.
    pub fn check(&self) -> Result<(), String> {
        if !self.shards.is_power_of_two() || self.shards > SHARDS_MAX {
            return Err(format!("raft.shards must be a power of two, at most {SHARDS_MAX}"));
        }
        if !(1..=REPLICATION_MAX).contains(&self.replication) {
            return Err(format!("raft.replication must be 1 to {REPLICATION_MAX}"));
        }
        if ![3, 5, 7].contains(&self.registry_voters_max) {
            return Err(format!("raft.registry_voters_max is {}: use 3, 5 or 7", self.registry_voters_max));
        }
        if self.append_bytes.as_u64() < 64 << 10 || self.append_bytes.as_u64() > APPEND_BYTES_MAX {
            return Err("raft.append_bytes must be 64 KiB to 12 MiB".into());
        }
        for (group, key) in [(RaftGroup::REGISTRY, "registry"), (RaftGroup(1), "shard")] {
            openraft_config(self, group)
                .map_err(|error| format!("raft.{key}_heartbeat and raft.{key}_election do not fit: {error}"))?;
        }
        Ok(())
    }
}

/// The raft lane carries frames of 16 MiB.
const APPEND_BYTES_MAX: u64 = 12 << 20;

/// A snapshot's files may take this long to travel.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(600);

/// openraft's configuration of one group.
pub(super) fn openraft_config(
    config: &RaftConfig,
    group: RaftGroup,
) -> Result<openraft::Config, openraft::ConfigError> {
    let (heartbeat, election) = match group {
        RaftGroup::REGISTRY => (config.registry_heartbeat, config.registry_election),
        _ => (config.shard_heartbeat, config.shard_election),
    };
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
    openraft::Config {
        cluster_name: group.to_string(),
        heartbeat_interval: ms(heartbeat),
        // Appends prove as much as a heartbeat.
        heartbeat_min_interval: Some(ms(heartbeat)),
        election_timeout_min: ms(election),
        election_timeout_max: 2 * ms(election),
        install_snapshot_timeout: ms(SNAPSHOT_PATIENCE),
        max_payload_entries: 256,
        // Entries are sent as long as the log has them.
        replication_lag_threshold: 1 << 40,
        // Checkpoints decide what is purged, not openraft.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 1 << 40,
        api_channel_size: Some(4096),
        notification_channel_size: Some(4096),
        // Rings for statistics that are not compiled in: they are made and filled all the same, 150 KiB per group.
        log_stage_capacity: Some(1),
        enable_pre_vote: Some(true),
        // A restarted node does not know what was committed while it was away.
        enable_leader_restore: Some(false),
        backoff: "50ms 100ms 200ms ...500ms".into(),
        ..openraft::Config::default()
    }
    .validate()
}
