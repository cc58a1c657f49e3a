//! Observers: that they see all that is stored, in order, is checked in every run (P2); here is where they end.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use weft_sdk::{Client, Event, StartAt};
use weft_sim::cluster::{CLIENTS, Cluster};
use weft_sim::history::History;
use weft_sim::plan::Plan;
use weft_sim::workload::Shared;

use super::host::seeded;
use super::scenarios::ms;

const TOPIC: &str = "log";
/// Bytes of each event.
const EVENT_BYTES: usize = 1 << 10;
/// Events of the partition with much in it, and of the one that grows.
const MUCH: usize = 600;
const LITTLE: usize = 20;
/// What the observer may have in flight: far less than what comes to the partition that grows while it reads.
const CREDIT: u64 = 16 << 10;
/// Many times what the reading takes.
const PATIENCE: Duration = ms(20_000);

fn event(key: &str) -> Event {
    weft_sdk::event(key.to_owned(), vec![b'x'; EVENT_BYTES])
}

/// Two keys of different partitions.
async fn keys(client: &Client) -> anyhow::Result<[String; 2]> {
    let producer = client.producer(TOPIC).open().await?;
    let mut found: [Option<String>; 2] = [None, None];
    for number in 0..64 {
        let key = format!("k{number}");
        let receipt = producer.send(event(&key)).await?.await?;
        found[receipt.partition as usize].get_or_insert(key);
        if let [Some(one), Some(other)] = &found {
            return Ok([one.clone(), other.clone()]);
        }
    }
    anyhow::bail!("64 keys are of one partition")
}

async fn client(shared: Shared) -> turmoil::Result {
    let client = shared.connect_surely(0).await;
    while client.topics().create(TOPIC, 2).await.is_err() {
        sleep(ms(100)).await;
    }
    let [much, growing] = keys(&client).await?;
    let producer = client.producer(TOPIC).linger(ms(1)).open().await?;
    for (key, count) in [(&much, MUCH), (&growing, LITTLE)] {
        for _ in 0..count {
            producer.push(event(key)).await?;
        }
    }
    let stored = producer.flush().await?.events;
    let grows = tokio::spawn(async move {
        while producer.push(event(&growing)).await.is_ok() {
            sleep(ms(1)).await;
        }
    });
    for node in 0..3 {
        let client = shared.connect_surely(node).await;
        let observer = client.subscriber(TOPIC).start(StartAt::Earliest).until_end().credit(CREDIT);
        let mut observer = observer.observe().await?;
        let mut seen = 0;
        while timeout(PATIENCE, observer.next()).await.map_err(|_| format!("{seen} events, and no end"))??.is_some() {
            seen += 1;
        }
        assert!(seen >= stored, "{seen} of {stored}");
        assert!(!grows.is_finished(), "events came while it read");
    }
    grows.abort();
    Ok(())
}

/// What is stored after it has opened is not for it, and takes nothing of its credit.
#[test]
fn an_observer_to_the_end_comes_to_it_while_a_partition_grows() {
    for seed in [51, 52] {
        seeded(seed, move || {
            let (plan, history) = (Plan::calm(seed), History::default());
            let mut cluster = Cluster::new(&plan, history.clone()).expect("a cluster");
            let shared = Shared::new(&plan, cluster.client_addresses(), Vec::new(), history);
            cluster.sim.client(CLIENTS, client(shared));
            while !cluster.tick(false).expect("the client passes") {}
        });
    }
}
