//! Topics and groups enter a shard by its own commands: what the registry shows and the shard lacks.

use weft_cluster::ids::{GroupId, PartitionId, ShardId, TopicId};
use weft_cluster::registry;
use weft_cluster::shard::State;
use weft_proto::internal::v1::{DropTopic, PutGroup, PutPartition, ShardEntry};

/// Settings in one proposal; the rest goes with the next.
const SETTINGS_MAX: usize = 1024;

/// Puts into `entry` what the shard lacks of the registry's topics and groups. Returns how much; at most
/// `SETTINGS_MAX`, so when that many were needed, there may be more.
pub(super) fn add(entry: &mut ShardEntry, registry: &registry::State, shard: ShardId, state: &State) -> usize {
    let count = |entry: &ShardEntry| entry.put_partitions.len() + entry.put_groups.len() + entry.drop_topics.len();
    let before = count(entry);
    for topic in registry.topics_of_shard(shard) {
        if count(entry) - before >= SETTINGS_MAX {
            break;
        }
        if !state.dropped(TopicId(topic.id)) {
            add_topic(entry, registry, shard, state, topic.id);
        }
    }
    drop_topics(entry, registry, state);
    count(entry) - before
}

fn add_topic(entry: &mut ShardEntry, registry: &registry::State, shard: ShardId, state: &State, topic: u32) {
    let id = TopicId(topic);
    let Some(record) = registry.topic_by_id(id) else { return };
    let ours = partitions(registry, shard, id);
    for partition in &ours {
        let known = state.partition(*partition);
        if known.is_none_or(|known| known.event_bytes_max() != record.event_bytes_max) {
            let event_bytes_max = record.event_bytes_max;
            entry.put_partitions.push(PutPartition { topic, partition: partition.index, event_bytes_max });
        }
    }
    for group in registry.groups_of(id) {
        let has = |partition: &PartitionId| state.partition(*partition)?.group(GroupId(group.id));
        if ours.iter().any(|partition| has(partition).is_none()) {
            let (start, ack_deadline_ms) = (group.start, group.ack_deadline_ms);
            entry.put_groups.push(PutGroup { topic, group: group.id, start, ack_deadline_ms });
        }
    }
}

fn partitions(registry: &registry::State, shard: ShardId, topic: TopicId) -> Vec<PartitionId> {
    let all = registry.partitions_of_shard(shard);
    all.skip_while(|id| id.topic < topic).take_while(|id| id.topic == topic).collect()
}

/// Only what the registry knows to be gone: a copy that lags does not know the newest topics.
fn drop_topics(entry: &mut ShardEntry, registry: &registry::State, state: &State) {
    let mut last = None;
    for (partition, _) in state.partitions() {
        if last.replace(partition.topic) != Some(partition.topic) && gone(registry, partition.topic) {
            entry.drop_topics.push(DropTopic { topic: partition.topic.0 });
        }
    }
}

/// Whether the registry's copy here knows that a topic was deleted. Ids are given in order and never again: one
/// that is missing below one that is there is gone; above that, it may be too new for this copy.
pub(super) fn gone(registry: &registry::State, topic: TopicId) -> bool {
    registry.topic_by_id(topic).is_none() && registry.topics_all().any(|other| other.id > topic.0)
}
