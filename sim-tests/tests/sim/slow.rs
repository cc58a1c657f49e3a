//! Peers that answer nothing, or late, under load: calls of other services go on, deadlines hold, and what is on its way
//! stays bounded.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use weft_proto::v1::RegisterInstanceRequest;
use weft_sim::cluster::{CLIENTS, Cluster, INSTANCES};
use weft_sim::history::History;
use weft_sim::plan::Plan;
use weft_sim::workload::calls::{self, Call, Caller, Outcome, SERVICE};

use super::host::seeded;
use super::instances::{Answer, connect};
use super::scenarios::ms;

/// The host of an instance that takes calls and answers none, and its port.
const MUTE: &str = "mute";
const PORT: u16 = 9000;
/// Streams that it allows on one connection.
const STREAMS_MAX: u32 = 8;
/// What `calls.connections_max` is, by default.
const CONNECTIONS_MAX: usize = 4;
/// Services: of the mute instance, and of one whose home is another node.
const MUTE_SERVICE: &str = "sim.Mute";
const OTHER_SERVICE: &str = "sim.Other";
/// Calls under way at one time.
const LOAD: usize = 100;
const TIMEOUT: Duration = ms(400);
/// What an end may take beyond its deadline, and a call of an idle instance altogether, over all hops.
const LATE_MAX: Duration = ms(100);
/// One way over the link that is slow.
const SLOW: Duration = ms(300);

/// Calls that the mute instance has at one time.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

async fn mute(held: Arc<Held>) -> turmoil::Result {
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let held = held.clone();
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            let handshake = builder.max_concurrent_streams(STREAMS_MAX).handshake::<_, bytes::Bytes>(stream);
            let Ok(mut connection) = handshake.await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let held = held.clone();
                tokio::spawn(async move {
                    held.most.fetch_max(held.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let _reset = poll_fn(|context| respond.poll_reset(context)).await;
                    drop(request);
                    held.now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
    }
}

/// Registers an instance at the node that becomes its home; the cluster may still be being founded.
async fn register(node: &str, service: &str, address: String) {
    let request = RegisterInstanceRequest { service: service.into(), address, ..Default::default() };
    let register = async || -> Answer<()> {
        connect(node).await?.register_instance(request.clone()).await?;
        Ok(())
    };
    while register().await.is_err() {
        sleep(ms(100)).await;
    }
}

/// Calls of one service until dropped, many at a time; each must end by its deadline, however it ends.
fn load(caller: &Arc<Caller>, service: Option<&'static str>) -> JoinSet<()> {
    let mut loaders = JoinSet::new();
    for _ in 0..LOAD {
        let caller = caller.clone();
        loaders.spawn(async move {
            loop {
                let (began, call) = (Instant::now(), Call { service, timeout: Some(TIMEOUT), ..Call::default() });
                let outcome = caller.call(call).await;
                assert!(began.elapsed() < TIMEOUT + LATE_MAX, "{outcome:?} after {:?}", began.elapsed());
            }
        });
    }
    loaders
}

/// Calls of a service whose instance is well, one after the other for two seconds: none may notice the load.
async fn goes_on(node: &str, service: Option<&'static str>) -> Answer<()> {
    let (caller, start) = (Caller::connect(node).await?, Instant::now());
    while start.elapsed() < ms(2_000) {
        let began = Instant::now();
        let outcome = caller.call(Call { service, ..Call::default() }).await;
        let answered = matches!(outcome, Outcome::Answered(_)) && began.elapsed() < LATE_MAX;
        assert!(answered, "{outcome:?} after {:?}", began.elapsed());
        sleep(ms(10)).await;
    }
    Ok(())
}

/// Waits until calls of a service are answered.
async fn is_there(node: &str, service: Option<&'static str>) -> Answer<()> {
    let caller = Caller::connect(node).await?;
    while !matches!(caller.call(Call { service, ..Call::default() }).await, Outcome::Answered(_)) {
        sleep(ms(20)).await;
    }
    Ok(())
}

async fn client(nodes: Vec<String>, held: Arc<Held>, slow: Arc<AtomicBool>) -> Answer<()> {
    let at = |host: &str, port: u16| format!("{}:{port}", turmoil::lookup(host));
    register(&nodes[0], MUTE_SERVICE, at(MUTE, PORT)).await;
    register(&nodes[0], SERVICE, at(INSTANCES[0], calls::PORT)).await;
    register(&nodes[2], OTHER_SERVICE, at(INSTANCES[1], calls::PORT)).await;
    for service in [None, Some(OTHER_SERVICE)] {
        is_there(&nodes[1], service).await?;
    }

    // Through the home node, and over its link: another instance of the same home is called on.
    for node in &nodes[..2] {
        let loaders = load(&Arc::new(Caller::connect(node).await?), Some(MUTE_SERVICE));
        goes_on(node, None).await?;
        ended(loaders).await;
        let most = held.most.swap(0, Ordering::SeqCst);
        assert!(most >= STREAMS_MAX as usize && most <= CONNECTIONS_MAX * STREAMS_MAX as usize, "{most} at one time");
        sleep(TIMEOUT).await;
        assert_eq!(held.now.load(Ordering::SeqCst), 0, "all are cancelled there");
    }

    // The link to the home node takes longer than the calls may.
    slow.store(true, Ordering::SeqCst);
    sleep(ms(10)).await;
    let loaders = load(&Arc::new(Caller::connect(&nodes[1]).await?), None);
    goes_on(&nodes[1], Some(OTHER_SERVICE)).await?;
    ended(loaders).await;
    slow.store(false, Ordering::SeqCst);
    is_there(&nodes[1], None).await
}

/// Ends the load; what has failed of it fails the test.
async fn ended(mut loaders: JoinSet<()>) {
    loaders.abort_all();
    while let Some(ended) = loaders.join_next().await {
        assert!(ended.is_ok() || ended.as_ref().is_err_and(|error| error.is_cancelled()), "{ended:?}");
    }
}

#[test]
fn peers_that_are_slow_or_mute_hold_up_nobody_else() {
    for seed in [31, 32] {
        seeded(seed, move || {
            let mut cluster = Cluster::new(&Plan::calm(seed), History::default()).expect("a cluster");
            let (held, slow) = (Arc::new(Held::default()), Arc::new(AtomicBool::new(false)));
            let at_mute = held.clone();
            cluster.sim.host(MUTE, move || mute(at_mute.clone()));
            cluster.sim.client(CLIENTS, client(cluster.client_addresses(), held, slow.clone()));
            let mut was_slow = false;
            while !cluster.tick(false).expect("the client passes") {
                let now_slow = slow.load(Ordering::SeqCst);
                if std::mem::replace(&mut was_slow, now_slow) != now_slow {
                    cluster.sim.set_link_latency("n1", "n2", if now_slow { SLOW } else { ms(2) });
                }
            }
        });
    }
}
