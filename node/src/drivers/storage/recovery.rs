//! What a data folder holds: manifest, state files and the journal put together. Reads only.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::Bytes;
use weft_cluster::ids::{LogPosition, Offset, RaftGroup};

use super::StoredVote;
use super::frame::{Frame, Kind, Place, Record, SOME, VOTE_COMMITTED, VOTED_FOR};
use super::meta::{self, GroupRecord, Manifest, Meta, MetaRef, Switch};
use super::scan::{self, Event, Scan};
use crate::host::{Disk, Open};

/// LSNs of a generation start at generation << this: those of a torn frame are never given again.
pub(super) const GENERATION_SHIFT: u32 = 40;

/// A log entry found.
#[derive(Clone, Debug)]
pub(super) struct LoadedEntry {
    pub(super) term: u64,
    pub(super) place: Place,
    pub(super) bytes: u32,
    pub(super) crc: u32,
}

/// A group found.
#[derive(Debug, Default)]
pub(super) struct LoadedGroup {
    pub(super) replica: u64,
    pub(super) vote: Option<StoredVote>,
    pub(super) committed: Option<LogPosition>,
    pub(super) purged: Option<LogPosition>,
    pub(super) checkpoint: Option<MetaRef>,
    /// What `checkpoint` names.
    pub(super) meta: Option<Meta>,
    pub(super) entries: BTreeMap<u64, LoadedEntry>,
    pub(super) fenced: Option<String>,
}

/// A folder's content.
pub(super) struct Loaded {
    pub(super) manifest: Manifest,
    /// State files that a readable manifest names, by number.
    pub(super) metas: Vec<u64>,
    pub(super) groups: BTreeMap<u64, LoadedGroup>,
    pub(super) scan: Scan,
    /// The last whole frame: its LSN and CRC.
    pub(super) last: (u64, u32),
    /// Frames were lost of which it is not known whom they concern.
    pub(super) lost: bool,
    /// What a person should know.
    pub(super) problems: Vec<String>,
}

/// Reads manifest, journal, state files, and looks whether the segments are there.
pub(super) fn load(disk: &dyn Disk, dir: &Path) -> io::Result<Loaded> {
    let (manifests, problems) = meta::read_manifests(disk, dir)?;
    let metas = manifests.iter().flat_map(|manifest| &manifest.groups);
    let metas = metas.filter_map(|group| group.checkpoint.as_ref().map(|meta| meta.number)).collect();
    let manifest = manifests.into_iter().next().unwrap_or_default();
    let scan = scan::scan(disk, &dir.join("journal"), manifest.floor_lsn)?;
    let groups = manifest.groups.iter().map(|record| (record.group, LoadedGroup::of(record))).collect();
    let last = (manifest.floor_lsn.saturating_sub(1), manifest.floor_prev_crc);
    let mut loaded = Loaded { manifest, metas, groups, scan, last, lost: false, problems };
    loaded.replay();
    for (id, group) in &mut loaded.groups {
        group.settle(disk, dir, *id);
        if let Some(reason) = &group.fenced {
            loaded.problems.push(format!("group {}: {reason}", RaftGroup(*id)));
        }
    }
    Ok(loaded)
}

impl Loaded {
    /// Applies the journal's frames in order; damage fences the groups that it concerns.
    fn replay(&mut self) {
        let events = std::mem::take(&mut self.scan.events);
        let (mut rotten, mut rotten_known) = (0, true);
        let mut last_rotten = 0;
        for (lsn, event) in events {
            match event {
                Event::Rotten(groups) => {
                    (rotten, last_rotten) = (rotten + 1, lsn);
                    rotten_known &= groups.is_some();
                    self.damage(&format!("journal frame {lsn} does not match its CRC"), groups.as_deref());
                }
                Event::Frame(slot, frame) => {
                    let (last_lsn, last_crc) = self.last;
                    let whole = frame.prev_crc == last_crc;
                    let explained = rotten > 0 && rotten_known && frame.lsn - last_lsn == rotten + 1;
                    if !whole && !explained {
                        self.damage(&format!("journal frames between {last_lsn} and {lsn} are missing"), None);
                    }
                    self.last = (frame.lsn, frame.crc);
                    (rotten, rotten_known) = (0, true);
                    self.apply(slot, &frame);
                }
            }
        }
        let end = self.last.0.max(last_rotten);
        let durable = self.manifest.durable_lsn;
        if end < durable && durable >= self.manifest.floor_lsn {
            self.damage(&format!("the journal ends at frame {end}, but was durable up to {durable}"), None);
        }
    }

    fn damage(&mut self, reason: &str, groups: Option<&[u64]>) {
        self.problems.push(reason.to_owned());
        self.lost |= groups.is_none();
        for (id, group) in &mut self.groups {
            if groups.is_none_or(|groups| groups.contains(id)) {
                group.fence(reason);
            }
        }
        for id in groups.into_iter().flatten().filter(|id| **id != 0) {
            self.groups.entry(*id).or_default().fence(reason);
        }
    }

    fn apply(&mut self, slot: u32, frame: &Frame) {
        let mut payloads = frame.payloads.iter();
        let mut payload = payloads.next();
        for (number, (record, at)) in frame.records.iter().enumerate() {
            let bytes = payload.filter(|(of, _)| *of == number).map(|(_, bytes)| bytes);
            if bytes.is_some() {
                payload = payloads.next();
            }
            let place = Place { slot, frame: frame.start, at: *at, lsn: frame.lsn };
            self.record(record, place, bytes);
        }
    }

