//! What processes have used, from /proc.

use std::fs;

use anyhow::{Context, Result};

/// CPU seconds of some processes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Cpu {
    /// What all `pids` have used since they started.
    pub(crate) fn of(pids: &[u32]) -> Result<Cpu> {
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        let mut cpu = Cpu::default();
        for pid in pids {
            let stat =
                fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read the CPU of {pid}"))?;
            // The name, in brackets, may hold anything; utime and stime are the 12th and 13th fields after it.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let seconds = |field: usize| -> Result<f64> {
                let ticks = fields.get(field).context("a field of stat")?.parse::<u32>().context("ticks")?;
                Ok(f64::from(ticks) / ticks_per_second)
            };
            cpu.user += seconds(11)?;
            cpu.system += seconds(12)?;
        }
        Ok(cpu)
    }

    /// Of user and system together.
    pub(crate) fn total(&self) -> f64 {
        self.user + self.system
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Cpu) -> Cpu {
        Cpu { user: self.user - before.user, system: self.system - before.system }
    }
}

/// Resident bytes of one process.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let statm =
        fs::read_to_string(format!("/proc/{pid}/statm")).with_context(|| format!("read the memory of {pid}"))?;
    let pages: u64 = statm.split_whitespace().nth(1).context("a field of statm")?.parse().context("pages")?;
    Ok(pages * rustix::param::page_size() as u64)
}
