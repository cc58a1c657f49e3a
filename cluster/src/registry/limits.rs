//! The registry's limits: every table that the outside can grow has one.

/// The highest feature level that this binary knows.
pub const FEATURE_LEVEL: u32 = 1;
/// Topics of a cluster, over all namespaces.
pub const TOPICS_MAX: usize = 100_000;
/// Partitions of one topic.
pub const PARTITIONS_MAX: u32 = 1_024;
/// Partitions of a topic whose creator names no number.
pub const PARTITIONS_DEFAULT: u32 = 8;
/// Partitions of a cluster, over all topics.
pub const PARTITIONS_TOTAL_MAX: u64 = 1_000_000;
/// The largest `event_bytes_max` of a topic: 8 MiB.
pub const EVENT_BYTES_MAX: u32 = 8 << 20;
/// The `event_bytes_max` of a topic whose creator names none: 1 MiB.
pub const EVENT_BYTES_DEFAULT: u32 = 1 << 20;
/// Groups of one topic.
pub const GROUPS_PER_TOPIC_MAX: usize = 1_000;
/// Groups of a cluster, over all topics.
pub const GROUPS_MAX: usize = 200_000;
/// The shortest ack deadline of a group, in milliseconds.
pub const ACK_DEADLINE_MS_MIN: u32 = 10;
/// The longest ack deadline of a group: one hour, in milliseconds.
pub const ACK_DEADLINE_MS_MAX: u32 = 3_600_000;
/// The ack deadline of a group whose creator names none: 30 s, in milliseconds.
pub const ACK_DEADLINE_MS_DEFAULT: u32 = 30_000;
/// Named producers of a cluster. Unnamed ones take an id and no room.
pub const PRODUCERS_MAX: usize = 1_000_000;
/// Services of a cluster, over all namespaces.
pub const SERVICES_MAX: usize = 10_000;
/// gRPC service names of one service.
pub const GRPC_SERVICES_MAX: usize = 100;
/// Entries in a service's list of idempotent methods.
pub const IDEMPOTENT_METHODS_MAX: usize = 1_000;
/// Instances of one service.
pub const INSTANCES_PER_SERVICE_MAX: usize = 10_000;
/// Instances of a cluster.
pub const INSTANCES_MAX: usize = 100_000;
/// Entries in an instance's metadata.
pub const INSTANCE_METADATA_MAX: usize = 64;
/// Bytes of an instance's metadata, names and values together: 16 KiB.
pub const INSTANCE_METADATA_BYTES_MAX: usize = 16 << 10;
/// Bytes of the certificates that an instance's registration may carry: 64 KiB.
pub const INSTANCE_CA_BYTES_MAX: usize = 64 << 10;
/// Characters of a service's name or of a gRPC service name.
pub const SERVICE_CHARS_MAX: usize = 255;
/// The shortest lease of an instance, in milliseconds.
pub const LEASE_MS_MIN: u32 = 1_000;
/// The longest lease of an instance: one hour, in milliseconds.
pub const LEASE_MS_MAX: u32 = 3_600_000;
/// The shortest time between two health checks, in milliseconds.
pub const CHECK_MS_MIN: u32 = 100;
/// The longest time between two health checks: one hour, in milliseconds.
pub const CHECK_MS_MAX: u32 = 3_600_000;
/// Time between two health checks of an instance that names none: 2 s, in milliseconds.
pub const CHECK_MS_DEFAULT: u32 = 2_000;
/// Time for one health check of an instance that names none: 1 s, in milliseconds.
pub const CHECK_TIMEOUT_MS_DEFAULT: u32 = 1_000;
/// Failed checks that make an instance unhealthy where its registration names no number.
pub const UNHEALTHY_AFTER_DEFAULT: u32 = 2;
/// Passed checks that make it healthy again where its registration names no number.
pub const HEALTHY_AFTER_DEFAULT: u32 = 1;
/// The largest of both.
pub const CHECKS_IN_A_ROW_MAX: u32 = 100;
/// Nodes of a cluster.
pub const NODES_MAX: usize = 1_000;
/// Superseded data folders that are remembered; the oldest are forgotten.
pub const SUPERSEDED_MAX: usize = 1_000;
/// Shards of a cluster.
pub const SHARDS_MAX: u32 = 4_096;
/// Replicas of one shard.
pub const REPLICATION_MAX: u32 = 7;
/// Seats (voters) in the registry's own group.
pub const REGISTRY_SEATS_MAX: usize = 7;
/// Characters of a topic's, namespace's, group's, node's or producer's name.
pub const NAME_CHARS_MAX: usize = 128;
/// Bytes of an address, zone or version in a node's record.
pub const NODE_TEXT_BYTES_MAX: usize = 255;
/// The weight of a node that names none.
pub const WEIGHT_DEFAULT: u32 = 100;
/// The largest weight of a node.
pub const WEIGHT_MAX: u32 = 10_000;
/// The namespace that an empty one stands for.
pub const NAMESPACE_DEFAULT: &str = "default";
/// The one pool of shards there is yet.
pub const POOL_DEFAULT: &str = "default";
