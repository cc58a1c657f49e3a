//! Watchers: one per node, reading at its door for operators how much waits in its queues.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Shared;
use crate::cluster::ADMIN_PORT;
use crate::history::What;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(100);
/// What is read: bytes that wait for links, for the journal, and for a shard's next proposal. Summed over peers.
const NAMES: [&str; 3] = ["weft_link_queue_bytes", "weft_storage_queue_bytes", "weft_shard_queued_bytes"];

/// Reads one node's gauges, all the time.
pub(super) async fn watcher(shared: Shared, node: usize) {
    let name = format!("n{}", node + 1);
    loop {
        // A node may be away.
        if let Ok(page) = page(&shared, node).await {
            for gauge in NAMES {
                let value = sum(&page, gauge);
                shared.history.add("watcher", What::Gauge { node: name.clone(), name: gauge.to_owned(), value });
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn page(shared: &Shared, node: usize) -> Result<String> {
    let (host, _) = shared.servers[node].rsplit_once(':').context("a server has a port")?;
    let mut door = crate::net::connect(None, crate::host::resolve(&format!("{host}:{ADMIN_PORT}"))?).await?;
    door.write_all(b"GET /metrics HTTP/1.0\r\nhost: node\r\n\r\n").await?;
    let mut page = String::new();
    door.read_to_string(&mut page).await?;
    Ok(page)
}

fn sum(page: &str, gauge: &str) -> i64 {
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let name = series.split('{').next()?;
        (name == gauge).then(|| value.parse::<i64>().ok())?
    };
    page.lines().filter_map(value).sum()
}
