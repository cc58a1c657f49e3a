//! Receiving a snapshot: files under names of their own, switched to by one journal record.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use weft_cluster::ids::{LogPosition, Offset, PartitionId};

use super::envelope::invalid;
use super::group::Group;
use super::meta::{self, Meta, MetaRef, Switch};
use super::segments::{Extent, Segment, scan, segment_path};
use super::space::unsynced;
use super::{Inner, SegmentInfo, is_full, locked};
use crate::host::DiskFile;

/// A snapshot ready to be switched to: its files, the switch itself, and what keeps checkpoints away.
type Prepared<'a> = (Staging, (Vec<Arc<Segment>>, Switch), tokio::sync::MutexGuard<'a, ()>);

/// Received files are read back in pieces of this size.
const CHECK_BYTES: usize = 1 << 20;

/// A snapshot that is being received; dropped before `commit`, it leaves no trace.
pub struct Staging {
    /// The files still to be written, whole.
    pub missing: Vec<SegmentInfo>,
    inner: Arc<Inner>,
    group: Arc<Group>,
    kept: Vec<Arc<Segment>>,
    number: u64,
    written: BTreeMap<(PartitionId, Offset), (PathBuf, Arc<dyn DiskFile>)>,
    checked: bool,
    committed: bool,
}

impl Staging {
    pub(super) fn start(inner: &Arc<Inner>, group: &Arc<Group>, wanted: &[SegmentInfo]) -> Staging {
        let (mut missing, mut kept) = (Vec::new(), Vec::new());
        for info in wanted {
            let same = |segment: &Arc<Segment>| {
                let written = segment.written();
                (written.bytes, written.crc) == (info.bytes, info.crc)
            };
            match group.files.find(info).filter(same) {
                Some(segment) => kept.push(segment),
                None => missing.push(info.clone()),
            }
        }
        Staging {
            missing,
            inner: Arc::clone(inner),
            group: Arc::clone(group),
            kept,
            number: inner.meta_number(),
            written: BTreeMap::new(),
            checked: false,
            committed: false,
        }
    }

