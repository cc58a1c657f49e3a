//! Unmodified gRPC programs through three nodes: every kind of call, an instance killed, the client's node killed.

mod calls;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use weft_e2e::cluster::{Cluster, weft};

use crate::beside;
use crate::python::{Call, Python, Server};
use crate::report::Report;
use calls::Noted;

/// The service, as the programs name it.
pub(crate) const SERVICE: &str = "e2e.Echo";
/// How long the instances may take to be callable from every node.
const CALLABLE_MAX: Duration = Duration::from_secs(20);
/// How long a load runs; what is killed is killed in its middle.
const LOAD: Duration = Duration::from_secs(6);

/// Ways to spoil what an instance does; each must make the check fail.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Break {
    /// It notes each call twice, as if it had run twice.
    Twice,
    /// It leaves out the first value of the metadata.
    Metadata,
    /// It leaves out the first byte of the data.
    Data,
}

/// What the command line says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Spoils what an instance answers; the check must then fail.
    #[arg(long = "break", value_enum)]
    how: Option<Break>,
    /// Leaves the nodes' folders and logs in place.
    #[arg(long)]
    keep: bool,
}

/// Runs the check.
pub(crate) async fn run(args: Args) -> Report {
    let spoil = args.how.map(|how| format!("{how:?}").to_lowercase());
    let spoiled = spoil.as_deref();
    beside::python("grpc", args.how, args.keep, async |python, folder, cluster, report| {
        check(python, folder, spoiled.unwrap_or_default(), cluster, report).await
    })
    .await
}

async fn check(python: &Python, folder: &Path, spoil: &str, cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    let nodes = cluster.addresses();
    let mut first = python.server("first", folder, spoil)?;
    // The instances' home is node 2, the clients begin at node 1.
    register(&nodes[1], &first)?;
    callable(&nodes, 1).await?;
    conform(python, folder, &nodes, report)?;

    let second = python.server("second", folder, spoil)?;
    register(&nodes[1], &second)?;
    callable(&nodes, 2).await?;
    let calls = under_load(python, &nodes[..1], "instance", || first.kill()).await?;
    let noted = Noted::read(folder)?;
    noted.check(&calls.0, report);
    calls::check_instance_killed(&calls.0, &noted, calls.1, report);

    let calls = under_load(python, &nodes[..2], "node", || cluster.kill(0)).await?;
    let noted = Noted::read(folder)?;
    noted.check(&calls.0, report);
    calls::check_node_killed(&calls.0, calls.1, report);
    Ok(())
}

fn register(node: &str, server: &Server) -> Result<()> {
    let command = ["--server", node, "service", "register", SERVICE, "--address", &server.address, "--check", "grpc"];
    weft(&command).map(drop)
}

/// Waits until every node that runs sees `count` healthy instances.
pub(crate) async fn callable(nodes: &[String], count: u64) -> Result<()> {
    let deadline = Instant::now() + CALLABLE_MAX;
    for node in nodes {
        loop {
            let described = weft(&["--server", node, "service", "describe", SERVICE, "--json"]);
            let healthy = described.and_then(|text| {
                let service: serde_json::Value = serde_json::from_str(&text)?;
                service["service"]["instances_healthy"].as_u64().context("instances_healthy")
            });
            if matches!(healthy, Ok(healthy) if healthy == count) {
                break;
            }
            ensure!(Instant::now() < deadline, "{node} does not see {count} healthy instances: {healthy:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

/// Every kind of call, through node 1; reflection and health through node 3.
fn conform(python: &Python, folder: &Path, nodes: &[String], report: &mut Report) -> Result<()> {
    #[derive(Deserialize)]
    struct Case {
        case: String,
        passed: bool,
        why: String,
    }
    let directory = folder.to_str().context("a folder with a plain name")?;
    let client = python.client(&["conform", "--server", &nodes[0], "--other", &nodes[2], "--directory", directory])?;
    let cases: Vec<Case> = client.lines()?;
    report.figure("cases", cases.len());
    report.check(cases.len() >= 19, || format!("only {} cases ran", cases.len()));
    for case in cases {
        report.check(case.passed, || format!("case {}: {}", case.case, case.why));
    }
    Ok(())
}

/// Calls without a pause from a client that knows `nodes`; in the middle `kill` is called. Returns the calls and when
/// the kill was, in milliseconds since the load began.
async fn under_load(
    python: &Python,
    nodes: &[String],
    prefix: &str,
    kill: impl FnOnce() -> Result<()>,
) -> Result<(Vec<Call>, u64)> {
    let seconds = LOAD.as_secs().to_string();
    let mut arguments = vec!["load", "--seconds", &seconds, "--prefix", prefix];
    for node in nodes {
        arguments.extend(["--server", node]);
    }
    let client = python.client(&arguments)?;
    let reading = tokio::task::spawn_blocking(move || client.lines::<Call>());
    let began = Instant::now();
    tokio::time::sleep(LOAD / 2).await;
    kill()?;
    // The client's clock begins after it has started, a little later than ours.
    let killed_ms = began.elapsed().as_millis() as u64;
    Ok((reading.await??, killed_ms))
}

/// Calls by status and detail.
pub(crate) fn outcomes(calls: &[Call]) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    for call in calls {
        *outcomes.entry(format!("{} {}", call.status, call.detail).trim().to_owned()).or_default() += 1;
    }
    outcomes
}
