//! The state machine of a shard: partitions, producers' sequences and groups' cursors.
//!
//! `apply` sees only this state, the entry and its log time. What is in the events it does not know: it checks a
//! batch's CRC and table, gives it offsets, and hands header and body on to the segments.

mod append;
mod cursor;
mod outcome;
mod partition;
mod producers;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};

use weft_proto::internal::v1::{AckCommand, DropGroup, PutGroup, PutPartition, ShardEntry, StoredMembership};
use weft_proto::v1::ErrorCode;

pub use append::ApplyError;
pub use cursor::{CURSOR_RANGES_MAX, Cursor};
pub use outcome::{AppendResult, Outcome, Refusal, Stored};
pub use partition::{EVENT_BYTES_MAX_DEFAULT, Group, Partition};
pub use producers::{PRODUCER_BATCHES_KEPT, PRODUCERS_PER_PARTITION_MAX};
pub use snapshot::StateError;

use crate::ids::{Epoch, GroupId, LogPosition, Millis, PartitionId, TopicId};

/// Topics remembered as dropped, so that a late `PutPartition` does not bring one back; the newest ids stay.
pub const DROPPED_TOPICS_MAX: usize = 65_536;

/// A shard's state without its events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    applied: Option<LogPosition>,
    membership: Option<StoredMembership>,
    log_time: Millis,
    partitions: BTreeMap<PartitionId, Partition>,
    dropped_topics: BTreeSet<TopicId>,
}

impl State {
    /// Applies an entry: settings first, then appends, acks and drops, each in the entry's order, so that a
    /// partition and its first events may share an entry. `out` is filled, index by index, for `appends` and `acks`.
    ///
    /// `at` is above all applied before.
    ///
    /// # Errors
    /// A batch fails its CRC or is no batch: the owner checked it before it proposed it, so these bytes are
    /// damaged here. Nothing is changed; the replica must stop, for its log differs from the others'.
    pub fn apply(&mut self, at: LogPosition, entry: ShardEntry, out: &mut Outcome) -> Result<(), ApplyError> {
        let batches = append::check_all(entry.appends)?;
        self.advance(at);
        self.log_time = self.log_time.max(Millis(entry.log_time_ms));
        for put in entry.put_partitions {
            self.put_partition(&put, out);
        }
        for put in &entry.put_groups {
            self.put_group(put);
        }
        for append in batches {
            out.appends.push(self.append(at, &append));
        }
        for ack in entry.acks {
            out.acks.push(self.ack(at, &ack));
        }
        for drop in &entry.drop_groups {
            self.drop_group(drop);
        }
        for drop in &entry.drop_topics {
            self.drop_topic(TopicId(drop.topic), out);
        }
        Ok(())
    }

    /// A blank or membership entry took effect.
    pub fn note(&mut self, at: LogPosition, membership: Option<StoredMembership>) {
        self.advance(at);
        if membership.is_some() {
            self.membership = membership;
        }
    }

    /// The position of the last entry applied.
    pub fn applied(&self) -> Option<LogPosition> {
        self.applied
    }

    /// The group's membership as of `applied`.
    pub fn membership(&self) -> Option<&StoredMembership> {
        self.membership.as_ref()
    }

    /// Log time of the newest entry.
    pub fn log_time(&self) -> Millis {
        self.log_time
    }

    /// A partition of this shard.
    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(&id)
    }

    /// All partitions, by id.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        self.partitions.iter().map(|(id, partition)| (*id, partition))
    }

    /// True once a topic was dropped here: its partitions are not made again.
    pub fn dropped(&self, topic: TopicId) -> bool {
        self.dropped_topics.contains(&topic)
    }

    fn advance(&mut self, at: LogPosition) {
        assert!(self.applied.is_none_or(|applied| applied.index < at.index), "entries are applied once, in order");
        self.applied = Some(at);
    }

    fn put_partition(&mut self, put: &PutPartition, out: &mut Outcome) {
        let id = PartitionId { topic: TopicId(put.topic), index: put.partition };
        if self.dropped_topics.contains(&id.topic) {
            return;
        }
        let partition = self.partitions.entry(id).or_insert_with(|| {
            out.created.push(id);
            Partition::default()
        });
        partition.set_event_bytes_max(put.event_bytes_max);
    }

    fn put_group(&mut self, put: &PutGroup) {
        for partition in self.of_topic(TopicId(put.topic)) {
            partition.put_group(put);
        }
    }

    fn drop_group(&mut self, drop: &DropGroup) {
        for partition in self.of_topic(TopicId(drop.topic)) {
            partition.drop_group(GroupId(drop.group));
        }
    }

    fn drop_topic(&mut self, topic: TopicId, out: &mut Outcome) {
        let gone: Vec<_> = self.of_range(topic).map(|(id, _)| *id).collect();
        for id in gone {
            self.partitions.remove(&id);
            out.dropped.push(id);
        }
        self.dropped_topics.insert(topic);
        while self.dropped_topics.len() > DROPPED_TOPICS_MAX {
            self.dropped_topics.pop_first();
        }
    }

    fn ack(&mut self, at: LogPosition, ack: &AckCommand) -> Result<(), Refusal> {
        let id = PartitionId { topic: TopicId(ack.topic), index: ack.partition };
        // Followers refuse acks of epoch 7 in an entry of term 8: a stale owner's deliveries may be out again.
        if ack.epoch != at.term {
            let (given, now) = (Epoch(ack.epoch), Epoch(at.term));
            return Err(Refusal::new(ErrorCode::StaleEpoch, format!("delivered under {given}, the epoch is {now}")));
        }
        let partition = self.partitions.get_mut(&id).ok_or_else(|| Refusal::unknown_partition(id))?;
        partition.ack(GroupId(ack.group), &ack.ranges)
    }

    fn of_range(&self, topic: TopicId) -> impl Iterator<Item = (&PartitionId, &Partition)> {
        self.partitions.range(PartitionId { topic, index: 0 }..=PartitionId { topic, index: u32::MAX })
    }

    fn of_topic(&mut self, topic: TopicId) -> impl Iterator<Item = &mut Partition> {
        let range = PartitionId { topic, index: 0 }..=PartitionId { topic, index: u32::MAX };
        self.partitions.range_mut(range).map(|(_, partition)| partition)
    }
}

#[cfg(test)]
mod tests;
