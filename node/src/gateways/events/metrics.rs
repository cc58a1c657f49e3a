//! What the events door counts.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use prometheus_client::registry::Registry;

/// Metrics of publishing and subscribing at this node's door. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    /// Unary publish requests.
    pub publishes: Counter,
    /// Publish streams that are open.
    pub publish_streams: Gauge,
    /// Times that a publish stream had to wait for the node's room.
    pub publish_waits: Counter,
    /// Unary publishes refused because the node had no room.
    pub overloaded: Counter,
    /// Events answered with a receipt.
    pub receipts: Counter,
    /// Events answered with an error.
    pub errors: Counter,
    /// Subscriptions that are open.
    pub subscriptions: Gauge,
    /// Deliveries dropped because their epoch is over.
    pub stale_deliveries: Counter,
}

impl Metrics {
    /// Makes them visible under `weft_events_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("weft_events_publishes", "Unary publish requests", self.publishes.clone());
        registry.register("weft_events_publish_streams", "Publish streams open", self.publish_streams.clone());
        registry.register(
            "weft_events_publish_waits",
            "Waits for events.publish_bytes_max",
            self.publish_waits.clone(),
        );
        registry.register("weft_events_overloaded", "Publishes refused for lack of room", self.overloaded.clone());
        registry.register("weft_events_receipts", "Batches answered with a receipt", self.receipts.clone());
        registry.register("weft_events_errors", "Batches or events answered with an error", self.errors.clone());
        registry.register("weft_events_subscriptions", "Subscriptions open", self.subscriptions.clone());
        registry.register(
            "weft_events_stale_deliveries",
            "Deliveries dropped because their epoch is over",
            self.stale_deliveries.clone(),
        );
    }
}

/// Counts what is open in a gauge while it lives.
pub(super) struct Counted(Gauge);

impl Counted {
    pub(super) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
