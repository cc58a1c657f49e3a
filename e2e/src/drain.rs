//! P10: all three nodes are stopped and started in turn under calls and events, and no client sees an error.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinHandle;
use weft_e2e::cluster::{Cluster, weft};
use weft_sdk::{Client, StartAt};

use crate::beside;
use crate::grpc::{SERVICE, callable, outcomes};
use crate::python::{Call, Python};
use crate::report::Report;

const TOPIC: &str = "drain";
const PARTITIONS: u32 = 8;
/// Calls and events a second, whatever the answers do.
const CALLS_PER_S: u32 = 500;
const EVENTS_PER_S: u32 = 2_000;
/// How long the load runs before the first stop and after the last start.
const CALM: Duration = Duration::from_secs(3);
/// How long a node may take to stop, and the cluster to be whole again.
const STOP_MAX: Duration = Duration::from_secs(40);
const HEALTHY_MAX: Duration = Duration::from_secs(60);
/// How long the last events may take to be observed.
const OBSERVED_MAX: Duration = Duration::from_secs(30);

/// Ways to spoil the restarts; each must make the check fail.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Break {
    /// kill -9 instead of SIGTERM.
    Abrupt,
}

/// What the command line says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Spoils the restarts; the check must then fail.
    #[arg(long = "break", value_enum)]
    how: Option<Break>,
    /// Leaves the nodes' folders and logs in place.
    #[arg(long)]
    keep: bool,
}

/// Runs the check.
pub(crate) async fn run(args: Args) -> Report {
    beside::python("drain", args.how, args.keep, async |python, folder, cluster, report| {
        check(python, folder, args.how.is_some(), cluster, report).await
    })
    .await
}

async fn check(python: &Python, folder: &Path, abrupt: bool, cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    let nodes = cluster.addresses();
    // Each instance has another home node, so that two of the stops move one.
    let servers = [python.server("first", folder, "")?, python.server("second", folder, "")?];
    for (server, node) in servers.iter().zip(&nodes) {
        let address = &server.address;
        weft(&["--server", node, "service", "register", SERVICE, "--address", address, "--check", "grpc"])?;
    }
    callable(&nodes, 2).await?;
    let client = Client::connect(nodes.clone()).await.context("connect")?;
    client.topics().create(TOPIC, PARTITIONS).await.context("create the topic")?;
    let observed = observe(client.clone()).await?;
    let going = Arc::new(AtomicBool::new(true));
    let published = tokio::spawn(publish(client, going.clone()));
    let mut calling = call(python, &nodes)?;
    let stdin = calling.stdin();
    let calls = tokio::task::spawn_blocking(move || calling.lines::<Call>());

    tokio::time::sleep(CALM).await;
    let mut stops = Vec::new();
    for index in 0..nodes.len() {
        let began = Instant::now();
        if abrupt {
            cluster.kill(index)?;
        } else {
            cluster.terminate(index, STOP_MAX).await?;
        }
        stops.push(json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0));
        cluster.start_node(index)?;
        cluster.wait_healthy(HEALTHY_MAX).await.with_context(|| format!("after the restart of node {}", index + 1))?;
    }
    tokio::time::sleep(CALM).await;
    drop(stdin);
    going.store(false, Ordering::Relaxed);
    report.figure("stop_s", stops);
    check_calls(&calls.await??, report);
    check_events(published.await??, observed, report).await
}

/// Calls at a fixed rate through any of the nodes, until its stdin is closed.
fn call(python: &Python, nodes: &[String]) -> Result<crate::python::Client> {
    let rate = CALLS_PER_S.to_string();
    let mut arguments = vec!["load", "--seconds", "0", "--workers", "32", "--rate", &rate, "--prefix", "drain"];
    for node in nodes {
        arguments.extend(["--server", node]);
    }
    python.client(&arguments)
}

fn check_calls(calls: &[Call], report: &mut Report) {
    let failed = calls.iter().filter(|call| call.status != "OK").count();
    report.check(failed == 0, || format!("{failed} calls failed: {:?}", outcomes(calls)));
    report.check(calls.len() > 1_000, || format!("only {} calls were made", calls.len()));
    let mut times: Vec<u64> = calls.iter().map(|call| call.took_ms as u64).collect();
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
    report.figure("calls", calls.len());
    report.figure("call_ms", json!({"p50": at(0.5), "p99": at(0.99), "longest": times.last()}));
}

/// Events at a fixed rate; returns how many were confirmed.
async fn publish(client: Client, going: Arc<AtomicBool>) -> Result<Published> {
    let producer = client.producer(TOPIC).linger(Duration::from_millis(2)).open().await.context("open the producer")?;
    let started = tokio::time::Instant::now();
    let mut number = 0_u64;
    while going.load(Ordering::Relaxed) {
        tokio::time::sleep_until(started + Duration::from_secs(number) / EVENTS_PER_S).await;
        producer.push(weft_sdk::event((number % 1_000).to_string(), number.to_string())).await.context("publish")?;
        number += 1;
    }
    let published = producer.close().await.context("close the producer")?;
    Ok(Published { confirmed: published.events, failed: published.failed + published.unknown })
}

struct Published {
    confirmed: u64,
    failed: u64,
}

/// Reads the topic from its beginning; the task's count is of events seen.
async fn observe(client: Client) -> Result<Observed> {
    let mut observer = client.subscriber(TOPIC).start(StartAt::Earliest).observe().await.context("observe")?;
    let (count, seen) = tokio::sync::watch::channel(0_u64);
    let task = tokio::spawn(async move {
        while observer.next().await.context("the observer goes on")?.is_some() {
            count.send_modify(|count| *count += 1);
        }
        Ok(())
    });
    Ok(Observed { seen, task })
}

struct Observed {
    seen: tokio::sync::watch::Receiver<u64>,
    task: JoinHandle<Result<()>>,
}

async fn check_events(published: Published, mut observed: Observed, report: &mut Report) -> Result<()> {
    let Published { confirmed, failed } = published;
    report.check(failed == 0, || format!("{failed} publishes failed"));
    report.figure("events", confirmed);
    let all = tokio::time::timeout(OBSERVED_MAX, observed.seen.wait_for(|seen| *seen >= confirmed)).await.is_ok();
    let seen = *observed.seen.borrow();
    if observed.task.is_finished() {
        observed.task.await??;
    } else {
        observed.task.abort();
    }
    ensure!(all, "only {seen} of {confirmed} events were observed in {OBSERVED_MAX:?}");
    report.check(seen == confirmed, || format!("{seen} events were observed, {confirmed} published"));
    Ok(())
}
