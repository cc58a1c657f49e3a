//! The publish races.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc};
use weft_e2e::cluster::Cluster;
use weft_sdk::{Ack, Client, StartAt};

use super::{Stretch, event, latencies, percentiles, topic};

/// Publishes in flight in the race of single publishes.
const IN_FLIGHT: usize = 1_000;
/// Events a second in the open loop.
const OPEN_LOOP_PER_S: u32 = 5_000;

/// One batching producer, as fast as it goes.
pub(super) async fn bulk(
    cluster: &Cluster,
    client: &Client,
    event_bytes: usize,
    batch_bytes: usize,
    time: Duration,
) -> Result<Map<String, Value>> {
    let topic = topic(client, &format!("bulk-{event_bytes}-{batch_bytes}")).await?;
    let producer = client.producer(&topic).batch_bytes(batch_bytes).linger(Duration::from_millis(5)).open().await?;
    let stretch = Stretch::begin(cluster)?;
    let mut number = 0;
    while stretch.started.elapsed() < time {
        for _ in 0..256 {
            producer.push(event(number, event_bytes)).await?;
            number += 1;
        }
    }
    let published = producer.close().await?;
    anyhow::ensure!(published.failed == 0, "{} publishes failed", published.failed);
    let mut figure = stretch.end(published.events)?;
    figure.insert("event_bytes".into(), json!(event_bytes));
    figure.insert("batch_bytes".into(), json!(batch_bytes));
    Ok(figure)
}

/// 1,000 publishes in flight, each with its own receipt.
pub(super) async fn single(
    cluster: &Cluster,
    client: &Client,
    event_bytes: usize,
    publishers: usize,
    time: Duration,
) -> Result<Map<String, Value>> {
    let topic = topic(client, &format!("single-{event_bytes}-{publishers}")).await?;
    let stretch = Stretch::begin(cluster)?;
    let end = Instant::now() + time;
    let (done, mut micros) = mpsc::channel::<u64>(IN_FLIGHT * 4);
    for publisher in 0..publishers {
        let producer = client.producer(&topic).linger(Duration::ZERO).open().await?;
        let room = Arc::new(Semaphore::new((IN_FLIGHT / publishers).max(1)));
        let done = done.clone();
        tokio::spawn(async move {
            let mut number = publisher as u64;
            while Instant::now() < end {
                let permit = room.clone().acquire_owned().await.context("the semaphore stays open")?;
                let sent = Instant::now();
                let pending = producer.send(event(number, event_bytes)).await?;
                let done = done.clone();
                tokio::spawn(async move {
                    if pending.await.is_ok() {
                        let _ = done.send(sent.elapsed().as_micros() as u64).await;
                    }
                    drop(permit);
                });
                number += 7;
            }
            producer.close().await?;
            anyhow::Ok(())
        });
    }
    drop(done);
    let mut histogram = latencies()?;
    while let Some(micros) = micros.recv().await {
        histogram.saturating_record(micros);
    }
    let mut figure = stretch.end(histogram.len())?;
    percentiles(&histogram, &mut figure);
    figure.insert("event_bytes".into(), json!(event_bytes));
    figure.insert("publishers".into(), json!(publishers));
    Ok(figure)
}

/// The next publish after the receipt of the one before.
pub(super) async fn one_at_a_time(client: &Client, time: Duration) -> Result<Map<String, Value>> {
    let topic = topic(client, "one-at-a-time").await?;
    let mut histogram = latencies()?;
    let started = Instant::now();
    let mut number = 0;
    while started.elapsed() < time {
        let sent = Instant::now();
        for result in client.publish(&topic, vec![event(number, 128)], Ack::Committed).await? {
            result?;
        }
        histogram.saturating_record(sent.elapsed().as_micros() as u64);
        number += 1;
    }
    let mut figure = Map::new();
    percentiles(&histogram, &mut figure);
    figure.insert("events".into(), json!(number));
    Ok(figure)
}

/// From `send` to an observer at another node, at a fixed rate whatever the answers do.
pub(super) async fn end_to_end(client: &Client, time: Duration) -> Result<Map<String, Value>> {
    let topic = topic(client, "end-to-end").await?;
    let mut observer = client.subscriber(&topic).start(StartAt::Earliest).observe().await?;
    let producer = client.producer(&topic).linger(Duration::ZERO).open().await?;
    let count = u64::from(OPEN_LOOP_PER_S) * time.as_secs();
    let started = Instant::now();
    tokio::spawn(async move {
        for number in 0..count {
            tokio::time::sleep_until((started + Duration::from_secs(1) / OPEN_LOOP_PER_S * number as u32).into()).await;
            let mut event = event(number, 128);
            event.id = started.elapsed().as_micros().to_string();
            if producer.push(event).await.is_err() {
                return;
            }
        }
        let _ = producer.close().await;
    });
    let mut histogram = latencies()?;
    for _ in 0..count {
        let observed = observer.next().await?.context("the observer goes on")?;
        let sent: u64 = observed.event()?.id.parse().context("the time of sending")?;
        histogram.saturating_record((started.elapsed().as_micros() as u64).saturating_sub(sent));
    }
    let mut figure = Map::new();
    percentiles(&histogram, &mut figure);
    figure.insert("events_per_s".into(), json!(OPEN_LOOP_PER_S));
    Ok(figure)
}
