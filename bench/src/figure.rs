//! A figure: what one measurement gave.

use std::time::Instant;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use weft_e2e::cluster::Cluster;

use crate::process::Cpu;

/// One measurement: its name and what it gave.
pub(crate) struct Figure {
    /// As the table and `--only` name it, for example `bulk 128 B, 128 KiB`.
    pub(crate) name: String,
    values: Map<String, Value>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>) -> Figure {
        Figure { name: name.into(), values: Map::new() }
    }

    /// Adds a value, to three decimals.
    pub(crate) fn set(&mut self, measure: &str, value: f64) {
        self.values.insert(measure.to_owned(), json!((value * 1000.0).round() / 1000.0));
    }

    /// Adds a whole number.
    pub(crate) fn count(&mut self, measure: &str, count: u64) {
        self.values.insert(measure.to_owned(), json!(count));
    }

    /// Adds p50 and p99 of microseconds, in milliseconds.
    pub(crate) fn percentiles(&mut self, micros: &Histogram<u64>) {
        for (measure, quantile) in [("p50_ms", 0.5), ("p99_ms", 0.99)] {
            self.set(measure, micros.value_at_quantile(quantile) as f64 / 1000.0);
        }
    }

    /// What was measured, if it was.
    pub(crate) fn get(&self, measure: &str) -> Option<f64> {
        self.values.get(measure).and_then(Value::as_f64)
    }

    /// The line of JSON.
    pub(crate) fn to_json(&self) -> Value {
        let mut line = Map::from_iter([("figure".to_owned(), json!(self.name))]);
        line.extend(self.values.clone());
        Value::Object(line)
    }
}

/// A histogram of microseconds, up to 10 minutes.
pub(crate) fn micros() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 600_000_000, 3).context("a histogram")
}

/// A stretch of work: its seconds, and the CPU of the nodes and of this process.
pub(crate) struct Stretch {
    nodes: Vec<u32>,
    nodes_cpu: Cpu,
    client_cpu: Cpu,
    started: Instant,
}

impl Stretch {
    pub(crate) fn begin(cluster: &Cluster) -> Result<Stretch> {
        let nodes = cluster.pids();
        let (nodes_cpu, client_cpu) = (Cpu::of(&nodes)?, Cpu::of(&[std::process::id()])?);
        Ok(Stretch { nodes, nodes_cpu, client_cpu, started: Instant::now() })
    }

    /// Ends it.
    pub(crate) fn end(self) -> Result<Cost> {
        let seconds = self.started.elapsed().as_secs_f64();
        let nodes_cpu = Cpu::of(&self.nodes)?.since(&self.nodes_cpu);
        let client_cpu = Cpu::of(&[std::process::id()])?.since(&self.client_cpu);
        Ok(Cost { seconds, nodes_cpu, client_cpu })
    }
}

/// What a stretch took.
pub(crate) struct Cost {
    seconds: f64,
    nodes_cpu: Cpu,
    client_cpu: Cpu,
}

impl Cost {
    /// Adds the rate of `events`, and the CPU seconds per million of them.
    pub(crate) fn of(&self, events: u64, figure: &mut Figure) {
        let millions = events.max(1) as f64 / 1e6;
        figure.count("events", events);
        figure.set("events_per_s", (events as f64 / self.seconds).round());
        figure.set("node_cpu_s_per_million", self.nodes_cpu.total() / millions);
        // The kernel's part is the one that the machine decides: how dear a fresh page, a sync and a wake-up are.
        figure.set("node_system_cpu_s_per_million", self.nodes_cpu.system / millions);
        figure.set("client_cpu_s_per_million", self.client_cpu.total() / millions);
    }
}
