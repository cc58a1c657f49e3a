//! What is in a data folder, for people: reads only, takes no lock.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Serialize;
use weft_cluster::ids::{LogPosition, Offset, RaftGroup};

use super::meta::group_dir;
use super::recovery::{self, LoadedGroup};
use super::segments::{scan, segment_path};
use super::{identity, recovery::Loaded};
use crate::host::{Disk, Open};

/// A data folder's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DumpReport {
    /// The store id, in hex.
    pub node: String,
    /// The cluster id in hex, if the node has joined one.
    pub cluster: Option<String>,
    /// How often the folder was opened.
    pub generation: u64,
    /// The number of the manifest in use; 0: none yet.
    pub manifest: u64,
    /// The first journal frame that is needed, and the last whole one.
    pub journal_frames: (u64, u64),
    /// Journal files.
    pub journal_files: usize,
    /// Bytes of them.
    pub journal_bytes: u64,
    /// Frames at the end that were never finished: normal after a crash.
    pub journal_torn: usize,
    /// The groups, by id.
    pub groups: Vec<DumpGroup>,
    /// All damage found; empty in a sound folder.
    pub problems: Vec<String>,
}

/// A group in a data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DumpGroup {
    /// The Raft group: 0 is the registry, shard s is s + 1.
    pub group: u64,
    /// The shard; none for the registry.
    pub shard: Option<u32>,
    /// The replica id.
    pub replica: u64,
    /// Why nothing of it may be used.
    pub fenced: Option<String>,
    /// The term of the last vote.
    pub vote_term: Option<u64>,
    /// The replica voted for.
    pub vote_for: Option<u64>,
    /// `term.index`.
    pub committed: Option<String>,
    /// `term.index`.
    pub purged: Option<String>,
    /// The first index in the log.
    pub log_first: Option<u64>,
    /// `term.index` of the last entry.
    pub log_last: Option<String>,
    /// `term.index` that the last checkpoint reflects.
    pub checkpoint: Option<String>,
    /// Bytes of its state.
    pub checkpoint_bytes: u64,
    /// The partitions of the last checkpoint; what is newer is still in the log only.
    pub partitions: Vec<DumpPartition>,
}

/// A partition in a data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DumpPartition {
    /// The topic's id.
    pub topic: u32,
    /// The partition's index.
    pub partition: u32,
    /// The first offset stored.
    pub start: u64,
    /// The offset after the last event.
    pub end: u64,
    /// Segment files.
    pub segments: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Damage found in its batches' headers or bodies.
    pub damage: Vec<String>,
}

/// Reads a data folder without changing it. Of a folder in use the answer may be a little old.
///
/// # Errors
/// No data folder of ours, or one that cannot be read at all; other damage is in the report.
pub fn dump(disk: &dyn Disk, dir: &Path) -> io::Result<DumpReport> {
    let identity = identity::read(disk, dir)?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{} is no data folder: it has no FORMAT", dir.display()))
    })?;
    let loaded = recovery::load(disk, dir)?;
    let groups: Vec<_> = loaded.groups.iter().map(|(id, group)| dump_group(disk, dir, *id, group)).collect();
    let Loaded { scan, manifest, mut problems, last, .. } = loaded;
    problems.extend(groups.iter().flat_map(|group| &group.partitions).flat_map(|part| part.damage.clone()));
    Ok(DumpReport {
        node: identity.node.to_string(),
        cluster: identity.cluster.map(|cluster| format!("{cluster:016x}")),
        generation: identity.generation.0,
        manifest: manifest.number,
        journal_frames: (manifest.floor_lsn, last.0),
        journal_files: scan.slots.len(),
        journal_bytes: scan.slots.values().map(|slot| slot.bytes).sum(),
        journal_torn: scan.torn,
        groups,
        problems,
    })
}

fn dump_group(disk: &dyn Disk, dir: &Path, id: u64, group: &LoadedGroup) -> DumpGroup {
    let text = |at: Option<LogPosition>| at.map(|at| at.to_string());
    let last = group.entries.last_key_value().map(|(index, entry)| LogPosition { term: entry.term, index: *index });
    DumpGroup {
        group: id,
        shard: RaftGroup(id).shard().map(|shard| shard.0),
        replica: group.replica,
        fenced: group.fenced.clone(),
        vote_term: group.vote.map(|vote| vote.term),
        vote_for: group.vote.and_then(|vote| vote.voted_for),
        committed: text(group.committed),
        purged: text(group.purged),
        log_first: group.entries.keys().next().copied(),
        log_last: text(last),
        checkpoint: text(group.checkpoint.as_ref().map(|meta| meta.at())),
        checkpoint_bytes: group.meta.as_ref().map_or(0, |meta| meta.state.len() as u64),
        partitions: dump_partitions(disk, dir, id, group),
    }
}

fn dump_partitions(disk: &dyn Disk, dir: &Path, id: u64, group: &LoadedGroup) -> Vec<DumpPartition> {
    let folder = group_dir(dir, RaftGroup(id), group.replica);
    let mut partitions: BTreeMap<(u32, u32), DumpPartition> = BTreeMap::new();
    for file in group.meta.iter().flat_map(|meta| &meta.files) {
        let path = segment_path(&folder, file.partition(), Offset(file.base), file.version);
        let part = partitions.entry((file.topic, file.index)).or_insert_with(|| DumpPartition {
            topic: file.topic,
            partition: file.index,
            start: file.base,
            end: file.end,
            segments: 0,
            bytes: 0,
            damage: Vec::new(),
        });
        part.start = part.start.min(file.base);
        part.end = part.end.max(file.end);
        part.segments += 1;
        part.bytes += file.bytes;
        let checked = disk.open(&path, Open::Read).and_then(|open| {
            let mut batches = Vec::new();
            scan(&*open, &path, file.bytes, |header, at| batches.push((*header, at)))?;
            for (header, at) in batches {
                let batch = open.read_exact_at(header.len as usize, at)?;
                if crc32c::crc32c(&batch[weft_batch::HEADER_BYTES..]) != header.body_crc {
                    let message = format!("{} is damaged at byte {at}: the batch's CRC does not match", path.display());
                    return Err(super::envelope::invalid(message));
                }
            }
            Ok(())
        });
        part.damage.extend(checked.err().map(|error| error.to_string()));
    }
    partitions.into_values().collect()
}
