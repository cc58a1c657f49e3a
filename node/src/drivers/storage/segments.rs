//! The segments of one replica: per partition an append-only series of files of batches.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use weft_batch::{HEADER_BYTES, Header};
use weft_cluster::ids::{Offset, PartitionId};

use super::SegmentInfo;
use super::envelope::invalid;
use super::files::Files;
use super::locked;
use super::meta::FileRecord;
use super::space::{unsynced, with_descriptor};
use crate::host::DiskFile;

/// The index notes a batch every so many bytes.
const INDEX_EVERY_BYTES: u64 = 32 << 10;
/// Below this a body's CRC is made again rather than combined: to combine takes 8 us, to make it again 5 us per 128 KiB.
const COMBINE_BYTES_MIN: usize = 256 << 10;
/// What a replica has applied waits in memory up to here before it is written: the journal has it, and one write of many
/// batches costs less than many writes. Per shard, over all its partitions.
const PENDING_BYTES_MAX: u64 = 128 << 10;
/// Files whose headers are scanned are read in pieces of this size.
const SCAN_BYTES: usize = 256 << 10;

/// One file.
pub(super) struct Segment {
    pub(super) partition: PartitionId,
    pub(super) base: Offset,
    pub(super) version: u64,
    pub(super) path: PathBuf,
    state: Mutex<SegmentState>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Extent {
    pub(super) bytes: u64,
    pub(super) crc: u32,
    /// The offset after the last event.
    pub(super) end: Offset,
}

#[derive(Default)]
struct SegmentState {
    /// With what waits for `flush`: what readers see.
    all: Extent,
    /// What the file holds.
    written: Extent,
    /// What follows it: header and body of each batch.
    pending: Vec<(Bytes, Bytes)>,
    /// Unsynced bytes.
    dirty: bool,
    /// (offset, place) of some batches, ascending. `None`: not built yet.
    index: Option<Vec<(u64, u64)>>,
}

/// A replica's files.
pub(super) struct ShardFiles {
    pub(super) files: Arc<Files>,
    pub(super) dir: PathBuf,
    state: Mutex<State>,
    /// Only one flush at a time: each segment's bytes are written in order.
    flush: Mutex<()>,
}

#[derive(Default)]
struct State {
    partitions: BTreeMap<PartitionId, Vec<Arc<Segment>>>,
    /// Partitions with batches that wait for `flush`, and about how many bytes.
    pending: BTreeSet<PartitionId>,
    pending_bytes: u64,
    /// Files that no later checkpoint names, with the number of checkpoints taken when they were dropped.
    garbage: Vec<(Arc<Segment>, u64)>,
    folders: BTreeSet<PathBuf>,
    checkpoints: u64,
}

pub(super) fn segment_path(dir: &Path, partition: PartitionId, base: Offset, version: u64) -> PathBuf {
    let folder = dir.join(format!("t{}-p{}", partition.topic.0, partition.index));
    match version {
        0 => folder.join(format!("{:020}.seg", base.0)),
        _ => folder.join(format!("{:020}.v{version}.seg", base.0)),
    }
}

fn damaged(path: &Path, at: u64, error: impl std::fmt::Display) -> io::Error {
    invalid(format!("{} is damaged at byte {at}: {error}", path.display()))
}

impl Segment {
    pub(super) fn new(dir: &Path, partition: PartitionId, base: Offset, version: u64, extent: Extent) -> Arc<Segment> {
        let index = (extent.bytes == 0).then(Vec::new);
        let state = SegmentState { all: extent, written: extent, index, ..SegmentState::default() };
        let path = segment_path(dir, partition, base, version);
        Arc::new(Segment { partition, base, version, path, state: Mutex::new(state) })
    }

    pub(super) fn written(&self) -> Extent {
        locked(&self.state).written
    }

    fn all(&self) -> Extent {
        locked(&self.state).all
    }

    /// What the file holds, and the batches that follow.
    fn parts(&self) -> (Extent, Vec<(Bytes, Bytes)>) {
        let state = locked(&self.state);
        (state.written, state.pending.clone())
    }

