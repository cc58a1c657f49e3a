//! What processes have used, from /proc.

use std::fs;

use anyhow::{Context, Result};

/// CPU seconds (user and system) of all `pids` since they started.
pub(crate) fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read the CPU of {pid}"))?;
        // The name, in brackets, may hold anything; utime and stime are the 12th and 13th fields after it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        for field in [11, 12] {
            ticks += fields.get(field).context("a field of stat")?.parse::<u64>().context("ticks")?;
        }
    }
    Ok(ticks as f64 / ticks_per_second)
}

/// Resident bytes of one process.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let statm =
        fs::read_to_string(format!("/proc/{pid}/statm")).with_context(|| format!("read the memory of {pid}"))?;
    let pages: u64 = statm.split_whitespace().nth(1).context("a field of statm")?.parse().context("pages")?;
    Ok(pages * rustix::param::page_size() as u64)
}
