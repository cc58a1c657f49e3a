//! A simulated cluster: nodes that live, die and come back, and the faults that a plan names.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use weft_node::config::Config;
use weft_node::drivers::pki::Authority;

use crate::history::{History, What};
use crate::host::{Control, SimHost, step, until_abort};
use crate::network::Network;
use crate::plan::{Fault, Plan};
use crate::workload::calls;

/// The host on which all clients run.
pub const CLIENTS: &str = "clients";
/// The hosts on which the instances of a service run.
pub const INSTANCES: [&str; 2] = ["i1", "i2"];
/// Where a node keeps its data.
pub const DATA: &str = "/data";
/// The usual latency of a message.
const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(4));
/// Where nodes tell their metrics, in plans that look at them.
pub(crate) const ADMIN_PORT: u16 = 7403;
/// A process that ended by itself is started again after this.
const RESTART: Duration = Duration::from_millis(500);
/// A node that ends by itself more often than this is left alone: it is broken for good.
const RESTARTS_MAX: u32 = 20;

/// The nodes under simulation.
pub struct Cluster<'a> {
    /// turmoil's simulation; the harness adds its clients.
    pub sim: turmoil::Sim<'a>,
    /// One per node.
    pub controls: Vec<Arc<Control>>,
    history: History,
    ended: Ended,
    network: Network,
    addresses: Vec<IpAddr>,
    clients: IpAddr,
    instances: [IpAddr; 2],
    down: Vec<bool>,
    disks_lie: bool,
    restarts: Vec<u32>,
    due: Vec<(Duration, Due)>,
    dice: StdRng,
}

/// Nodes whose `run` has returned, with what it said.
type Ended = Arc<Mutex<Vec<(usize, String)>>>;

/// The files of a data folder, by name.
type Files = Vec<(PathBuf, Vec<u8>)>;

/// What the harness has put off.
enum Due {
    Start(usize),
    Unblock(Vec<IpAddr>, Vec<IpAddr>),
    Release(usize),
    Calm,
    Latency(Option<usize>),
    Unhang(usize),
    Unslow(usize),
    Bounce(usize),
    Unfail(usize),
    Unfill(usize),
    /// A copy of a disk takes its place.
    Restore {
        node: usize,
        copy: Files,
        away: Duration,
        forged: bool,
    },
    Fault(Fault),
}

