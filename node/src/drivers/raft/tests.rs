//! Whole nodes as far as Raft goes: real links on loopback, the real storage on a disk in memory. Each node has
//! a runtime of its own, so it can be killed: nothing is said to anybody, the kernel closes its sockets.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "runs outside a simulated node")]

mod heal;
mod voters;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use prost::Message;
use tokio::runtime::Runtime;
use weft_cluster::caller::Caller;
use weft_cluster::ids::{Generation, RaftGroup, ShardId};
use weft_cluster::registry::State;
use weft_cluster::view::{ClusterView, MemberState};
use weft_proto::internal::v1 as wire;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::{ControlRequest, CreateTopic, RegistryCommand};
use weft_proto::v1::ErrorCode;

use super::*;
use crate::drivers::link::{Inbound, Lane, LinkConfig, LinkStream, Me, Parts as Frame};
use crate::drivers::pki::{self, Authority};
use crate::drivers::registry::Registry;
use crate::drivers::shard::{ShardConfig, Shards};
use crate::drivers::storage::StorageConfig;
use crate::host::production::Production;
use crate::host::testing::{Crash, MemoryDisk};

const PATIENCE: Duration = Duration::from_secs(20);

type Members = Arc<BTreeMap<NodeId, Member>>;

/// Emptied when the node is killed, so that nothing keeps its sockets.
#[derive(Clone)]
struct Door(Arc<std::sync::Mutex<Option<Rafts>>>);

impl Door {
    fn rafts(&self) -> Rafts {
        self.0.lock().unwrap().clone().expect("the node runs")
    }
}

impl Inbound for Door {
    fn request(&self, from: NodeId, lane: Lane, body: Bytes) -> Promise<'static, Result<Frame, String>> {
        let rafts = self.rafts();
        Box::pin(async move {
            match lane {
                Lane::Raft => rafts.request(from, body).await,
                Lane::Control => {
                    let request = ControlRequest::decode(body).map_err(|error| error.to_string())?;
                    Ok(vec![rafts.control(from, request).await.encode_to_vec().into()])
                }
                lane => Err(format!("no {lane:?} here")),
            }
        })
    }
    fn stream(&self, from: NodeId, lane: Lane, mut stream: LinkStream) -> Promise<'static, ()> {
        let rafts = self.rafts();
        Box::pin(async move {
            let Ok(Some(first)) = stream.receive.next().await else { return };
            match lane {
                Lane::Control => rafts.watch(from, first, stream).await,
                _ => rafts.fetch(from, first, stream).await,
            }
        })
    }
    fn gossip(&self, _from: SocketAddr, _packet: Bytes) {}
}

/// What outlives a node's process.
struct Machine {
    disk: MemoryDisk,
    name: String,
    address: SocketAddr,
}

struct Node {
    runtime: Option<Runtime>,
    id: NodeId,
    door: Door,
    rafts: Rafts,
    registry: Registry,
    storage: Storage,
}

struct Cluster {
    ca: Arc<Authority>,
    members: watch::Sender<Members>,
    machines: Vec<Machine>,
    nodes: Vec<Option<Node>>,
    expect: u32,
}

/// An address that is free, of a port that the kernel gives to nobody by itself: so it stays free until it is used.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let turn = std::process::id() % 100 * 200 + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from(([127, 0, 0, 1], 10_000 + (turn % 20_000) as u16));
        if std::net::TcpListener::bind(address).is_ok() && std::net::UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn storage_config() -> StorageConfig {
    StorageConfig {
        journal_slot_bytes: ByteSize::kib(256),
        checkpoint_interval: Duration::from_secs(1),
        free_bytes_min: ByteSize::b(0),
        ballast_bytes: ByteSize::b(0),
        ..StorageConfig::default()
    }
}

