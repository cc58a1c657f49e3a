//! The race of single publishes: many in flight, each with a receipt of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use hdrhistogram::Histogram;
use weft_e2e::cluster::Cluster;
use weft_sdk::{Client, Producer};

use super::{Events, size, topic};
use crate::figure::{Figure, Stretch, micros};

/// Publishes in flight, over all publishers.
const IN_FLIGHT: usize = 1_000;

pub(super) fn name(event_bytes: usize, publishers: usize) -> String {
    format!("single {}, {publishers} publishers", size(event_bytes)).replace(" 1 publishers", " 1 publisher")
}

/// `publishers` producers, each with a stream of its own, share 1,000 publishes in flight. The first fifth of the time
/// warms up and is not counted.
pub(super) async fn single(
    cluster: &Cluster,
    client: &Client,
    event_bytes: usize,
    publishers: usize,
    time: Duration,
) -> Result<Figure> {
    let topic = topic(client, &format!("single-{event_bytes}-{publishers}")).await?;
    let events = Arc::new(Events::of(event_bytes));
    let mut producers = Vec::new();
    for _ in 0..publishers {
        producers.push(client.producer(&topic).open().await?);
    }
    let begin = Instant::now() + time / 5;
    let mut running = Vec::new();
    for (producer, publisher) in producers.into_iter().zip(0u64..) {
        let in_flight = (IN_FLIGHT / publishers).max(1);
        running.push(tokio::spawn(publish(producer, events.clone(), publisher * 101, in_flight, begin, begin + time)));
    }
    tokio::time::sleep_until(begin.into()).await;
    let stretch = Stretch::begin(cluster)?;
    tokio::time::sleep_until((begin + time).into()).await;
    let cost = stretch.end()?;
    let mut all = micros()?;
    for publisher in running {
        all.add(publisher.await??)?;
    }
    let mut figure = Figure::new(name(event_bytes, publishers));
    cost.of(all.len(), &mut figure);
    figure.percentiles(&all);
    Ok(figure)
}

/// Keeps `in_flight` publishes going until `end`; times those that end between `begin` and `end`.
async fn publish(
    producer: Producer,
    events: Arc<Events>,
    first: u64,
    in_flight: usize,
    begin: Instant,
    end: Instant,
) -> Result<Histogram<u64>> {
    let mut histogram = micros()?;
    let mut pending = FuturesUnordered::new();
    let mut number = first;
    while Instant::now() < end {
        while pending.len() < in_flight {
            let (sent, receipt) = (Instant::now(), producer.send(events.make(number)).await?);
            pending.push(async move { receipt.await.map(|_| (sent, Instant::now())) });
            number += 1;
        }
        let mut next = pending.next().await;
        while let Some(answered) = next {
            let (sent, at) = answered?;
            if (begin..end).contains(&at) {
                histogram.saturating_record((at - sent).as_micros() as u64);
            }
            next = pending.next().now_or_never().flatten();
        }
    }
    while let Some(answered) = pending.next().await {
        answered?;
    }
    producer.close().await?;
    Ok(histogram)
}
