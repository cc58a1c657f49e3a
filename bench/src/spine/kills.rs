//! kill -9 of an owner: how long until the next committed publish on its partition.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weft_e2e::cluster::Cluster;
use weft_sdk::{Ack, Client};

use super::{Events, KEYS, PARTITIONS, topic};
use crate::figure::{Figure, micros};

pub(super) const NAME: &str = "kill";

/// How long a restarted node may take to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

/// Kills the owner of each partition in turn; a client of the other nodes goes on publishing there.
pub(super) async fn kills(cluster: &mut Cluster, count: usize) -> Result<Figure> {
    let servers = cluster.addresses();
    let topic = topic(&Client::connect(servers.clone()).await?, "kills").await?;
    let events = Events::of(128);
    let mut histogram = micros()?;
    for kill in 0..count {
        let partition = u32::try_from(kill).unwrap_or_default() % PARTITIONS;
        let victim = owner(cluster, &topic, partition).await?;
        let others = (1..servers.len()).map(|step| servers[(victim + step) % servers.len()].clone());
        let client = Client::builder().servers(others).patience(CATCH_UP_MAX).connect().await?;
        let of_partition =
            |number: &u64| weft_batch::hashing::partition_of(&events.make(*number).key, PARTITIONS) == partition;
        let number = (0..KEYS).find(of_partition).context("a key of the partition")?;
        publish(&client, &topic, &events, number).await.context("before the kill")?;
        cluster.kill(victim)?;
        let killed = Instant::now();
        while let Err(error) = publish(&client, &topic, &events, number).await {
            anyhow::ensure!(killed.elapsed() < CATCH_UP_MAX, "nothing is committed after kill {kill}: {error}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let took = killed.elapsed();
        eprintln!("kill {kill}: {} owned partition {partition}; {took:?}", cluster.names()[victim]);
        histogram.saturating_record(took.as_micros() as u64);
        cluster.start_node(victim)?;
        cluster.wait_healthy(CATCH_UP_MAX).await.with_context(|| format!("after kill {kill}"))?;
    }
    let mut figure = Figure::new(NAME);
    figure.percentiles(&histogram);
    figure.count("kills", histogram.len());
    Ok(figure)
}

async fn publish(client: &Client, topic: &str, events: &Events, number: u64) -> Result<()> {
    for result in client.publish(topic, vec![events.make(number)], Ack::Committed).await? {
        result?;
    }
    Ok(())
}

/// The place in the cluster of the node that owns a partition.
async fn owner(cluster: &Cluster, topic: &str, partition: u32) -> Result<usize> {
    let client = Client::connect(cluster.addresses()).await?;
    let described = client.topics().describe(topic).await?;
    let place = described.partitions.iter().find(|place| place.partition == partition).context("the partition")?;
    let place = cluster.names().iter().position(|name| *name == place.owner);
    place.with_context(|| format!("partition {partition} has no owner"))
}
