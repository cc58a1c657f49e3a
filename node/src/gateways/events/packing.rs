//! Packing: single events of a client become batches per partition.

use std::collections::BTreeMap;

use bytes::Bytes;
use weft_batch::{BatchError, Limits, Packer};
use weft_cluster::hashing::partition_of;
use weft_cluster::ids::{Millis, PartitionId, TopicId};
use weft_proto::internal::v1::TopicRecord;
use weft_proto::v1::{Error, Event};

use crate::drivers::shard::refusal::bad_batch;
use crate::wire::checks;

/// A batch and the names of its events, in order.
pub(super) struct Packed<T> {
    pub(super) partition: PartitionId,
    pub(super) batch: Bytes,
    pub(super) names: Vec<T>,
}

/// Packs a topic's events. `T` names an event for its answer.
pub(super) struct Packing<T> {
    topic: TopicRecord,
    limits: Limits,
    open: BTreeMap<u32, (Packer, Vec<T>)>,
    /// The partition of the next event without a key.
    turn: u32,
}

impl<T> Packing<T> {
    pub(super) fn new(topic: TopicRecord, batch_bytes: usize, turn: u32) -> Self {
        let limits = Limits { batch_bytes, event_bytes: topic.event_bytes_max as usize, ..Limits::default() };
        Packing { topic, limits, open: BTreeMap::new(), turn }
    }

    /// Adds an event; returns the batch that was full before it. An event that cannot be packed is given back
    /// with the reason.
    pub(super) fn push(&mut self, event: &Event, now: Millis, name: T) -> Result<Option<Packed<T>>, (T, Error)> {
        if let Err(error) = checks::event(event, self.topic.event_bytes_max) {
            return Err((name, error));
        }
        let index = self.partition(event);
        let limits = self.limits;
        let (packer, names) = self.open.entry(index).or_insert_with(|| (Packer::new(limits), Vec::new()));
        match packer.push(event, now.0) {
            Ok(()) => {
                names.push(name);
                Ok(None)
            }
            Err(BatchError::Full) => {
                let full = self.take(index);
                // An empty packer is never full.
                self.push_to(index, event, now, name).map(|()| full)
            }
            Err(error) => Err((name, bad_batch(error))),
        }
    }

    /// Partitions with events that are not in a batch yet.
    pub(super) fn partitions(&self) -> Vec<PartitionId> {
        let topic = TopicId(self.topic.id);
        let open = self.open.iter().filter(|(_, (packer, _))| !packer.is_empty());
        open.map(|(index, _)| PartitionId { topic, index: *index }).collect()
    }

    /// The batch of what is packed for a partition so far.
    pub(super) fn take(&mut self, index: u32) -> Option<Packed<T>> {
        let (packer, names) = self.open.get_mut(&index)?;
        let batch = packer.finish(Some((self.topic.id, index)), None).ok()?;
        let partition = PartitionId { topic: TopicId(self.topic.id), index };
        Some(Packed { partition, batch, names: std::mem::take(names) })
    }

    fn push_to(&mut self, index: u32, event: &Event, now: Millis, name: T) -> Result<(), (T, Error)> {
        let (packer, names) = self.open.get_mut(&index).expect("it was just full");
        match packer.push(event, now.0) {
            Ok(()) => {
                names.push(name);
                Ok(())
            }
            Err(error) => Err((name, bad_batch(error))),
        }
    }

    fn partition(&mut self, event: &Event) -> u32 {
        if !event.key.is_empty() {
            return partition_of(&event.key, self.topic.partitions);
        }
        self.turn = self.turn.wrapping_add(1);
        self.turn % self.topic.partitions
    }
}

#[cfg(test)]
mod tests {
    use weft_batch::Batch;
    use weft_proto::v1::ErrorCode;

    use super::*;

    fn topic() -> TopicRecord {
        TopicRecord { id: 7, partitions: 4, event_bytes_max: 1000, ..TopicRecord::default() }
    }

    fn event(key: &str, bytes: usize) -> Event {
        Event { key: key.to_owned().into(), data: vec![0; bytes].into(), ..Event::default() }
    }

    #[test]
    fn keys_go_to_their_partition_and_the_keyless_in_turn() {
        let mut packing = Packing::new(topic(), 4096, 0);
        for name in 0..8 {
            assert!(packing.push(&event("", 10), Millis(5), name).is_ok_and(|full| full.is_none()));
        }
        assert_eq!(packing.partitions().len(), 4);
        let mut packing = Packing::new(topic(), 4096, 0);
        for name in 0..8 {
            assert!(packing.push(&event("k", 10), Millis(5), name).is_ok());
        }
        let partitions = packing.partitions();
        assert_eq!(partitions.len(), 1);
        assert_eq!(partitions[0].index, partition_of(b"k", 4));
        let packed = packing.take(partitions[0].index).expect("events are packed");
        assert_eq!(packed.names, (0..8).collect::<Vec<_>>());
        assert_eq!(Batch::parse(packed.batch).map(|batch| batch.count()), Ok(8));
        assert!(packing.take(partitions[0].index).is_none(), "nothing is left");
    }

    #[test]
    fn a_full_batch_comes_out_before_the_next_event_and_a_large_event_back() {
        let mut packing = Packing::new(topic(), 1500, 0);
        assert!(packing.push(&event("k", 900), Millis(5), 1).is_ok_and(|full| full.is_none()));
        let full = packing.push(&event("k", 900), Millis(5), 2).ok().flatten().expect("the first batch is full");
        assert_eq!(full.names, vec![1]);
        assert_eq!(packing.take(full.partition.index).map(|packed| packed.names), Some(vec![2]));
        let refused = packing.push(&event("k", 1001), Millis(5), 3).err().expect("too large");
        assert_eq!((refused.0, refused.1.code()), (3, ErrorCode::TooLarge));
    }
}
