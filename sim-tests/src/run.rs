//! One run: a plan, from the founding of the cluster to the verdict.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::cluster::{CLIENTS, Cluster};
use crate::history::{Entry, History, What};
use crate::plan::Plan;
use crate::workload::{self, Phase, Shared};
use crate::{entropy, promises, trace};

/// Simulated time that the founding may take.
const FOUND_MAX: Duration = Duration::from_secs(60);
/// Simulated time that it may take after the storm until everything is delivered and read.
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// The cluster stays as it is for this long before the disks are compared.
const REST: Duration = Duration::from_secs(4);
/// Or for this long: a scrub finds what has rotted, and the replica is filled again from the others, one by one.
const HEAL: Duration = Duration::from_secs(40);

/// Broken promises that a verdict lists.
const BROKEN_SHOWN_MAX: usize = 40;

/// What a run has shown.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The seed.
    pub seed: u64,
    /// Hash of all traffic, in hex.
    pub hash: String,
    /// Messages sent.
    pub messages: u64,
    /// Events stored.
    pub stored: usize,
    /// Faults and ends of processes.
    pub faults: usize,
    /// Simulated seconds.
    pub simulated_s: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// What broke a promise, or kept the run from its end.
    pub broken: Vec<String>,
    /// All that happened.
    #[serde(skip)]
    pub history: Vec<Entry>,
}

/// Where a run leaves what it saw.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// The history, as JSON lines.
    pub history: Option<PathBuf>,
    /// One line per message.
    pub trace: Option<PathBuf>,
}

/// Runs a plan on this thread, which must not have run another.
///
/// # Errors
/// Files that cannot be written; what breaks a promise is in the verdict.
pub fn run(plan: &Plan, outputs: &Outputs) -> Result<Verdict> {
    let started = Instant::now();
    entropy::seed(plan.seed);
    trace::start(outputs.trace.as_deref())?;
    let history = History::default();
    let mut cluster = Cluster::new(plan, history.clone())?;
    let outcome = weather(plan, &mut cluster, &history);
    let simulated_s = cluster.sim.elapsed().as_secs_f64();
    drop(cluster);
    let entries = history.entries();
    let mut broken = promises::check(&entries);
    if let Err(error) = outcome {
        // An unfinished run has no final log, so the promises say little: the reason comes first.
        broken = vec![format!("{error:#}")];
    }
    if let Some(path) = &outputs.history {
        history.write(path)?;
    }
    let count = |wanted: fn(&Entry) -> bool| entries.iter().filter(|entry| wanted(entry)).count();
    let traffic = trace::traffic();
    Ok(Verdict {
        seed: plan.seed,
        hash: format!("{:016x}", traffic.hash),
        messages: traffic.messages,
        stored: count(|entry| matches!(entry.what, What::Final { .. })),
        faults: count(|entry| matches!(entry.what, What::Fault { .. })),
        simulated_s,
        seconds: (started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        broken: shortened(broken),
        history: entries,
    })
}

/// One fault shows in many places: the first few and a count say enough, and fit a pipe.
fn shortened(mut broken: Vec<String>) -> Vec<String> {
    if broken.len() > BROKEN_SHOWN_MAX {
        let more = broken.len() - BROKEN_SHOWN_MAX;
        broken.truncate(BROKEN_SHOWN_MAX);
        broken.push(format!("and {more} more"));
    }
    broken
}

fn weather(plan: &Plan, cluster: &mut Cluster<'_>, history: &History) -> Result<()> {
    let shared = Shared::new(plan, cluster.client_addresses(), cluster.instance_addresses(), history.clone());
    let (clients, partitions) = (shared.clone(), plan.partitions);
    cluster.sim.client(CLIENTS, async move { Ok(workload::conduct(clients, partitions).await?) });

    until(cluster, &shared, Phase::Storm, FOUND_MAX, false)?;
    cluster.begin();
    for_a_while(cluster, plan.storm, true)?;
    cluster.heal();
    shared.phase.send_replace(Phase::Drain);
    cluster.sim.client("drain", {
        let shared = shared.clone();
        async move {
            workload::drained(shared).await;
            Ok(())
        }
    });
    until(cluster, &shared, Phase::Done, DRAIN_MAX, true)?;
    // What is committed reaches the replicas that lag, and their segments.
    for_a_while(cluster, if plan.heals { HEAL } else { REST }, true)?;
    crate::ondisk::read(plan, cluster, history)
}

fn until(cluster: &mut Cluster<'_>, shared: &Shared, phase: Phase, patience: Duration, storm: bool) -> Result<()> {
    let deadline = cluster.sim.elapsed() + patience;
    while *shared.phase.borrow() < phase {
        cluster.tick(storm)?;
        if cluster.sim.elapsed() > deadline {
            bail!("stuck: still in phase {:?} after {patience:?} of simulated time", *shared.phase.borrow());
        }
    }
    Ok(())
}

fn for_a_while(cluster: &mut Cluster<'_>, time: Duration, storm: bool) -> Result<()> {
    let end = cluster.sim.elapsed() + time;
    while cluster.sim.elapsed() < end {
        cluster.tick(storm)?;
    }
    Ok(())
}
