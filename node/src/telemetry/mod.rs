//! What a node says of itself: logs, and metrics in the Prometheus text format.

mod log;
mod process;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use log::start as start_log;
pub use process::Process;

/// The version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The content type of what `Metrics::encode` writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Holds the build's metric only: `weft_build_info{version, node}`.
    pub fn new(node: &str) -> Metrics {
        let mut registry = Registry::default();
        let labels = vec![("version", VERSION.to_string()), ("node", node.to_string())];
        registry.register("weft_build", "The binary's version and the node's name", Info::new(labels));
        Metrics { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Lets a component register its metrics, once: `metrics.register(|registry| storage.register_metrics(registry))`.
    pub fn register(&self, component: impl FnOnce(&mut Registry)) {
        component(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The values now, as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        text::encode(&mut page, &registry).expect("a String takes every write");
        page
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn what_is_registered_is_on_the_page() {
        let metrics = Metrics::new("n1");
        let events: Counter = Counter::default();
        metrics.register(|registry| registry.register("weft_test_events", "Events", events.clone()));
        events.inc_by(3);
        let page = metrics.encode();
        assert!(page.contains("weft_test_events_total 3\n"), "{page}");
        assert!(page.contains(&format!("weft_build_info{{version=\"{VERSION}\",node=\"n1\"}} 1")), "{page}");
        assert!(page.ends_with("# EOF\n"));
    }
}
