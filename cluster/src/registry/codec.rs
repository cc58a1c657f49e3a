//! The whole state as one message: for snapshots, and for followers that begin.

use std::sync::Arc;

use imbl::OrdMap;
use weft_proto::internal::v1::{LogId, RegistryState};

use super::limits::{PARTITIONS_MAX, SHARDS_MAX};
use super::{State, names};
use crate::ids::{GroupId, InstanceId, LogPosition, Millis, NodeId, ShardId, TopicId};

/// A `RegistryState` that no registry can have written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("registry state: {0}")]
pub struct StateError(pub String);

impl State {
    /// The state as a message; the tables are in the order of their ids.
    pub fn to_proto(&self) -> RegistryState {
        RegistryState {
            cluster_id: self.cluster_id,
            level: self.level,
            shards_total: self.shards_total,
            replication: self.replication,
            next_replica_id: self.next_replica_id,
            next_topic_id: self.next_topic_id,
            next_group_id: self.next_group_id,
            next_producer_id: self.next_producer_id,
            shards_version: self.shards_version,
            log_time_ms: self.log_time.0,
            nodes: records(&self.nodes),
            topics: records(&self.topics),
            producers: records(&self.producers),
            groups: records(&self.groups),
            shards: records(&self.shards),
            superseded: self.superseded.iter().map(|id| id.0).collect(),
            services: self.services_all().map(|service| service.record().clone()).collect(),
            instances: records(&self.instances),
            next_instance_id: self.next_instance_id,
            applied: self.applied.map(|at| LogId { term: at.term, index: at.index }),
        }
    }

    /// The state of a message.
    ///
    /// # Errors
    /// Two records of one id or name, a record that refers to nothing, or a wrong shard count.
    pub fn from_proto(state: RegistryState) -> Result<State, StateError> {
        let wrong = |what: String| Err(StateError(what));
        let founded = state.cluster_id != 0;
        if founded && (!state.shards_total.is_power_of_two() || state.shards_total > SHARDS_MAX) {
            return wrong(format!("{} shards, not a power of two up to {SHARDS_MAX}", state.shards_total));
        }
        if !founded && !state.topics.is_empty() {
            return wrong("topics in a cluster that is not founded".into());
        }
        let mut new = State {
            cluster_id: state.cluster_id,
            level: state.level,
            shards_total: state.shards_total,
            replication: state.replication,
            next_replica_id: state.next_replica_id,
            next_topic_id: state.next_topic_id,
            next_group_id: state.next_group_id,
            next_producer_id: state.next_producer_id,
            // A state that an older version wrote has none.
            next_instance_id: state.next_instance_id.max(1),
            shards_version: state.shards_version,
            log_time: Millis(state.log_time_ms),
            applied: state.applied.map(|at| LogPosition { term: at.term, index: at.index }),
            superseded: state.superseded.into_iter().map(NodeId).collect(),
            ..State::default()
        };
        for node in state.nodes {
            if new.node(NodeId(node.id)).is_some() || new.node_by_name(&node.name).is_some() {
                return wrong(format!("two nodes of id {} or name {:?}", NodeId(node.id), node.name));
            }
            new.put_node(node);
        }
        for topic in state.topics {
            let twice = new.topic_by_id(TopicId(topic.id)).is_some();
            if twice || new.topic(names::namespace_or_default(&topic.namespace), &topic.name).is_some() {
                return wrong(format!("two topics of id {} or name {:?}", topic.id, topic.name));
            }
            if !(1..=PARTITIONS_MAX).contains(&topic.partitions) || topic.namespace.is_empty() {
                return wrong(format!("topic {:?} has {} partitions", topic.name, topic.partitions));
            }
            new.put_topic(topic);
        }
        for group in state.groups {
            let topic = TopicId(group.topic);
            let twice = new.group_by_id(GroupId(group.id)).is_some() || new.group(topic, &group.name).is_some();
            if twice || new.topic_by_id(topic).is_none() {
                return wrong(format!("group {:?} is there twice, or of no topic", group.name));
            }
            new.put_group(group);
        }
        for producer in state.producers {
            if new.producers.insert(producer.name.clone(), Arc::new(producer)).is_some() {
                return wrong("two producers of one name".into());
            }
        }
        for shard in state.shards {
            let id = ShardId(shard.shard);
            if id.0 >= new.shards_total || new.shards.insert(id, Arc::new(shard)).is_some() {
                return wrong(format!("shard {id} is there twice, or not below the shard count"));
            }
        }
        for service in state.services {
            let (namespace, name) = (service.namespace.clone(), service.name.clone());
            if new.service(&namespace, &name).is_some() || namespace.is_empty() {
                return wrong(format!("service {namespace}/{name} is there twice, or of no namespace"));
            }
            new.put_service(service);
        }
        for instance in state.instances {
            let (id, address) = (InstanceId(instance.id), instance.address.clone());
            let service = new.service(&instance.namespace, &instance.service);
            let twice = new.instance(id).is_some() || service.is_none_or(|it| it.instance_at(&address).is_some());
            if twice || id.0 >= new.next_instance_id {
                return wrong(format!("instance {id} at {address} is there twice, or of no service"));
            }
            new.insert_instance(instance);
        }
        Ok(new)
    }
}

fn records<K: Ord, V: Clone>(table: &OrdMap<K, Arc<V>>) -> Vec<V> {
    table.values().map(|record| (**record).clone()).collect()
}
