//! What is forwarded.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use prometheus_client::registry::Registry;

/// Metrics of forwarding. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    /// Batches given to an owner on this node.
    pub local: Counter,
    /// Batches sent to an owner on another node.
    pub remote: Counter,
    /// Attempts that failed; most are made again.
    pub retries: Counter,
    /// Deliver streams opened to owners, again after each failover.
    pub deliver_opens: Counter,
    /// Deliver streams that wait for an owner.
    pub deliver_waiting: Gauge,
}

impl Metrics {
    /// Makes them visible under `weft_forward_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("weft_forward_local_batches", "Batches given to an owner on this node", self.local.clone());
        registry.register("weft_forward_remote_batches", "Batches sent to another node", self.remote.clone());
        registry.register("weft_forward_failed_attempts", "Attempts that failed", self.retries.clone());
        registry.register("weft_forward_deliver_opens", "Deliver streams opened", self.deliver_opens.clone());
        registry.register(
            "weft_forward_deliver_waiting",
            "Deliver streams without an owner",
            self.deliver_waiting.clone(),
        );
    }
}
