//! Disk space: the watermark, the reserve, the ballast, and spare journal files.
//!
//! Three lines, from the top: below `free_bytes_min` publishes are refused and leaderships go to nodes with room; below
//! the reserve (half the ballast) segments wait, so that the journal and checkpoints, which are small and give space
//! back, can go on; at the very end whoever needs space waits for it. See docs/adr/006-full-disks.md.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::{Inner, Metrics, StorageConfig};
use crate::host::descriptors::is_out_of_descriptors;
use crate::host::{Disk, Open};

/// Free space is looked at this often, and at once when a write met a full disk.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Who has met a full disk tries again after this.
pub(crate) const FULL_PAUSE: Duration = Duration::from_millis(250);
/// Who could not open a file in blocking work tries again after this.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(20);
/// Spare journal files are tried again after this.
const SPARE_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// The watermark is left when this part of it more is free, so that checkpoints that come and go do not toggle it.
const LEAVE_PART: u64 = 16;

/// Whether an error says that there is no room on the disk, or no descriptor to open a file with: nothing is broken, and
/// the same may be tried again later.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) || is_out_of_descriptors(error)
}

/// What there is none of, for a person: `error` is one of which [`is_full`] is true.
pub(crate) fn lack(error: &io::Error) -> &'static str {
    if is_out_of_descriptors(error) {
        "no descriptor is left to open a file with (ulimit -n)"
    } else {
        "the disk is full"
    }
}

/// The error of a failed sync, of a full disk too: nobody knows what of the file or folder is there, so that it is never
/// one of those that are tried again. But a folder that could not even be opened was not synced, and may be again.
pub(super) fn unsynced(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| match is_out_of_descriptors(&error) {
        true => error,
        false => io::Error::other(format!("sync {}: {error}", path.display())),
    }
}

/// Does what opens something in blocking work that cannot be begun anew, however long there is no descriptor for it.
pub(super) fn with_descriptor<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match work() {
            Err(error) if is_out_of_descriptors(&error) => std::thread::sleep(DESCRIPTOR_PAUSE),
            done => return done,
        }
    }
}

/// What is known of the free space.
pub(super) struct Space {
    min: u64,
    reserve: u64,
    /// At the last look.
    free: AtomicU64,
    /// Bytes of log entries taken since: they will be in segments soon.
    taken: AtomicU64,
    full: watch::Sender<bool>,
    /// Somebody has met a full disk.
    pub(super) due: Notify,
}

impl Space {
    pub(super) fn new(config: &StorageConfig) -> Space {
        Space {
            min: config.free_bytes_min.0,
            reserve: config.ballast_bytes.0 / 2,
            free: AtomicU64::new(u64::MAX),
            taken: AtomicU64::new(0),
            full: watch::Sender::new(false),
            due: Notify::new(),
        }
    }