    /// Writes a part of a missing file.
    ///
    /// # Errors
    /// `InvalidInput`: the file is not missing or the part reaches beyond its end; else the disk's.
    pub fn write(&mut self, file: &SegmentInfo, at: u64, data: &[u8]) -> io::Result<()> {
        if !self.missing.contains(file) || at.saturating_add(data.len() as u64) > file.bytes {
            let message = format!("{} bytes at {at} are no part of a file that is missing", data.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let key = (file.partition, file.base);
        if !self.written.contains_key(&key) {
            let path = segment_path(&self.group.files.dir, file.partition, file.base, self.number);
            let made = self.group.files.files.create(&path)?;
            self.written.insert(key, (path, made));
        }
        self.written[&key].1.write_at(data, at)
    }

    /// Checks ahead of `commit` that every missing file has arrived whole.
    ///
    /// # Errors
    /// `InvalidData`: one has not; what has arrived is removed.
    pub async fn check(mut self) -> io::Result<Staging> {
        let host = Arc::clone(&self.inner.host);
        let checked = host.run_blocking(move || {
            for info in &self.missing {
                let (path, file) = self.received(info)?;
                check(&**file, info).map_err(|error| invalid(format!("{}: {error}", path.display())))?;
            }
            self.checked = true;
            Ok(self)
        });
        checked.await
    }

    fn received(&self, info: &SegmentInfo) -> io::Result<&(PathBuf, Arc<dyn DiskFile>)> {
        let missing = || invalid(format!("{} at offset {} was not received", info.partition, info.base));
        self.written.get(&(info.partition, info.base)).ok_or_else(missing)
    }

    /// Checks every file's CRC, syncs, and switches the replica to these files, `state` and `at` in one
    /// journal record: after a crash it is the old or the new, never a mixture. The log before `at` is purged.
    ///
    /// # Errors
    /// `InvalidData`: a file is not whole or not what was announced; the replica is as it was.
    pub async fn commit(self, at: LogPosition, state: Bytes) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        let (mut this, (segments, switch), _alone) = self.prepared(&inner, at, state).await?;
        let payload = postcard::to_allocvec(&switch).map_err(io::Error::other)?;
        let (done, durable) = tokio::sync::oneshot::channel();
        // From here on the files stay, and the switch happens even if this future is dropped.
        this.committed = true;
        let switched = {
            let (group, inner) = (Arc::clone(&this.group), Arc::clone(&inner));
            move |result: io::Result<()>| {
                if result.is_ok() {
                    switch_to(&group, &inner, segments, switch.meta);
                }
                drop(done.send(result));
            }
        };
        this.group.install(&inner, at, payload.into(), Box::new(switched));
        durable.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// `prepare`, however long there is no room for it. No checkpoint is taken from then on until the guard drops.
    async fn prepared(mut self, inner: &Inner, at: LogPosition, state: Bytes) -> io::Result<Prepared<'_>> {
        loop {
            let alone = inner.changes.lock().await;
            let state = state.clone();
            let (this, prepared) = inner
                .host
                .run_blocking(move || {
                    let prepared = self.prepare(at, state);
                    (self, prepared)
                })
                .await;
            match prepared {
                Err(error) if is_full(&error) => drop(alone),
                prepared => return Ok((this, prepared?, alone)),
            }
            inner.wait_for_room().await?;
            self = this;
        }
    }

    fn prepare(&self, at: LogPosition, state: Bytes) -> io::Result<(Vec<Arc<Segment>>, Switch)> {
        let files = &self.group.files;
        let mut segments = self.kept.clone();
        for info in &self.missing {
            let (path, file) = self.received(info)?;
            if !self.checked {
                check(&**file, info).map_err(|error| invalid(format!("{}: {error}", path.display())))?;
            }
            let mut end = info.base;
            scan(&**file, path, info.bytes, |header, _| end = Offset(header.base_offset + u64::from(header.count)))?;
            file.sync_data().map_err(unsynced(path))?;
            for folder in path.ancestors().skip(1).take(4) {
                files.files.disk.sync_dir(folder)?;
            }
            let extent = Extent { bytes: info.bytes, crc: info.crc, end };
            segments.push(Segment::new(&files.dir, info.partition, info.base, self.number, extent));
        }
        files.sync()?;
        files.files.disk.create_dir_all(&files.dir)?;
        let meta = Meta {
            group: self.group.id.0,
            replica: self.group.replica,
            term: at.term,
            index: at.index,
            files: segments.iter().map(|segment| segment.record()).collect(),
            state: state.into(),
        };
        let meta = meta::write_meta(&*files.files.disk, &files.dir, self.number, &meta)?;
        for folder in files.dir.ancestors().skip(1).take(2) {
            files.files.disk.sync_dir(folder)?;
        }
        Ok((segments, Switch { meta }))
    }
}

/// The record is durable: the replica is what the snapshot says.
fn switch_to(group: &Group, inner: &Inner, segments: Vec<Arc<Segment>>, meta: MetaRef) {
    group.files.switch(segments);
    if let Some(old) = locked(&group.log).checkpoint.replace(meta) {
        let path = meta::meta_path(&group.files.dir, old.number);
        let mut counts = locked(&inner.checkpoints);
        let number = counts.number;
        counts.meta_garbage.push((path, number));
    }
}

fn check(file: &dyn DiskFile, info: &SegmentInfo) -> io::Result<()> {
    if file.len()? != info.bytes {
        return Err(invalid(format!("{} of {} bytes were received", file.len()?, info.bytes)));
    }
    let (mut at, mut crc) = (0, 0);
    while at < info.bytes {
        let piece = file.read_exact_at((info.bytes - at).min(CHECK_BYTES as u64) as usize, at)?;
        crc = crc32c::crc32c_append(crc, &piece);
        at += piece.len() as u64;
    }
    if crc != info.crc {
        return Err(invalid("what was received does not match the announced CRC".to_owned()));
    }
    Ok(())
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            self.written.values().for_each(|(path, _)| self.group.files.files.remove(path));
        }
    }
}
