//! What a home node counts.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use prometheus_client::registry::Registry;
use weft_cluster::home::Counts;

/// Metrics of the instances whose home this node is. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    at_home: Gauge,
    healthy: Gauge,
    checking: Gauge,
    unwritten: Gauge,
    pub(super) checks: Counter,
    pub(super) checks_failed: Counter,
    pub(super) flips: Counter,
    pub(super) doubts: Counter,
    pub(super) leases_ended: Counter,
    pub(super) rehomed: Counter,
}

impl Metrics {
    /// Makes them visible under `weft_instances_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("weft_instances_home", "Instances whose home this node is", self.at_home.clone());
        registry.register("weft_instances_healthy", "Of these, those that pass their checks", self.healthy.clone());
        registry.register("weft_instances_checks_in_flight", "Health checks in flight", self.checking.clone());
        registry.register(
            "weft_instances_flips_unwritten",
            "Flips of health that the registry does not have yet",
            self.unwritten.clone(),
        );
        registry.register("weft_instances_checks", "Health checks made", self.checks.clone());
        registry.register("weft_instances_checks_failed", "Health checks that failed", self.checks_failed.clone());
        registry.register("weft_instances_flips", "Flips of health written", self.flips.clone());
        registry.register("weft_instances_doubts", "Calls that could not reach an instance", self.doubts.clone());
        registry.register("weft_instances_leases_ended", "Leases that ran out", self.leases_ended.clone());
        registry.register(
            "weft_instances_rehomed",
            "Instances given a new home by this node: their own was dead, or this node stops",
            self.rehomed.clone(),
        );
    }

    pub(super) fn show(&self, counts: Counts) {
        let set = |gauge: &Gauge, count: usize| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        set(&self.at_home, counts.instances);
        set(&self.healthy, counts.healthy);
        set(&self.checking, counts.checking);
        set(&self.unwritten, counts.unwritten);
    }
}
