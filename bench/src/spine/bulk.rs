//! The bulk race: one batching producer, as fast as it goes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use weft_e2e::cluster::Cluster;
use weft_sdk::{Client, Producer};

use super::{Events, size, topic};
use crate::figure::{Figure, Stretch, micros};

/// One event of so many is timed from its push to its receipt.
const TIMED_EVERY: u64 = 1_024;

pub(super) fn name(event_bytes: usize, batch_bytes: usize) -> String {
    format!("bulk {}, {}", size(event_bytes), size(batch_bytes))
}

/// Events of `event_bytes` in batches of `batch_bytes`, over all partitions. The first fifth of the time warms up and
/// is not counted.
pub(super) async fn bulk(
    cluster: &Cluster,
    client: &Client,
    event_bytes: usize,
    batch_bytes: usize,
    time: Duration,
) -> Result<Figure> {
    let name = name(event_bytes, batch_bytes);
    let topic = topic(client, &format!("bulk-{event_bytes}-{batch_bytes}")).await?;
    let producer = client.producer(&topic).batch_bytes(batch_bytes).open().await?;
    let mut load = Load { producer, events: Events::of(event_bytes), number: 0, micros: micros()? };
    load.run(time / 5).await?;
    let before = load.producer.flush().await?.events;
    load.micros.reset();
    let mut figure = Figure::new(name);
    let stretch = Stretch::begin(cluster)?;
    load.run(time).await?;
    let published = load.producer.close().await.context("every event has its receipt")?;
    stretch.end()?.of(published.events - before, &mut figure);
    figure.percentiles(&load.micros);
    Ok(figure)
}

struct Load {
    producer: Producer,
    events: Events,
    number: u64,
    micros: hdrhistogram::Histogram<u64>,
}

impl Load {
    async fn run(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        let mut timed = FuturesUnordered::new();
        while Instant::now() < until {
            let (begun, pending) = (Instant::now(), self.producer.send(self.events.make(self.number)).await?);
            timed.push(async move { pending.await.map(|_| begun.elapsed()) });
            for number in 1..TIMED_EVERY {
                self.producer.push(self.events.make(self.number + number)).await?;
            }
            self.number += TIMED_EVERY;
            while let Some(Some(took)) = timed.next().now_or_never() {
                self.micros.saturating_record(took?.as_micros() as u64);
            }
        }
        while let Some(took) = timed.next().await {
            self.micros.saturating_record(took?.as_micros() as u64);
        }
        Ok(())
    }
}
