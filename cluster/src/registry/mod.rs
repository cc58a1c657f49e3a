//! The registry: the Raft-replicated catalogue of nodes, topics, producers, groups, services and the shard table.

mod apply;
mod codec;
mod groups;
pub mod limits;
pub mod names;
mod nodes;
mod services;
mod shards;
mod topics;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use weft_proto::internal::v1::{GroupRecord, InstanceRecord, NodeRecord, ProducerRecord, ShardRecord, TopicRecord};

pub use codec::StateError;
pub use nodes::start_of;
pub use services::{Service, check_put};

use crate::ids::{GroupId, InstanceId, LogPosition, Millis, NodeId, PartitionId, ShardId, TopicId};

/// The registry's whole state.
///
/// Cheap to clone, and cheap to change while clones are held by readers: the tables are persistent trees
/// (`imbl`), so a command copies the few nodes on its path. A shared `BTreeMap` would copy a table of 100,000
/// topics at every command that follows a published view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    cluster_id: u64,
    level: u32,
    shards_total: u32,
    replication: u32,
    next_replica_id: u64,
    next_topic_id: u32,
    next_group_id: u32,
    next_producer_id: u64,
    shards_version: u64,
    log_time: Millis,
    applied: Option<LogPosition>,
    nodes: OrdMap<NodeId, Arc<NodeRecord>>,
    topics: OrdMap<TopicId, Arc<TopicRecord>>,
    producers: OrdMap<String, Arc<ProducerRecord>>,
    groups: OrdMap<GroupId, Arc<GroupRecord>>,
    shards: OrdMap<ShardId, Arc<ShardRecord>>,
    next_instance_id: u64,
    instances: OrdMap<InstanceId, Arc<InstanceRecord>>,
    // By namespace, then by name.
    services: OrdMap<String, OrdMap<String, Service>>,
    // Data folders whose node's name went over to a newer folder; they may not come back. Oldest first.
    superseded: Vector<NodeId>,
    // Derived from the tables above, and rebuilt with them.
    node_names: OrdMap<String, NodeId>,
    topic_names: OrdMap<String, OrdMap<String, TopicId>>,
    group_names: OrdMap<TopicId, OrdMap<String, GroupId>>,
    shard_partitions: OrdMap<ShardId, OrdSet<PartitionId>>,
    partitions_total: u64,
    // By namespace, then by gRPC service name: the service's name.
    grpc_services: OrdMap<String, OrdMap<String, String>>,
    services_total: usize,
}

impl State {
    /// The cluster's id; 0 before it is founded.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The feature level at which the cluster runs; 0 before it is founded.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Shards of the cluster, a power of two; 0 before it is founded.
    pub fn shards_total(&self) -> u32 {
        self.shards_total
    }

    /// Replicas that each shard should have, if there are nodes enough.
    pub fn replication(&self) -> u32 {
        self.replication
    }

    /// The last entry applied or noted; `None` for a new replica.
    pub fn applied(&self) -> Option<LogPosition> {
        self.applied
    }

    /// The log time of the last entry: never goes back.
    pub fn log_time(&self) -> Millis {
        self.log_time
    }

