//! The publisher: every row in order through node 1, on through another node when that is killed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use tokio::sync::{mpsc, watch};
use weft_sdk::{Client, Pending};

use super::data::Row;

/// Receipts that may be awaited per partition before the publisher waits.
const PENDING_MAX: usize = 65_536;

/// What the publisher has seen, shared with the check.
#[derive(Default)]
pub(super) struct Progress {
    /// Rows with a receipt.
    pub(super) committed: AtomicUsize,
    times: Mutex<Times>,
}

#[derive(Default)]
struct Times {
    /// When receipts came.
    receipts: Vec<Instant>,
    /// Microseconds from `send` to receipt.
    latencies: Vec<u64>,
    errors: Vec<String>,
    /// Times at which the publisher waited by itself: no receipt was due.
    pauses: VecDeque<(Instant, Instant)>,
}

impl Progress {
    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receipt(&self, sent: Instant) {
        let now = Instant::now();
        let mut times = self.times();
        times.receipts.push(now);
        times.latencies.push(now.duration_since(sent).as_micros() as u64);
        self.committed.fetch_add(1, Ordering::Relaxed);
    }

    /// The longest time without a receipt in the 20 s after `kill`, the publisher's own pauses left out.
    pub(super) fn longest_gap(&self, kill: Instant) -> Duration {
        let times = self.times();
        let paused = |from: Instant, to: Instant| -> Duration {
            times.pauses.iter().map(|pause| pause.1.min(to).saturating_duration_since(pause.0.max(from))).sum()
        };
        let mut receipts = times.receipts.clone();
        receipts.sort_unstable();
        let mut last = kill;
        let mut longest = Duration::ZERO;
        for at in receipts.into_iter().filter(|at| *at > kill && *at < kill + Duration::from_secs(20)) {
            longest = longest.max((at - last).saturating_sub(paused(last, at)));
            last = at;
        }
        longest
    }

    /// p50 and p99 from `send` to receipt, in milliseconds.
    pub(super) fn percentiles(&self) -> Result<(f64, f64)> {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).context("a histogram")?;
        for micros in &self.times().latencies {
            histogram.saturating_record(*micros);
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Ok((at(0.5), at(0.99)))
    }

    /// Receipts a second while it was publishing.
    pub(super) fn events_per_second(&self) -> f64 {
        let times = self.times();
        let (Some(first), Some(last)) = (times.receipts.iter().min(), times.receipts.iter().max()) else { return 0.0 };
        let paused: Duration = times.pauses.iter().map(|(from, to)| *to - *from).sum();
        times.receipts.len() as f64 / (*last - *first).saturating_sub(paused).as_secs_f64().max(0.001)
    }

    /// Publishes that ended with an error.
    pub(super) fn errors(&self) -> Vec<String> {
        self.times().errors.clone()
    }
}

/// Publishes `rows` in order; goes no further than what `gate` lets through.
pub(super) async fn publish(
    client: Client,
    topic: &str,
    rows: Vec<Row>,
    partitions: u32,
    mut gate: watch::Receiver<usize>,
    progress: Arc<Progress>,
) -> Result<()> {
    let producer = client.producer(topic).open().await.context("open the producer")?;
    // Receipts of a partition come in order: one collector each sees every receipt when it comes.
    let mut collectors = Vec::new();
    let mut queues = Vec::new();
    for _ in 0..partitions {
        let (queue, pending) = mpsc::channel(PENDING_MAX);
        queues.push(queue);
        collectors.push(tokio::spawn(collect(pending, progress.clone())));
    }
    for (count, row) in rows.into_iter().enumerate() {
        if *gate.borrow_and_update() <= count {
            producer.flush().await.context("flush")?;
            let waiting_since = Instant::now();
            gate.wait_for(|open| *open > count).await.context("the check goes on")?;
            progress.times().pauses.push_back((waiting_since, Instant::now()));
        }
        let mut event = weft_sdk::event(row.key.clone(), row.line.clone());
        event.id = row.number.to_string();
        let sent = Instant::now();
        let pending = producer.send(event).await.with_context(|| format!("send row {}", row.number))?;
        let partition = weft_batch::hashing::partition_of(&row.key, partitions);
        queues[partition as usize].send((sent, pending)).await.context("a collector runs")?;
    }
    drop(queues);
    producer.close().await.context("close the producer")?;
    for collector in collectors {
        collector.await.context("a collector ends")?;
    }
    Ok(())
}

async fn collect(mut pending: mpsc::Receiver<(Instant, Pending)>, progress: Arc<Progress>) {
    while let Some((sent, pending)) = pending.recv().await {
        match pending.await {
            Ok(_) => progress.receipt(sent),
            Err(error) => progress.times().errors.push(error.to_string()),
        }
    }
}