    /// Makes durable what is written of it.
    pub(super) fn sync(&self, files: &Files) -> io::Result<()> {
        files.open(&self.path)?.sync_data().map_err(unsynced(&self.path))
    }

    /// It is to be synced (again).
    pub(super) fn set_dirty(&self) {
        locked(&self.state).dirty = true;
    }

    /// Whether something of it is not written yet.
    fn waits(&self) -> bool {
        let state = locked(&self.state);
        state.written.bytes < state.all.bytes
    }

    fn info(&self) -> SegmentInfo {
        let written = self.written();
        SegmentInfo { partition: self.partition, base: self.base, bytes: written.bytes, crc: written.crc }
    }

    pub(super) fn record(&self) -> FileRecord {
        let written = self.written();
        FileRecord {
            topic: self.partition.topic.0,
            index: self.partition.index,
            base: self.base.0,
            version: self.version,
            bytes: written.bytes,
            crc: written.crc,
            end: written.end.0,
        }
    }

    fn append(&self, base: Offset, header: Bytes, body: Bytes, stamped: &Header) {
        let mut state = locked(&self.state);
        let at = state.all.bytes;
        if let Some(index) = &mut state.index {
            note(index, base.0, at);
        }
        let crc = crc32c::crc32c_append(state.all.crc, &header);
        state.all.crc = match body.len() {
            0..COMBINE_BYTES_MIN => crc32c::crc32c_append(crc, &body),
            length => crc32c::crc32c_combine(crc, stamped.body_crc, length),
        };
        state.all.bytes += (header.len() + body.len()) as u64;
        state.all.end = Offset(base.0 + u64::from(stamped.count));
        state.pending.push((header, body));
    }

    /// Writes what waits, with one call. Until then, and after an error, it stays: readers need it, and after a full disk
    /// the next flush writes it again at the same place.
    fn flush(&self, shard: &ShardFiles) -> io::Result<()> {
        let (from, batches, to) = {
            let state = locked(&self.state);
            (state.written, state.pending.clone(), state.all)
        };
        if batches.is_empty() {
            return Ok(());
        }
        let slices: Vec<_> =
            batches.iter().flat_map(|(header, body)| [IoSlice::new(header), IoSlice::new(body)]).collect();
        shard.writable(self, from.bytes == 0)?.write_parts_at(&slices, from.bytes)?;
        let mut state = locked(&self.state);
        state.pending.drain(..batches.len());
        (state.written, state.dirty) = (to, true);
        Ok(())
    }

    /// A place at or before the batch that contains `from`.
    fn place_of(&self, file: &dyn DiskFile, from: Offset) -> io::Result<u64> {
        let written = {
            let state = locked(&self.state);
            if let Some(index) = &state.index {
                return Ok(place_in(index, from.0));
            }
            state.written
        };
        let mut built = Vec::new();
        let scanned = scan(file, &self.path, written.bytes, |header, at| note(&mut built, header.base_offset, at));
        let place = place_in(&built, from.0);
        match scanned {
            Ok(()) => {}
            // What is before the damage can be read; a reader that comes to it gets the error.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(place),
            Err(error) => return Err(error),
        }
        let mut state = locked(&self.state);
        if state.index.is_none() && state.all.bytes == written.bytes {
            state.index = Some(built);
        }
        Ok(place)
    }

