//! A service whose instance is a node: refused where that is known, and ended where it is not.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_proto::v1::RegisterInstanceRequest;
use weft_sim::cluster::{CLIENTS, Cluster};
use weft_sim::history::History;
use weft_sim::plan::Plan;
use weft_sim::workload::calls::{Call, Caller, Outcome, SERVICE};

use super::host::seeded;
use super::instances::{Answer, connect};

/// The host of a balancer in front of a node, and its port.
const BALANCER: &str = "balancer";
const PORT: u16 = 9000;

/// Passes every connection on to a node.
async fn balance(node: String) -> turmoil::Result {
    let node: std::net::SocketAddr = node.parse()?;
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (mut near, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut far = turmoil::net::TcpStream::connect(node).await?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        });
    }
}

/// Registers an instance at an address; the status's message if that is refused for good.
async fn register(node: &str, address: &str) -> Answer<Result<(), String>> {
    let request =
        RegisterInstanceRequest { service: SERVICE.into(), address: address.to_owned(), ..Default::default() };
    match connect(node).await?.register_instance(request).await {
        Ok(_) => Ok(Ok(())),
        Err(status) if status.code() == tonic::Code::InvalidArgument => Ok(Err(status.message().to_owned())),
        Err(status) => Err(status.into()),
    }
}

async fn client(nodes: Vec<String>) -> Answer<()> {
    // The cluster is being founded at first.
    let balancer = format!("{}:{PORT}", turmoil::lookup(BALANCER));
    while register(&nodes[0], &balancer).await.is_err() {
        sleep(Duration::from_millis(100)).await;
    }
    for (node, name) in nodes.iter().zip(["n1", "n2", "n3"]) {
        let refusal = register(&nodes[0], node).await?.expect_err("a node answers there");
        assert!(refusal.contains(name), "{refusal}");
    }
    for node in &nodes {
        let began = Instant::now();
        let Outcome::NotRun(error) = Caller::connect(node).await?.call(Call::default()).await else {
            return Err("the call went round and was answered".into());
        };
        assert!(error.starts_with("Loop: "), "{error}");
        // Each round takes a few messages' time; nothing is made twice.
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    Ok(())
}

#[test]
fn a_service_that_is_a_node_ends_its_calls() {
    seeded(21, || {
        let mut cluster = Cluster::new(&Plan::calm(21), History::default()).expect("a cluster");
        let nodes = cluster.client_addresses();
        let node = nodes[1].clone();
        cluster.sim.host(BALANCER, move || balance(node.clone()));
        cluster.sim.client(CLIENTS, client(nodes));
        while !cluster.tick(false).expect("the client passes") {}
    });
}
