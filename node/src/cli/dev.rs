//! `weft dev`: a whole cluster in this process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_sdk::{Client, Registration};

use super::args::{Dev, loopback};
use super::ca;
use super::demo;
use super::failure::Failure;
use super::signals::Stops;
use crate::config::{Config, LogConfig, LogFormat, NodeConfig, Shares};
use crate::drivers::pki::Authority;
use crate::host::descriptors::raise_limit;
use crate::host::disk::OsDisk;
use crate::host::production::Production;
use crate::host::{Disk, Host};
use crate::telemetry;

/// How long the nodes may take to become healthy.
const HEALTHY_PATIENCE: Duration = Duration::from_secs(60);
/// How long the demo service may take to say that it goes.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);
/// On loopback a datagram may be as large as ten of them fit one system call.
const LOOPBACK_MTU: u16 = 6_000;
/// Folders of nodes that are looked for.
const NODES_KEPT_MAX: u16 = 99;
/// How often it is tried to remove the temporary folder.
const REMOVALS_MAX: usize = 10;
/// Ports between two nodes.
const PORT_STEP: u16 = 10;

pub(crate) async fn run(dev: Dev) -> Result<(), Failure> {
    let mut stops = Stops::of_dev()?;
    let log = LogConfig { filter: dev.log.clone(), format: LogFormat::Text };
    telemetry::start_log(&log).map_err(Failure::invalid)?;
    let started = Instant::now();
    let folder = Folder::open(dev.dir.clone())?;
    let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(OsDisk)));
    let configs = prepare(&dev, &folder.path, &*host)?;

    let stop = CancellationToken::new();
    let mut nodes = JoinSet::new();
    for config in &configs {
        let (config, stop) = (config.clone(), stop.clone());
        let host = Arc::new(Production::new(Arc::new(OsDisk)));
        nodes.spawn(async move { (config.node.name.clone(), crate::run(config, host, stop).await) });
    }

    let up = tokio::select! {
        biased;
        () = stops.next() => Ok(Vec::new()),
        failure = first_end(&mut nodes) => Err(failure),
        ready = until_ready(&configs) => ready,
    };
    let outcome = match up {
        Ok(demo) if demo.is_empty() => Ok(()),
        Ok(demo) => {
            welcome(&configs, &folder, started.elapsed());
            let outcome =
                tokio::select! { biased; () = stops.next() => Ok(()), failure = first_end(&mut nodes) => Err(failure) };
            eprintln!("\nstopping");
            let leaving = futures::future::join_all(demo.into_iter().map(Registration::close));
            // A kept folder would otherwise remember instances that are gone.
            let _ = tokio::time::timeout(LEAVE_PATIENCE, leaving).await;
            outcome
        }
        Err(failure) => Err(failure),
    };
    stop.cancel();
    let ending = async { while nodes.join_next().await.is_some() {} };
    tokio::select! { () = ending => {}, () = stops.next() => {} }
    outcome
}

/// The folder of `--dir`, or a temporary one that goes with the process.
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn open(dir: Option<PathBuf>) -> Result<Folder, Failure> {
        let temporary = dir.is_none();
        let path = dir.unwrap_or_else(|| std::env::temp_dir().join(format!("weft-dev-{}", std::process::id())));
        OsDisk.create_dir_all(&path)?;
        Ok(Folder { path: std::path::absolute(&path)?, temporary })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A node that was told twice to stop may still add a file while the others go.
        let gone = || std::fs::remove_dir_all(&self.path).is_ok() || !self.path.exists();
        if self.temporary && !(0..REMOVALS_MAX).any(|_| gone()) {
            eprintln!("weft: {} is left: remove it", self.path.display());
        }
    }
}

/// Makes certificates where they are missing, and every node's configuration.
fn prepare(dev: &Dev, dir: &Path, host: &dyn Host) -> Result<Vec<Config>, Failure> {
    let disk = host.disk();
    let (ca_cert, ca_key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let authority = if disk.exists(&ca_cert) && disk.exists(&ca_key) {
        Authority::load(&*disk, &ca_cert, &ca_key)?
    } else {
        ca::init(host, dir, "dev")?
    };
    let last = u32::from(dev.port) + u32::from(PORT_STEP) * u32::from(dev.nodes);
    if last > u32::from(u16::MAX) {
        return Err(Failure::invalid(format!(
            "--port {}: there is no room for {} nodes above it",
            dev.port, dev.nodes
        )));
    }
    // A part of a cluster waits for the rest.
    let kept = (1..=NODES_KEPT_MAX).rev().find(|number| disk.exists(&dir.join(format!("n{number}")))).unwrap_or(0);
    if kept > dev.nodes {
        let dir = dir.display();
        let message =
            format!("{dir} holds a cluster of {kept} nodes: start it with --nodes {kept}, or remove the folder");
        return Err(Failure::invalid(message));
    }
    let ports: Vec<u16> = (0..dev.nodes).map(|index| dev.port + PORT_STEP * index).collect();
    let seeds: Vec<String> = ports.iter().map(|port| loopback(port + 1).to_string()).collect();
    // The nodes are one process.
    let descriptors = raise_limit() / u64::from(dev.nodes.max(1));
    let mut configs = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let mut config = Config::default();
        let name = format!("n{}", index + 1);
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        if !disk.exists(&cert) || !disk.exists(&key) {
            authority.issue(host, &name, &[], &[loopback(0).ip()])?.store(&*disk, &cert, &key)?;
        }
        config.node.dir = dir.join(&name);
        config.node.zone = format!("zone-{}", index + 1);
        config.node.name = name;
        config.node.listen = loopback(*port);
        config.node.peer_listen = loopback(port + 1);
        config.node.admin_listen = loopback(port + 3);
        config.node.seeds =
            seeds.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, seed)| seed.clone()).collect();
        config.tls.ca = ca_cert.clone();
        config.tls.cert = cert;
        config.tls.key = key;
        config.link.mtu = LOOPBACK_MTU;
        config.raft.bootstrap_expect = u32::from(dev.nodes);
        config.raft.replication = if dev.nodes < 3 { 1 } else { 3 };
        // Small files: they are written out before the node is up.
        config.storage.journal_slot_bytes = ByteSize::mib(16);
        config.storage.checkpoint_bytes = ByteSize::mib(64);
        config.storage.ballast_bytes = ByteSize::mib(4);
        config.storage.free_bytes_min = ByteSize::mib(128);
        config.validate()?;
        Shares::of(&config, descriptors)?.bound(&mut config);
        configs.push(config);
    }
    configs.iter().try_for_each(|config| check_ports(&config.node, dev.port))?;
    Ok(configs)
}