    /// Appends batches from `from` on to `out`, at most `room` bytes unless `out` is empty. Returns false when full.
    fn read(&self, shard: &ShardFiles, from: Offset, room: &mut usize, out: &mut Vec<Bytes>) -> io::Result<bool> {
        let (written, waiting) = self.parts();
        if written.bytes > 0 && from < written.end && !self.read_file(shard, written.bytes, from, room, out)? {
            return Ok(false);
        }
        for (header, body) in &waiting {
            let stamped = Header::read(header).map_err(|error| invalid(format!("a batch that waits: {error}")))?;
            if stamped.base_offset + u64::from(stamped.count) <= from.0 {
                continue;
            }
            if !take([&header[..], &body[..]].concat().into(), room, out) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same of the file's first `end` bytes.
    fn read_file(
        &self,
        shard: &ShardFiles,
        end: u64,
        from: Offset,
        room: &mut usize,
        out: &mut Vec<Bytes>,
    ) -> io::Result<bool> {
        let file = shard.files.open(&self.path)?;
        let mut at = self.place_of(&*file, from)?;
        let mut want = (*room).saturating_add(INDEX_EVERY_BYTES as usize);
        while at < end {
            let piece = file.read_exact_at((end - at).min(want.max(HEADER_BYTES) as u64) as usize, at)?;
            let mut used = 0;
            while used < piece.len() {
                let here = at + used as u64;
                if piece.len() - used < HEADER_BYTES {
                    break;
                }
                let header = Header::read(&piece[used..]).map_err(|error| damaged(&self.path, here, error))?;
                let length = header.len as usize;
                if here + length as u64 > end {
                    return Err(damaged(&self.path, here, "a batch reaches beyond the end"));
                }
                let wanted = header.base_offset + u64::from(header.count) > from.0;
                if wanted && length > *room && !out.is_empty() {
                    return Ok(false);
                }
                if used + length > piece.len() {
                    // Read again from here: at least this batch.
                    want = length.max((*room).min(SCAN_BYTES));
                    break;
                }
                let batch = piece.slice(used..used + length);
                used += length;
                if !wanted {
                    continue;
                }
                self.check(&header, &batch, here)?;
                if !take(batch, room, out) {
                    return Ok(false);
                }
            }
            if used == 0 && piece.len() as u64 == end - at {
                return Err(damaged(&self.path, at, "it is cut short"));
            }
            if used == 0 {
                want = want.max(HEADER_BYTES + 1);
            }
            at += used as u64;
        }
        Ok(true)
    }

    /// Checks the batches from byte `at` on, about `bytes_max` bytes of them, at least one batch. Returns the place
    /// after the last, `None` at the end.
    ///
    /// # Errors
    /// `InvalidData`: a batch is damaged, or the file is shorter than it should be.
    pub(super) fn verify(&self, shard: &ShardFiles, at: u64, bytes_max: usize) -> io::Result<Option<u64>> {
        let end = self.written().bytes;
        if at >= end {
            return Ok(None);
        }
        let file = shard.files.open(&self.path)?;
        let read = |bytes: u64| match file.read_exact_at(bytes.min(end - at) as usize, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(damaged(&self.path, at, error)),
            read => read,
        };
        let mut piece = read((bytes_max as u64).max(HEADER_BYTES as u64))?;
        let mut used = 0;
        while piece.len() - used >= HEADER_BYTES {
            let here = at + used as u64;
            let header = Header::read(&piece[used..]).map_err(|error| damaged(&self.path, here, error))?;
            let length = header.len as usize;
            if here + length as u64 > end {
                return Err(damaged(&self.path, here, "a batch reaches beyond the end"));
            }
            if used + length > piece.len() {
                if used > 0 {
                    break;
                }
                piece = read(length as u64)?;
            }
            self.check(&header, &piece[used..used + length], here)?;
            used += length;
        }
        match used {
            0 => Err(damaged(&self.path, at, "it is cut short")),
            _ => Ok(Some(at + used as u64)),
        }
    }

    fn check(&self, header: &Header, batch: &[u8], at: u64) -> io::Result<()> {
        if crc32c::crc32c(&batch[HEADER_BYTES..]) != header.body_crc {
            return Err(damaged(&self.path, at, "the batch's CRC does not match"));
        }
        let partition = (header.topic, header.partition);
        if partition != (self.partition.topic.0, self.partition.index) {
            return Err(damaged(&self.path, at, "the batch belongs to another partition"));
        }
        Ok(())
    }
}

/// Takes a batch if there is room for it, or if it is the first. Returns false when full.
fn take(batch: Bytes, room: &mut usize, out: &mut Vec<Bytes>) -> bool {
    if batch.len() > *room && !out.is_empty() {
        return false;
    }
    *room = room.saturating_sub(batch.len());
    out.push(batch);
    *room > 0
}

fn note(index: &mut Vec<(u64, u64)>, offset: u64, at: u64) {
    if index.last().is_none_or(|(_, last)| at >= last + INDEX_EVERY_BYTES) {
        index.push((offset, at));
    }
}

fn place_in(index: &[(u64, u64)], offset: u64) -> u64 {
    let after = index.partition_point(|(base, _)| *base <= offset);
    after.checked_sub(1).map_or(0, |at| index[at].1)
}

/// Calls `each` with every header of a file's first `bytes` bytes and its place.
pub(super) fn scan(file: &dyn DiskFile, path: &Path, bytes: u64, mut each: impl FnMut(&Header, u64)) -> io::Result<()> {
    let (mut piece, mut start, mut at) = (Bytes::new(), 0, 0);
    while at < bytes {
        if at < start || at + HEADER_BYTES as u64 > start + piece.len() as u64 {
            start = at;
            piece = file.read_exact_at((bytes - at).min(SCAN_BYTES as u64) as usize, at)?;
        }
        let header = Header::read(&piece[(at - start) as usize..]).map_err(|error| damaged(path, at, error))?;
        if at + u64::from(header.len) > bytes {
            return Err(damaged(path, at, "a batch reaches beyond the end"));
        }
        each(&header, at);
        at += u64::from(header.len);
    }
    Ok(())
}

impl ShardFiles {
    pub(super) fn new(files: Arc<Files>, dir: PathBuf) -> Arc<ShardFiles> {
        Arc::new(ShardFiles { files, dir, state: Mutex::default(), flush: Mutex::default() })
    }

    /// Opens the segment's file for writing; makes it if it is to be `new`.
    fn writable(&self, segment: &Segment, new: bool) -> io::Result<Arc<dyn DiskFile>> {
        if !new {
            return self.files.open(&segment.path);
        }
        let file = self.files.create(&segment.path)?;
        self.note_folder(&segment.path);
        Ok(file)
    }

    /// The folders above a new file are to be synced by the next checkpoint.
    fn note_folder(&self, path: &Path) {
        let mut state = locked(&self.state);
        let above = path.ancestors().skip(1).take(4).map(Path::to_owned);
        state.folders.extend(above);
    }

    pub(super) fn append(&self, partition: PartitionId, base: Offset, header: Bytes, body: Bytes) -> io::Result<()> {
        let stamped = Header::read(&header).map_err(|error| invalid(format!("a batch to store: {error}")))?;
        let bytes = (header.len() + body.len()) as u64;
        if u64::from(stamped.len) != bytes || stamped.base_offset != base.0 || header.len() != HEADER_BYTES {
            return Err(invalid(format!("a batch of {bytes} bytes at offset {base} does not match its header")));
        }
        let segment = {
            let mut state = locked(&self.state);
            let segments = state.partitions.entry(partition).or_default();
            let last = segments.last().map(|last| (Arc::clone(last), last.all()));
            match last {
                Some((_, all)) if base < all.end => {
                    drop(state);
                    return self.same_as_stored(partition, base, &header, &body);
                }
                Some((_, all)) if base > all.end => {
                    return Err(invalid(format!("{partition}: offset {base} cannot follow {}", all.end)));
                }
                Some((last, all)) if all.bytes == 0 || all.bytes + bytes <= self.files.segment_bytes => {
                    state.pending.insert(partition);
                    last
                }
                _ => {
                    let segment =
                        Segment::new(&self.dir, partition, base, 0, Extent { end: base, ..Extent::default() });
                    segments.push(Arc::clone(&segment));
                    state.pending.insert(partition);
                    segment
                }
            }
        };
        segment.append(base, header, body, &stamped);
        locked(&self.state).pending_bytes += bytes;
        Ok(())
    }

    /// After a restart what is in the segments may be applied again: it must be the same.
    fn same_as_stored(&self, partition: PartitionId, base: Offset, header: &[u8], body: &[u8]) -> io::Result<()> {
        // What is applied cannot be applied again: it waits here.
        let stored = with_descriptor(|| self.read(partition, base, 1))?;
        let length = header.len() + body.len();
        let same = stored.first().is_some_and(|batch| {
            batch.len() == length && batch[..HEADER_BYTES] == *header && batch[HEADER_BYTES..] == *body
        });
        if same {
            return Ok(());
        }
        Err(invalid(format!("{partition}: another batch is stored at offset {base}")))
    }

    /// Writes what waits, if it is much.
    pub(super) fn flush_much(&self) -> io::Result<()> {
        let bytes = locked(&self.state).pending_bytes;
        if bytes < PENDING_BYTES_MAX { Ok(()) } else { self.flush() }
    }

    /// Writes all that waits.
    pub(super) fn flush(&self) -> io::Result<()> {
        let _one = locked(&self.flush);
        loop {
            let (partition, waiting) = {
                let mut state = locked(&self.state);
                let Some(partition) = state.pending.first().copied() else {
                    state.pending_bytes = 0;
                    return Ok(());
                };
                let segments = state.partitions.get(&partition).map(Vec::as_slice).unwrap_or_default();
                // The last, and those that were full before it.
                let first = segments.iter().rposition(|segment| !segment.waits()).map_or(0, |written| written + 1);
                (partition, segments[first..].to_vec())
            };
            if !waiting.is_empty() && self.files.space.scarce() {
                return Err(self.files.space.refusal());
            }
            waiting.iter().try_for_each(|segment| segment.flush(self))?;
            locked(&self.state).pending.remove(&partition);
        }
    }

    pub(super) fn read(&self, partition: PartitionId, from: Offset, bytes_max: usize) -> io::Result<Vec<Bytes>> {
        let segments: Vec<_> = {
            let state = locked(&self.state);
            let Some(segments) = state.partitions.get(&partition) else { return Ok(Vec::new()) };
            let first = segments.partition_point(|segment| segment.base <= from).saturating_sub(1);
            // A read never spans more files than this: the reader comes back for more.
            segments[first..].iter().take(4).cloned().collect()
        };
        let (mut out, mut room) = (Vec::new(), bytes_max);
        for segment in segments {
            if !segment.read(self, from, &mut room, &mut out)? {
                break;
            }
        }
        Ok(out)
    }

    pub(super) fn bytes(&self, partition: PartitionId) -> u64 {
        let state = locked(&self.state);
        state.partitions.get(&partition).into_iter().flatten().map(|segment| segment.all().bytes).sum()
    }

    pub(super) fn drop_partition(&self, partition: PartitionId) {
        let mut state = locked(&self.state);
        state.pending.remove(&partition);
        let (gone, now) = (state.partitions.remove(&partition).unwrap_or_default(), state.checkpoints);
        state.garbage.extend(gone.into_iter().map(|segment| (segment, now)));
    }

    /// All files, flushed, with what pins them.
    pub(super) fn manifest(&self) -> io::Result<(Vec<SegmentInfo>, Box<dyn Send + Sync>)> {
        self.flush()?;
        let segments: Vec<_> = locked(&self.state).partitions.values().flatten().cloned().collect();
        let infos = segments.iter().map(|segment| segment.info()).filter(|info| info.bytes > 0).collect();
        Ok((infos, Box::new(segments)))
    }

    /// The file that `info` names, if it is (still) here.
    pub(super) fn find(&self, info: &SegmentInfo) -> Option<Arc<Segment>> {
        let state = locked(&self.state);
        let live = state.partitions.get(&info.partition).into_iter().flatten();
        let gone = state.garbage.iter().map(|(segment, _)| segment);
        live.chain(gone)
            .find(|segment| {
                segment.partition == info.partition
                    && segment.base == info.base
                    && segment.written().bytes >= info.bytes
            })
            .cloned()
    }

    pub(super) fn read_file(&self, info: &SegmentInfo, at: u64, bytes: usize) -> io::Result<Bytes> {
        let segment = self.find(info).ok_or_else(|| {
            let message = format!("no segment of {} at offset {} with {} bytes", info.partition, info.base, info.bytes);
            io::Error::new(io::ErrorKind::NotFound, message)
        })?;
        let count = (info.bytes.saturating_sub(at)).min(bytes as u64) as usize;
        self.files.open(&segment.path)?.read_exact_at(count, at)
    }

    /// The files as of now, for a checkpoint; what `flush` has not written yet is not in it.
    pub(super) fn records(&self) -> Vec<FileRecord> {
        let state = locked(&self.state);
        let records = state.partitions.values().flatten().map(|segment| segment.record());
        records.filter(|record| record.bytes > 0).collect()
    }

    /// The segments that hold events now, each pinned for as long as it is held.
    pub(super) fn live(&self) -> Vec<Arc<Segment>> {
        locked(&self.state).partitions.values().flatten().cloned().collect()
    }

    /// The segments with bytes that are not synced, which count as synced from now on: the caller syncs them, or ends.
    pub(super) fn take_dirty(&self) -> Vec<Arc<Segment>> {
        let state = locked(&self.state);
        // Dropped ones too: the checkpoint that is being taken may still name them.
        let gone = state.garbage.iter().map(|(segment, _)| segment);
        let segments = state.partitions.values().flatten().chain(gone);
        segments.filter(|segment| std::mem::take(&mut locked(&segment.state).dirty)).cloned().collect()
    }

    /// Syncs all that was written and the folders of new files.
    pub(super) fn sync(&self) -> io::Result<()> {
        let dirty = self.take_dirty();
        let synced = dirty.iter().try_for_each(|segment| segment.sync(&self.files));
        if synced.is_err() {
            // The process ends, unless a file could not be opened: then all of it is done again.
            dirty.iter().for_each(|segment| segment.set_dirty());
            return synced;
        }
        let folders = std::mem::take(&mut locked(&self.state).folders);
        let synced = folders
            .iter()
            .rev()
            .filter(|folder| self.files.disk.exists(folder))
            .try_for_each(|folder| self.files.disk.sync_dir(folder).map_err(unsynced(folder)));
        if synced.is_err() {
            locked(&self.state).folders.extend(folders);
        }
        synced
    }

    /// A checkpoint is durable: files that the last two omit and nobody uses are removed.
    pub(super) fn checkpointed(&self) {
        let gone: Vec<_> = {
            let mut state = locked(&self.state);
            state.checkpoints += 1;
            let now = state.checkpoints;
            let is_free = |segment: &Arc<Segment>, since: u64| since + 3 <= now && Arc::strong_count(segment) == 1;
            let (gone, kept) =
                std::mem::take(&mut state.garbage).into_iter().partition(|(segment, since)| is_free(segment, *since));
            state.garbage = kept;
            gone
        };
        for (segment, _) in gone {
            self.files.remove(&segment.path);
        }
    }

    /// True while there are files to remove.
    pub(super) fn has_garbage(&self) -> bool {
        !locked(&self.state).garbage.is_empty()
    }

    /// Replaces all files by these; those that are not among them become garbage.
    pub(super) fn switch(&self, segments: Vec<Arc<Segment>>) {
        let mut state = locked(&self.state);
        let now = state.checkpoints;
        let kept: BTreeSet<_> = segments.iter().map(|segment| segment.path.clone()).collect();
        state.pending.clear();
        for old in std::mem::take(&mut state.partitions).into_values().flatten() {
            if !kept.contains(&old.path) {
                state.garbage.push((old, now));
            }
        }
        for segment in segments {
            state.partitions.entry(segment.partition).or_default().push(segment);
        }
        state.partitions.values_mut().for_each(|series| series.sort_by_key(|segment| segment.base));
    }
}
