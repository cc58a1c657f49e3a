//! Real endpoints on loopback, through the production host.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "runs outside a simulated node")]

use std::time::Instant;

use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::*;
use crate::drivers::pki::{self, Authority};
use crate::host::disk::OsDisk;
use crate::host::production::Production;

const PATIENCE: Duration = Duration::from_secs(5);

fn host() -> Arc<dyn Host> {
    Arc::new(Production::new(Arc::new(OsDisk)))
}

fn authority() -> Authority {
    Authority::create(&*host(), "test").expect("a CA")
}

/// Answers with the request, refuses "no", is silent on "never", echoes streams.
struct Echo {
    gossip: mpsc::UnboundedSender<Bytes>,
}

impl Inbound for Echo {
    fn request(&self, _from: NodeId, _lane: Lane, body: Bytes) -> Promise<'static, Result<Parts, String>> {
        Box::pin(async move {
            match &body[..] {
                b"no" => Err("as you say".into()),
                b"never" => std::future::pending().await,
                _ => Ok(vec![body]),
            }
        })
    }

    fn stream(&self, _from: NodeId, _lane: Lane, mut stream: LinkStream) -> Promise<'static, ()> {
        Box::pin(async move {
            while let Ok(Some(frame)) = stream.receive.next().await {
                if &frame[..] == b"drop" {
                    return;
                }
                stream.send.send(vec![frame]).await.expect("the opener reads");
            }
            stream.send.finish();
        })
    }

    fn gossip(&self, _from: SocketAddr, packet: Bytes) {
        let _ = self.gossip.send(packet);
    }
}

struct Node {
    links: Links,
    heard: mpsc::UnboundedReceiver<Bytes>,
}

