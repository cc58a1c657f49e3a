//! Reading in bulk, and with an ack per event.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use weft_e2e::cluster::Cluster;
use weft_sdk::{Client, StartAt};

use super::{Stretch, event, topic};

/// Events stored before reading begins.
const STORED: u64 = 500_000;

/// Both figures, over the same 128-byte events.
pub(super) async fn consume(cluster: &Cluster, client: &Client, time: Duration) -> Result<Vec<Map<String, Value>>> {
    let topic = topic(client, "consume").await?;
    let producer = client.producer(&topic).linger(Duration::from_millis(5)).open().await?;
    for number in 0..STORED {
        producer.push(event(number, 128)).await?;
    }
    producer.close().await?;
    Ok(vec![bulk(cluster, client, &topic).await?, acked(cluster, client, &topic, time).await?])
}

async fn bulk(cluster: &Cluster, client: &Client, topic: &str) -> Result<Map<String, Value>> {
    let mut observer = client.subscriber(topic).start(StartAt::Earliest).credit(16 << 20).until_end().observe().await?;
    let stretch = Stretch::begin(cluster)?;
    let mut count = 0;
    while observer.next().await?.is_some() {
        count += 1;
    }
    anyhow::ensure!(count == STORED, "{count} of {STORED} events were read");
    let mut figure = stretch.end(count)?;
    figure.insert("acks".into(), json!(false));
    Ok(figure)
}

async fn acked(cluster: &Cluster, client: &Client, topic: &str, time: Duration) -> Result<Map<String, Value>> {
    let mut consumer = client.subscriber(topic).credit(16_384).group("bench").await.context("join")?;
    let stretch = Stretch::begin(cluster)?;
    let end = Instant::now() + time;
    let mut count = 0;
    while Instant::now() < end && count < STORED {
        consumer.next().await?.handle.ack();
        count += 1;
    }
    consumer.flush_acks().await?;
    let mut figure = stretch.end(count)?;
    figure.insert("acks".into(), json!(true));
    Ok(figure)
}