/// Whether a node's ports are free: a second `weft dev` is told so in one line. Who takes one right after this look is
/// told by the node that meets it.
fn check_ports(node: &NodeConfig, base: u16) -> Result<(), Failure> {
    for address in [node.listen, node.peer_listen, node.admin_listen] {
        let taken = std::net::TcpListener::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
        if taken {
            let message = format!("{address} is in use, perhaps by another `weft dev`");
            return Err(Failure::failed(format!("{message}: choose other ports with --port, which is {base} now")));
        }
    }
    Ok(())
}

/// The first node that ends; while all is well none does.
async fn first_end(nodes: &mut JoinSet<(String, anyhow::Result<()>)>) -> Failure {
    match nodes.join_next().await {
        Some(Ok((name, Ok(())))) => Failure::failed(format!("node {name} has ended")),
        Some(Ok((name, Err(error)))) => Failure::failed(format!("node {name}: {error:#}")),
        Some(Err(error)) => Failure::failed(format!("a node has ended: {error}")),
        None => Failure::failed("all nodes have ended"),
    }
}

/// Waits until the cluster is whole, then starts the demo service with two instances, at the first node and the last.
async fn until_ready(configs: &[Config]) -> Result<Vec<Registration>, Failure> {
    until_healthy(configs).await?;
    let mut instances = Vec::new();
    for (number, home) in [configs.first(), configs.last()].into_iter().flatten().enumerate() {
        let address = demo::serve(&format!("greeter-{}", number + 1)).await?;
        let client = Client::connect([home.node.listen.to_string()]).await?;
        instances.push(client.services().instance(demo::SERVICE, &address.to_string()).register().await?);
    }
    Ok(instances)
}

/// Waits until every node says that the cluster is whole.
async fn until_healthy(configs: &[Config]) -> Result<(), Failure> {
    let deadline = Instant::now() + HEALTHY_PATIENCE;
    for config in configs {
        let connecting = Client::builder().servers([config.node.listen.to_string()]).patience(HEALTHY_PATIENCE);
        let cluster = connecting.connect().await?.cluster();
        loop {
            let status = cluster.status().await;
            if status.as_ref().is_ok_and(|status| status.healthy && status.members_alive as usize == configs.len()) {
                break;
            }
            if Instant::now() > deadline {
                let why = status.map_or_else(
                    |error| error.to_string(),
                    |status| format!("{} of {} shards are owned", status.shards_owned, status.shards_total),
                );
                return Err(Failure::failed(format!("the cluster is not healthy after {HEALTHY_PATIENCE:?}: {why}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

fn welcome(configs: &[Config], folder: &Folder, took: Duration) {
    let program = std::env::current_exe().map_or_else(|_| "weft".to_owned(), |path| path.display().to_string());
    let server = configs.first().map(|config| config.node.listen.to_string()).unwrap_or_default();
    let program = if server.ends_with(":7400") { program } else { format!("{program} --server {server}") };
    let (count, kept) = (configs.len(), if folder.temporary { "gone when it stops" } else { "kept" });
    let plural = if count == 1 { "node is" } else { "nodes are" };
    println!("{count} {plural} up after {:.1} s. Data: {} ({kept})\n", took.as_secs_f64(), folder.path.display());
    for config in configs {
        let node = &config.node;
        println!("  {}  clients {}  metrics http://{}/metrics", node.name, node.listen, node.admin_listen);
    }
    println!("\nTry, in another terminal:\n");
    println!("  {program} topic create orders --partitions 8");
    println!("  {program} publish orders --key customer-7 --data 'one espresso'");
    println!("  {program} subscribe orders --from earliest");
    println!("  {program} call {}/Greet --json '{{\"name\": \"you\"}}'\n", demo::SERVICE);
    println!("Ctrl-C stops it.");
}
