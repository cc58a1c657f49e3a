//! Instances of services: a home node dies, an instance comes and goes, a lease runs out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use weft_proto::v1::services_client::ServicesClient;
use weft_proto::v1::{
    DescribeServiceRequest, HealthCheck, Instance, RegisterInstanceRequest, RegisterInstanceResponse,
    RenewInstanceRequest,
};
use weft_sim::cluster::{CLIENTS, Cluster};
use weft_sim::history::History;
use weft_sim::plan::{Fault, Plan};

use super::host::seeded;

pub(crate) type Answer<T> = Result<T, Box<dyn std::error::Error>>;

/// The host of the instance, and its port.
const CART: &str = "cart";
const PORT: u16 = 9000;
const SERVICE: &str = "shop.Cart";
/// A question to a node that may be gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the client wants the harness to do next.
const KILL_HOME: u32 = 1;
const CRASH_CART: u32 = 2;
const START_CART: u32 = 3;

pub(crate) async fn connect(node: &str) -> Answer<ServicesClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{node}"))?;
    let at: std::net::SocketAddr = node.parse()?;
    let connector =
        tower::service_fn(move |_| async move { turmoil::net::TcpStream::connect(at).await.map(TokioIo::new) });
    let channel = tokio::time::timeout(PATIENCE, endpoint.connect_with_connector(connector)).await??;
    Ok(ServicesClient::new(channel))
}

async fn register(node: &str, ttl_ms: u32) -> Answer<RegisterInstanceResponse> {
    let check = HealthCheck { interval_ms: 500, timeout_ms: 300, ..Default::default() };
    let request = RegisterInstanceRequest {
        service: SERVICE.into(),
        address: format!("{}:{PORT}", turmoil::lookup(CART)),
        check: Some(check),
        ttl_ms,
        ..Default::default()
    };
    Ok(connect(node).await?.register_instance(request).await?.into_inner())
}

/// The instance as a node sees it; `None` if there is none.
async fn look(node: &str) -> Answer<Option<Instance>> {
    let request = DescribeServiceRequest { service: SERVICE.into(), ..Default::default() };
    let mut services = connect(node).await?;
    match tokio::time::timeout(PATIENCE, services.describe_service(request)).await? {
        Ok(description) => Ok(description.into_inner().instances.first().cloned()),
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// Looks again and again until it is as wanted; the simulated time that it took.
async fn until(node: &str, what: &str, wanted: impl Fn(&Option<Instance>) -> bool) -> Answer<Duration> {
    let start = tokio::time::Instant::now();
    let mut last = None;
    while start.elapsed() < Duration::from_secs(30) {
        if let Ok(seen) = look(node).await {
            if wanted(&seen) {
                return Ok(start.elapsed());
            }
            last = Some(seen);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("not within 30 s: {what}; last seen: {last:?}").into())
}

fn healthy(seen: &Option<Instance>) -> bool {
    seen.as_ref().is_some_and(|instance| instance.healthy)
}

/// Through node 2, while node 1 is the home that dies.
async fn client(nodes: Vec<String>, step: Arc<AtomicU32>) -> Answer<()> {
    let registered = loop {
        // The cluster is being founded at first.
        match register(&nodes[0], 0).await {
            Ok(registered) => break registered,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert_eq!(registered.home, "n1");
    until(&nodes[1], "node 2 sees it healthy", healthy).await?;

    step.store(KILL_HOME, Ordering::SeqCst);
    let moved = |seen: &Option<Instance>| healthy(seen) && seen.as_ref().is_some_and(|it| it.home != "n1");
    let took = until(&nodes[1], "it has another home", moved).await?;
    assert!(took < Duration::from_secs(3), "without a home for {took:?}");

    step.store(CRASH_CART, Ordering::SeqCst);
    let took = until(&nodes[1], "it is out of the rotation", |seen| !healthy(seen)).await?;
    assert!(took < Duration::from_secs(3), "out of the rotation after {took:?}");
    assert!(look(&nodes[1]).await?.is_some_and(|it| !it.reason.is_empty()), "it is said why");
    step.store(START_CART, Ordering::SeqCst);
    let took = until(&nodes[1], "it is back", healthy).await?;
    assert!(took < Duration::from_secs(3), "back after {took:?}");

    // Registered anew with a lease at node 2, and renewed through node 3, it stays; then it goes.
    let leased = register(&nodes[1], 1_000).await?;
    assert_eq!((leased.instance, leased.home.as_str()), (registered.instance, "n2"));
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let renew = RenewInstanceRequest { instance: leased.instance };
        connect(&nodes[2]).await?.renew_instance(renew).await?;
    }
    assert!(look(&nodes[1]).await?.is_some(), "its lease was kept");
    let took = until(&nodes[2], "its lease runs out", Option::is_none).await?;
    assert!(took > Duration::from_millis(800) && took < Duration::from_secs(3), "it ran out after {took:?}");
    let renew = RenewInstanceRequest { instance: leased.instance };
    let refusal = connect(&nodes[2]).await?.renew_instance(renew).await.expect_err("it is gone");
    assert_eq!(refusal.code(), tonic::Code::NotFound);
    Ok(())
}

#[test]
fn instances_outlive_their_home_and_flap_and_lease() {
    seeded(11, || {
        let kill = Fault::Kill { node: 0, away: Duration::from_secs(3_000) };
        let plan = Plan { faults: vec![(Duration::ZERO, kill)], ..Plan::calm(11) };
        let mut cluster = Cluster::new(&plan, History::default()).expect("a cluster");
        cluster.sim.host(CART, || async {
            let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
            let mut open = Vec::new();
            loop {
                open.push(listener.accept().await?);
            }
        });
        let (nodes, step) = (cluster.client_addresses(), Arc::new(AtomicU32::new(0)));
        let told = step.clone();
        cluster.sim.client(CLIENTS, client(nodes, told));
        let mut done = 0;
        let mut killed = false;
        while !cluster.tick(killed).expect("the client passes") {
            let next = step.load(Ordering::SeqCst);
            if next == done {
                continue;
            }
            match next {
                KILL_HOME => {
                    cluster.begin();
                    killed = true;
                }
                CRASH_CART => cluster.sim.crash(CART),
                START_CART => cluster.sim.bounce(CART),
                other => panic!("no such step: {other}"),
            }
            done = next;
        }
        assert_eq!(done, START_CART, "all was done");
    });
}