impl Cluster {
    fn new(expect: u32) -> Cluster {
        let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(MemoryDisk::default())));
        let ca = Arc::new(Authority::create(&*host, "test").unwrap());
        Cluster { ca, members: watch::Sender::default(), machines: Vec::new(), nodes: Vec::new(), expect }
    }

    fn add(&mut self) -> usize {
        let address = free_address();
        let name = format!("n{}", self.machines.len() + 1);
        self.machines.push(Machine { disk: MemoryDisk::default(), name, address });
        self.nodes.push(None);
        self.machines.len() - 1
    }

    fn start(&mut self, which: usize) {
        let machine = &self.machines[which];
        let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(machine.disk.clone())));
        let seeds = self.machines.iter().map(|machine| machine.address).filter(|at| *at != machine.address);
        let seeds: Vec<String> = seeds.map(|at| at.to_string()).collect();
        let issued = self.ca.issue(&*host, &machine.name, &[], &[]).unwrap();
        let credentials = pki::credentials(&self.ca.issued().cert_pem, &issued).unwrap();
        let (name, address) = (machine.name.clone(), machine.address);
        let (members, expect) = (self.members.clone(), self.expect);
        let runtime = runtime();
        let node = runtime.block_on(async move {
            let tasks = Tasks::new(host.clone());
            let opened = Storage::open(host.clone(), PathBuf::from("/data"), storage_config(), &tasks).await;
            let (storage, recovered) = opened.unwrap();
            let identity = storage.identity();
            let me = Me {
                id: identity.node,
                name: name.clone(),
                zone: String::new(),
                generation: identity.generation,
                start: identity.start,
                secret: identity.secret,
                cluster: identity.cluster.unwrap_or(0),
                client_address: "127.0.0.1:1".into(),
                peer_address: address,
                version: "test".into(),
                level_max: 1,
            };
            let links = links(&host, address, &me, credentials, &tasks).await;
            members
                .send_modify(|all| drop(Arc::make_mut(all).insert(identity.node, member(&name, &identity, address))));
            let record = NodeRecord {
                id: identity.node.0,
                name,
                generation: identity.generation.0,
                start: identity.start,
                client_address: "127.0.0.1:1".into(),
                peer_address: address.to_string(),
                weight: 100,
                version: "test".into(),
                level_max: 1,
                ..NodeRecord::default()
            };
            let parts = Parts {
                host: host.clone(),
                tasks: tasks.clone(),
                storage: storage.clone(),
                recovered,
                links: links.clone(),
                members: members.subscribe(),
                me: record,
                seeds,
                config: RaftConfig { bootstrap_expect: expect, shards: 4, entries_kept: 4, ..RaftConfig::default() },
            };
            let (rafts, registry) = Rafts::open(parts).await;
            let view = registry.view();
            let shards = Shards::start(host, storage.clone(), links.clone(), view, ShardConfig::default(), tasks);
            rafts.serve(shards).await.unwrap();
            let door = Door(Arc::new(std::sync::Mutex::new(Some(rafts.clone()))));
            links.serve(Arc::new(door.clone()));
            Node { runtime: None, id: identity.node, door, rafts, registry, storage }
        });
        self.nodes[which] = Some(Node { runtime: Some(runtime), ..node });
    }

    fn node(&self, which: usize) -> &Node {
        self.nodes[which].as_ref().expect("the node runs")
    }

    /// Which node has this id.
    fn which(&self, id: NodeId) -> usize {
        (0..self.nodes.len()).find(|which| self.nodes[*which].as_ref().is_some_and(|node| node.id == id)).unwrap()
    }

    /// kill -9 and a power cut in one.
    fn kill(&mut self, which: usize) {
        let mut node = self.nodes[which].take().expect("the node runs");
        let runtime = node.runtime.take().unwrap();
        node.door.0.lock().unwrap().take();
        drop(node);
        runtime.shutdown_timeout(Duration::from_secs(5));
        self.machines[which].disk.crash(Crash::LoseAll);
        // Handles that know each other outlive the runtime, and their sockets with them: it comes back elsewhere.
        self.machines[which].address = free_address();
    }
}

