//! Opening a data folder: repairs what recovery found unfinished and builds the storage on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_cluster::ids::{Offset, RaftGroup};

use super::envelope;
use super::files::Files;
use super::group::{Group, Log};
use super::identity::{self, Identity};
use super::meta::{group_dir, meta_number};
use super::recovery::{self, GENERATION_SHIFT, Loaded, LoadedGroup};
use super::segments::{Extent, Segment, ShardFiles};
use super::slots::{Slot, Slots, file_name};
use super::space::{self, Space};
use super::{RecoveredGroup, StorageConfig};
use crate::host::{Disk, Host, Open};

/// There once journal frames are lost; what was wrong, for a person.
const DAMAGED: &str = "DAMAGED";

/// A folder that is open.
pub(super) struct Opened {
    pub(super) identity: Identity,
    pub(super) slots: Slots,
    pub(super) groups: BTreeMap<u64, Arc<Group>>,
    pub(super) recovered: Vec<RecoveredGroup>,
    pub(super) files: Arc<Files>,
    pub(super) lsn_next: u64,
    pub(super) prev_crc: u32,
    pub(super) durable_lsn: u64,
    pub(super) manifest_number: u64,
    pub(super) meta_next: u64,
    /// Bytes of the journal files that were replayed, save the last.
    pub(super) journal_bytes: u64,
    pub(super) problems: Vec<String>,
    /// See `Storage::lost`.
    pub(super) lost: bool,
}

/// Recovers a folder whose lock is held, or makes a new one.
pub(super) fn open(
    host: &dyn Host,
    disk: &Arc<dyn Disk>,
    dir: &Path,
    config: &StorageConfig,
    space: &Arc<Space>,
) -> io::Result<Opened> {
    // The folder itself must survive as well.
    for above in dir.ancestors().skip(1).take(1).filter(|above| !above.as_os_str().is_empty()) {
        disk.sync_dir(above)?;
    }
    // What follows needs a little room.
    space::release_ballast(&**disk, dir, config)?;
    let identity = identity::open(host, &**disk, dir)?;
    let journal = dir.join("journal");
    disk.create_dir_all(&journal)?;
    disk.sync_dir(dir)?;
    let mut loaded = recovery::load(&**disk, dir)?;
    let slots = open_slots(disk, &journal, &loaded)?;
    let files = Arc::new(Files::new(Arc::clone(disk), config, Arc::clone(space)));
    let mut meta_next = loaded.manifest.meta_next.max(1);
    let (mut groups, mut recovered, mut folders) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    for (id, found) in std::mem::take(&mut loaded.groups) {
        let group = RaftGroup(id);
        let folder = group_dir(dir, group, found.replica);
        meta_next = meta_next.max(found.checkpoint.as_ref().map_or(0, |meta| meta.number) + 1);
        let shard = ShardFiles::new(Arc::clone(&files), folder.clone());
        if found.fenced.is_none() {
            repair(&**disk, &shard, &found, &loaded.metas)?;
        }
        folders.insert(folder);
        recovered.push(RecoveredGroup {
            group,
            replica: found.replica,
            checkpoint: found.meta.as_ref().and_then(|meta| {
                let at = found.checkpoint.as_ref()?.at();
                Some((at, meta.state.clone().into()))
            }),
            fenced: found.fenced.clone(),
        });
        let replica = found.replica;
        groups.insert(id, Group::new(group, replica, shard, log_of(found)));
    }
    let lost = note_loss(&**disk, dir, &loaded)?;
    if loaded.problems.is_empty() {
        remove_strangers(&**disk, dir, &folders);
    }
    Ok(Opened {
        lsn_next: (identity.generation.0 << GENERATION_SHIFT).max(loaded.scan.lsn_max + 1),
        identity,
        slots: Slots::new(Arc::clone(disk), journal, config.journal_slot_bytes.0, slots),
        groups,
        recovered,
        files,
        prev_crc: loaded.last.1,
        durable_lsn: loaded.last.0,
        manifest_number: loaded.manifest.number,
        meta_next,
        journal_bytes: loaded
            .scan
            .slots
            .values()
            .filter(|slot| slot.used.is_some())
            .skip(1)
            .map(|slot| slot.bytes)
            .sum(),
        problems: loaded.problems,
        lost,
    })
}