impl<'a> Cluster<'a> {
    /// Makes the nodes, their certificates and disks; they start with the first tick.
    pub fn new(plan: &Plan, history: History) -> Result<Cluster<'a>> {
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .epoch(std::time::UNIX_EPOCH + crate::entropy::EPOCH)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(LATENCY.0)
            .max_message_latency(LATENCY.1)
            .udp_capacity(16_384)
            .tcp_capacity(16_384)
            .build();
        let names: Vec<String> = (1..=plan.nodes).map(|number| format!("n{number}")).collect();
        let addresses: Vec<IpAddr> = names.iter().map(|name| sim.lookup(name.as_str())).collect();
        let clients = sim.lookup(CLIENTS);
        let control = |(number, name): (usize, &String)| Control::new(name, plan.seed.wrapping_mul(64) + number as u64);
        let controls: Vec<Arc<Control>> = names.iter().enumerate().map(control).collect();
        make_certificates(&controls, &addresses)?;
        let ended = Ended::default();
        for (node, control) in controls.iter().enumerate() {
            let config = config(plan, node, &addresses);
            let (control, ended) = (control.clone(), ended.clone());
            sim.host(names[node].as_str(), move || life(node, config.clone(), control.clone(), ended.clone()));
        }
        for late in &addresses[plan.founders()..] {
            sim.crash(*late);
        }
        let instances = INSTANCES.map(|name| sim.lookup(name));
        for name in INSTANCES {
            let history = history.clone();
            sim.host(name, move || {
                let serving = calls::instance(history.clone(), name.to_owned());
                async move { Ok(serving.await?) }
            });
        }
        let due = plan.faults.iter().map(|(at, fault)| (*at, Due::Fault(fault.clone()))).collect();
        Ok(Cluster {
            sim,
            controls,
            history,
            ended,
            network: Network::default(),
            addresses,
            clients,
            instances,
            down: (0..plan.nodes).map(|node| node >= plan.founders()).collect(),
            disks_lie: plan.disks_lie,
            restarts: vec![0; plan.nodes],
            due,
            dice: StdRng::seed_from_u64(plan.seed ^ 0xD1CE),
        })
    }

    /// Where clients reach the nodes.
    pub fn client_addresses(&self) -> Vec<String> {
        self.addresses.iter().map(|ip| format!("{ip}:7400")).collect()
    }

    /// Where the instances run.
    pub fn instance_addresses(&self) -> Vec<IpAddr> {
        self.instances.to_vec()
    }

    /// The storm begins now: the plan's times count from here.
    pub fn begin(&mut self) {
        let now = self.sim.elapsed();
        self.due.iter_mut().for_each(|(at, _)| *at += now);
        for control in &self.controls {
            control.disk.set_faults(|faults| faults.lies = self.disks_lie);
        }
    }

    /// One tick: removes what has aborted, does what is due (`storm`: faults too), and runs everyone.
    ///
    /// # Errors
    /// A panic in simulated code.
    pub fn tick(&mut self, storm: bool) -> Result<bool> {
        let finished = step(&mut self.sim, &self.controls).map_err(anyhow::Error::msg)?;
        for node in 0..self.controls.len() {
            if let Some(reason) = self.controls[node].take_abort() {
                self.ended_by_itself(node, &format!("aborted: {reason}"));
            }
        }
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        for (node, reason) in ended {
            if !self.down[node] {
                self.ended_by_itself(node, &reason);
            }
        }
        if storm {
            let now = self.sim.elapsed();
            while let Some(next) = self.due.iter().position(|(at, _)| *at <= now) {
                let (_, due) = self.due.remove(next);
                self.carry_out(due);
            }
        }
        Ok(finished)
    }

    /// Ends all faults and starts all nodes that have been there.
    pub fn heal(&mut self) {
        self.note("heal");
        for (_, due) in std::mem::take(&mut self.due) {
            if !matches!(due, Due::Fault(_)) {
                self.carry_out(due);
            }
        }
        for control in &self.controls {
            control.disk.set_faults(|faults| {
                let lies = faults.lies;
                *faults = crate::disk::Faults { lies, ..Default::default() };
            });
        }
    }

    /// Whether a node has ended by itself too often to be started again.
    pub fn is_broken(&self, node: usize) -> bool {
        self.restarts[node] > RESTARTS_MAX
    }

    fn note(&self, text: &str) {
        tracing::info!(at = ?self.sim.elapsed(), "fault: {text}");
        let at_us = self.sim.elapsed().as_micros() as u64;
        self.history.add_at(at_us, "harness", What::Fault { text: text.to_owned() });
    }

    fn later(&mut self, after: Duration, due: Due) {
        self.due.push((self.sim.elapsed() + after, due));
    }

    fn ended_by_itself(&mut self, node: usize, reason: &str) {
        self.note(&format!("{} ended: {reason}", self.controls[node].name));
        self.stop(node);
        self.restarts[node] += 1;
        if reason.contains("is an old copy") {
            // What an operator does who reads it.
            self.note(&format!("{} is given an empty folder", self.controls[node].name));
            self.controls[node].disk.clear(DATA.as_ref());
        }
        if !self.is_broken(node) {
            self.later(RESTART, Due::Start(node));
        }
    }

    /// The process is gone; what it wrote stays.
    fn stop(&mut self, node: usize) {
        self.controls[node].disk.process_gone();
        self.sim.crash(self.addresses[node]);
        // A task that was dropped may have seen the void disk and aborted once more.
        self.controls[node].take_abort();
        self.down[node] = true;
    }

    fn everyone(&self) -> Vec<IpAddr> {
        self.addresses.iter().copied().chain([self.clients]).chain(self.instances).collect()
    }

    fn others(&self, nodes: &[usize], clients: bool) -> Vec<IpAddr> {
        let others = self.addresses.iter().enumerate().filter(|(node, _)| !nodes.contains(node)).map(|(_, ip)| *ip);
        others.chain(clients.then_some(self.clients)).collect()
    }

    fn carry_out(&mut self, due: Due) {
        match due {
            Due::Fault(fault) => self.fault(fault),
            Due::Start(node) if self.down[node] => {
                self.note(&format!("{} starts", self.controls[node].name));
                self.down[node] = false;
                self.sim.bounce(self.addresses[node]);
            }
            Due::Start(_) => {}
            Due::Unblock(from, to) => {
                self.note("messages pass again");
                self.network.unblock(&self.sim, &from, &to);
            }
            Due::Release(node) => {
                self.note(&format!("{} goes on", self.controls[node].name));
                self.network.release(&self.sim, self.addresses[node], &self.everyone());
            }
            Due::Calm => self.set_loss(0, 0),
            Due::Latency(node) => self.set_latency(node, LATENCY.1),
            Due::Unslow(node) => self.controls[node].disk.set_faults(|faults| faults.slow = Duration::ZERO),
            Due::Bounce(instance) => self.sim.bounce(self.instances[instance]),
            Due::Restore { node, copy, away, forged } => self.restore(node, &copy, away, forged),
            Due::Unhang(node) => self.controls[node].disk.set_faults(|faults| faults.hangs = false),
            Due::Unfail(node) => self.controls[node].disk.set_faults(|faults| faults.fails = false),
            Due::Unfill(node) => self.controls[node].disk.set_faults(|faults| {
                faults.capacity = crate::disk::Faults::default().capacity;
            }),
        }
    }

    fn fault(&mut self, fault: Fault) {
        let blocks = matches!(
            fault,
            Fault::PowerLoss { .. } | Fault::Partition { .. } | Fault::Cut { .. } | Fault::OneWay { .. }
        );
        if blocks && self.network.holds() {
            return; // turmoil cannot block and hold at once
        }
        self.note(&format!("{fault:?}"));
        match fault {
            Fault::PowerLoss { nodes, away } => self.lose_power(&nodes, away),
            Fault::Kill { node, away } => {
                if !self.down[node] {
                    self.stop(node);
                    self.later(away, Due::Start(node));
                }
            }
            // It ends by itself when it has drained, and is started again.
            Fault::Stop { node } => self.controls[node].stop(),
            Fault::Instance { instance, away } => {
                self.sim.crash(self.instances[instance]);
                self.later(away, Due::Bounce(instance));
            }
            Fault::Pause { node, lasts } => {
                if self.network.hold(&self.sim, self.addresses[node], &self.everyone()) {
                    self.later(lasts, Due::Release(node));
                }
            }
            Fault::Partition { side, clients, lasts } => {
                let one: Vec<IpAddr> = side.iter().map(|node| self.addresses[*node]).collect();
                let other = self.others(&side, clients);
                self.part(one, other, lasts);
            }
            Fault::Cut { nodes: [one, other], lasts } => {
                self.part(vec![self.addresses[one]], vec![self.addresses[other]], lasts);
            }
            Fault::OneWay { from, lasts } => {
                let (from, to) = (vec![self.addresses[from]], self.others(&[from], false));
                self.network.block(&self.sim, &from, &to);
                self.later(lasts, Due::Unblock(from, to));
            }
            Fault::Loss { lost_per_mille, doubled_per_mille, lasts } => {
                self.set_loss(lost_per_mille, doubled_per_mille);
                self.later(lasts, Due::Calm);
            }
            Fault::Delay { up_to, lasts } => {
                self.set_latency(None, up_to);
                self.later(lasts, Due::Latency(None));
            }
            Fault::BitFlip { node, dice } => self.rot(node, dice, &["seg", "wal"], 1),
            Fault::RottenSegments { node, dice } => self.rot(node, dice, &["seg"], usize::MAX),
            Fault::FailingDisk { node, lasts } => {
                self.controls[node].disk.set_faults(|faults| faults.fails = true);
                self.later(lasts, Due::Unfail(node));
            }
            Fault::FullDisk { node, room, lasts } => {
                self.controls[node].disk.leave_room(room);
                self.later(lasts, Due::Unfill(node));
            }
            Fault::Join { node } => self.carry_out(Due::Start(node)),
            Fault::HungDisk { node, lasts } => {
                self.controls[node].disk.set_faults(|faults| faults.hangs = true);
                self.later(lasts, Due::Unhang(node));
            }
            Fault::SlowDisk { node, by, lasts } => {
                self.controls[node].disk.set_faults(|faults| faults.slow = by);
                self.later(lasts, Due::Unslow(node));
            }
            Fault::SlowLinks { node, up_to, lasts } => {
                self.set_latency(Some(node), up_to);
                self.later(lasts, Due::Latency(Some(node)));
            }
            Fault::OldDisk { node, later, away, forged } => {
                let copy = self.data_of(node);
                self.later(later, Due::Restore { node, copy, away, forged });
            }
            Fault::Clock { node, by_ms } => {
                self.controls[node].skew_ms.fetch_add(by_ms, Ordering::Relaxed);
            }
        }
    }

    /// The nodes fall silent at one moment: nobody closes their connections, as a kernel would after a kill.
    fn lose_power(&mut self, nodes: &[usize], away: Duration) {
        let nodes: Vec<usize> = nodes.iter().copied().filter(|node| !self.down[*node]).collect();
        let dark: Vec<IpAddr> = nodes.iter().map(|node| self.addresses[*node]).collect();
        let everyone = self.everyone();
        self.network.block(&self.sim, &dark, &everyone);
        for node in nodes {
            self.stop(node);
            self.controls[node].disk.lose_power(&mut self.dice);
            self.later(away, Due::Start(node));
        }
        self.later(away, Due::Unblock(dark, everyone));
    }

    /// Power off, one bit flipped in each of some files that hold events or the log, power on.
    fn rot(&mut self, node: usize, seed: u64, extensions: &[&str], files_max: usize) {
        if self.down[node] {
            return;
        }
        self.stop(node);
        let mut dice = StdRng::seed_from_u64(seed);
        let disk = &self.controls[node].disk;
        let holds_data = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            path.starts_with(DATA) && extension.is_some_and(|extension| extensions.contains(&extension))
        };
        let mut files: Vec<(PathBuf, u64)> =
            disk.files().into_iter().filter(|(path, bytes)| holds_data(path) && *bytes > 0).collect();
        for _ in 0..files_max.min(files.len()) {
            let (path, bytes) = files.remove(dice.random_range(0..files.len()));
            let at = dice.random_range(0..bytes);
            if disk.flip(&path, at, dice.random_range(0..8)).is_ok() {
                self.note(&format!("{}: a bit of {} at {at} has flipped", self.controls[node].name, path.display()));
            }
        }
        self.later(RESTART, Due::Start(node));
    }

    fn data_of(&self, node: usize) -> Files {
        let disk = &self.controls[node].disk;
        let files = disk.files().into_iter().filter(|(path, _)| path.starts_with(DATA));
        files.filter_map(|(path, _)| Some((path.clone(), disk.contents(&path).ok()?))).collect()
    }

    /// The data folder is as it was when it was copied.
    fn restore(&mut self, node: usize, copy: &Files, away: Duration, forged: bool) {
        if !self.down[node] {
            self.stop(node);
            self.later(away, Due::Start(node));
        }
        self.note(&format!("{} has an old disk", self.controls[node].name));
        let disk = &self.controls[node].disk;
        let kept: Files = self.data_of(node).into_iter().filter(|(path, _)| forged && tells_starts(path)).collect();
        disk.clear(DATA.as_ref());
        let back = copy.iter().filter(|(path, _)| !forged || !tells_starts(path)).chain(&kept);
        for (path, bytes) in back {
            disk.place(path, bytes).expect("a file can be placed");
        }
    }

    fn set_loss(&mut self, lost: u32, doubled: u32) {
        for control in &self.controls {
            control.loss_per_mille.store(lost, Ordering::Relaxed);
            control.double_per_mille.store(doubled, Ordering::Relaxed);
        }
    }

    /// Neither side hears the other.
    fn part(&mut self, one: Vec<IpAddr>, other: Vec<IpAddr>, lasts: Duration) {
        self.network.block(&self.sim, &one, &other);
        self.network.block(&self.sim, &other, &one);
        self.later(lasts, Due::Unblock(one.clone(), other.clone()));
        self.later(lasts, Due::Unblock(other, one));
    }

    /// Of all messages, or of those from and to one node.
    fn set_latency(&mut self, node: Option<usize>, up_to: Duration) {
        let everyone = self.everyone();
        let concerned = |ip: &IpAddr| node.is_none_or(|node| *ip == self.addresses[node]);
        for (number, a) in everyone.iter().enumerate() {
            for b in everyone[number + 1..].iter().filter(|b| concerned(a) || concerned(b)) {
                self.sim.set_link_max_message_latency(*a, *b, up_to);
            }
        }
    }
}

