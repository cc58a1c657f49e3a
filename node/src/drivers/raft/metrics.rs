//! What the Raft groups of this node count, and which of them may not be used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use weft_cluster::ids::RaftGroup;

/// Metrics of all groups of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Terms in which a replica of this node stood for election.
    pub elections: Counter,
    /// New leaders that replicas of this node have learned of.
    pub leader_changes: Counter,
    /// Commands proposed at this node.
    pub proposals: Counter,
    /// Seconds from a proposal to its end, whatever it was.
    pub propose_seconds: Histogram,
    /// Snapshots that peers have taken from this node.
    pub snapshots_sent: Counter,
    /// Snapshots that replaced a state of this node.
    pub snapshots_installed: Counter,
    /// Groups whose replica here failed a check or stopped by itself.
    pub fenced_groups: Gauge,
    /// Groups whose replica here waits for room on the disk before it applies more.
    pub paused_groups: Gauge,
    /// Groups that this node leads.
    pub groups_led: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            elections: Counter::default(),
            leader_changes: Counter::default(),
            proposals: Counter::default(),
            propose_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            snapshots_sent: Counter::default(),
            snapshots_installed: Counter::default(),
            fenced_groups: Gauge::default(),
            paused_groups: Gauge::default(),
            groups_led: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers all metrics.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            ("weft_raft_elections", "Terms in which a replica stood for election.", &self.elections),
            ("weft_raft_leader_changes", "New leaders that replicas learned of.", &self.leader_changes),
            ("weft_raft_proposals", "Commands proposed.", &self.proposals),
            ("weft_raft_snapshots_sent", "Snapshots that peers took from this node.", &self.snapshots_sent),
            ("weft_raft_snapshots_installed", "Snapshots that replaced a state.", &self.snapshots_installed),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let seconds = self.propose_seconds.clone();
        registry.register("weft_raft_propose_seconds", "Seconds from a proposal to its end.", seconds);
        let fenced = self.fenced_groups.clone();
        registry.register("weft_raft_fenced_groups", "Groups whose replica here may not be used.", fenced);
        let paused = self.paused_groups.clone();
        registry.register("weft_raft_paused_groups", "Groups whose replica here waits for room on the disk.", paused);
        registry.register("weft_raft_groups_led", "Groups that this node leads.", self.groups_led.clone());
    }
}

/// Groups whose replica on this node may not be used, with the reason for a person. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Fenced {
    reasons: Arc<Mutex<BTreeMap<RaftGroup, String>>>,
    count: Gauge,
    told: watch::Sender<u32>,
}

impl Fenced {
    /// An empty list whose length `count` shows.
    pub(super) fn new(count: Gauge) -> Fenced {
        Fenced { reasons: Arc::default(), count, told: watch::Sender::default() }
    }

    pub(super) fn insert(&self, group: RaftGroup, reason: String) {
        self.change(|reasons| reasons.insert(group, reason));
    }

    pub(super) fn remove(&self, group: RaftGroup) {
        self.change(|reasons| reasons.remove(&group));
    }

    pub(super) fn get(&self, group: RaftGroup) -> Option<String> {
        self.change(|reasons| reasons.get(&group).cloned())
    }

    pub(super) fn all(&self) -> BTreeMap<RaftGroup, String> {
        self.change(|reasons| reasons.clone())
    }

    /// How many there are, published on change.
    pub(super) fn count(&self) -> watch::Receiver<u32> {
        self.told.subscribe()
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<RaftGroup, String>) -> T) -> T {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut reasons);
        let count = u32::try_from(reasons.len()).unwrap_or(u32::MAX);
        self.count.set(i64::from(count));
        self.told.send_if_modified(|told| std::mem::replace(told, count) != count);
        result
    }
}
