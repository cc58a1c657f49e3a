//! Checkpoints: state files, MANIFEST, CURRENT; after one, journal files are used again.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_cluster::ids::LogPosition;

use super::group::Group;
use super::meta::{self, FileRecord, GroupRecord, Manifest, Meta, MetaRef};
use super::segments::Segment;
use super::{Checkpointed, Inner, locked, space};

/// Segments synced at a time. Each is one blocking piece of work.
const SYNCS_MAX: usize = 8;

/// Counts and leftovers of checkpoints.
#[derive(Default)]
pub(super) struct Checkpoints {
    /// Of the last manifest.
    pub(super) number: u64,
    pub(super) meta_next: u64,
    /// Journal bytes since the last checkpoint.
    pub(super) journal_bytes: u64,
    /// State files and folders that no later manifest names, with the number of the last that may.
    pub(super) meta_garbage: Vec<(PathBuf, u64)>,
    pub(super) folder_garbage: Vec<(PathBuf, u64)>,
}

/// A group as a checkpoint found it.
struct Capture {
    group: Arc<Group>,
    /// As of the capture: durable once the journal has passed it.
    record: GroupRecord,
    /// A new state, and who is told once it is durable.
    frozen: Option<(LogPosition, Bytes, Vec<FileRecord>, Arc<dyn Checkpointed>)>,
}

/// The checkpoint task: by time, by journal bytes, or when asked.
pub(super) async fn run(inner: Arc<Inner>, mut asked: tokio::sync::mpsc::Receiver<oneshot::Sender<io::Result<()>>>) {
    let interval = inner.config.checkpoint_interval;
    loop {
        let mut reply = None;
        tokio::select! {
            biased;
            request = asked.recv() => match request {
                Some(request) => reply = Some(request),
                None => return,
            },
            () = inner.checkpoint_due.notified() => {}
            () = tokio::time::sleep(interval) => {}
        }
        if reply.is_none() && !inner.is_dirty() {
            continue;
        }
        let result = take(&inner).await;
        match (&result, reply) {
            (_, Some(reply)) => drop(reply.send(result)),
            (Err(error), None) => tracing::error!(%error, "no checkpoint could be taken; it is tried again"),
            (Ok(()), None) => {}
        }
    }
}

/// Ends the process after a failed write or sync: what is on disk is no longer known. A full disk, or no descriptor to
/// open a file with, is no such failure: nothing that counts was touched.
fn survive<T>(inner: &Inner, result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if !space::is_full(&error) => inner.host.abort(&format!("a checkpoint cannot be written: {error}")),
        result => result,
    }
}

async fn take(inner: &Arc<Inner>) -> io::Result<()> {
    let _alone = inner.changes.lock().await;
    let started = Instant::now();
    let covered = std::mem::take(&mut locked(&inner.checkpoints).journal_bytes);
    // All that is queued after this point is replayed over the manifest.
    let capture_lsn = inner.journal.lsn_next();
    let captures = {
        let inner = Arc::clone(inner);
        let host = Arc::clone(&inner.host);
        host.run_blocking(move || capture(&inner)).await
    };
    inner.journal.barrier().await?;
    let result = finish(inner, capture_lsn, captures).await;
    if result.is_err() {
        locked(&inner.checkpoints).journal_bytes += covered;
    }
    inner.metrics.checkpoint_seconds.observe(started.elapsed().as_secs_f64());
    survive(inner, result)
}

fn capture(inner: &Inner) -> Vec<Capture> {
    let groups: Vec<_> = locked(&inner.groups).values().cloned().collect();
    let registered = locked(&inner.registered).clone();
    let capture = |group: Arc<Group>| {
        let usable = {
            let log = locked(&group.log);
            log.fenced.is_none() && !log.deleted
        };
        let replica = registered.get(&group.id.0).filter(|_| usable);
        // The state is taken before the files, so that the files hold at least what it says.
        let frozen = replica.and_then(|replica| {
            let (at, state) = replica.freeze()?;
            Some((at, state, group.files.records(), Arc::clone(replica)))
        });
        Capture { record: record(&group), group, frozen }
    };
    groups.into_iter().map(capture).collect()
}