/// Whether a file says how often the node has started.
fn tells_starts(path: &std::path::Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("FORMAT"))
}

/// One life of a node: runs until it is killed, or tells the harness that it has ended.
async fn life(node: usize, config: Config, control: Arc<Control>, ended: Ended) -> turmoil::Result {
    control.close_sockets();
    let stop = control.begin();
    let host = SimHost::new(control);
    let outcome = until_abort(weft_node::run(config, host, stop)).await;
    let reason = match outcome {
        Ok(()) => "stopped".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    ended.lock().unwrap_or_else(PoisonError::into_inner).push((node, reason));
    std::future::pending().await
}

fn make_certificates(controls: &[Arc<Control>], addresses: &[IpAddr]) -> Result<()> {
    let maker = SimHost::new(Control::new("ca", 1));
    let authority = Authority::create(&*maker, "simulated").context("make a CA")?;
    let ca = authority.issued().cert_pem;
    for (control, ip) in controls.iter().zip(addresses) {
        let issued = authority.issue(&*maker, &control.name, &[], &[*ip]).context("issue a certificate")?;
        control.disk.place("/tls/ca.pem".as_ref(), ca.as_bytes())?;
        control.disk.place("/tls/node.pem".as_ref(), issued.cert_pem.as_bytes())?;
        control.disk.place("/tls/node.key".as_ref(), issued.key_pem.as_bytes())?;
    }
    Ok(())
}

/// The same configuration as in production, with small files and short times.
fn config(plan: &Plan, node: usize, addresses: &[IpAddr]) -> Config {
    let mut config = Config::default();
    config.node.name = format!("n{}", node + 1);
    config.node.zone = format!("z{}", node % 3);
    config.node.dir = DATA.into();
    config.node.advertise = format!("{}:7400", addresses[node]);
    config.node.peer_advertise = format!("{}:7401", addresses[node]);
    config.node.seeds = addresses.iter().filter(|ip| **ip != addresses[node]).map(|ip| format!("{ip}:7401")).collect();
    if plan.gauges {
        config.node.admin_listen = (Ipv4Addr::UNSPECIFIED, ADMIN_PORT).into();
    }
    config.tls.ca = "/tls/ca.pem".into();
    config.tls.cert = "/tls/node.pem".into();
    config.tls.key = "/tls/node.key".into();
    config.raft.bootstrap_expect = plan.founders() as u32;
    config.raft.shards = plan.shards;
    config.raft.replication = 3;
    config.storage.journal_slot_bytes = ByteSize::kib(256);
    config.storage.journal_slots = 3;
    config.storage.checkpoint_bytes = ByteSize::kib(512);
    config.storage.checkpoint_interval = Duration::from_secs(3);
    config.storage.segment_bytes = ByteSize::kib(64);
    config.storage.free_bytes_min = ByteSize::mib(1);
    config.storage.ballast_bytes = ByteSize::b(0);
    if plan.heals {
        config.storage.scrub_interval = Duration::from_secs(2);
    }
    config
}
