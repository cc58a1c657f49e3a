//! Topics and groups enter a shard by its own commands: what the registry shows and the shard lacks.

use std::collections::BTreeSet;

use weft_cluster::ids::{GroupId, PartitionId, ShardId, TopicId};
use weft_cluster::registry;
use weft_cluster::shard::State;
use weft_proto::internal::v1::{DropGroup, DropTopic, PutGroup, PutPartition, ShardEntry};

/// Settings in one proposal; the rest goes with the next.
const SETTINGS_MAX: usize = 1024;

/// Puts into `entry` what the shard lacks of the registry's topics and groups. Returns how much; at most
/// `SETTINGS_MAX`, so when that many were needed, there may be more.
pub(super) fn add(entry: &mut ShardEntry, registry: &registry::State, shard: ShardId, state: &State) -> usize {
    let count = |entry: &ShardEntry| {
        entry.put_partitions.len() + entry.put_groups.len() + entry.drop_topics.len() + entry.drop_groups.len()
    };
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
    let ours: Vec<PartitionId> = registry.partitions_of_topic(shard, id).collect();
    for partition in &ours {
        let known = state.partition(*partition);
        let max = record.event_bytes_max;
        if known.is_none_or(|known| max != 0 && known.event_bytes_max() != max) {
            let event_bytes_max = max;
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
    let known = ours.iter().filter_map(|partition| state.partition(*partition)).flat_map(|known| known.groups());
    let gone: BTreeSet<u32> =
        known.map(|(group, _)| group).filter(|id| registry.group_gone(*id)).map(|id| id.0).collect();
    entry.drop_groups.extend(gone.into_iter().map(|group| DropGroup { topic, group }));
}

/// Only what the registry knows to be gone: a copy that lags does not know the newest topics.
fn drop_topics(entry: &mut ShardEntry, registry: &registry::State, state: &State) {
    let mut last = None;
    for (partition, _) in state.partitions() {
        if last.replace(partition.topic) != Some(partition.topic) && registry.topic_gone(partition.topic) {
            entry.drop_topics.push(DropTopic { topic: partition.topic.0 });
        }
    }
}
