//! kill -9 of an owner: how long until the next committed publish on its partitions.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use weft_e2e::cluster::Cluster;
use weft_sdk::{Ack, Client};

use super::{PARTITIONS, event, latencies, percentiles, topic};

/// How long a restarted node may take to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

/// Kills the nodes in turn, each time the owner of some partition.
pub(super) async fn kills(cluster: &mut Cluster, count: usize) -> Result<Map<String, Value>> {
    let servers = cluster.addresses();
    let name = topic(&Client::connect(servers.clone()).await?, "kills").await?;
    let mut histogram = latencies()?;
    for kill in 0..count {
        let victim = kill % servers.len();
        let others: Vec<String> =
            (1..servers.len()).map(|step| servers[(victim + step) % servers.len()].clone()).collect();
        let client = Client::builder().servers(others).patience(Duration::from_secs(30)).connect().await?;
        let Some(number) = key_owned_by(cluster, &client, &name, victim).await? else { continue };
        cluster.kill(victim)?;
        let killed = Instant::now();
        while !committed(&client, &name, number).await {
            anyhow::ensure!(killed.elapsed() < CATCH_UP_MAX, "no publish was committed after kill {kill}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        histogram.saturating_record(killed.elapsed().as_micros() as u64);
        cluster.start_node(victim)?;
        cluster.wait_healthy(CATCH_UP_MAX).await.with_context(|| format!("after kill {kill}"))?;
    }
    let mut figure = Map::new();
    percentiles(&histogram, &mut figure);
    figure.insert("kills".into(), json!(histogram.len()));
    Ok(figure)
}

async fn committed(client: &Client, topic: &str, number: u64) -> bool {
    let answer = client.publish(topic, vec![event(number, 128)], Ack::Committed).await;
    answer.is_ok_and(|results| results.iter().all(Result::is_ok))
}

/// The number of an event whose partition the node owns.
async fn key_owned_by(cluster: &Cluster, client: &Client, topic: &str, node: usize) -> Result<Option<u64>> {
    let name = &cluster.names()[node];
    let topic = client.topics().describe(topic).await?;
    let owned = |number: &u64| {
        let partition = weft_batch::hashing::partition_of(&event(*number, 0).key, PARTITIONS);
        topic.partitions.iter().any(|described| described.partition == partition && described.owner == *name)
    };
    Ok((0..1_000).find(owned))
}
