//! More idle clients than a node has descriptors for, which move on to the next node where they are not served: the nodes
//! keep what storage and links need, and none ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use weft_e2e::cluster::Cluster;
use weft_sdk::{Ack, Client};

const NODE_DESCRIPTORS: u32 = 1_024;
const IDLE_CLIENTS: usize = 1_100;
const TOPICS: usize = 12;
/// How long the clients come and go.
const LASTS: Duration = Duration::from_secs(8);
/// A client that hears nothing for this long tries the next node.
const PATIENCE: Duration = Duration::from_millis(500);
/// The preface of HTTP/2 and empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const GOAWAY: u8 = 7;

pub(super) async fn check() -> Result<Value> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raise this process's own limit of descriptors")?;
    // Checkpoints and new journal files all the time: each opens files.
    let variables = [
        ("WEFT_STORAGE__CHECKPOINT_INTERVAL", "500ms"),
        ("WEFT_STORAGE__JOURNAL_SLOT_BYTES", "1MiB"),
        ("WEFT_STORAGE__CHECKPOINT_BYTES", "2MiB"),
    ];
    let mut cluster = Cluster::start_bounded(3, &variables, NODE_DESCRIPTORS).await?;
    let addresses = cluster.addresses();
    let publisher = Client::builder().servers(addresses.clone()).connect().await?;

    let served = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..IDLE_CLIENTS {
        clients.spawn(wander(addresses.clone(), served.clone()));
    }
    let until = Instant::now() + LASTS;
    let (mut events, mut most, mut topic) = (0u32, 0, 0);
    while Instant::now() < until {
        if topic < TOPICS {
            publisher.topics().create(&format!("topic-{topic}"), 4).await?;
            topic += 1;
        }
        for of in 0..topic {
            let event = weft_sdk::event(events.to_string(), vec![7; 16 << 10]);
            for receipt in publisher.publish(&format!("topic-{of}"), vec![event], Ack::Committed).await? {
                receipt?;
            }
            events += 1;
        }
        most = most.max(served.load(Ordering::Relaxed));
        cluster.check_alive()?;
    }
    clients.shutdown().await;
    cluster.wait_healthy(Duration::from_secs(10)).await?;
    // Three nodes have room for about half as many again; on one of them alone there is none for all.
    ensure!(most > IDLE_CLIENTS / 2, "only {most} of {IDLE_CLIENTS} idle clients were served at once");
    Ok(json!({"idle_clients": IDLE_CLIENTS, "served_at_most": most, "events": events}))
}

/// One idle client: stays where it is served, goes to the next node where it is not. All begin with the first node.
async fn wander(addresses: Vec<String>, served: Arc<AtomicUsize>) {
    for turn in 0.. {
        let address = &addresses[turn % addresses.len()];
        let Ok(Ok(mut connection)) = timeout(PATIENCE, TcpStream::connect(address)).await else { continue };
        if connection.write_all(HELLO).await.is_err() || !is_served(&mut connection).await {
            tokio::time::sleep(PATIENCE / 10).await;
            continue;
        }
        served.fetch_add(1, Ordering::Relaxed);
        let mut nothing = [0; 256];
        while matches!(connection.read(&mut nothing).await, Ok(1..)) {}
        served.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the node's first frames are settings without a GOAWAY behind them.
async fn is_served(connection: &mut TcpStream) -> bool {
    let mut frame = [0; 9];
    for _ in 0..2 {
        match timeout(PATIENCE, connection.read_exact(&mut frame)).await {
            Ok(Ok(_)) if frame[3] != GOAWAY => {}
            _ => return false,
        }
        let length = usize::from(frame[1]) << 8 | usize::from(frame[2]);
        let mut body = vec![0; length];
        if connection.read_exact(&mut body).await.is_err() {
            return false;
        }
    }
    true
}
