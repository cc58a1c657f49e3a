//! What a node says of itself: logs, and metrics in the Prometheus text format.

mod log;
mod process;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use log::{check_filter, start as start_log};
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
#[allow(clippy::disallowed_methods, reason = "a test reads sources and docs")]
mod tests {
    use std::collections::BTreeSet;

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

    /// The first string literal of `text` that begins with `weft_`, if a help text follows it, and what comes after it.
    fn next_name(text: &str) -> Option<(Option<&str>, &str)> {
        let (_, rest) = text.split_once("\"weft_")?;
        let (name, rest) = rest.split_once('"')?;
        let follows = rest.trim_start_matches([')', ',', '\n', ' ']);
        Some((follows.starts_with('"').then_some(name), rest))
    }

    /// The names that sources register, without what Prometheus adds to counters.
    fn registered(folder: &std::path::Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("the sources are there").map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                registered(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source is text");
                let end = text.find("\nmod tests {").unwrap_or(text.len());
                let mut rest = &text[..end];
                while let Some((name, after)) = next_name(rest) {
                    rest = after;
                    // The doors have the same metrics under their own names.
                    let doors = |name: &str| ["api", "admin"].map(|door| name.replace("{door}", door));
                    names.extend(name.into_iter().flat_map(doors).map(|name| format!("weft_{name}")));
                }
            }
        }
    }

    /// The words of a text that begin with `weft_`, without what Prometheus adds.
    fn mentioned(text: &str) -> BTreeSet<String> {
        let letters = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        let words = text.split(|letter| !letters(letter)).filter(|word| word.starts_with("weft_"));
        let bare = |word: &str| word.trim_end_matches("_total").trim_end_matches("_info").to_owned();
        words.map(bare).collect()
    }

    #[test]
    fn operations_md_names_every_metric_and_no_other() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut names = BTreeSet::new();
        registered(&root.join("src"), &mut names);
        assert!(names.len() > 50 && names.contains("weft_admin_connections"), "{names:?}");
        let text = std::fs::read_to_string(root.join("../docs/operations.md")).expect("docs/operations.md is there");
        let (_, table) = text.split_once("## All metrics").expect("a section of all metrics");
        let listed = mentioned(table);
        let missing: Vec<_> = names.difference(&listed).collect();
        assert!(missing.is_empty(), "not in docs/operations.md, section All metrics: {missing:?}");
        let gone: Vec<_> = mentioned(&text).difference(&names).cloned().collect();
        assert!(gone.is_empty(), "in docs/operations.md, but no metric of this node: {gone:?}");
    }
}
