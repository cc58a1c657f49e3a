//! What the nodes' disks hold at the end: the segment files, read as any program would.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use weft_batch::{Batch, HEADER_BYTES, Header};
use xxhash_rust::xxh3::xxh3_64;

use crate::cluster::{Cluster, DATA};
use crate::disk::SimDisk;
use crate::entropy::EPOCH;
use crate::history::{History, What};
use crate::plan::Plan;

/// How far log time may be ahead: the tolerance of clocks that differ (`link.clock_tolerance`).
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// A segment file's place in a data folder: `shard-S/rREPLICA/tTOPIC-pINDEX/BASE[.vVERSION].seg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Segment {
    topic: u32,
    partition: u32,
    replica: u64,
    version: u64,
    base: u64,
}

/// Writes the events on every node's disk into the history, save those of a node whose disk has rotted and is not
/// healed.
///
/// # Errors
/// A segment that is damaged although nothing was done to its disk; a batch stamped in the future although a majority
/// of clocks is good.
pub(crate) fn read(plan: &Plan, cluster: &Cluster<'_>, history: &History) -> Result<()> {
    let now = EPOCH + cluster.sim.elapsed();
    let latest = plan.clocks_can_be_told().then(|| (now + CLOCKS_APART).as_millis() as i64);
    for (number, control) in cluster.controls.iter().enumerate() {
        if plan.heals || !plan.rots(number) {
            read_node(&control.name, &control.disk, latest, history)?;
        }
    }
    Ok(())
}

fn read_node(node: &str, disk: &SimDisk, latest: Option<i64>, history: &History) -> Result<()> {
    let mut partitions: BTreeMap<(u32, u32), Vec<(Segment, std::path::PathBuf)>> = BTreeMap::new();
    for (path, _) in disk.files() {
        if let Some(segment) = place(&path) {
            partitions.entry((segment.topic, segment.partition)).or_default().push((segment, path));
        }
    }
    for ((_, partition), mut files) in partitions {
        // A replica that came back under a new id, and a file that was fetched again, replace the older ones.
        let newest = files.iter().map(|(segment, _)| segment.replica).max();
        files.retain(|(segment, _)| Some(segment.replica) == newest);
        files.sort_by_key(|(segment, _)| (segment.base, std::cmp::Reverse(segment.version)));
        let mut next = 0;
        for (_, path) in files {
            for batch in batches(disk.contents(&path)?).with_context(|| format!("{node}: {}", path.display()))? {
                let time = batch.header().log_time_ms;
                ensure!(latest.is_none_or(|latest| time <= latest), "{node}: log time {time} is in the future");
                if batch.header().base_offset >= next {
                    next = batch.header().end_offset();
                    note(node, partition, &batch, history)?;
                }
            }
        }
    }
    Ok(())
}

fn note(node: &str, partition: u32, batch: &Batch, history: &History) -> Result<()> {
    let bytes = xxh3_64(batch.bytes());
    for index in 0..batch.count() {
        let id = batch.decode(index)?.id.parse().unwrap_or(u64::MAX);
        let offset = batch.header().base_offset + u64::from(index);
        let digest = bytes.wrapping_add(u64::from(index));
        history.add_at(0, "disks", What::OnDisk { node: node.to_owned(), partition, offset, id, digest });
    }
    Ok(())
}

fn batches(data: Vec<u8>) -> Result<Vec<Batch>> {
    let data = Bytes::from(data);
    let mut found = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let header = Header::read(&data[at..]).with_context(|| format!("at byte {at}"))?;
        let end = at + HEADER_BYTES + header.body_len();
        ensure!(end <= data.len(), "the batch at byte {at} ends past the file");
        let batch = Batch::parse(data.slice(at..end)).with_context(|| format!("at byte {at}"))?;
        batch.check_body().with_context(|| format!("at byte {at}"))?;
        found.push(batch);
        at = end;
    }
    Ok(found)
}

fn place(path: &Path) -> Option<Segment> {
    let mut parts = path.strip_prefix(DATA).ok()?.iter().map(|part| part.to_str());
    parts.next()??.strip_prefix("shard-")?;
    let replica = parts.next()??.strip_prefix('r')?.parse().ok()?;
    let (topic, partition) = parts.next()??.strip_prefix('t')?.split_once("-p")?;
    let name = parts.next()??.strip_suffix(".seg")?;
    let (base, version) = name.split_once(".v").unwrap_or((name, "0"));
    Some(Segment {
        topic: topic.parse().ok()?,
        partition: partition.parse().ok()?,
        replica,
        version: version.parse().ok()?,
        base: base.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_files_name_is_read() {
        let path = Path::new("/data/shard-3/r17/t1-p2/00000000000000000042.v2.seg");
        let expected = Segment { topic: 1, partition: 2, replica: 17, version: 2, base: 42 };
        assert_eq!(place(path), Some(expected));
        assert_eq!(place(Path::new("/data/journal/J-0.wal")), None);
    }
}