    /// A node's record.
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&id).map(Arc::as_ref)
    }

    /// The record of the node that has this name.
    pub fn node_by_name(&self, name: &str) -> Option<&NodeRecord> {
        self.node(*self.node_names.get(name)?)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().map(Arc::as_ref)
    }

    /// The newest replica id that was given out, of any group.
    pub fn replica_id_max(&self) -> u64 {
        self.next_replica_id.saturating_sub(1)
    }

    /// Nodes that hold a seat in the registry's own group: (node, its replica id there), by node.
    pub fn registry_seats(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.nodes()
            .filter(|node| node.registry_replica_id != 0)
            .map(|node| (NodeId(node.id), node.registry_replica_id))
    }

    /// A topic by name. An empty namespace stands for "default".
    pub fn topic(&self, namespace: &str, name: &str) -> Option<&TopicRecord> {
        self.topic_by_id(*self.topic_names.get(names::namespace_or_default(namespace))?.get(name)?)
    }

    /// A topic by id.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&TopicRecord> {
        self.topics.get(&id).map(Arc::as_ref)
    }

    /// The topics of a namespace, by name. An empty namespace stands for "default".
    pub fn topics(&self, namespace: &str) -> impl Iterator<Item = &TopicRecord> {
        let ids = self.topic_names.get(names::namespace_or_default(namespace));
        ids.into_iter().flat_map(OrdMap::values).filter_map(|id| self.topic_by_id(*id))
    }

    /// The topics of all namespaces, by id.
    pub fn topics_all(&self) -> impl Iterator<Item = &TopicRecord> {
        self.topics.values().map(Arc::as_ref)
    }

    /// How many topics there are, over all namespaces.
    pub fn topics_count(&self) -> usize {
        self.topics.len()
    }

    /// A group of a topic by name.
    pub fn group(&self, topic: TopicId, name: &str) -> Option<&GroupRecord> {
        self.group_by_id(*self.group_names.get(&topic)?.get(name)?)
    }

    /// A group by id.
    pub fn group_by_id(&self, id: GroupId) -> Option<&GroupRecord> {
        self.groups.get(&id).map(Arc::as_ref)
    }

    /// The groups of a topic, by name.
    pub fn groups_of(&self, topic: TopicId) -> impl Iterator<Item = &GroupRecord> {
        let ids = self.group_names.get(&topic);
        ids.into_iter().flat_map(OrdMap::values).filter_map(|id| self.group_by_id(*id))
    }

    /// A named producer's last session.
    pub fn producer(&self, name: &str) -> Option<&ProducerRecord> {
        self.producers.get(name).map(Arc::as_ref)
    }

    /// A row of the shard table; `None` until the first plan names it.
    pub fn shard(&self, id: ShardId) -> Option<&ShardRecord> {
        self.shards.get(&id).map(Arc::as_ref)
    }

    /// The rows of the shard table, by shard.
    pub fn shards(&self) -> impl Iterator<Item = &ShardRecord> {
        self.shards.values().map(Arc::as_ref)
    }

    /// Grows with each change of the shard table; a plan names the version it was made for.
    pub fn shards_version(&self) -> u64 {
        self.shards_version
    }

    /// The partitions that a shard holds, over all topics, in order. Costs only what it returns.
    pub fn partitions_of_shard(&self, shard: ShardId) -> impl Iterator<Item = PartitionId> {
        self.shard_partitions.get(&shard).into_iter().flat_map(OrdSet::iter).copied()
    }

    /// The partitions of one topic that a shard holds, in order. Costs only what it returns.
    pub fn partitions_of_topic(&self, shard: ShardId, topic: TopicId) -> impl Iterator<Item = PartitionId> {
        let all = PartitionId { topic, index: 0 }..=PartitionId { topic, index: u32::MAX };
        self.shard_partitions.get(&shard).into_iter().flat_map(move |held| held.range(all.clone())).copied()
    }

    /// Whether a topic was there in this prefix of the log and is no more. False for one that may be too new for it.
    pub fn topic_gone(&self, id: TopicId) -> bool {
        id.0 > 0 && id.0 < self.next_topic_id && !self.topics.contains_key(&id)
    }

    /// Whether a group was there in this prefix of the log and is no more. False for one that may be too new for it.
    pub fn group_gone(&self, id: GroupId) -> bool {
        id.0 > 0 && id.0 < self.next_group_id && !self.groups.contains_key(&id)
    }

    /// The topics that have a partition on a shard, by id.
    pub fn topics_of_shard(&self, shard: ShardId) -> impl Iterator<Item = &TopicRecord> {
        let mut last = None;
        self.partitions_of_shard(shard)
            .filter(move |partition| last.replace(partition.topic) != Some(partition.topic))
            .filter_map(|partition| self.topic_by_id(partition.topic))
    }
}

#[cfg(test)]
mod tests;
