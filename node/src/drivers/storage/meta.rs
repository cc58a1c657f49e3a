//! What a checkpoint writes: MANIFEST, CURRENT and one state file per group.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_cluster::ids::{LogPosition, PartitionId, RaftGroup, TopicId};

use super::StoredVote;
use super::envelope::{self, Magic};
use crate::host::Disk;

const MANIFEST_MAGIC: &Magic = b"WEFTMANI";
const CURRENT_MAGIC: &Magic = b"WEFTCURR";
const META_MAGIC: &Magic = b"WEFTMETA";
const VERSION: u32 = 1;

/// Names a group's state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MetaRef {
    /// Grows over all groups; names the file.
    pub(super) number: u64,
    pub(super) term: u64,
    pub(super) index: u64,
    /// CRC-32C of the whole file.
    pub(super) crc: u32,
}

impl MetaRef {
    /// The position that the state reflects.
    pub(super) fn at(&self) -> LogPosition {
        LogPosition { term: self.term, index: self.index }
    }
}

/// A segment file as a checkpoint knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) topic: u32,
    pub(super) index: u32,
    pub(super) base: u64,
    /// 0, or the number of the snapshot that it came with.
    pub(super) version: u64,
    pub(super) bytes: u64,
    pub(super) crc: u32,
    /// The offset after its last event.
    pub(super) end: u64,
}

impl FileRecord {
    pub(super) fn partition(&self) -> PartitionId {
        PartitionId { topic: TopicId(self.topic), index: self.index }
    }
}

/// A group's state file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) group: u64,
    pub(super) replica: u64,
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) files: Vec<FileRecord>,
    pub(super) state: Vec<u8>,
}

/// A group in MANIFEST.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct GroupRecord {
    pub(super) group: u64,
    pub(super) replica: u64,
    /// term, voted for, committed.
    pub(super) vote: Option<(u64, Option<u64>, bool)>,
    pub(super) committed: Option<(u64, u64)>,
    pub(super) purged: Option<(u64, u64)>,
    pub(super) checkpoint: Option<MetaRef>,
    pub(super) fenced: Option<String>,
}

/// MANIFEST-<number>.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) number: u64,
    /// The first frame that is needed, and its `prev_crc`.
    pub(super) floor_lsn: u64,
    pub(super) floor_prev_crc: u32,
    /// Frames up to this one were durable when the manifest was written.
    pub(super) durable_lsn: u64,
    /// The next number of a state file.
    pub(super) meta_next: u64,
    pub(super) groups: Vec<GroupRecord>,
}

/// The payload of an `Install` record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Switch {
    pub(super) meta: MetaRef,
}

pub(super) fn pack(at: LogPosition) -> (u64, u64) {
    (at.term, at.index)
}

pub(super) fn unpack((term, index): (u64, u64)) -> LogPosition {
    LogPosition { term, index }
}

pub(super) fn pack_vote(vote: StoredVote) -> (u64, Option<u64>, bool) {
    (vote.term, vote.voted_for, vote.committed)
}

pub(super) fn unpack_vote((term, voted_for, committed): (u64, Option<u64>, bool)) -> StoredVote {
    StoredVote { term, voted_for, committed }
}

/// The folder of a group's replica: a deleted replica's files do not meet those of its successor.
pub(super) fn group_dir(dir: &Path, group: RaftGroup, replica: u64) -> PathBuf {
    let name = group.shard().map_or_else(|| "registry".to_owned(), |shard| format!("shard-{}", shard.0));
    dir.join(name).join(format!("r{replica}"))
}

pub(super) fn meta_path(group_dir: &Path, number: u64) -> PathBuf {
    group_dir.join(format!("meta-{number}.snap"))
}

/// The number in a state file's name.
pub(super) fn meta_number(name: &Path) -> Option<u64> {
    name.to_str()?.strip_prefix("meta-")?.strip_suffix(".snap")?.parse().ok()
}

/// Writes a group's state file; durable on return.
pub(super) fn write_meta(disk: &dyn Disk, group_dir: &Path, number: u64, meta: &Meta) -> io::Result<MetaRef> {
    let bytes = envelope::seal(META_MAGIC, VERSION, meta)?;
    envelope::replace(disk, &meta_path(group_dir, number), &bytes)?;
    Ok(MetaRef { number, term: meta.term, index: meta.index, crc: crc32c::crc32c(&bytes) })
}

/// Reads the state file that `which` names.
pub(super) fn read_meta(disk: &dyn Disk, group_dir: &Path, which: &MetaRef) -> io::Result<Meta> {
    let path = meta_path(group_dir, which.number);
    let bytes = envelope::read_file(disk, &path)?;
    if crc32c::crc32c(&bytes) != which.crc {
        return Err(envelope::invalid(format!("{} is damaged: its CRC does not match", path.display())));
    }
    envelope::unseal(&path, META_MAGIC, VERSION, &bytes)
}

fn manifest_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("MANIFEST-{number}"))
}

/// Writes MANIFEST-<number> and points CURRENT at it; durable on return.
pub(super) fn write_manifest(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> io::Result<()> {
    let bytes = envelope::seal(MANIFEST_MAGIC, VERSION, manifest)?;
    envelope::replace(disk, &manifest_path(dir, manifest.number), &bytes)?;
    let current = envelope::seal(CURRENT_MAGIC, VERSION, &manifest.number)?;
    envelope::replace(disk, &dir.join("CURRENT"), &current)
}

/// All manifests that can be read, the one to use first; and what was found wrong.
pub(super) fn read_manifests(disk: &dyn Disk, dir: &Path) -> io::Result<(Vec<Manifest>, Vec<String>)> {
    let mut problems = Vec::new();
    let current_path = dir.join("CURRENT");
    let current: Option<u64> = match disk.exists(&current_path) {
        true => envelope::read_file(disk, &current_path)
            .and_then(|bytes| envelope::unseal(&current_path, CURRENT_MAGIC, VERSION, &bytes))
            .map_err(|error| problems.push(error.to_string()))
            .ok(),
        // A crash before the first switch: the first manifest, if any, says nothing that the journal does not say.
        false => return Ok((Vec::new(), problems)),
    };
    let mut manifests: Vec<Manifest> = Vec::new();
    for name in disk.list(dir)? {
        let number = name.to_str().and_then(|name| name.strip_prefix("MANIFEST-")).and_then(|n| n.parse().ok());
        let Some(number) = number.filter(|number: &u64| current.is_none_or(|current| *number <= current)) else {
            continue;
        };
        let path = manifest_path(dir, number);
        match envelope::read_file(disk, &path)
            .and_then(|bytes| envelope::unseal::<Manifest>(&path, MANIFEST_MAGIC, VERSION, &bytes))
        {
            Ok(manifest) => manifests.push(manifest),
            Err(error) => problems.push(error.to_string()),
        }
    }
    manifests.sort_unstable_by_key(|manifest| std::cmp::Reverse(manifest.number));
    if manifests.is_empty() {
        problems.push(format!("{}: no manifest can be read", dir.display()));
    }
    Ok((manifests, problems))
}

/// Removes manifests other than the two newest; a failure only costs space.
pub(super) fn remove_manifests(disk: &dyn Disk, dir: &Path, newest: u64) {
    let names = disk.list(dir).unwrap_or_default();
    let numbers = names.iter().filter_map(|name| name.to_str()?.strip_prefix("MANIFEST-")?.parse::<u64>().ok());
    for number in numbers.filter(|number| number + 1 < newest) {
        drop(disk.remove(&manifest_path(dir, number)));
    }
}