async fn finish(inner: &Arc<Inner>, capture_lsn: u64, captures: Vec<Capture>) -> io::Result<()> {
    move_old_entries(inner).await?;
    let floor = floor(inner, capture_lsn);
    // What the floor no longer counts was truncated or purged: these records must be durable before the manifest
    // lets go of the frames, or a crash would find a log with a hole.
    inner.journal.barrier().await?;
    sync_segments(inner, &captures).await?;
    let told = {
        let inner = Arc::clone(inner);
        let host = Arc::clone(&inner.host);
        host.run_blocking(move || write(&inner, floor, captures)).await?
    };
    for (replica, at) in told {
        replica.checkpointed(at);
    }
    Ok(())
}

/// Syncs the segments of all captured groups, a bounded number at a time: the file system makes one commit of those that
/// wait together. What becomes dirty meanwhile is synced with its group.
async fn sync_segments(inner: &Arc<Inner>, captures: &[Capture]) -> io::Result<()> {
    let frozen = captures.iter().filter(|capture| capture.frozen.is_some());
    let dirty: Vec<_> = frozen.flat_map(|capture| capture.group.files.take_dirty()).collect();
    let taken = dirty.clone();
    let sync = |segment: Arc<Segment>| {
        let (host, files) = (Arc::clone(&inner.host), Arc::clone(&inner.files));
        async move { host.run_blocking(move || segment.sync(&files)).await }
    };
    let synced = futures::stream::iter(dirty).map(sync).buffer_unordered(SYNCS_MAX).try_collect().await;
    if synced.is_err() {
        // One that could not be opened is no failed sync: the next checkpoint syncs it, and those not come to.
        taken.iter().for_each(|segment| segment.set_dirty());
    }
    synced
}

/// The first frame that is needed, and its `prev_crc`.
fn floor(inner: &Inner, capture_lsn: u64) -> (u64, u32) {
    let groups: Vec<_> = locked(&inner.groups).values().cloned().collect();
    let lsn_min = groups.iter().filter_map(|group| locked(&group.log).lsn_min()).min();
    let lsn = lsn_min.map_or(capture_lsn, |lsn| lsn.min(capture_lsn));
    inner.journal.slots.floor(lsn).unwrap_or((capture_lsn, inner.prev_crc))
}

/// Entries of stalled groups are written again at the head, if that frees more than it costs.
async fn move_old_entries(inner: &Arc<Inner>) -> io::Result<()> {
    let used = inner.journal.slots.used();
    let mut left: u64 = used.iter().map(|(_, bytes)| bytes).sum();
    let limit = inner.config.checkpoint_bytes.0.saturating_mul(2);
    let (mut freed, mut cutoff) = (0, 0);
    for pair in used.windows(2) {
        if left <= limit {
            break;
        }
        (freed, cutoff) = (freed + pair[0].1, pair[1].0);
        left -= pair[0].1;
    }
    if freed == 0 {
        return Ok(());
    }
    let groups: Vec<_> = locked(&inner.groups).values().cloned().collect();
    let moved = {
        let inner = Arc::clone(inner);
        let host = Arc::clone(&inner.host);
        host.run_blocking(move || {
            let cost: u64 = groups.iter().map(|group| group.old_bytes(cutoff)).sum();
            if cost == 0 || cost > freed / 2 {
                return false;
            }
            for group in groups {
                // A group whose entries cannot be read is fenced by the attempt and pins nothing.
                if let Err(error) = group.move_entries(&inner, cutoff) {
                    tracing::warn!(group = %group.id, %error, "old log entries cannot be moved");
                }
            }
            true
        })
        .await
    };
    if moved { inner.journal.barrier().await } else { Ok(()) }
}

