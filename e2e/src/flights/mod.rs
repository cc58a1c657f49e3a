//! The main job on real input: 336,776 departures through three nodes, two of which are killed on the way.

mod consume;
mod data;
mod log;
mod publish;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_e2e::cluster::{self, Cluster};
use weft_sdk::Client;

use crate::frame;
use crate::report::Report;
use consume::Ledger;
use data::{Break, ROWS, Row};
use publish::Progress;

const TOPIC: &str = "flights";
const GROUP: &str = "board";
const PARTITIONS: u32 = 8;
/// How long the killed node stays away.
const AWAY: Duration = Duration::from_secs(5);
/// How long any one step may take.
const STEP_MAX: Duration = Duration::from_secs(120);

/// What the command line says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Spoils what is published; the check must then fail.
    #[arg(long = "break", value_enum)]
    how: Option<Break>,
    /// The first rows only, to try things out.
    #[arg(long, default_value_t = ROWS)]
    rows: usize,
    /// Kills no node.
    #[arg(long)]
    calm: bool,
    /// Leaves the nodes' folders and logs in place.
    #[arg(long)]
    keep: bool,
}

/// Runs the check.
pub(crate) async fn run(args: Args) -> Report {
    let mut report = frame::report("flights", args.how);
    let check = async |cluster: &mut Cluster, report: &mut Report| check(&args, cluster, report).await;
    match Cluster::start(3).await {
        Ok(cluster) => frame::on(cluster, args.keep, &mut report, check).await,
        Err(error) => report.fail(format!("{error:#}")),
    }
    report
}

async fn check(args: &Args, cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    let mut rows = data::rows()?;
    report.check(rows.len() == ROWS, || format!("the file has {} rows", rows.len()));
    rows.truncate(args.rows);
    let servers = cluster.addresses();
    let client = connect(&servers).await?;
    client.topics().create(TOPIC, PARTITIONS).await.context("create the topic")?;
    let victim_owns = give_a_busy_shard(&client, "n1").await?;

    let ledger = Ledger::new(rows.len());
    let consumers = start_group(&servers, &ledger).await?;
    let progress = Arc::new(Progress::default());
    let (gate, opened) = watch::channel(if args.calm { usize::MAX } else { rows.len() * 2 / 3 });
    let published = data::spoil(&rows, args.how);
    let publisher = tokio::spawn(publish::publish(client, TOPIC, published, PARTITIONS, opened, progress.clone()));

    if !args.calm {
        eprintln!("n1 owns {victim_owns} of the topic's {PARTITIONS} partitions");
        let kills = kill_two(cluster, rows.len(), &gate, &progress).await?;
        tokio::time::timeout(STEP_MAX, publisher).await.context("the publisher takes too long")???;
        for (name, kill) in ["gap_after_kill_1_ms", "gap_after_kill_2_ms"].into_iter().zip(kills) {
            report.figure(name, progress.longest_gap(kill).as_millis() as u64);
        }
    } else {
        tokio::time::timeout(STEP_MAX, publisher).await.context("the publisher takes too long")???;
    }
    figures(&progress, report)?;
    wait_handled(&servers, &ledger).await?;
    // What is delivered wrongly may come late.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for consumer in &consumers {
        report.check(!consumer.is_finished(), || "a consumer has ended".to_owned());
        consumer.abort();
    }
    report.figure("deliveries", ledger.deliveries());
    report.figure("acked", ledger.confirmed());
    ledger.violations().into_iter().for_each(|violation| report.fail(violation));
    check_log(&rows, &servers, report)
}

fn figures(progress: &Progress, report: &mut Report) -> Result<()> {
    let (p50, p99) = progress.percentiles()?;
    report.figure("committed", progress.committed.load(Ordering::Relaxed));
    report.figure("events_per_s", progress.events_per_second().round());
    report.figure("publish_p50_ms", p50);
    report.figure("publish_p99_ms", p99);
    progress.errors().into_iter().for_each(|error| report.fail(format!("a publish failed: {error}")));
    Ok(())
}

fn check_log(rows: &[Row], servers: &[String], report: &mut Report) -> Result<()> {
    let dump = cluster::weft(&["--server", &servers[2], "topic", "dump", TOPIC, "--json"])?;
    log::check(rows, &log::parse(&dump)?, report);
    Ok(())
}