impl Node {
    fn id(&self) -> NodeId {
        self.links.me().id
    }
    fn at(&self) -> SocketAddr {
        self.links.me().peer_address
    }
    fn verdict(&self, of: &Node) -> Option<(Generation, Verdict)> {
        self.links.verdicts().borrow().get(&of.id()).copied()
    }
    async fn ask(&self, to: NodeId, body: &'static [u8]) -> Result<Bytes, LinkError> {
        self.links.request(to, Lane::Publish, vec![Bytes::from_static(body)], PATIENCE).await
    }
    async fn until(&self, of: NodeId, generation: u64, verdict: Verdict) -> Duration {
        let start = Instant::now();
        let mut verdicts = self.links.verdicts();
        let said = verdicts.wait_for(|all| all.get(&of) == Some(&(Generation(generation), verdict)));
        tokio::time::timeout(PATIENCE, said).await.expect("the verdict comes").expect("links live");
        start.elapsed()
    }
    fn broken_streams(&self) -> u64 {
        let mut registry = prometheus_client::registry::Registry::default();
        self.links.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("metrics encode");
        let lines = text.lines().filter(|line| line.starts_with("weft_link_streams_broken_total"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

fn me(id: u64, name: &str, generation: u64) -> Me {
    Me {
        id: NodeId(id),
        name: name.into(),
        zone: "a".into(),
        generation: Generation(generation),
        start: 0,
        secret: [id as u8; 32],
        cluster: 7,
        client_address: "127.0.0.1:1".into(),
        peer_address: ([127, 0, 0, 1], 0).into(),
        version: "test".into(),
        level_max: 1,
    }
}

fn credentials(ca: &Authority, name: &str) -> Credentials {
    let issued = ca.issue(&*host(), name, &[], &[]).expect("a certificate");
    pki::credentials(&ca.issued().cert_pem, &issued).expect("credentials")
}

async fn started(ca: &Authority, me: Me, port: u16) -> io::Result<Node> {
    let host = host();
    let tasks = Tasks::new(host.clone());
    let credentials = credentials(ca, &me.name);
    let bind = ([127, 0, 0, 1], port).into();
    let config = LinkConfig { mtu: 6_000, ..LinkConfig::default() };
    let links = Links::start(host, config, bind, me, credentials, &tasks).await?;
    let (gossip, heard) = mpsc::unbounded_channel();
    links.serve(Arc::new(Echo { gossip }));
    Ok(Node { links, heard })
}

async fn node(ca: &Authority, id: u64, name: &str) -> Node {
    started(ca, me(id, name, 1), 0).await.expect("links start")
}

async fn pair() -> (Node, Node) {
    let ca = authority();
    let (a, b) = (node(&ca, 1, "n1").await, node(&ca, 2, "n2").await);
    let peer = a.links.dial(b.at()).await.expect("n2 answers");
    assert_eq!((peer.id, peer.name.as_str(), peer.peer_address), (b.id(), "n2", b.at()));
    b.until(a.id(), 1, Verdict::Up).await;
    (a, b)
}

/// A node on a runtime of its own, which can be killed: nothing is said to anybody, the kernel closes its sockets.
struct Victim {
    runtime: Option<tokio::runtime::Runtime>,
    node: Option<Node>,
}

impl Victim {
    async fn start(ca: &Authority, me: Me, port: u16) -> (Victim, SocketAddr) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let ca_pem = ca.issued();
        let issued = ca.issue(&*host(), &me.name, &[], &[]).expect("a certificate");
        let credentials = pki::credentials(&ca_pem.cert_pem, &issued).expect("credentials");
        let starting = runtime.spawn(async move {
            let host = host();
            let tasks = Tasks::new(host.clone());
            let bind = ([127, 0, 0, 1], port).into();
            let mut last = None;
            // The port of a node killed a moment ago may not be free yet.
            let mut credentials = Some(credentials);
            while last.is_none() {
                let again = Credentials {
                    name: credentials.as_ref().expect("kept").name.clone(),
                    chain: credentials.as_ref().expect("kept").chain.clone(),
                    key: credentials.as_ref().expect("kept").key.clone_key(),
                    roots: credentials.as_ref().expect("kept").roots.clone(),
                };
                let given = credentials.replace(again).expect("kept");
                let config = LinkConfig { mtu: 6_000, ..LinkConfig::default() };
                match Links::start(host.clone(), config, bind, me.clone(), given, &tasks).await {
                    Ok(links) => last = Some(links),
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
            let links = last.expect("started");
            let (gossip, heard) = mpsc::unbounded_channel();
            links.serve(Arc::new(Echo { gossip }));
            Node { links, heard }
        });
        let node = tokio::time::timeout(PATIENCE, starting).await.expect("in time").expect("links start");
        let at = node.at();
        (Victim { runtime: Some(runtime), node: Some(node) }, at)
    }

    fn kill(&mut self) {
        self.runtime.take().expect("killed once").shutdown_background();
        self.node = None;
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if self.runtime.is_some() {
            self.kill();
        }
    }
}

#[tokio::test]
async fn requests_are_answered_both_ways_on_one_link() {
    let (a, b) = pair().await;
    assert_eq!(a.ask(b.id(), b"hello").await, Ok(Bytes::from_static(b"hello")));
    assert_eq!(b.ask(a.id(), b"back").await, Ok(Bytes::from_static(b"back")));
    assert_eq!(a.ask(b.id(), b"no").await, Err(LinkError::Refused(b.id(), "as you say".into())));
    assert_eq!(a.links.peers().len(), 1);
    assert_eq!(b.links.peers()[0].client_address, "127.0.0.1:1");
    assert_eq!(a.links.dial(b.at()).await.expect("the same").id, b.id());
    assert_eq!(a.verdict(&b), Some((Generation(1), Verdict::Up)));
}

#[tokio::test]
async fn a_peer_that_is_learned_is_dialled() {
    let ca = authority();
    let (a, b) = (node(&ca, 1, "n1").await, node(&ca, 2, "n2").await);
    a.links.learn(b.id(), b.at());
    b.links.learn(a.id(), a.at());
    assert_eq!(a.ask(b.id(), b"x").await, Ok(Bytes::from_static(b"x")));
    assert_eq!(b.ask(a.id(), b"y").await, Ok(Bytes::from_static(b"y")));
}

#[tokio::test]
async fn both_dial_at_once_and_nothing_is_lost() {
    for _ in 0..5 {
        let ca = authority();
        let (a, b) = (node(&ca, 1, "n1").await, node(&ca, 2, "n2").await);
        a.links.learn(b.id(), b.at());
        b.links.learn(a.id(), a.at());
        let dials = async { tokio::join!(a.links.dial(b.at()), b.links.dial(a.at())) };
        let asks = async {
            for _ in 0..50 {
                assert!(a.ask(b.id(), b"x").await.is_ok());
                assert!(b.ask(a.id(), b"y").await.is_ok());
            }
        };
        let ((one, two), ()) = tokio::join!(dials, asks);
        assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (one, two) = (a.links.inner.link_at(b.at()), b.links.inner.link_at(a.at()));
        let (one, two) = (one.expect("a link"), two.expect("a link"));
        assert_ne!(one.dialled, two.dialled, "both ends use the same link");
    }
}

#[tokio::test]
async fn a_foreign_ca_is_refused_by_both() {
    let (ours, theirs) = (authority(), authority());
    let (a, b) = (node(&ours, 1, "n1").await, node(&theirs, 2, "n2").await);
    let error = a.links.dial(b.at()).await.expect_err("refused");
    assert!(
        matches!(&error, LinkError::Refused(_, reason) if reason.starts_with("this node refuses its certificate (invalid peer certificate") && reason.contains("as tls.ca")),
        "{error}"
    );
    assert!(a.links.peers().is_empty() && b.links.peers().is_empty());
    assert_eq!(a.links.inner.metrics.refused.get(), 1);
    // Again: counted, but logged once.
    a.links.dial(b.at()).await.expect_err("refused");
    assert_eq!(a.links.inner.metrics.refused.get(), 2);
    assert_eq!(lock_reasons(&a), 1);
    // The other side says whose fault it is, too.
    let theirs: Vec<String> = peers::lock(&b.links.inner.reasons).iter().cloned().collect();
    assert!(theirs.iter().all(|reason| reason.contains("it refuses this node's certificate")), "{theirs:?}");
}

#[tokio::test]
async fn a_new_certificate_is_used_for_the_links_that_come() {
    let (old, new) = (authority(), authority());
    let (a, b) = (node(&old, 1, "n1").await, node(&new, 2, "n2").await);
    a.links.dial(b.at()).await.expect_err("of another CA");
    assert_eq!(a.links.renew(credentials(&new, "n3")).expect_err("of another name").matches("`n3`").count(), 1);
    assert_eq!(a.links.renew(credentials(&new, "n1")), Ok(true));
    a.links.dial(b.at()).await.expect("as a client");
    let c = node(&new, 3, "n3").await;
    c.links.dial(a.at()).await.expect("as a server");
    assert_eq!(a.links.certificate_expired(), None);
}

fn lock_reasons(node: &Node) -> usize {
    peers::lock(&node.links.inner.reasons).len()
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused() {
    let ca = authority();
    let host = host();
    let tasks = Tasks::new(host.clone());
    let bind = ([127, 0, 0, 1], 0).into();
    let start = Links::start(host, LinkConfig::default(), bind, me(1, "n1", 1), credentials(&ca, "n2"), &tasks).await;
    let error = start.err().expect("refused").to_string();
    assert!(error.contains("`n2`") && error.contains("`n1`"), "{error}");

    let a = node(&ca, 1, "n1").await;
    let liar = Raw::connect(&ca, "n2", me(3, "n3", 1), a.at()).await;
    let reason = liar.refused().await;
    assert!(reason.contains("calls itself `n3`") && reason.contains("names `n2`"), "{reason}");
}

#[tokio::test]
async fn another_cluster_and_a_second_node_of_one_name_are_refused() {
    let ca = authority();
    let a = node(&ca, 1, "n1").await;
    let foreign = Raw::connect(&ca, "n2", Me { cluster: 8, ..me(2, "n2", 1) }, a.at()).await;
    assert!(foreign.refused().await.contains("cluster 0000000000000008"));
    let empty = Raw::connect(&ca, "n2", Me { cluster: 0, ..me(2, "n2", 1) }, a.at()).await;
    assert!(empty.accepted().await);
    let namesake = Raw::connect(&ca, "n1", me(3, "n1", 1), a.at()).await;
    assert!(namesake.refused().await.contains("this node's own"));
    let namesake = Raw::connect(&ca, "n2", me(4, "n2", 1), a.at()).await;
    assert!(namesake.refused().await.contains("which answers"));
    let namesake = node(&ca, 5, "n1").await;
    let refused = namesake.links.dial(a.at()).await;
    assert!(matches!(&refused, Err(LinkError::Refused(_, reason)) if reason.contains("two nodes")), "{refused:?}");
    assert!(!namesake.links.inner.namesake.is_quiet());
    let itself = namesake.links.dial(namesake.at()).await;
    assert!(matches!(&itself, Err(LinkError::Refused(_, reason)) if reason.contains("itself")), "{itself:?}");
    let alone = node(&ca, 6, "n6").await;
    assert!(alone.links.dial(alone.at()).await.is_err() && alone.links.inner.namesake.is_quiet());
    // One that others have a link with is not ended by a refusal.
    alone.links.dial(a.at()).await.expect("a link");
    alone.links.inner.refused_for_name("a copy says so");
    assert!(alone.links.inner.namesake.is_quiet());
    let copy = Raw::connect(&ca, "n3", me(1, "n3", 1), a.at()).await;
    assert!(copy.refused().await.contains("copies of one data folder"));
    // A copy of n2's folder under another name is refused, and makes the real n2 no old one.
    let copy = Raw::connect(&ca, "n3", me(2, "n3", 5), a.at()).await;
    assert!(copy.refused().await.contains("is that of node `n2`, which answers"));
    let again = Raw::connect(&ca, "n2", Me { cluster: 0, ..me(2, "n2", 1) }, a.at()).await;
    assert!(again.accepted().await);
    let old = Raw::connect(&ca, "n2", me(2, "n2", 0), a.at()).await;
    assert!(old.refused().await.contains("its start 1 was here before, this is start 0"));
}

#[tokio::test]
async fn an_old_copy_of_a_folder_is_refused_and_told() {
    let ca = authority();
    let of = |generation, start| Me { start, ..me(2, "n2", generation) };
    let (kept, mut keeping) = mpsc::unbounded_channel();
    let keep: KeepStarts = Arc::new(move |starts| {
        let kept = kept.clone();
        Box::pin(async move { drop(kept.send(starts)) })
    });
    let a = node(&ca, 1, "n1").await;
    a.links.remember([(NodeId(2), Start { generation: Generation(3), id: 30 })].into(), keep);
    assert_eq!(keeping.recv().await.expect("kept")[&NodeId(2)].id, 30);
    let before = Raw::connect(&ca, "n2", of(2, 20), a.at()).await;
    assert!(before.refused().await.contains("its start 3 was here before, this is start 2"));
    let beside = Raw::connect(&ca, "n2", of(3, 31), a.at()).await;
    assert!(beside.refused().await.contains("another start 3 of it was here before"));
    let same = Raw::connect(&ca, "n2", of(3, 30), a.at()).await;
    assert!(same.accepted().await);
    let newer = Raw::connect(&ca, "n2", of(4, 40), a.at()).await;
    assert!(newer.accepted().await);
    // On the disk before it was let in.
    assert_eq!(keeping.try_recv().expect("kept")[&NodeId(2)].generation, Generation(4));
    // What the registry says ends a link that is there.
    a.links.met([(NodeId(2), Start { generation: Generation(5), id: 50 })]);
    assert!(newer.refused().await.contains("its start 5 was here before"));
    let copy = started(&ca, of(4, 41), 0).await.expect("links start");
    let refused = copy.links.dial(a.at()).await;
    assert!(matches!(&refused, Err(LinkError::Refused(_, why)) if why.contains("start 5")), "{refused:?}");
    let told = tokio::time::timeout(PATIENCE, copy.links.outdated()).await.expect("it knows that its start is over");
    assert!(told.contains("its start 5 was here before, this is start 4"), "{told}");
}

#[tokio::test]
async fn a_node_that_dials_itself_is_told() {
    let a = node(&authority(), 1, "n1").await;
    let error = a.links.dial(a.at()).await.expect_err("refused");
    assert!(error.to_string().contains("this node itself"), "{error}");
}

#[tokio::test]
async fn many_requests_share_writes() {
    let (a, b) = pair().await;
    let body = Bytes::from(vec![1; 100]);
    let asks = (0..2_000).map(|_| a.links.request(b.id(), Lane::Publish, vec![body.clone()], PATIENCE));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(answer.as_ref(), Ok(&body));
    }
    let stats = a.links.inner.link_at(b.at()).expect("a link").connection.stats();
    assert!(stats.udp_tx.datagrams < 500, "{} datagrams for 2,000 requests", stats.udp_tx.datagrams);
}

#[tokio::test]
async fn requests_arrive_in_the_order_of_their_polls() {
    struct Order(mpsc::UnboundedSender<Bytes>);
    impl Inbound for Order {
        fn request(&self, _from: NodeId, _lane: Lane, body: Bytes) -> Promise<'static, Result<Parts, String>> {
            let _ = self.0.send(body);
            Box::pin(async { Ok(vec![]) })
        }
        fn stream(&self, _from: NodeId, _lane: Lane, _stream: LinkStream) -> Promise<'static, ()> {
            Box::pin(async {})
        }
        fn gossip(&self, _from: SocketAddr, _packet: Bytes) {}
    }
    let ca = authority();
    let (a, b) = (node(&ca, 1, "n1").await, node(&ca, 2, "n2").await);
    let (sender, mut order) = mpsc::unbounded_channel();
    b.links.serve(Arc::new(Order(sender)));
    a.links.learn(b.id(), b.at());
    // Some of it before there is a link, and more than the queue has room for.
    let asks = (0..500u32).map(|n| {
        let body = vec![Bytes::copy_from_slice(&n.to_be_bytes()), vec![0; 200_000].into()];
        a.links.request(b.id(), Lane::Publish, body, PATIENCE)
    });
    assert!(futures::future::join_all(asks).await.iter().all(Result::is_ok));
    for n in 0..500u32 {
        assert_eq!(order.recv().await.expect("as many as sent")[..4], n.to_be_bytes());
    }
}

#[tokio::test]
async fn large_frames_pass_and_larger_ones_are_refused_here() {
    let (a, b) = pair().await;
    let bytes_max = Lane::Raft.frame_bytes_max();
    let body = Bytes::from(vec![9; bytes_max]);
    let answer = a.links.request(b.id(), Lane::Raft, vec![body.clone()], PATIENCE).await;
    assert!(answer == Ok(body.clone()));
    let over = vec![body, Bytes::from_static(b"x")];
    let answer = a.links.request(b.id(), Lane::Raft, over, PATIENCE).await;
    assert_eq!(answer, Err(LinkError::TooLarge { bytes: bytes_max + 1, bytes_max }));
}

#[tokio::test]
async fn a_deadline_is_honest() {
    let (a, b) = pair().await;
    let short = Duration::from_millis(50);
    let never = vec![Bytes::from_static(b"never")];
    assert_eq!(a.links.request(b.id(), Lane::Raft, never, short).await, Err(LinkError::Deadline(b.id())));
    let stranger = NodeId(99);
    assert_eq!(a.ask(stranger, b"x").await, Err(LinkError::NotSent(stranger)));
    a.links.learn(stranger, ([127, 0, 0, 1], 9).into());
    let x = vec![Bytes::from_static(b"x")];
    assert_eq!(a.links.request(stranger, Lane::Raft, x, short).await, Err(LinkError::NotSent(stranger)));
}

#[tokio::test]
async fn streams_end_in_order_or_are_lost() {
    let (a, b) = pair().await;
    let mut stream = a.links.open(b.id(), Lane::Deliver).await.expect("a stream");
    for n in 0..100u8 {
        stream.send.send(vec![vec![n; 10_000].into()]).await.expect("sent");
        assert_eq!(stream.receive.next().await.expect("echoed").expect("a frame")[..], vec![n; 10_000]);
    }
    stream.send.finish();
    assert_eq!(stream.receive.next().await, Ok(None));

    let mut stream = a.links.open(b.id(), Lane::Deliver).await.expect("a stream");
    stream.send.send(vec![Bytes::from_static(b"drop")]).await.expect("sent");
    assert_eq!(stream.receive.next().await, Err(LinkError::Lost(b.id())));
    let over = vec![vec![0; Lane::Deliver.frame_bytes_max() + 1].into()];
    assert!(matches!(stream.send.send(over).await, Err(LinkError::TooLarge { .. })));
}

#[tokio::test]
async fn gossip_of_any_size_arrives() {
    let ca = authority();
    let (a, mut b) = (node(&ca, 1, "n1").await, node(&ca, 2, "n2").await);
    for bytes in [1, 1_150, 40_000] {
        let packet = Bytes::from(vec![5; bytes]);
        a.links.gossip(b.at(), packet.clone());
        let heard = tokio::time::timeout(PATIENCE, b.heard.recv()).await.expect("in time");
        assert_eq!(heard, Some(packet));
    }
}

#[tokio::test]
async fn a_killed_peer_is_dead_at_once_and_its_successor_is_up() {
    let ca = authority();
    let a = node(&ca, 1, "n1").await;
    let (mut victim, at) = Victim::start(&ca, me(2, "n2", 1), 0).await;
    let id = NodeId(2);
    a.links.dial(at).await.expect("n2 answers");
    assert_eq!(a.ask(id, b"x").await, Ok(Bytes::from_static(b"x")));
    // The wire is laid.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let asking = a.ask(id, b"never");
    let killing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        victim.kill();
        a.until(id, 1, Verdict::Dead).await
    };
    let (answer, took) = tokio::join!(asking, killing);
    assert_eq!(answer, Err(LinkError::Lost(id)));
    assert!(took < Duration::from_millis(500), "dead after {took:?}");
    let start = Instant::now();
    assert_eq!(a.ask(id, b"x").await, Err(LinkError::NotSent(id)));
    assert!(start.elapsed() < Duration::from_millis(100), "a dead peer is not waited for");

    let (_successor, _) = Victim::start(&ca, me(2, "n2", 2), at.port()).await;
    a.until(id, 2, Verdict::Up).await;
    assert_eq!(a.ask(id, b"y").await, Ok(Bytes::from_static(b"y")));
}

#[tokio::test]
async fn a_peer_that_stands_still_is_suspected_and_comes_back() {
    let ca = authority();
    let a = node(&ca, 1, "n1").await;
    let (victim, at) = Victim::start(&ca, me(2, "n2", 1), 0).await;
    a.links.dial(at).await.expect("n2 answers");
    let still = Duration::from_millis(1_200);
    victim.runtime.as_ref().expect("alive").spawn(async move { std::thread::sleep(still) });
    let took = a.until(NodeId(2), 1, Verdict::Suspect).await;
    assert!(took > Duration::from_millis(500) && took < Duration::from_millis(1_100), "suspect after {took:?}");
    a.until(NodeId(2), 1, Verdict::Up).await;
    assert_eq!(a.ask(NodeId(2), b"x").await, Ok(Bytes::from_static(b"x")));
}

#[tokio::test]
async fn a_peer_that_stops_in_order_is_dead_at_once() {
    let (a, b) = pair().await;
    b.links.close().await;
    assert!(a.until(b.id(), 1, Verdict::Dead).await < Duration::from_millis(500));
}

#[tokio::test]
async fn doubt_about_a_living_peer_changes_nothing() {
    let (a, b) = pair().await;
    let mut verdicts = a.links.verdicts();
    verdicts.mark_unchanged();
    a.links.doubt(b.id());
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!verdicts.has_changed().expect("links live"));
    assert_eq!(a.ask(b.id(), b"x").await, Ok(Bytes::from_static(b"x")));
}

#[tokio::test]
async fn a_forgotten_peer_is_gone() {
    let (a, b) = pair().await;
    a.links.forget(b.id());
    assert_eq!(a.verdict(&b), None);
    assert_eq!(a.ask(b.id(), b"x").await, Err(LinkError::NotSent(b.id())));
}

#[tokio::test]
async fn hostile_bytes_close_a_stream_and_nothing_else() {
    let ca = authority();
    let (a, b) = (node(&ca, 1, "n1").await, node(&ca, 2, "n2").await);
    b.links.dial(a.at()).await.expect("n1 answers");
    let hostile = Raw::connect(&ca, "n3", me(3, "n3", 1), a.at()).await;
    assert!(hostile.accepted().await);
    let attacks: [&[u8]; 6] = [
        &[KIND_STREAM, 4, 0xff, 0xff, 0xff, 0xff],
        &[KIND_REQUESTS, 3, 0, 0, 0, 3, 1, 2, 3],
        &[KIND_REQUESTS, 1, 0xff, 0, 0, 0],
        &[KIND_STREAM, 200, 0, 0, 0, 0],
        &[9, 1],
        &[KIND_REQUESTS, 1, 0, 0, 0, 50, 1],
    ];
    for attack in attacks {
        let (mut send, _receive) = hostile.connection.open_bi().await.expect("a stream");
        send.write_all(attack).await.expect("sent");
        let _ = send.finish();
    }
    for datagram in [&b""[..], &[2], &[3, 1], &[250, 1, 2, 3]] {
        hostile.connection.send_datagram(Bytes::from_static(datagram)).expect("sent");
    }
    let start = Instant::now();
    while a.broken_streams() < 6 && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(a.broken_streams(), 6);
    assert!(hostile.connection.close_reason().is_none());
    assert_eq!(b.ask(a.id(), b"x").await, Ok(Bytes::from_static(b"x")));
}

#[tokio::test]
async fn scanners_are_survived() {
    let ca = authority();
    let (a, b) = (node(&ca, 1, "n1").await, node(&ca, 2, "n2").await);
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let mut held = Vec::new();
    for n in 0..200u8 {
        let junk: Vec<u8> = (0..usize::from(n) * 7).map(|at| (at as u8).wrapping_mul(n) | 0x40).collect();
        udp.send_to(&junk, a.at()).await.expect("sent");
        if n % 2 == 0 {
            let mut tcp = tokio::net::TcpStream::connect(a.at()).await.expect("accepted");
            let _ = tcp.write_all(&junk).await;
            held.push(tcp);
        }
    }
    assert_eq!(b.links.dial(a.at()).await.expect("n1 answers").id, a.id());
    assert_eq!(b.ask(a.id(), b"x").await, Ok(Bytes::from_static(b"x")));
}

/// A peer that speaks QUIC with a good certificate and says what a test wants.
struct Raw {
    connection: quinn::Connection,
    hello: Option<quinn::RecvStream>,
    _endpoint: quinn::Endpoint,
}

impl Raw {
    async fn connect(ca: &Authority, certified: &str, says: Me, to: SocketAddr) -> Raw {
        let host = host();
        let me = Me { name: certified.into(), ..says.clone() };
        let settings = tls::settings(&host, &LinkConfig::default(), &me, credentials(ca, certified)).expect("settings");
        let buffers = SocketBuffers { receive_bytes: 1 << 16, send_bytes: 1 << 16 };
        let bind = ([127, 0, 0, 1], 0).into();
        let bound = host.quic(bind, buffers, settings.endpoint, settings.server).await;
        let (endpoint, _) = bound.expect("an endpoint");
        let connecting = endpoint.connect_with(settings.client, to, "weft").expect("a dial");
        let connection = connecting.await.expect("a connection");
        let (mut send, receive) = open_stream(&connection, KIND_HELLO, Lane::Control).await.expect("a stream");
        let says = Me { peer_address: endpoint.local_addr().expect("bound"), ..says };
        let hello = hello::mine(&says, says.cluster).encode_to_vec();
        let length = u32::try_from(hello.len()).expect("short").to_be_bytes();
        send.write_all(&[&length[..], &hello].concat()).await.expect("sent");
        let _ = send.finish();
        Raw { connection, hello: Some(receive), _endpoint: endpoint }
    }

    async fn accepted(&self) -> bool {
        // The Hello of the other side ends its stream; a refusal closes the connection first.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.hello.is_some() && self.connection.close_reason().is_none()
    }

    async fn refused(&self) -> String {
        match tokio::time::timeout(PATIENCE, self.connection.closed()).await.expect("refused in time") {
            quinn::ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
            other => panic!("refused with a reason, not {other}"),
        }
    }
}
