//! Three nodes on loopback.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "runs outside a simulated node")]

use weft_cluster::ids::Generation;
use weft_cluster::view::MemberState;

use super::*;
use crate::drivers::link::{Inbound, Lane, LinkConfig, LinkStream, Me, Parts};
use crate::drivers::pki::{self, Authority};
use crate::host::Promise;
use crate::host::disk::OsDisk;
use crate::host::production::Production;

const PATIENCE: Duration = Duration::from_secs(10);

struct Door(Gossip);

impl Inbound for Door {
    fn request(&self, _from: NodeId, _lane: Lane, _body: Bytes) -> Promise<'static, Result<Parts, String>> {
        Box::pin(async { Err("nothing here".into()) })
    }
    fn stream(&self, _from: NodeId, _lane: Lane, _stream: LinkStream) -> Promise<'static, ()> {
        Box::pin(async {})
    }
    fn gossip(&self, from: SocketAddr, packet: Bytes) {
        self.0.receive(from, packet);
    }
}

struct Node {
    gossip: Gossip,
    links: Links,
    tasks: Tasks,
    full: watch::Sender<bool>,
}

impl Node {
    async fn start(ca: &Authority, id: u64, generation: u64, bind: SocketAddr, seeds: Vec<String>) -> Node {
        let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(OsDisk)));
        let name = format!("n{id}");
        let issued = ca.issue(&*host, &name, &[], &[]).expect("a certificate");
        let credentials = pki::credentials(&ca.issued().cert_pem, &issued).expect("credentials");
        let me = Me {
            id: NodeId(id),
            name,
            zone: format!("z{id}"),
            generation: Generation(generation),
            start: 0,
            secret: [id as u8; 32],
            cluster: 0,
            client_address: format!("client:{id}"),
            peer_address: bind,
            version: "test".into(),
            level_max: 1,
        };
        let tasks = Tasks::new(host.clone());
        let links = Links::start(host.clone(), LinkConfig::default(), bind, me, credentials, &tasks).await;
        let links = links.expect("links start");
        let config = GossipConfig {
            probe_period: Duration::from_millis(100),
            probe_timeout: Duration::from_millis(40),
            suspect_to_down: Duration::from_millis(300),
            announce_to_down_period: Duration::from_millis(500),
            seed_retry: Duration::from_millis(100),
            ..GossipConfig::default()
        };
        let full = watch::Sender::new(false);
        let gossip = Gossip::start(host, config, links.clone(), seeds, full.subscribe(), &tasks);
        links.serve(Arc::new(Door(gossip.clone())));
        Node { gossip, links, tasks, full }
    }

    fn at(&self) -> SocketAddr {
        self.links.me().peer_address
    }

    async fn sees(&self, what: &str, good: impl FnMut(&Members) -> bool) {
        let mut members = self.gossip.members();
        let seen = tokio::time::timeout(PATIENCE, members.wait_for(good)).await.map(drop);
        seen.unwrap_or_else(|_| panic!("{what}: {:#?}", members.borrow()));
    }
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn states(members: &Members) -> Vec<MemberState> {
    members.values().map(|member| member.state).collect()
}

#[tokio::test]
async fn nodes_find_each_other_lose_one_and_get_it_back() {
    use MemberState::{Alive, Down};
    let ca = Authority::create(&Production::new(Arc::new(OsDisk)), "test").expect("a CA");
    let one = Node::start(&ca, 1, 1, any(), vec![]).await;
    // A seed that does not resolve, and one that is the node itself, do no harm.
    let seeds = vec!["nowhere.invalid:1".to_owned(), one.at().to_string()];
    let two = Node::start(&ca, 2, 1, any(), seeds.clone()).await;
    let three = Node::start(&ca, 3, 1, any(), seeds.clone()).await;
    for node in [&one, &two, &three] {
        node.sees("all see all", |members| states(members) == [Alive; 3]).await;
    }
    let members = two.gossip.members().borrow().clone();
    let third = &members[&NodeId(3)];
    assert_eq!((third.name.as_str(), third.zone.as_str(), third.client_address.as_str()), ("n3", "z3", "client:3"));
    assert_eq!(third.peer_address, three.at().to_string());

    // Killed: its endpoint closes without a word of leaving.
    let at = three.at();
    three.links.close().await;
    three.tasks.stop(Duration::from_secs(1)).await;
    drop(three);
    one.sees("one sees it down", |members| states(members) == [Alive, Alive, Down]).await;
    two.sees("two sees it down", |members| states(members) == [Alive, Alive, Down]).await;

    let three = Node::start(&ca, 3, 2, at, seeds).await;
    for node in [&one, &two, &three] {
        let good = |members: &Members| states(members) == [Alive; 3] && members[&NodeId(3)].generation == Generation(2);
        node.sees("it is back", good).await;
    }
}

#[tokio::test]
async fn a_node_that_leaves_is_seen_to_leave() {
    use MemberState::{Alive, Left};
    let ca = Authority::create(&Production::new(Arc::new(OsDisk)), "test").expect("a CA");
    let one = Node::start(&ca, 1, 1, any(), vec![]).await;
    let two = Node::start(&ca, 2, 1, any(), vec![one.at().to_string()]).await;
    for node in [&one, &two] {
        node.sees("both see both", |members| states(members) == [Alive; 2]).await;
    }
    two.gossip.leave().await;
    two.links.close().await;
    one.sees("it has left", |members| states(members) == [Alive, Left]).await;
}

#[tokio::test]
async fn a_full_disk_is_known_to_all() {
    let ca = Authority::create(&Production::new(Arc::new(OsDisk)), "test").expect("a CA");
    let one = Node::start(&ca, 1, 1, any(), vec![]).await;
    let two = Node::start(&ca, 2, 1, any(), vec![one.at().to_string()]).await;
    for full in [true, false] {
        one.sees("both are there", |members| members.len() == 2).await;
        two.full.send_replace(full);
        for node in [&one, &two] {
            let told = |members: &Members| members.get(&NodeId(2)).is_some_and(|member| member.disk_full == full);
            node.sees("the disk of the second", told).await;
            assert!(!node.gossip.members().borrow()[&NodeId(1)].disk_full);
        }
    }
}

#[tokio::test]
async fn hostile_packets_are_refused() {
    let ca = Authority::create(&Production::new(Arc::new(OsDisk)), "test").expect("a CA");
    let one = Node::start(&ca, 1, 1, any(), vec![]).await;
    for packet in [&b""[..], &[0], &[0, 1, 2, 3], &[1, 255, 255, 255, 255, 15], &[2, 200], &[3, 9, 9], &[77, 1]] {
        one.gossip.receive(any(), Bytes::from_static(packet));
    }
    let start = tokio::time::Instant::now();
    while one.gossip.metrics.packets_refused.get() < 5 && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(one.gossip.metrics.packets_refused.get() >= 5);
    one.sees("it still runs", |members| members.len() == 1).await;
}