/// Whether this folder has ever lost journal frames of which it is not known whom they concern: kept in a file of its own,
/// because the damage itself goes when the journal is used again.
fn note_loss(disk: &dyn Disk, dir: &Path, loaded: &Loaded) -> io::Result<bool> {
    let path = dir.join(DAMAGED);
    if disk.exists(&path) {
        return Ok(true);
    }
    if loaded.lost {
        envelope::replace(disk, &path, loaded.problems.join("\n").as_bytes())?;
    }
    Ok(loaded.lost)
}

fn open_slots(disk: &Arc<dyn Disk>, journal: &Path, loaded: &Loaded) -> io::Result<BTreeMap<u32, Slot>> {
    let open = |(id, scan): (&u32, &super::scan::SlotScan)| {
        let file = disk.open(&journal.join(file_name(*id)), Open::Write)?;
        Ok((*id, Slot { file, bytes: scan.bytes, used: scan.used }))
    };
    loaded.scan.slots.iter().map(open).collect()
}

fn log_of(found: LoadedGroup) -> Log {
    let mut log = Log::default();
    (log.purged, log.vote, log.committed) = (found.purged, found.vote, found.committed);
    log.checkpoint = found.checkpoint;
    // The log of a fenced group has holes; nobody may use it.
    if found.fenced.is_none() {
        for (_, entry) in found.entries {
            log.push(entry.term, entry.bytes, entry.crc, Some(entry.place), None);
        }
    }
    log.fenced = found.fenced;
    log
}

/// Cuts segments to what the checkpoint says and removes files that it does not name: they are made again from the log.
fn repair(disk: &dyn Disk, shard: &Arc<ShardFiles>, found: &LoadedGroup, metas: &[u64]) -> io::Result<()> {
    let mut segments = Vec::new();
    for file in found.meta.iter().flat_map(|meta| &meta.files) {
        let extent = Extent { bytes: file.bytes, crc: file.crc, end: Offset(file.end) };
        let segment = Segment::new(&shard.dir, file.partition(), Offset(file.base), file.version, extent);
        let open = disk.open(&segment.path, Open::Write)?;
        if open.len()? > file.bytes {
            open.set_len(file.bytes)?;
            open.sync_data()?;
        }
        segments.push(segment);
    }
    let kept: BTreeSet<PathBuf> = segments.iter().map(|segment| segment.path.clone()).collect();
    shard.switch(segments);
    if !disk.exists(&shard.dir) {
        return Ok(());
    }
    let current = found.checkpoint.as_ref().map(|meta| meta.number);
    for name in disk.list(&shard.dir)? {
        let path = shard.dir.join(&name);
        if let Some(number) = meta_number(&name) {
            if Some(number) != current && !metas.contains(&number) {
                disk.remove(&path)?;
            }
        } else if name.extension().is_some_and(|extension| extension == "tmp") {
            disk.remove(&path)?;
        } else if name.to_str().is_some_and(|name| name.starts_with('t')) {
            for file in disk.list(&path)? {
                let file = path.join(file);
                if !kept.contains(&file) {
                    disk.remove(&file)?;
                }
            }
        }
    }
    Ok(())
}

/// Removes the folders of replicas that are no more. A failure only costs space.
fn remove_strangers(disk: &dyn Disk, dir: &Path, folders: &BTreeSet<PathBuf>) {
    for name in disk.list(dir).unwrap_or_default() {
        let is_ours = name.to_str().is_some_and(|name| name.starts_with("shard-") || name == "registry");
        if !is_ours {
            continue;
        }
        for replica in disk.list(&dir.join(&name)).unwrap_or_default() {
            let path = dir.join(&name).join(replica);
            if !folders.contains(&path) {
                drop(disk.remove_dir_all(&path));
            }
        }
    }
}
