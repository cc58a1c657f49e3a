//! The events that a group's task has at hand: records of the batches read last, shared and not copied.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use weft_batch::Batch;
use weft_cluster::ids::{PartitionId, TopicId};

use super::super::seat::Seat;

/// Bytes of batches kept at hand by one group's task; the last batch read may exceed it.
const KEPT_BYTES_MAX: usize = 4 << 20;
/// Bytes read at a time.
const READ_BYTES_MAX: usize = 256 << 10;

/// A batch taken apart.
struct Loaded {
    end: u64,
    records: Vec<Bytes>,
    bytes: usize,
}

/// Events of one topic's partitions on a shard.
pub(super) struct Events {
    seat: Arc<Seat>,
    topic: TopicId,
    loaded: BTreeMap<(u32, u64), Loaded>,
    ages: VecDeque<(u32, u64)>,
    bytes: usize,
}

/// Key hashes of a run of events.
pub(super) struct Keys {
    pub(super) base: u64,
    pub(super) key_hashes: Vec<u64>,
}

impl Events {
    pub(super) fn new(seat: Arc<Seat>, topic: TopicId) -> Self {
        Events { seat, topic, loaded: BTreeMap::new(), ages: VecDeque::new(), bytes: 0 }
    }

    /// Reads on from `from`; a run per batch, in order; empty at the end.
    pub(super) async fn keys(&mut self, partition: u32, from: u64) -> io::Result<Vec<Keys>> {
        let id = PartitionId { topic: self.topic, index: partition };
        let mut runs = Vec::new();
        for bytes in self.seat.read(id, from, READ_BYTES_MAX).await? {
            let batch = Batch::parse(bytes).map_err(damaged)?;
            runs.push(Keys {
                base: batch.header().base_offset,
                key_hashes: batch.envelopes().map(|envelope| envelope.key_hash).collect(),
            });
            self.keep(partition, &batch);
        }
        Ok(runs)
    }

    /// The encoded event at an offset that is committed.
    pub(super) async fn event(&mut self, partition: u32, offset: u64) -> io::Result<Bytes> {
        if let Some(event) = self.at_hand(partition, offset) {
            return Ok(event);
        }
        let id = PartitionId { topic: self.topic, index: partition };
        for bytes in self.seat.read(id, offset, READ_BYTES_MAX).await? {
            self.keep(partition, &Batch::parse(bytes).map_err(damaged)?);
        }
        self.at_hand(partition, offset)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no event at offset {offset} of {id}")))
    }

    fn at_hand(&self, partition: u32, offset: u64) -> Option<Bytes> {
        let ((of, base), loaded) = self.loaded.range(..=(partition, offset)).next_back()?;
        let index = usize::try_from(offset - base).ok()?;
        (*of == partition && offset < loaded.end).then(|| loaded.records[index].clone())
    }

    fn keep(&mut self, partition: u32, batch: &Batch) {
        let key = (partition, batch.header().base_offset);
        if self.loaded.contains_key(&key) {
            return;
        }
        let records = batch.records().map(|(_, record)| record).collect();
        let loaded = Loaded { end: batch.header().end_offset(), records, bytes: batch.bytes().len() };
        self.bytes += loaded.bytes;
        self.loaded.insert(key, loaded);
        self.ages.push_back(key);
        while self.bytes > KEPT_BYTES_MAX && self.ages.len() > 1 {
            let Some(oldest) = self.ages.pop_front() else { return };
            self.bytes -= self.loaded.remove(&oldest).map_or(0, |loaded| loaded.bytes);
        }
    }
}

fn damaged(error: weft_batch::BatchError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
