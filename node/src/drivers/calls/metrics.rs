//! What is called, and how it ends.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use weft_cluster::errors::reason;
use weft_proto::v1::ErrorCode;

/// Seconds until an answer begins.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// A service, by the name it is registered under: bounded by the registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceLabel {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
}

/// A code of docs/errors.md.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// Its name.
    pub code: String,
}

/// Metrics of calls. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Calls of clients of this node, by service.
    pub calls: Family<ServiceLabel, Counter>,
    /// Calls tried again, by service.
    pub retries: Family<ServiceLabel, Counter>,
    /// Calls that Weft itself ended, by code.
    pub failures: Family<CodeLabel, Counter>,
    /// Calls that their client gave up.
    pub cancelled: Counter,
    /// Calls reset by their instance.
    pub reset: Counter,
    /// Calls of clients of this node that are not over.
    pub open: Gauge,
    /// Calls that wait until an instance of their service can be reached.
    pub waiting: Gauge,
    /// Calls served here for other nodes.
    pub served: Counter,
    /// Calls served for other nodes that are not over.
    pub served_open: Gauge,
    /// Whole calls whose answer needed a stream of its own.
    pub continued: Counter,
    /// Time until the answer began, as the client's node sees it.
    pub head_seconds: Histogram,
    /// Connections to instances opened.
    pub connects: Counter,
    /// Connections to instances that could not be opened.
    pub connect_failures: Counter,
    /// Connections to instances that are open.
    pub connections_open: Gauge,
    /// Calls refused because too many waited for a connection.
    pub overloaded: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            calls: Family::default(),
            retries: Family::default(),
            failures: Family::default(),
            cancelled: Counter::default(),
            reset: Counter::default(),
            open: Gauge::default(),
            waiting: Gauge::default(),
            served: Counter::default(),
            served_open: Gauge::default(),
            continued: Counter::default(),
            head_seconds: Histogram::new(SECONDS),
            connects: Counter::default(),
            connect_failures: Counter::default(),
            connections_open: Gauge::default(),
            overloaded: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes them visible under `weft_calls_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("weft_calls_made", "Calls of clients of this node", self.calls.clone());
        registry.register("weft_calls_retries", "Calls tried again", self.retries.clone());
        registry.register("weft_calls_failures", "Calls that Weft itself ended, by code", self.failures.clone());
        registry.register("weft_calls_cancelled", "Calls that their client gave up", self.cancelled.clone());
        registry.register("weft_calls_reset", "Calls reset by their instance", self.reset.clone());
        registry.register("weft_calls_open", "Calls that are not over", self.open.clone());
        registry.register(
            "weft_calls_waiting",
            "Calls that wait until an instance can be reached",
            self.waiting.clone(),
        );
        registry.register("weft_calls_served", "Calls served for other nodes", self.served.clone());
        registry.register(
            "weft_calls_served_open",
            "Calls served for other nodes that are not over",
            self.served_open.clone(),
        );
        registry.register("weft_calls_continued", "Whole calls with a long answer", self.continued.clone());
        registry.register("weft_calls_head_seconds", "Time until the answer began", self.head_seconds.clone());
        registry.register("weft_calls_connects", "Connections to instances opened", self.connects.clone());
        registry.register(
            "weft_calls_connect_failures",
            "Connections to instances that could not be opened",
            self.connect_failures.clone(),
        );
        registry.register(
            "weft_calls_connections_open",
            "Connections to instances that are open",
            self.connections_open.clone(),
        );
        registry.register(
            "weft_calls_overloaded",
            "Calls refused because too many waited for a connection",
            self.overloaded.clone(),
        );
    }

    /// Counts a call that Weft itself has ended.
    pub fn failed(&self, code: ErrorCode) {
        self.failures.get_or_create(&CodeLabel { code: reason(code).to_owned() }).inc();
    }
}

/// Counted in a gauge for as long as it lives.
pub(super) struct Open<'a>(&'a Gauge);

impl<'a> Open<'a> {
    pub(super) fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Open(gauge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
