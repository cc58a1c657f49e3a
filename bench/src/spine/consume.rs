//! Reading in bulk, and with an ack per event.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weft_e2e::cluster::Cluster;
use weft_sdk::{Client, StartAt};

use super::{Events, topic};
use crate::figure::{Figure, Stretch};

pub(super) const BULK: &str = "consume, bulk";
pub(super) const ACKED: &str = "consume, ack per event";

/// Events stored before reading begins.
const STORED: u64 = 2_000_000;
/// Their bytes.
const EVENT_BYTES: usize = 128;
/// Deliveries in flight to the consumer of a group.
const GROUP_CREDIT: u64 = 10_000;

/// Stores what is read afterwards; returns the topic.
pub(super) async fn store(client: &Client) -> Result<String> {
    let topic = topic(client, "consume").await?;
    let events = Events::of(EVENT_BYTES);
    let producer = client.producer(&topic).open().await?;
    for number in 0..STORED {
        producer.push(events.make(number)).await?;
    }
    producer.close().await?;
    Ok(topic)
}

/// One observer reads all, from the disk on.
pub(super) async fn bulk(cluster: &Cluster, client: &Client, topic: &str) -> Result<Figure> {
    let subscriber = client.subscriber(topic).start(StartAt::Earliest).credit(16 << 20).until_end();
    let mut figure = Figure::new(BULK);
    let stretch = Stretch::begin(cluster)?;
    let mut observer = subscriber.observe().await?;
    let mut count = 0;
    while let Some(observed) = observer.next().await? {
        // What a reader does at least: to decode.
        anyhow::ensure!(observed.event()?.data.len() == EVENT_BYTES, "an event came back with another size");
        count += 1;
    }
    anyhow::ensure!(count == STORED, "{count} of {STORED} events were read");
    stretch.end()?.of(count, &mut figure);
    Ok(figure)
}

/// One consumer of a group acks each event and waits for the acks to be committed at the end.
pub(super) async fn acked(cluster: &Cluster, client: &Client, topic: &str, time: Duration) -> Result<Figure> {
    let mut consumer = client.subscriber(topic).credit(GROUP_CREDIT).group("bench").await.context("join")?;
    let mut figure = Figure::new(ACKED);
    let stretch = Stretch::begin(cluster)?;
    let end = Instant::now() + time;
    let mut count = 0;
    while Instant::now() < end && count < STORED {
        consumer.next().await?.handle.ack();
        count += 1;
    }
    consumer.flush_acks().await?;
    stretch.end()?.of(count, &mut figure);
    Ok(figure)
}
