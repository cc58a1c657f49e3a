//! The spine's figures: R=3, fsync before every receipt, nodes and client on one machine.

mod consume;
mod idle;
mod kills;
mod publish;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use weft_e2e::cluster::Cluster;
use weft_sdk::Client;

use crate::process::cpu_seconds;

/// Partitions of every topic.
const PARTITIONS: u32 = 8;

/// What the command line says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each figure.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Kills.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Only the figures whose name begins so: bulk, single, one, end_to_end, consume, idle, kill.
    #[arg(long, default_value = "")]
    only: String,
}

/// Runs all figures and prints one JSON line for each.
pub(crate) async fn run(args: Args) -> Result<()> {
    let time = Duration::from_secs(args.seconds);
    let wanted = |name: &str| name.starts_with(&args.only);
    let mut cluster = Cluster::start(3).await?;
    if wanted("idle") {
        print("idle", idle::idle(&cluster, time).await?);
    }
    let client = Client::connect(cluster.addresses()).await.context("connect")?;
    for event_bytes in [128, 1 << 10, 16 << 10] {
        for batch_bytes in [16 << 10, 128 << 10] {
            if wanted("bulk") {
                print("bulk", publish::bulk(&cluster, &client, event_bytes, batch_bytes, time).await?);
            }
        }
        for publishers in [1, 64] {
            if wanted("single") {
                print("single", publish::single(&cluster, &client, event_bytes, publishers, time).await?);
            }
        }
    }
    if wanted("one") {
        print("one_at_a_time", publish::one_at_a_time(&client, time).await?);
    }
    if wanted("end_to_end") {
        print("end_to_end", publish::end_to_end(&client, time).await?);
    }
    if wanted("consume") {
        consume::consume(&cluster, &client, time).await?.into_iter().for_each(|figure| print("consume", figure));
    }
    if wanted("kill") {
        print("kill", kills::kills(&mut cluster, args.kills).await?);
    }
    Ok(())
}

fn print(name: &str, mut figure: Map<String, Value>) {
    figure.insert("figure".to_owned(), json!(name));
    println!("{}", Value::Object(figure));
}

/// Measures one stretch of work: events, seconds, and the nodes' CPU.
struct Stretch {
    pids: Vec<u32>,
    cpu: f64,
    started: Instant,
}

impl Stretch {
    fn begin(cluster: &Cluster) -> Result<Stretch> {
        let pids = cluster.pids();
        Ok(Stretch { cpu: cpu_seconds(&pids)?, pids, started: Instant::now() })
    }

    fn end(&self, events: u64) -> Result<Map<String, Value>> {
        let seconds = self.started.elapsed().as_secs_f64();
        let cpu = cpu_seconds(&self.pids)? - self.cpu;
        let mut figure = Map::new();
        figure.insert("events".into(), json!(events));
        figure.insert("events_per_s".into(), json!((events as f64 / seconds).round()));
        figure.insert("node_cpu_s_per_million".into(), json!(round(cpu * 1e6 / events.max(1) as f64)));
        Ok(figure)
    }
}

fn latencies() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 600_000_000, 3).context("a histogram")
}

/// p50 and p99 of microseconds, in milliseconds.
fn percentiles(histogram: &Histogram<u64>, figure: &mut Map<String, Value>) {
    for (name, quantile) in [("p50_ms", 0.5), ("p99_ms", 0.99)] {
        figure.insert(name.into(), json!(round(histogram.value_at_quantile(quantile) as f64 / 1000.0)));
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// A topic of its own for a figure.
async fn topic(client: &Client, name: &str) -> Result<String> {
    client.topics().create(name, PARTITIONS).await.with_context(|| format!("create {name}"))?;
    Ok(name.to_owned())
}

/// Events of one size, over 10,000 keys.
fn event(number: u64, event_bytes: usize) -> weft_sdk::Event {
    weft_sdk::event(format!("key-{}", number % 10_000), vec![b'x'; event_bytes])
}