/// The port of a node killed a moment ago may not be free yet.
async fn links(
    host: &Arc<dyn Host>,
    address: SocketAddr,
    me: &Me,
    credentials: pki::Credentials,
    tasks: &Tasks,
) -> Links {
    for _ in 0..200 {
        let given = pki::Credentials {
            name: credentials.name.clone(),
            chain: credentials.chain.clone(),
            key: credentials.key.clone_key(),
            roots: credentials.roots.clone(),
        };
        match Links::start(host.clone(), LinkConfig::default(), address, me.clone(), given, tasks).await {
            Ok(links) => return links,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("{address} never became free");
}

fn member(name: &str, identity: &crate::drivers::storage::Identity, address: SocketAddr) -> Member {
    Member {
        id: identity.node,
        name: name.into(),
        zone: String::new(),
        generation: Generation(identity.generation.0),
        client_address: "127.0.0.1:1".into(),
        peer_address: address.to_string(),
        version: "test".into(),
        disk_full: false,
        replicas_fenced: 0,
        state: MemberState::Alive,
    }
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

impl Node {
    /// Waits until the view says so.
    fn until(&self, what: &str, mut so: impl FnMut(&ClusterView) -> bool) -> Arc<ClusterView> {
        block(async {
            let mut view = self.registry.view();
            let found = tokio::time::timeout(PATIENCE, view.wait_for(|view| so(view))).await;
            match found {
                Ok(found) => found.unwrap().clone(),
                Err(_) => panic!("never came: {what}; the view is {:?}", self.registry.view().borrow()),
            }
        })
    }

    fn all_owned(&self) -> Arc<ClusterView> {
        self.until("an owner of each shard", |view| view.owners.len() == 4 && view.registry_leader.is_some())
    }

    fn create_topic(&self, name: &str) {
        let create = CreateTopic { name: name.into(), partitions: 2, event_bytes_max: 1000, ..CreateTopic::default() };
        let command = RegistryCommand { level: 1, command: Some(Command::CreateTopic(create)) };
        let start = Instant::now();
        loop {
            match block(self.registry.propose(&Caller::anonymous(), command.clone(), PATIENCE)) {
                Ok(_) => return,
                // The first try may have been taken by a leader that died then.
                Err(refused) if refused.code() == ErrorCode::TopicExists => return,
                Err(refused) if refused.code() == ErrorCode::OutcomeUnknown && start.elapsed() < PATIENCE => {}
                Err(refused) => panic!("{refused:?}"),
            }
        }
    }

    fn has_topic(&self, name: &str) -> Arc<ClusterView> {
        self.until("the topic", |view| view.registry.topic("", name).is_some())
    }
}

fn founded(count: u32) -> Cluster {
    let mut cluster = Cluster::new(count);
    for _ in 0..count {
        cluster.add();
    }
    (0..count as usize).for_each(|which| cluster.start(which));
    for which in 0..count as usize {
        let node = cluster.node(which);
        block(async { tokio::time::timeout(PATIENCE, node.registry.ready()).await }).expect("the node is ready");
        node.all_owned();
    }
    cluster
}

#[test]
fn one_node_founds_itself_and_comes_back_after_a_power_cut() {
    let mut cluster = founded(1);
    let before = cluster.node(0).all_owned();
    assert_eq!(before.registry.replication(), 1);
    cluster.node(0).create_topic("kept");
    let entry = weft_proto::internal::v1::RegistryEntry::default().encode_to_vec();
    let group = cluster.node(0).registry.group().unwrap();
    let start = Instant::now();
    let committed = block(group.propose(entry.into())).unwrap();
    assert_eq!(committed.fsynced, [cluster.node(0).id], "after {:?}", start.elapsed());
    drop(group);
    cluster.kill(0);
    cluster.start(0);
    let after = cluster.node(0).has_topic("kept");
    assert_eq!(after.registry.cluster_id(), before.registry.cluster_id());
    let newer = |view: &ClusterView| view.owners.values().all(|owner| owner.node == view.me);
    cluster.node(0).until("all shards owned here again", newer);
    block(cluster.node(0).registry.read(PATIENCE)).unwrap();
}

#[test]
fn three_nodes_found_a_cluster_and_replace_a_dead_leader_before_rafts_own_timeout() {
    let mut cluster = founded(3);
    let view = cluster.node(0).all_owned();
    assert_eq!(view.registry.registry_seats().count(), 3);
    assert_eq!(view.registry.shards().filter(|row| row.replicas.len() == 3).count(), 4);
    cluster.node(1).create_topic("before");
    (0..3).for_each(|which| drop(cluster.node(which).has_topic("before")));

    let leader = cluster.node(0).all_owned().registry_leader.unwrap();
    let victim = cluster.which(leader);
    let led: Vec<ShardId> = cluster
        .node(victim)
        .rafts
        .context_for_tests()
        .groups()
        .iter()
        .filter(|g| g.leadership().borrow().acting)
        .filter_map(|g| g.id().shard())
        .collect();
    cluster.kill(victim);
    let killed = Instant::now();
    let survivor = (0..3).find(|which| *which != victim).unwrap();
    cluster.node(survivor).create_topic("after");
    let registry_back = killed.elapsed();
    let elected = |view: &ClusterView| view.owners.values().all(|owner| owner.node != leader);
    cluster.node(survivor).until("new owners", elected);
    let shards_back = killed.elapsed();
    println!("registry back after {registry_back:?}, {} shards after {shards_back:?}", led.len());
    assert!(shards_back < Duration::from_secs(5), "Raft's own timeout is 6 s at least, and {shards_back:?} passed");

    cluster.start(victim);
    cluster.node(victim).has_topic("after");
    let there = |view: &ClusterView| view.registry_leader.is_some() && view.owners.len() == 4;
    cluster.node(victim).until("owners as the restarted node sees them", there);
    let read: Arc<State> = block(cluster.node(victim).registry.read(PATIENCE)).unwrap();
    assert!(read.topic("", "before").is_some());
}

#[test]
fn a_fourth_node_joins_and_follows_and_a_drained_one_leads_nothing() {
    let mut cluster = founded(3);
    let fourth = cluster.add();
    cluster.start(fourth);
    block(async { tokio::time::timeout(PATIENCE, cluster.node(fourth).registry.ready()).await }).expect("it joins");
    cluster.node(0).create_topic("followed");
    let view = cluster.node(fourth).has_topic("followed");
    assert_eq!(view.registry.registry_seats().count(), 3, "the fourth holds no seat");
    assert!(cluster.node(fourth).rafts.group(RaftGroup::REGISTRY).is_none());
    let moved = |view: &ClusterView| {
        let rows = || view.registry.shards();
        rows().all(|row| row.target.is_empty()) && rows().any(|row| row.replicas.iter().any(|r| r.node == view.me.0))
    };
    cluster.node(fourth).until("replicas on the new node", moved);

    let drained = cluster.node(0);
    drained.runtime.as_ref().unwrap().block_on(drained.rafts.drain(Duration::from_secs(10)));
    let leads = drained.rafts.context_for_tests().groups().into_iter().filter(|g| g.leadership().borrow().acting);
    assert_eq!(leads.count(), 0);
    let id = drained.id;
    cluster.node(1).until("other owners", |view| view.owners.values().all(|owner| owner.node != id));
    drained.runtime.as_ref().unwrap().block_on(async {
        drained.rafts.stop().await;
        drained.storage.close().await;
    });
}

#[test]
fn a_voter_that_was_away_while_the_log_was_purged_gets_a_snapshot() {
    let mut cluster = founded(3);
    let leader = cluster.node(0).all_owned().registry_leader.unwrap();
    let away = (0..3).find(|which| cluster.node(*which).id != leader).unwrap();
    cluster.kill(away);
    let at = cluster.which(leader);
    (0..150).for_each(|i| cluster.node(at).create_topic(&format!("t{i}")));
    let purged = |node: &Node| {
        let log = || node.storage.log(RaftGroup::REGISTRY).unwrap().state();
        let start = Instant::now();
        while log().purged.is_none_or(|purged| purged.index < 60) {
            assert!(start.elapsed() < PATIENCE, "never purged: {:?}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    purged(cluster.node(at));
    cluster.start(away);
    cluster.node(away).has_topic("t149");
    // Readers see the snapshot's state first: its log is purged when the state is durable.
    purged(cluster.node(away));
    cluster.node(at).create_topic("last");
    cluster.node(away).has_topic("last");
    let metrics = |which: usize| cluster.node(which).rafts.metrics().clone();
    assert!(metrics(away).snapshots_installed.get() > 0 && metrics(at).snapshots_sent.get() > 0);
    cluster.kill(away);
    cluster.start(away);
    cluster.node(away).has_topic("last");
}

#[test]
fn a_snapshot_that_raft_refuses_leaves_the_state_as_it_was() {
    let cluster = founded(1);
    let node = cluster.node(0);
    let group = node.registry.group().unwrap();
    let at = LogPosition { term: 999, index: 100_000 };
    let mut state = State::clone(&node.registry.state());
    state.note(at);
    let snapshot = wire::SnapshotRequest {
        // From a leader of long ago.
        vote: Some(wire::Vote { term: 0, voted_for: Some(7), committed: true }),
        meta: Some(wire::SnapshotMeta {
            last_log_id: Some(wire::LogId { term: at.term, index: at.index }),
            last_membership: Some(wire::StoredMembership::default()),
        }),
        manifest: state.to_proto().encode_to_vec().into(),
    };
    let request = wire::raft_request::Request::Snapshot(snapshot);
    let request = wire::RaftRequest { group: 0, from: 7, to: group.replica().0, request: Some(request), acked: None };
    let answer = block(node.rafts.request(NodeId(7), request.encode_to_vec().into())).unwrap().concat();
    match wire::RaftResponse::decode(answer.as_slice()).unwrap().response {
        Some(wire::raft_response::Response::Snapshot(refusal)) => assert!(refusal.vote.unwrap().term > 0),
        other => panic!("{other:?}"),
    }
    node.create_topic("after");
    assert!(node.has_topic("after").registry.applied() < Some(at));
    assert_eq!(node.rafts.metrics().snapshots_installed.get(), 0);
}

#[test]
fn a_leader_whose_heir_is_gone_leads_on() {
    let mut cluster = founded(3);
    let leader = cluster.node(0).all_owned().registry_leader.unwrap();
    let at = cluster.which(leader);
    let heir = (0..3).find(|which| *which != at).unwrap();
    let heir_id = cluster.node(heir).id;
    cluster.kill(heir);
    let group = cluster.node(at).registry.group().unwrap();
    // Nobody waits for its end.
    let handed = block(async { tokio::time::timeout(Duration::from_millis(100), group.transfer(heir_id)).await });
    assert!(handed.is_err(), "{handed:?}");
    assert!(!group.leadership().borrow().acting, "a leader that may propose nothing does not act");
    cluster.node(at).create_topic("after");
}

#[test]
fn a_node_that_has_just_restarted_takes_a_shard_nobody_writes_to() {
    let mut cluster = founded(3);
    // Such a shard is left where it is by the rounds that balance.
    let settled = |view: &ClusterView| {
        let mut rows = view.registry.shards();
        rows.find_map(|row| Some(ShardId(row.shard)).filter(|id| view.owners[id].node.0 == row.preferred))
    };
    let view = cluster.node(0).until("a preferred owner", |view| view.owners.len() == 4 && settled(view).is_some());
    let shard = settled(&view).unwrap();
    let at = cluster.which(view.owners[&shard].node);
    let heir = (0..3).find(|which| *which != at).unwrap();
    let group = cluster.node(at).rafts.group(RaftGroup::of(shard)).unwrap();
    // What an heir has must not have to be told by a heartbeat that comes in time.
    group.inner.raft.runtime_config().heartbeat(false);
    cluster.kill(heir);
    cluster.start(heir);
    let heir_id = cluster.node(heir).id;
    cluster.node(heir).all_owned();
    let epoch = block(group.transfer(heir_id)).expect("the heir takes the shard");
    // It may have moved on since.
    cluster.node(at).until("the new owner", |view| view.owners[&shard].epoch >= epoch);
}

#[test]
fn a_replica_that_stops_refuses_its_peers_after_it_has_answered_them() {
    let cluster = founded(1);
    let group = cluster.node(0).registry.group().unwrap();
    let served = group.serves().expect("it runs");
    let mut stop = std::pin::pin!(group.stop());
    block(async {
        assert!(futures::poll!(stop.as_mut()).is_pending(), "a request is being served");
        assert!(group.serves().is_none(), "another one is refused");
        assert!(group.inner.raft.is_initialized().await.is_ok(), "its core still answers");
        drop(served);
        stop.await;
    });
}

#[test]
fn a_replica_that_fails_while_it_runs_is_fenced() {
    let cluster = founded(1);
    let node = cluster.node(0);
    assert!(node.rafts.fenced().is_empty());
    let group = node.registry.group().unwrap();
    block(group.inner.raft.shutdown()).unwrap();
    let start = Instant::now();
    while !node.rafts.fenced().contains_key(&RaftGroup::REGISTRY) {
        assert!(start.elapsed() < PATIENCE, "never fenced");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.rafts.metrics().fenced_groups.get(), 1);
    assert!(matches!(block(group.propose(Bytes::new())), Err(ProposeError::Stopped(_))));
}