    fn left(&self) -> u64 {
        self.free.load(Ordering::Relaxed).saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// Counts bytes that will need room.
    pub(super) fn take(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Under the watermark.
    pub(super) fn full(&self) -> bool {
        *self.full.borrow() || self.left() < self.min
    }

    /// What `full` said at the last look, published on change.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.full.subscribe()
    }

    /// Under the reserve: what is left is for the journal and for checkpoints.
    pub(super) fn scarce(&self) -> bool {
        self.left() < self.reserve
    }

    /// The error of whoever wants more than there is.
    pub(super) fn refusal(&self) -> io::Error {
        let message = format!("{} bytes are free, and the last {} are kept for the journal", self.left(), self.reserve);
        io::Error::new(io::ErrorKind::StorageFull, message)
    }

    /// Whether `bytes` more leave the watermark alone.
    pub(super) fn has_room_for(&self, bytes: u64) -> bool {
        self.left() >= self.min.saturating_add(bytes)
    }

    fn looked(&self, free: u64, taken_before: u64, metrics: &Metrics) {
        self.free.store(free, Ordering::Relaxed);
        self.taken.fetch_sub(taken_before, Ordering::Relaxed);
        metrics.free_bytes.set(free.min(i64::MAX as u64) as i64);
        let was = *self.full.borrow();
        let full = if was { free < self.min.saturating_add(self.min / LEAVE_PART) } else { free < self.min };
        if full == was {
            return;
        }
        if full {
            let min = self.min;
            tracing::error!(free, min, "the disk is nearly full (storage.free_bytes_min): publishes are refused here");
        } else {
            tracing::info!(free, "there is room on the disk again");
        }
        metrics.full.set(i64::from(full));
        self.full.send_replace(full);
    }
}

/// Looks at free space every second.
pub(super) async fn watch(inner: Arc<Inner>) {
    loop {
        look(&inner).await;
        ballast(&inner).await;
        tokio::select! {
            biased;
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = inner.space.due.notified() => {}
        }
    }
}

/// Looks at free space once and sets the watermark.
pub(super) async fn look(inner: &Arc<Inner>) {
    let (disk, dir) = (Arc::clone(&inner.disk), inner.dir.clone());
    let taken = inner.space.taken.load(Ordering::Relaxed);
    match inner.host.run_blocking(move || disk.free_bytes(&dir)).await {
        Ok(free) => inner.space.looked(free, taken, &inner.metrics),
        Err(error) => tracing::warn!(%error, "the free space is not known"),
    }
}

/// Makes the ballast while there is room, removes it when the disk is about to meet its end.
async fn ballast(inner: &Arc<Inner>) {
    let (disk, dir, config) = (Arc::clone(&inner.disk), inner.dir.clone(), inner.config.clone());
    let changed = inner.host.run_blocking(move || {
        let released = release_ballast(&*disk, &dir, &config)?;
        if !released {
            make_ballast(&*disk, &dir, &config)?;
        }
        io::Result::Ok(released)
    });
    match changed.await {
        Ok(true) => look(inner).await,
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "the ballast file cannot be changed"),
    }
}

/// Removes the ballast if it is needed; says whether it did.
pub(super) fn release_ballast(disk: &dyn Disk, dir: &Path, config: &StorageConfig) -> io::Result<bool> {
    let path = dir.join("BALLAST");
    if !disk.exists(&path) {
        return Ok(false);
    }
    let free = disk.free_bytes(dir)?;
    if free >= config.ballast_bytes.0.min(config.free_bytes_min.0 / 2) {
        return Ok(false);
    }
    tracing::error!(free, "the disk is full: the ballast is released; make room");
    disk.remove(&path)?;
    Ok(true)
}

fn make_ballast(disk: &dyn Disk, dir: &Path, config: &StorageConfig) -> io::Result<()> {
    let (path, bytes) = (dir.join("BALLAST"), config.ballast_bytes.0);
    let enough = config.free_bytes_min.0.saturating_add(bytes.saturating_mul(2));
    if bytes == 0 || disk.exists(&path) || disk.free_bytes(dir)? < enough {
        return Ok(());
    }
    let made = disk.open(&path, Open::Replace)?.allocate(bytes);
    if made.is_err() {
        // A part of it would pass for the whole.
        drop(disk.remove(&path));
    }
    made
}

/// Keeps pre-written journal files ready; no more than are configured when the disk is nearly full.
pub(super) async fn spares(inner: Arc<Inner>) {
    loop {
        let (count, free) = inner.journal.slots.count();
        inner.metrics.slots.set(count as i64);
        let enough = count >= inner.config.journal_slots as usize;
        if enough && (free > 0 || inner.space.full()) {
            let due = inner.spare_due.notified();
            match free {
                // Without a word: room may come back.
                0 => drop(tokio::time::timeout(SPARE_AGAIN_AFTER, due).await),
                _ => due.await,
            }
            continue;
        }
        let work = {
            let inner = Arc::clone(&inner);
            move || inner.journal.slots.add(0, true)
        };
        if let Err(error) = inner.host.run_blocking(work).await {
            tracing::warn!(%error, "a journal file cannot be made ahead of need");
            tokio::time::sleep(SPARE_AGAIN_AFTER).await;
        }
    }
}
