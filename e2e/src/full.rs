//! P9: disks that fill at once, one and then all, on real file systems. No node ends, what was acked stays, and all goes
//! on when there is room.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use weft_e2e::cluster::Cluster;
use weft_sdk::{Client, ErrorCode, StartAt};

use crate::frame;
use crate::report::Report;

const TOPIC: &str = "full";
const PARTITIONS: u32 = 8;
/// Events of this size, so many a second.
const EVENT_BYTES: usize = 4 << 10;
const EVENTS_PER_S: u32 = 500;
/// One file system per node.
const DISK_BYTES: u64 = 160 << 20;
/// What nodes need to fit such disks.
const SETTINGS: [(&str, &str); 5] = [
    ("WEFT_STORAGE__JOURNAL_SLOT_BYTES", "4 MiB"),
    ("WEFT_STORAGE__JOURNAL_SLOTS", "3"),
    ("WEFT_STORAGE__CHECKPOINT_BYTES", "8 MiB"),
    ("WEFT_STORAGE__FREE_BYTES_MIN", "16 MiB"),
    ("WEFT_STORAGE__BALLAST_BYTES", "4 MiB"),
];
/// How long each phase lasts.
const PHASE: Duration = Duration::from_secs(5);
/// How long anything may take that must come about.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often each node's events are read: observers and owners hand credit to each other, and may lose it rarely.
const READS: usize = 5;

/// Ways to spoil the check; each must make it fail.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Break {
    /// No room is made in the end.
    Stay,
}

/// What the command line says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Spoils the check, which must then fail.
    #[arg(long = "break", value_enum)]
    how: Option<Break>,
    /// Leaves the nodes' logs in place.
    #[arg(long)]
    keep: bool,
}

/// Runs the check.
pub(crate) async fn run(args: Args) -> Report {
    let mut report = frame::report("full", args.how);
    if let Err(error) = prepared(&args, &mut report).await {
        report.fail(format!("{error:#}"));
    }
    report
}

async fn prepared(args: &Args, report: &mut Report) -> Result<()> {
    let mut disks = Vec::new();
    for _ in 0..3 {
        match Disk::mount()? {
            Some(disk) => disks.push(disk),
            None => {
                report.skip("small file systems cannot be mounted here: that takes root");
                return Ok(());
            }
        }
    }
    let folders: Vec<PathBuf> = disks.iter().map(|disk| disk.folder.path().join("data")).collect();
    let cluster = Cluster::start_at(3, &SETTINGS, &folders).await?;
    // The nodes go with it, before their disks do.
    let check = async |cluster: &mut Cluster, report: &mut Report| check(&disks, args.how, cluster, report).await;
    frame::on(cluster, args.keep, report, check).await;
    Ok(())
}

async fn check(disks: &[Disk], how: Option<Break>, cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    let client = Client::connect(cluster.addresses()).await.context("connect")?;
    client.topics().create(TOPIC, PARTITIONS).await.context("create the topic")?;
    let load = Load::start(&client).await?;
    tokio::time::sleep(PHASE).await;

    // One full disk of three: the others serve all.
    let before = load.confirmed();
    let filled = disks[0].fill()?;
    until("the node with the full disk says so", || async { Ok(full_members(&client).await? == ["n1"]) }).await?;
    until("others lead", || async { Ok(owned_by(&client, "n1").await? == 0) }).await?;
    tokio::time::sleep(PHASE).await;
    cluster.check_alive().context("with one full disk")?;
    let one = load.confirmed() - before;
    report.figure("events_with_one_full", one);
    report.check(one > u64::from(EVENTS_PER_S), || format!("{one} events while one disk of three is full"));

    // All full: publishes are refused, acks go on.
    let more = [disks[1].fill()?, disks[2].fill()?];
    until("all nodes say so", || async { Ok(full_members(&client).await?.len() == 3) }).await?;
    let refused = one_publish(&client).await;
    report.check(matches!(refused, Err(ErrorCode::DiskFull)), || format!("a publish to full disks: {refused:?}"));
    let handled = tokio::time::timeout(PATIENCE, late_group(&client)).await;
    handled.context("a group reads and acks while all disks are full")??;
    cluster.check_alive().context("with all disks full")?;

    if !matches!(how, Some(Break::Stay)) {
        for file in [filled].into_iter().chain(more) {
            fs::remove_file(file)?;
        }
    }
    until("no disk is full", || async { Ok(full_members(&client).await?.is_empty()) }).await?;
    until("publishes are taken again", || async { Ok(one_publish(&client).await.is_ok()) }).await?;
    cluster.wait_healthy(PATIENCE).await?;
    tokio::time::sleep(PHASE).await;
    let confirmed = load.stop().await?;
    report.figure("events", confirmed);
    compare(&client, confirmed, report).await
}

/// A group that begins now reads and acks a part of what is stored.
async fn late_group(client: &Client) -> Result<()> {
    let mut consumer = client.subscriber(TOPIC).start(StartAt::Earliest).group("late").await?;
    for _ in 0..EVENTS_PER_S {
        consumer.next().await?.handle.ack();
    }
    // Returns when the acks are committed.
    Ok(consumer.close().await?)
}

