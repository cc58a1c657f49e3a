//! The process as the kernel sees it: memory, processor time, open files. Read from /proc when metrics are asked
//! for; where there is none (in simulation) the values stay 0.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::host::{Disk, Host, Open};

/// Clock ticks per second in /proc/self/stat: USER_HZ, 100 on every Linux that Weft runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes read of a file in /proc.
const FILE_BYTES_MAX: usize = 16 << 10;

/// The process's metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Process {
    resident_bytes: Gauge,
    cpu_seconds: Counter<f64, AtomicU64>,
    open_files: Gauge,
}

impl Process {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("weft_node_resident_bytes", "Memory in use (RSS)", self.resident_bytes.clone());
        registry.register("weft_node_cpu_seconds", "Processor time used, user and system", self.cpu_seconds.clone());
        registry.register("weft_node_open_files", "Open file descriptors", self.open_files.clone());
    }

    /// Reads the values anew.
    pub async fn sample(&self, host: &dyn Host) {
        let (disk, process) = (host.disk(), self.clone());
        host.run_blocking(move || process.read(&disk)).await;
    }

    fn read(&self, disk: &Arc<dyn Disk>) {
        if let Some(bytes) = text(disk, "/proc/self/status").as_deref().and_then(resident_bytes) {
            self.resident_bytes.set(bytes);
        }
        if let Some(seconds) = text(disk, "/proc/self/stat").as_deref().and_then(cpu_seconds) {
            self.cpu_seconds.inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        let files = disk.list(Path::new("/proc/self/fd"));
        if let Some(count) = files.ok().and_then(|files| i64::try_from(files.len()).ok()) {
            self.open_files.set(count);
        }
    }
}

fn text(disk: &Arc<dyn Disk>, path: &str) -> Option<String> {
    let file = disk.open(Path::new(path), Open::Read).ok()?;
    let mut buffer = vec![0; FILE_BYTES_MAX];
    let bytes = file.read_at(&mut buffer, 0).ok()?;
    Some(String::from_utf8_lossy(&buffer[..bytes]).into_owned())
}

/// The line `VmRSS:  1234 kB` of /proc/self/status.
fn resident_bytes(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Fields 14 and 15 of /proc/self/stat; field 2 may hold blanks and ends with the last parenthesis.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_understood() {
        assert_eq!(resident_bytes("Name:\tweft\nVmRSS:\t    1234 kB\n"), Some(1234 * 1024));
        assert_eq!(resident_bytes("Name:\tweft\n"), None);
        let stat = "42 (we ft) x) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("42"), None);
    }
}
