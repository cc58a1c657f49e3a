//! What the shards of this node count.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use prometheus_client::registry::Registry;

/// Metrics of the owner's side. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Batches committed by this node as an owner.
    pub batches: Counter,
    /// Events in them.
    pub events: Counter,
    /// Bytes in them.
    pub bytes: Counter,
    /// Proposals made.
    pub proposals: Counter,
    /// Bytes of each proposal.
    pub proposal_bytes: Histogram,
    /// Batches refused because a queue limit was reached.
    pub overloaded: Counter,
    /// Batches refused because the disk is nearly full.
    pub disk_full: Counter,
    /// Batches whose outcome is unknown because leadership was lost.
    pub unknown: Counter,
    /// Questions for the end of a partition that no majority confirmed this node for.
    pub unconfirmed: Counter,
    /// Bytes that wait or are being committed.
    pub queued_bytes: Gauge,
    /// Bytes in the tail cache.
    pub tail_bytes: Gauge,
    /// Reads that the tail cache answered.
    pub tail_hits: Counter,
    /// Reads that went to the segments.
    pub tail_misses: Counter,
    /// Deliver streams that are open.
    pub deliver_streams: Gauge,
    /// Events given out to consumers of groups.
    pub deliveries: Counter,
    /// Ack commands committed.
    pub acks: Counter,
    /// Consumers cut off because they did not read what was sent.
    pub slow_consumers: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let proposal_sizes = (0..10).map(|power| 1024.0 * 4f64.powi(power));
        Metrics {
            batches: Counter::default(),
            events: Counter::default(),
            bytes: Counter::default(),
            proposals: Counter::default(),
            proposal_bytes: Histogram::new(proposal_sizes),
            overloaded: Counter::default(),
            disk_full: Counter::default(),
            unknown: Counter::default(),
            unconfirmed: Counter::default(),
            queued_bytes: Gauge::default(),
            tail_bytes: Gauge::default(),
            tail_hits: Counter::default(),
            tail_misses: Counter::default(),
            deliver_streams: Gauge::default(),
            deliveries: Counter::default(),
            acks: Counter::default(),
            slow_consumers: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes them visible under `weft_shard_*`.
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add("weft_shard_committed_batches", "Batches committed by this node as an owner", &self.batches);
        add("weft_shard_committed_events", "Events committed by this node as an owner", &self.events);
        add("weft_shard_committed_bytes", "Bytes committed by this node as an owner", &self.bytes);
        add("weft_shard_proposals", "Proposals made", &self.proposals);
        add("weft_shard_overloaded", "Batches refused at a queue limit", &self.overloaded);
        add("weft_shard_disk_full", "Batches refused at the disk's watermark", &self.disk_full);
        add("weft_shard_outcome_unknown", "Batches in flight when leadership was lost", &self.unknown);
        add("weft_shard_unconfirmed_reads", "Questions that no majority confirmed this owner for", &self.unconfirmed);
        add("weft_shard_tail_hits", "Reads answered from memory", &self.tail_hits);
        add("weft_shard_tail_misses", "Reads that went to the segments", &self.tail_misses);
        add("weft_shard_deliveries", "Events given out to consumers of groups", &self.deliveries);
        add("weft_shard_acks", "Ack commands committed", &self.acks);
        add("weft_shard_slow_consumers", "Consumers cut off because they did not read", &self.slow_consumers);
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(name, help, gauge.clone());
        };
        gauge("weft_shard_queued_bytes", "Bytes that wait or are being committed", &self.queued_bytes);
        gauge("weft_shard_tail_bytes", "Bytes in the tail cache", &self.tail_bytes);
        gauge("weft_shard_deliver_streams", "Deliver streams that are open", &self.deliver_streams);
        registry.register("weft_shard_proposal_bytes", "Bytes of each proposal", self.proposal_bytes.clone());
    }
}
