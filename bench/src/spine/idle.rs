//! What three nodes cost that do nothing.

use std::time::Duration;

use anyhow::Result;
use weft_e2e::cluster::Cluster;

use crate::figure::Figure;
use crate::process::{Cpu, resident_bytes};

/// Time for the founding to settle; its checkpoint comes after `storage.checkpoint_interval`, 15 s.
const SETTLE: Duration = Duration::from_secs(20);
/// Less time would measure the ticks of the clock in /proc.
const TIME_MIN: Duration = Duration::from_secs(10);

/// CPU share of a core and resident memory, per node, of three nodes with 64 shards.
pub(super) async fn idle(cluster: &Cluster, time: Duration) -> Result<Figure> {
    tokio::time::sleep(SETTLE).await;
    let (pids, time) = (cluster.pids(), time.max(TIME_MIN));
    let before = Cpu::of(&pids)?;
    tokio::time::sleep(time).await;
    let share = Cpu::of(&pids)?.since(&before).total() / time.as_secs_f64() / pids.len() as f64;
    let resident: Vec<u64> = pids.iter().map(|pid| resident_bytes(*pid)).collect::<Result<_>>()?;
    let mut figure = Figure::new("idle, per node");
    figure.set("cpu_percent", share * 100.0);
    figure.set("resident_mib_max", resident.into_iter().max().unwrap_or(0) as f64 / f64::from(1 << 20));
    Ok(figure)
}