    fn record(&mut self, record: &Record, place: Place, payload: Option<&Bytes>) {
        let at = LogPosition { term: record.term, index: record.index };
        match record.kind {
            Kind::Seal => return,
            Kind::Delete => {
                self.groups.remove(&record.group);
                return;
            }
            Kind::Create => {
                // What the manifest says of this very replica is newer than its creation.
                let known = self
                    .manifest
                    .groups
                    .iter()
                    .find(|known| known.group == record.group && known.replica == record.index);
                let group = known.map_or_else(LoadedGroup::default, LoadedGroup::of);
                self.groups.insert(record.group, LoadedGroup { replica: record.index, ..group });
                return;
            }
            _ => {}
        }
        if self.lost && !self.groups.contains_key(&record.group) {
            let group = self.groups.entry(record.group).or_default();
            group.fence("its creation is in a part of the journal that is damaged");
        }
        // In the range of frames before the manifest there may be groups that it no longer knows.
        let Some(group) = self.groups.get_mut(&record.group) else { return };
        match record.kind {
            Kind::Entry => {
                let entry = LoadedEntry { term: record.term, place, bytes: record.bytes, crc: record.crc };
                group.entries.insert(record.index, entry);
            }
            Kind::Vote => {
                let voted_for = (record.flags & VOTED_FOR != 0).then_some(record.index);
                let vote = StoredVote { term: record.term, voted_for, committed: record.flags & VOTE_COMMITTED != 0 };
                if group.vote.is_none_or(|old| old.term <= vote.term) {
                    group.vote = Some(vote);
                }
            }
            Kind::Committed => group.committed = group.committed.max(Some(at)),
            Kind::Truncate => {
                let end = if record.flags & SOME != 0 { record.index + 1 } else { 0 };
                drop(group.entries.split_off(&end));
            }
            Kind::Purge => group.purge(at),
            Kind::Install => match payload.map(|payload| postcard::from_bytes::<Switch>(payload)) {
                Some(Ok(switch)) => group.install(at, switch.meta),
                _ => group.fence("an Install record cannot be read"),
            },
            Kind::Seal | Kind::Delete | Kind::Create => {}
        }
    }
}

impl LoadedGroup {
    fn of(record: &GroupRecord) -> LoadedGroup {
        LoadedGroup {
            replica: record.replica,
            vote: record.vote.map(meta::unpack_vote),
            committed: record.committed.map(meta::unpack),
            purged: record.purged.map(meta::unpack),
            checkpoint: record.checkpoint.clone(),
            fenced: record.fenced.clone(),
            ..LoadedGroup::default()
        }
    }

    pub(super) fn fence(&mut self, reason: &str) {
        self.fenced.get_or_insert_with(|| reason.to_owned());
    }

    fn purge(&mut self, at: LogPosition) {
        self.entries = self.entries.split_off(&(at.index + 1));
        if self.purged.is_none_or(|purged| purged.index < at.index) {
            self.purged = Some(at);
        }
    }

    fn install(&mut self, at: LogPosition, meta: MetaRef) {
        if self.entries.get(&at.index).is_none_or(|entry| entry.term != at.term) && self.purged != Some(at) {
            self.entries.clear();
        }
        self.purge(at);
        self.committed = self.committed.max(Some(at));
        // By position: a checkpoint that was taken while the snapshot's files came has a higher number and an older state.
        if self.checkpoint.as_ref().is_none_or(|old| old.index < meta.index) {
            self.checkpoint = Some(meta);
        }
    }

    /// Checks that all fits together, after the last frame.
    fn settle(&mut self, disk: &dyn Disk, dir: &Path, id: u64) {
        if let Some(purged) = self.purged {
            self.entries = self.entries.split_off(&(purged.index + 1));
        }
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        let gap = (first..).zip(self.entries.keys()).find(|(due, found)| due != *found);
        if let Some((due, found)) = gap {
            self.fence(&format!("log entry {due} is missing, {found} is there"));
        }
        if self.purged.map(|at| at.index) > self.checkpoint.as_ref().map(|meta| meta.index) {
            self.fence("the log is purged past the last state that can be read");
        }
        let folder = meta::group_dir(dir, RaftGroup(id), self.replica);
        let Some(checkpoint) = self.checkpoint.clone() else { return };
        match meta::read_meta(disk, &folder, &checkpoint) {
            Ok(meta) => self.meta = Some(meta),
            Err(error) => self.fence(&error.to_string()),
        }
        let files = self.meta.as_ref().map(|meta| meta.files.clone()).unwrap_or_default();
        for file in files {
            let path = super::segments::segment_path(&folder, file.partition(), Offset(file.base), file.version);
            match disk.open(&path, Open::Read).and_then(|open| open.len()) {
                Ok(bytes) if bytes >= file.bytes => {}
                Ok(bytes) => {
                    self.fence(&format!("{} has {bytes} bytes, its checkpoint says {}", path.display(), file.bytes))
                }
                Err(error) => self.fence(&error.to_string()),
            }
        }
    }
}