async fn connect(servers: &[String]) -> Result<Client> {
    Client::builder().servers(servers).connect().await.with_context(|| format!("connect to {}", servers[0]))
}

/// Three consumers through nodes 2 and 3.
async fn start_group(servers: &[String], ledger: &Arc<Ledger>) -> Result<Vec<JoinHandle<Result<()>>>> {
    let mut consumers = Vec::new();
    for order in [[1, 2], [2, 1], [1, 2]] {
        let through: Vec<String> = order.iter().map(|index| servers[*index].clone()).collect();
        let client = connect(&through).await?;
        let task = consume::consume(client, TOPIC.to_owned(), GROUP, ledger.clone());
        consumers.push(tokio::spawn(async move {
            let ended = task.await;
            if let Err(error) = &ended {
                eprintln!("a consumer has ended: {error:#}");
            }
            ended
        }));
    }
    Ok(consumers)
}

/// Sees to it that `node` owns a shard with a partition of the topic; returns how many partitions it owns.
async fn give_a_busy_shard(client: &Client, node: &str) -> Result<usize> {
    let deadline = Instant::now() + STEP_MAX;
    loop {
        let topic = client.topics().describe(TOPIC).await.context("describe the topic")?;
        let owned = topic.partitions.iter().filter(|partition| partition.owner == node).count();
        if owned > 0 {
            return Ok(owned);
        }
        let held = topic.partitions.iter().find(|partition| partition.replicas.iter().any(|name| name == node));
        let shard = held.map(|partition| partition.shard).context("the node holds a replica")?;
        if let Err(error) = client.cluster().transfer(shard, node).await {
            anyhow::ensure!(Instant::now() < deadline, "give {node} a shard: {error}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Kills node 1 at one third, starts it again after 5 s, and kills node 2 at two thirds, once node 1 has caught
/// up. Returns when the kills were.
async fn kill_two(
    cluster: &mut Cluster,
    rows: usize,
    gate: &watch::Sender<usize>,
    progress: &Progress,
) -> Result<[Instant; 2]> {
    wait_committed(cluster, progress, rows / 3).await?;
    cluster.kill(0)?;
    let first = Instant::now();
    eprintln!("killed n1 at {} rows", progress.committed.load(Ordering::Relaxed));
    tokio::time::sleep(AWAY).await;
    cluster.start_node(0)?;
    wait_committed(cluster, progress, rows * 2 / 3).await?;
    cluster.wait_healthy(STEP_MAX).await.context("n1 catches up")?;
    eprintln!("n1 has caught up {:.1} s after its kill", first.elapsed().as_secs_f64());
    // The publisher goes on first, so that the second kill too hits a busy cluster.
    gate.send_replace(usize::MAX);
    wait_committed(cluster, progress, rows * 2 / 3 + rows / 100).await?;
    cluster.kill(1)?;
    let second = Instant::now();
    eprintln!("killed n2 at {} rows", progress.committed.load(Ordering::Relaxed));
    Ok([first, second])
}

async fn wait_committed(cluster: &mut Cluster, progress: &Progress, count: usize) -> Result<()> {
    let deadline = Instant::now() + STEP_MAX;
    while progress.committed.load(Ordering::Relaxed) < count {
        cluster.check_alive()?;
        let so_far = progress.committed.load(Ordering::Relaxed);
        anyhow::ensure!(Instant::now() < deadline, "only {so_far} of {count} rows were committed in {STEP_MAX:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Waits until the group's cursors have passed everything. The ledger alone cannot tell: an ack whose owner died
/// before it answered may have been committed, and then the row never comes again.
async fn wait_handled(servers: &[String], ledger: &Ledger) -> Result<()> {
    let client = connect(&servers[2..]).await?;
    let deadline = Instant::now() + STEP_MAX;
    loop {
        let topic = client.topics().describe(TOPIC).await.context("describe the topic")?;
        let cursors: Vec<u64> = topic.groups.iter().flat_map(|group| &group.cursors).map(|cursor| cursor.lag).collect();
        if cursors.len() == PARTITIONS as usize && cursors.iter().all(|lag| *lag == 0) {
            return Ok(());
        }
        let acked = ledger.confirmed();
        anyhow::ensure!(Instant::now() < deadline, "the group lags by {cursors:?} events; {acked} acks are confirmed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
