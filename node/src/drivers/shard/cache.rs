//! The tail cache: newly committed batches of partitions that somebody reads live, so that a batch goes from
//! the proposal to the subscriber without touching the disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{Bytes, BytesMut};
use prometheus_client::metrics::gauge::Gauge;
use weft_cluster::ids::PartitionId;

/// A stored batch in memory, in the two parts in which it was stamped.
pub(super) struct TailBatch {
    base: u64,
    // The offset after its last event.
    end: u64,
    header: Bytes,
    body: Bytes,
    // Joined once, by the first reader; the others share it.
    whole: OnceLock<Bytes>,
}

impl TailBatch {
    fn bytes(&self) -> usize {
        self.header.len() + self.body.len()
    }

    fn whole(&self) -> Bytes {
        let join = || {
            let mut whole = BytesMut::with_capacity(self.bytes());
            whole.extend_from_slice(&self.header);
            whole.extend_from_slice(&self.body);
            whole.freeze()
        };
        self.whole.get_or_init(join).clone()
    }
}

/// Batches of all partitions, oldest out first.
pub(super) struct TailCache {
    tails: Mutex<Tails>,
    bytes_max: usize,
    gauge: Gauge,
}

#[derive(Default)]
struct Tails {
    partitions: BTreeMap<PartitionId, VecDeque<Arc<TailBatch>>>,
    // In the order of arrival; an entry whose batch is gone already is skipped.
    ages: VecDeque<(PartitionId, u64)>,
    bytes: usize,
}

impl TailCache {
    pub(super) fn new(bytes_max: usize, gauge: Gauge) -> Self {
        TailCache { tails: Mutex::default(), bytes_max, gauge }
    }

    /// Keeps a batch with the events `base..end`. A gap before it drops what was kept of the partition.
    pub(super) fn push(&self, partition: PartitionId, base: u64, end: u64, header: Bytes, body: Bytes) {
        let batch = Arc::new(TailBatch { base, end, header, body, whole: OnceLock::new() });
        let mut tails = self.lock();
        let follows = tails.partitions.get(&partition).and_then(|tail| tail.back()).is_none_or(|last| last.end == base);
        if !follows {
            tails.forget(partition);
        }
        tails.bytes += batch.bytes();
        tails.ages.push_back((partition, base));
        tails.partitions.entry(partition).or_default().push_back(batch);
        tails.evict(self.bytes_max);
        self.gauge.set(i64::try_from(tails.bytes).unwrap_or(i64::MAX));
    }

    /// Batches from the one that contains `from` on, below `end`, while they fit `bytes_max` (at least one).
    /// `None`: not here.
    pub(super) fn read(&self, partition: PartitionId, from: u64, end: u64, bytes_max: usize) -> Option<Vec<Bytes>> {
        let found: Vec<Arc<TailBatch>> = {
            let tails = self.lock();
            let tail = tails.partitions.get(&partition)?;
            let first = tail.partition_point(|batch| batch.end <= from);
            if tail.get(first)?.base > from {
                return None;
            }
            let mut bytes = 0;
            tail.range(first..)
                .take_while(|batch| batch.end <= end)
                .take_while(|batch| {
                    let first = bytes == 0;
                    bytes += batch.bytes();
                    first || bytes <= bytes_max
                })
                .cloned()
                .collect()
        };
        (!found.is_empty()).then(|| found.iter().map(|batch| batch.whole()).collect())
    }

    /// Drops what is kept of a partition.
    pub(super) fn forget(&self, partition: PartitionId) {
        let mut tails = self.lock();
        tails.forget(partition);
        self.gauge.set(i64::try_from(tails.bytes).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tails> {
        self.tails.lock().expect("no code panics while it holds the tail cache")
    }
}

impl Tails {
    fn forget(&mut self, partition: PartitionId) {
        if let Some(tail) = self.partitions.remove(&partition) {
            self.bytes -= tail.iter().map(|batch| batch.bytes()).sum::<usize>();
        }
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some((partition, base)) = self.ages.pop_front() else { return };
            let Some(tail) = self.partitions.get_mut(&partition) else { continue };
            if tail.front().is_some_and(|batch| batch.base == base) {
                self.bytes -= tail.pop_front().map_or(0, |batch| batch.bytes());
            }
            if tail.is_empty() {
                self.partitions.remove(&partition);
            }
        }
        // Entries of forgotten partitions would pile up while nothing is evicted.
        if self.ages.len() > 64 && self.ages.len() > 2 * self.partitions.values().map(VecDeque::len).sum::<usize>() {
            let partitions = &self.partitions;
            self.ages.retain(|(partition, base)| {
                partitions.get(partition).is_some_and(|tail| tail.iter().any(|batch| batch.base == *base))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_cluster::ids::TopicId;

    use super::*;

    const P: PartitionId = PartitionId { topic: TopicId(1), index: 0 };
    const Q: PartitionId = PartitionId { topic: TopicId(1), index: 1 };

    fn push(cache: &TailCache, partition: PartitionId, base: u64, end: u64) {
        let header = Bytes::from_static(b"head");
        cache.push(partition, base, end, header, Bytes::from(format!("body{base:02}")));
    }

    fn read(cache: &TailCache, partition: PartitionId, from: u64, end: u64) -> Option<Vec<Bytes>> {
        cache.read(partition, from, end, 1000)
    }

    #[test]
    fn reads_what_is_below_the_end_and_contains_the_offset() {
        let cache = TailCache::new(1000, Gauge::default());
        push(&cache, P, 5, 8);
        push(&cache, P, 8, 9);
        assert_eq!(read(&cache, P, 4, 9), None, "before what is kept");
        assert_eq!(read(&cache, P, 7, 8), Some(vec![Bytes::from("headbody05")]));
        assert_eq!(read(&cache, P, 5, 9).map(|batches| batches.len()), Some(2));
        assert_eq!(read(&cache, P, 9, 9), None, "at the end");
        assert_eq!(read(&cache, Q, 5, 9), None);
        assert_eq!(cache.read(P, 5, 9, 1).map(|batches| batches.len()), Some(1), "at least one");
    }

    #[test]
    fn the_oldest_leave_first_and_a_gap_drops_what_was_before() {
        let gauge = Gauge::default();
        let cache = TailCache::new(30, gauge.clone());
        push(&cache, P, 0, 1);
        push(&cache, Q, 0, 1);
        push(&cache, P, 1, 2);
        push(&cache, P, 2, 3);
        assert_eq!(read(&cache, P, 0, 3), None, "evicted");
        assert_eq!(read(&cache, P, 1, 3).map(|batches| batches.len()), Some(2));
        assert_eq!(gauge.get(), 30);
        push(&cache, P, 7, 8);
        assert_eq!(read(&cache, P, 1, 8), None);
        assert_eq!(read(&cache, P, 7, 8).map(|batches| batches.len()), Some(1));
        cache.forget(P);
        assert_eq!(gauge.get(), 10);
    }
}
