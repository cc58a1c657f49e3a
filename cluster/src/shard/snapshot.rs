use std::collections::BTreeMap;

use weft_proto::internal::v1::{CursorState, LogId, PartitionState, ProducerBatch, ProducerState, Range, ShardState};

use super::partition::Group;
use super::producers::{KeptBatch, Producers, Session};
use super::{Cursor, Partition, State};
use crate::ids::{Epoch, GroupId, LogPosition, Millis, Offset, PartitionId, ProducerId, TopicId};

/// A stored state breaks a rule that every written state keeps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shard state is not valid: {0}")]
pub struct StateError(String);

impl State {
    /// The whole state, for a checkpoint or snapshot. The same state gives the same message.
    pub fn to_proto(&self) -> ShardState {
        ShardState {
            applied: self.applied.map(|at| LogId { term: at.term, index: at.index }),
            membership: self.membership.clone(),
            log_time_ms: self.log_time.0,
            partitions: self.partitions.iter().map(|(id, partition)| partition_to_proto(*id, partition)).collect(),
            dropped_topics: self.dropped_topics.iter().map(|topic| topic.0).collect(),
        }
    }

    /// The state that `to_proto` wrote.
    ///
    /// # Errors
    /// A rule is broken; the message says which and where.
    pub fn from_proto(state: ShardState) -> Result<State, StateError> {
        let mut partitions = BTreeMap::new();
        for partition in state.partitions {
            let id = PartitionId { topic: TopicId(partition.topic), index: partition.partition };
            let partition = partition_from_proto(partition).map_err(|what| StateError(format!("{what} of {id}")))?;
            if partitions.insert(id, partition).is_some() {
                return Err(StateError(format!("partition {id} is there twice")));
            }
        }
        Ok(State {
            applied: state.applied.map(|at| LogPosition { term: at.term, index: at.index }),
            membership: state.membership,
            log_time: Millis(state.log_time_ms),
            partitions,
            dropped_topics: state.dropped_topics.into_iter().map(TopicId).collect(),
        })
    }
}

fn partition_to_proto(id: PartitionId, partition: &Partition) -> PartitionState {
    let producers = partition.producers.sessions().map(|(id, session)| ProducerState {
        id: id.0,
        epoch: session.epoch,
        batches: session.batches.iter().map(batch_to_proto).collect(),
        last_ms: session.last.0,
    });
    let cursors = partition.groups.iter().map(|(id, group)| CursorState {
        group: id.0,
        acked_below: group.cursor.acked_below(),
        acked: group.cursor.ranges().map(|(first, last)| Range { first, last }).collect(),
        ack_deadline_ms: group.ack_deadline_ms,
    });
    PartitionState {
        topic: id.topic.0,
        partition: id.index,
        start_offset: partition.start.0,
        end_offset: partition.end.0,
        event_bytes_max: partition.event_bytes_max,
        producers: producers.collect(),
        cursors: cursors.collect(),
    }
}

fn batch_to_proto(batch: &KeptBatch) -> ProducerBatch {
    ProducerBatch {
        first_sequence: batch.first_sequence,
        count: batch.count,
        base_offset: batch.base_offset.0,
        term: batch.epoch.0,
    }
}

fn partition_from_proto(state: PartitionState) -> Result<Partition, &'static str> {
    if state.start_offset > state.end_offset || state.end_offset == u64::MAX {
        return Err("offsets");
    }
    let mut producers = Producers::default();
    for producer in state.producers {
        let (id, session) = session_from_proto(producer)?;
        producers.put(id, session);
    }
    let mut groups = BTreeMap::new();
    for cursor in state.cursors {
        let id = GroupId(cursor.group);
        groups.insert(id, group_from_proto(cursor, state.end_offset)?);
    }
    Ok(Partition {
        start: Offset(state.start_offset),
        end: Offset(state.end_offset),
        event_bytes_max: state.event_bytes_max,
        producers,
        groups,
    })
}

fn session_from_proto(state: ProducerState) -> Result<(ProducerId, Session), &'static str> {
    let batches = state.batches.into_iter().map(|batch| {
        batch.first_sequence.checked_add(u64::from(batch.count)).ok_or("a producer's sequence")?;
        Ok(KeptBatch {
            first_sequence: batch.first_sequence,
            count: batch.count,
            base_offset: Offset(batch.base_offset),
            epoch: Epoch(batch.term),
        })
    });
    let batches = batches.collect::<Result<_, &'static str>>()?;
    Ok((ProducerId(state.id), Session { epoch: state.epoch, batches, last: Millis(state.last_ms) }))
}

fn group_from_proto(state: CursorState, end: u64) -> Result<Group, &'static str> {
    let mut cursor = Cursor::at(state.acked_below);
    for range in &state.acked {
        if range.first > range.last || range.last >= end {
            return Err("a cursor's range");
        }
        cursor.ack(range.first, range.last);
    }
    if state.acked_below > end {
        return Err("a cursor's place");
    }
    Ok(Group { cursor, ack_deadline_ms: state.ack_deadline_ms })
}
