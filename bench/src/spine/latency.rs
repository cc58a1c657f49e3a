//! Latency: one publish at a time, and from publish to delivery at a fixed rate.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use weft_e2e::cluster::Cluster;
use weft_sdk::{Ack, Client, Producer, StartAt};

use super::{Events, topic};
use crate::figure::{Figure, Stretch, micros};

pub(super) const UNARY: &str = "one at a time, unary";
pub(super) const STREAM: &str = "one at a time, stream";
pub(super) const END_TO_END: &str = "end to end at 5,000/s";

/// Bytes of an event.
const EVENT_BYTES: usize = 128;
/// Events a second in the open loop.
const OPEN_LOOP_PER_S: u32 = 5_000;
/// Events of the open loop before those that count.
const WARM_UP: u64 = OPEN_LOOP_PER_S as u64 / 2;

/// Unary publishes, the next one after the receipt of the one before.
pub(super) async fn unary(cluster: &Cluster, client: &Client, time: Duration) -> Result<Figure> {
    let topic = topic(client, "one-unary").await?;
    let events = Events::of(EVENT_BYTES);
    one_by_one(cluster, UNARY, time, async |number| {
        for result in client.publish(&topic, vec![events.make(number)], Ack::Committed).await? {
            result?;
        }
        Ok(())
    })
    .await
}

/// The same over a producer's stream.
pub(super) async fn stream(cluster: &Cluster, client: &Client, time: Duration) -> Result<Figure> {
    let topic = topic(client, "one-stream").await?;
    let events = Events::of(EVENT_BYTES);
    let producer = client.producer(&topic).open().await?;
    one_by_one(cluster, STREAM, time, async |number| {
        producer.send(events.make(number)).await?.await?;
        Ok(())
    })
    .await
}

async fn one_by_one(
    cluster: &Cluster,
    name: &str,
    time: Duration,
    publish: impl AsyncFn(u64) -> Result<()>,
) -> Result<Figure> {
    let mut histogram = micros()?;
    let mut figure = Figure::new(name);
    let stretch = Stretch::begin(cluster)?;
    let until = Instant::now() + time;
    while Instant::now() < until {
        let sent = Instant::now();
        publish(histogram.len()).await?;
        histogram.saturating_record(sent.elapsed().as_micros() as u64);
    }
    stretch.end()?.of(histogram.len(), &mut figure);
    figure.percentiles(&histogram);
    Ok(figure)
}

/// From the instant at which an event was due, whatever the answers do, to an observer that has it.
pub(super) async fn end_to_end(cluster: &Cluster, client: &Client, time: Duration) -> Result<Figure> {
    let topic = topic(client, "end-to-end").await?;
    let mut observer = client.subscriber(&topic).start(StartAt::Earliest).observe().await?;
    let producer = client.producer(&topic).open().await?;
    let count = u64::from(OPEN_LOOP_PER_S) * time.as_secs() + WARM_UP;
    let schedule = Schedule { started: Instant::now(), count };
    let stretch = Stretch::begin(cluster)?;
    let (sending, handle) = (schedule, Handle::current());
    // A thread of its own: the runtime's timers are as coarse as what is measured.
    let sender = std::thread::spawn(move || sending.send(&producer, &handle));
    let mut histogram = micros()?;
    for _ in 0..count {
        let observed = observer.next().await?.context("the observer goes on")?;
        let number: u64 = observed.event()?.id.parse().context("the number of an event")?;
        if number >= WARM_UP {
            histogram.saturating_record(schedule.due(number).elapsed().as_micros() as u64);
        }
    }
    let mut figure = Figure::new(END_TO_END);
    stretch.end()?.of(count, &mut figure);
    figure.percentiles(&histogram);
    sender.join().map_err(|_| anyhow::anyhow!("the sending thread panicked"))??;
    Ok(figure)
}

/// When each event is due.
#[derive(Clone, Copy)]
struct Schedule {
    started: Instant,
    count: u64,
}

impl Schedule {
    fn due(&self, number: u64) -> Instant {
        self.started + Duration::from_secs(1) * u32::try_from(number).unwrap_or(u32::MAX) / OPEN_LOOP_PER_S
    }

    fn send(&self, producer: &Producer, runtime: &Handle) -> Result<()> {
        let events = Events::of(EVENT_BYTES);
        for number in 0..self.count {
            std::thread::sleep(self.due(number).saturating_duration_since(Instant::now()));
            let mut event = events.make(number);
            event.id = number.to_string();
            runtime.block_on(producer.push(event))?;
        }
        runtime.block_on(producer.close())?;
        Ok(())
    }
}
