//! Topics.

use std::sync::Arc;

use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{CreateTopic, DeleteTopic, TopicRecord};
use weft_proto::v1::ErrorCode;

use super::apply::{Answer, DONE, full, invalid};
use super::limits::{PARTITIONS_TOTAL_MAX, POOL_DEFAULT, TOPICS_MAX};
use super::{State, names};
use crate::errors::error;
use crate::hashing;
use crate::ids::{PartitionId, TopicId};

impl State {
    pub(super) fn create_topic(&mut self, command: &CreateTopic) -> Answer {
        let namespace = names::namespace_or_default(&command.namespace);
        names::check("namespace", namespace).map_err(invalid)?;
        names::check("topic", &command.name).map_err(invalid)?;
        names::check_topic_sizes(command.partitions, command.event_bytes_max).map_err(invalid)?;
        if !command.pool.is_empty() && command.pool != POOL_DEFAULT {
            return Err(invalid(format!("there is no pool {:?}; use {POOL_DEFAULT:?}", command.pool)));
        }
        if self.topic(namespace, &command.name).is_some() {
            return Err(error(ErrorCode::TopicExists, format!("topic {namespace}/{} exists", command.name)));
        }
        if self.topics.len() >= TOPICS_MAX {
            return Err(full("topics", TOPICS_MAX));
        }
        if self.partitions_total + u64::from(command.partitions) > PARTITIONS_TOTAL_MAX {
            return Err(full("partitions", PARTITIONS_TOTAL_MAX));
        }
        let id = self.next_topic_id;
        self.next_topic_id = id.checked_add(1).ok_or_else(|| full("topic ids", u32::MAX))?;
        let record = TopicRecord {
            id,
            namespace: namespace.into(),
            name: command.name.clone(),
            partitions: command.partitions,
            event_bytes_max: command.event_bytes_max,
            pool: POOL_DEFAULT.into(),
            created_ms: self.log_time.0,
        };
        self.put_topic(record.clone());
        Ok(Outcome::Topic(record))
    }

    pub(super) fn delete_topic(&mut self, command: &DeleteTopic) -> Answer {
        let namespace = names::namespace_or_default(&command.namespace);
        let Some(topic) = self.topic(namespace, &command.name).cloned() else {
            return Err(error(ErrorCode::UnknownTopic, format!("there is no topic {namespace}/{}", command.name)));
        };
        let id = TopicId(topic.id);
        self.topics.remove(&id);
        if let Some(names) = self.topic_names.get_mut(namespace) {
            names.remove(&command.name);
            if names.is_empty() {
                self.topic_names.remove(namespace);
            }
        }
        for group in self.group_names.remove(&id).iter().flat_map(|groups| groups.values()) {
            self.groups.remove(group);
        }
        for partition in partitions(&topic) {
            let shard = hashing::shard_of(partition, self.shards_total);
            if let Some(held) = self.shard_partitions.get_mut(&shard) {
                held.remove(&partition);
                if held.is_empty() {
                    self.shard_partitions.remove(&shard);
                }
            }
        }
        self.partitions_total -= u64::from(topic.partitions);
        DONE
    }

    pub(super) fn put_topic(&mut self, topic: TopicRecord) {
        let id = TopicId(topic.id);
        self.topic_names.entry(topic.namespace.clone()).or_default().insert(topic.name.clone(), id);
        for partition in partitions(&topic) {
            let shard = hashing::shard_of(partition, self.shards_total);
            self.shard_partitions.entry(shard).or_default().insert(partition);
        }
        self.partitions_total += u64::from(topic.partitions);
        self.topics.insert(id, Arc::new(topic));
    }
}

fn partitions(topic: &TopicRecord) -> impl Iterator<Item = PartitionId> + use<> {
    let id = TopicId(topic.id);
    (0..topic.partitions).map(move |index| PartitionId { topic: id, index })
}
