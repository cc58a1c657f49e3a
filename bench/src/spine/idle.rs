//! What three nodes cost that do nothing.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};
use weft_e2e::cluster::Cluster;

use super::round;
use crate::process::{cpu_seconds, resident_bytes};

/// Time for the founding to settle.
const SETTLE: Duration = Duration::from_secs(3);

/// CPU share of a core and resident memory, per node.
pub(super) async fn idle(cluster: &Cluster, time: Duration) -> Result<Map<String, Value>> {
    tokio::time::sleep(SETTLE).await;
    let pids = cluster.pids();
    let before = cpu_seconds(&pids)?;
    tokio::time::sleep(time).await;
    let share = (cpu_seconds(&pids)? - before) / time.as_secs_f64() / pids.len() as f64;
    let resident: Vec<u64> = pids.iter().map(|pid| resident_bytes(*pid)).collect::<Result<_>>()?;
    let mut figure = Map::new();
    figure.insert("cpu_percent_per_node".into(), json!(round(share * 100.0)));
    figure.insert("resident_mib_max".into(), json!(resident.iter().max().map(|bytes| bytes >> 20)));
    Ok(figure)
}