fn write(
    inner: &Inner,
    (floor_lsn, floor_prev_crc): (u64, u32),
    captures: Vec<Capture>,
) -> io::Result<Vec<(Arc<dyn Checkpointed>, LogPosition)>> {
    let disk = &*inner.disk;
    let mut told = Vec::new();
    let mut metas: BTreeMap<u64, MetaRef> = BTreeMap::new();
    let mut records = Vec::new();
    for Capture { group, record, frozen } in captures {
        records.push(record);
        let Some((at, state, files, replica)) = frozen else { continue };
        if locked(&group.log).deleted {
            continue;
        }
        group.files.sync()?;
        let number = inner.meta_number();
        let new = !disk.exists(&group.files.dir);
        disk.create_dir_all(&group.files.dir)?;
        // Before anything that may be tried again: the next time the folder is not new.
        for folder in group.files.dir.ancestors().skip(1).take(if new { 2 } else { 0 }) {
            space::with_descriptor(|| disk.sync_dir(folder)).map_err(space::unsynced(folder))?;
        }
        let meta = Meta {
            group: group.id.0,
            replica: group.replica,
            term: at.term,
            index: at.index,
            files,
            state: state.into(),
        };
        metas.insert(group.id.0, meta::write_meta(disk, &group.files.dir, number, &meta)?);
        told.push((replica, at));
    }
    let groups: Vec<_> = locked(&inner.groups).values().cloned().collect();
    let (number, meta_next) = {
        let counts = locked(&inner.checkpoints);
        (counts.number + 1, counts.meta_next)
    };
    // A group made since then is in frames that will be replayed.
    for record in &mut records {
        if let Some(meta) = metas.get(&record.group) {
            record.checkpoint = Some(meta.clone());
        }
    }
    let durable_lsn = inner.journal.durable_lsn();
    let manifest = Manifest { number, floor_lsn, floor_prev_crc, durable_lsn, meta_next, groups: records };
    meta::write_manifest(disk, &inner.dir, &manifest)?;
    locked(&inner.checkpoints).number = number;
    for (id, meta) in metas {
        let group = groups.iter().find(|group| group.id.0 == id);
        let Some(group) = group else { continue };
        if let Some(old) = locked(&group.log).checkpoint.replace(meta) {
            let path = meta::meta_path(&group.files.dir, old.number);
            locked(&inner.checkpoints).meta_garbage.push((path, number - 1));
        }
    }
    let recycled = inner.journal.slots.recycle(floor_lsn);
    inner.metrics.slots_recycled.inc_by(recycled as u64);
    inner.journal.slots.shrink(inner.config.journal_slots as usize)?;
    inner.spare_due.notify_one();
    collect(inner, number, &groups);
    Ok(told)
}

fn record(group: &Group) -> GroupRecord {
    let log = locked(&group.log);
    GroupRecord {
        group: group.id.0,
        replica: group.replica,
        vote: log.vote.map(meta::pack_vote),
        committed: log.committed.map(meta::pack),
        purged: log.purged.map(meta::pack),
        checkpoint: log.checkpoint.clone(),
        fenced: log.fenced.clone(),
    }
}

/// Removes files that neither of the last two manifests names.
fn collect(inner: &Inner, number: u64, groups: &[Arc<Group>]) {
    let (files, folders) = {
        let mut counts = locked(&inner.checkpoints);
        let is_old = |(_, last): &(PathBuf, u64)| last + 1 < number;
        let (files, kept) = std::mem::take(&mut counts.meta_garbage).into_iter().partition::<Vec<_>, _>(is_old);
        counts.meta_garbage = kept;
        let (folders, kept) = std::mem::take(&mut counts.folder_garbage).into_iter().partition::<Vec<_>, _>(is_old);
        counts.folder_garbage = kept;
        (files, folders)
    };
    files.iter().for_each(|(path, _)| drop(inner.disk.remove(path)));
    for (folder, _) in folders {
        inner.files.forget(&folder);
        drop(inner.disk.remove_dir_all(&folder));
    }
    meta::remove_manifests(&*inner.disk, &inner.dir, number);
    groups.iter().for_each(|group| group.files.checkpointed());
}
