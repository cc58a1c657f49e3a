//! A publisher that goes on whatever happens, and the check that nothing of what it was promised is missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;
use weft_sdk::{Client, StartAt};

/// Between two events.
const EVERY: Duration = Duration::from_millis(2);
/// How long the events may take to be read.
const READ_MAX: Duration = Duration::from_secs(60);

/// Events that are being published to one topic.
pub(super) struct Load {
    client: Client,
    topic: &'static str,
    going: Arc<AtomicBool>,
    task: JoinHandle<Result<Published>>,
}

/// What a load has come to.
pub(super) struct Published {
    /// Receipts.
    pub(super) events: u64,
    /// The longest time between two of them.
    pub(super) longest_gap: Duration,
}

impl Load {
    /// Makes the topic and starts.
    pub(super) async fn start(nodes: Vec<String>, topic: &'static str, partitions: u32) -> Result<Load> {
        let client = Client::connect(nodes).await.context("connect")?;
        client.topics().create(topic, partitions).await.context("create the topic")?;
        let going = Arc::new(AtomicBool::new(true));
        let task = tokio::spawn(publish(client.clone(), topic, going.clone()));
        Ok(Load { client, topic, going, task })
    }

    /// Ends it and reads all back: every event with a receipt is there, once.
    pub(super) async fn finish(self) -> Result<Published> {
        self.going.store(false, Ordering::Relaxed);
        let published = self.task.await??;
        let mut reader = self.client.subscriber(self.topic).start(StartAt::Earliest).until_end().observe().await?;
        let mut seen = vec![0_u32; usize::try_from(published.events).context("few enough")?];
        let reading = async {
            while let Some(event) = reader.next().await.context("read")? {
                let number: usize = std::str::from_utf8(&event.event()?.data)?.parse().context("a number")?;
                *seen.get_mut(number).with_context(|| format!("event {number} was never confirmed"))? += 1;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(READ_MAX, reading).await.context("the events are not read in time")??;
        let missing = seen.iter().filter(|count| **count == 0).count();
        let doubled = seen.iter().filter(|count| **count > 1).count();
        ensure!(missing == 0 && doubled == 0, "{missing} confirmed events are missing, {doubled} came twice");
        Ok(published)
    }
}

async fn publish(client: Client, topic: &str, going: Arc<AtomicBool>) -> Result<Published> {
    let producer = client.producer(topic).open().await.context("open the producer")?;
    let (mut events, mut last, mut longest_gap) = (0_u64, Instant::now(), Duration::ZERO);
    while going.load(Ordering::Relaxed) {
        let sent = producer.send(weft_sdk::event(events.to_string(), events.to_string())).await.context("publish")?;
        sent.await.context("a receipt")?;
        events += 1;
        longest_gap = longest_gap.max(last.elapsed());
        last = Instant::now();
        tokio::time::sleep(EVERY).await;
    }
    producer.close().await.context("close the producer")?;
    Ok(Published { events, longest_gap })
}