/// What the topic holds, as each node in turn has it, is what was confirmed.
async fn compare(client: &Client, confirmed: u64, report: &mut Report) -> Result<()> {
    for name in ["n1", "n2", "n3"] {
        let shards: Vec<u32> = client.cluster().shards().await?.into_iter().map(|shard| shard.shard).collect();
        until("a node leads all", || async {
            for shard in &shards {
                let _ = client.cluster().transfer(*shard, name).await;
            }
            Ok(owned_by(client, name).await? == shards.len())
        })
        .await
        .with_context(|| name.to_owned())?;
        let mut counts = Vec::new();
        for _ in 0..READS {
            let stored = tokio::time::timeout(PATIENCE, stored(client)).await;
            counts.push(stored.with_context(|| format!("{name} gives all that it holds"))??);
        }
        let stored = counts[0];
        report.check(counts.iter().all(|count| *count == stored), || format!("{name} holds {counts:?} events"));
        // Publishes of one event each, and those whose outcome was unknown, may be there beside those confirmed.
        report.check(stored >= confirmed, || format!("{name} holds {stored} events of {confirmed} confirmed"));
        report.figure(&format!("stored_{name}"), stored);
    }
    Ok(())
}

async fn stored(client: &Client) -> Result<u64> {
    let mut observer = client.subscriber(TOPIC).start(StartAt::Earliest).until_end().observe().await?;
    let mut stored = 0;
    while observer.next().await?.is_some() {
        stored += 1;
    }
    Ok(stored)
}

async fn full_members(client: &Client) -> Result<Vec<String>> {
    let members = client.cluster().members().await?;
    let mut full: Vec<String> = members.into_iter().filter(|it| it.disk_full).map(|it| it.name).collect();
    full.sort();
    Ok(full)
}

async fn owned_by(client: &Client, name: &str) -> Result<usize> {
    Ok(client.cluster().shards().await?.iter().filter(|shard| shard.owner == name).count())
}

async fn one_publish(client: &Client) -> Result<(), ErrorCode> {
    let producer =
        client.producer(TOPIC).patience(Duration::from_secs(2)).open().await.map_err(|error| error.code())?;
    producer.push(weft_sdk::event("one", "event")).await.map_err(|error| error.code())?;
    producer.close().await.map(drop).map_err(|error| error.code())
}

/// Waits until something holds.
async fn until<F: Future<Output = Result<bool>>>(what: &str, mut holds: impl FnMut() -> F) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match holds().await {
            Ok(true) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("wait until {what}"))),
            _ if Instant::now() > deadline => bail!("after {PATIENCE:?} it does not hold that {what}"),
            _ => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// A producer and a consumer that never stop.
struct Load {
    going: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    producer: weft_sdk::Producer,
    publishing: tokio::task::JoinHandle<Result<()>>,
    consuming: tokio::task::JoinHandle<Result<()>>,
}

impl Load {
    async fn start(client: &Client) -> Result<Load> {
        let (going, acked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let producer =
            client.producer(TOPIC).linger(Duration::from_millis(5)).open().await.context("open a producer")?;
        let mut consumer = client.subscriber(TOPIC).start(StartAt::Earliest).group("readers").await?;
        let consuming = tokio::spawn({
            let acked = acked.clone();
            async move {
                loop {
                    let delivery = consumer.next().await.context("the consumer goes on")?;
                    delivery.handle.ack();
                    acked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let publishing = tokio::spawn({
            let (going, producer) = (going.clone(), producer.clone());
            async move {
                let (mut number, mut due) = (0_u64, tokio::time::Instant::now());
                while going.load(Ordering::Relaxed) {
                    let event = weft_sdk::event((number % 100).to_string(), vec![b'x'; EVENT_BYTES]);
                    producer.push(event).await.context("publish")?;
                    number += 1;
                    due = (due + Duration::from_secs(1) / EVENTS_PER_S).max(tokio::time::Instant::now());
                    tokio::time::sleep_until(due).await;
                }
                Ok(())
            }
        });
        Ok(Load { going, acked, producer, publishing, consuming })
    }

    fn confirmed(&self) -> u64 {
        self.producer.published().events
    }

    /// Ends both; returns how many events have a receipt.
    async fn stop(self) -> Result<u64> {
        self.going.store(false, Ordering::Relaxed);
        self.publishing.await??;
        let published = tokio::time::timeout(PATIENCE, self.producer.close()).await.context("close the producer")?;
        let confirmed = published.context("publish")?.events;
        let deadline = Instant::now() + PATIENCE;
        while self.acked.load(Ordering::Relaxed) < confirmed {
            ensure!(
                Instant::now() < deadline,
                "{} of {confirmed} events were handled",
                self.acked.load(Ordering::Relaxed)
            );
            ensure!(!self.consuming.is_finished(), "the consumer has ended");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.consuming.abort();
        Ok(confirmed)
    }
}

/// A small file system in memory.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// `None`: this process may not mount.
    fn mount() -> Result<Option<Disk>> {
        let folder = TempDir::with_prefix("weft-e2e-disk-").context("make a folder for a disk")?;
        let size = format!("size={DISK_BYTES}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        Ok(mounted.is_ok_and(|output| output.status.success()).then_some(Disk { folder }))
    }

    /// Takes all the room there is; returns the file that holds it.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.folder.path().join("filler");
        let mut file = File::create(&path)?;
        // The node writes too: what it gives back is taken as well, for a while.
        for piece in [1 << 20, 4 << 10, 1] {
            while put(&mut file, &vec![0; piece])? {}
        }
        Ok(path)
    }
}

/// False when the disk is full.
fn put(file: &mut File, piece: &[u8]) -> Result<bool> {
    match file.write_all(piece) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::WriteZero) => Ok(false),
        Err(error) => Err(error).context("fill a disk"),
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.folder.path());
    }
}

fn unmount(path: &Path) {
    let unmounted = Command::new("umount").arg("--lazy").arg(path).status();
    if !unmounted.is_ok_and(|status| status.success()) {
        eprintln!("{} stays mounted", path.display());
    }
}
