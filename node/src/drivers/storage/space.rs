//! Disk space: the watermark, the ballast, and spare journal files.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use crate::host::Open;

/// Free space is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// The ballast is written in pieces of this size.
const BALLAST_PIECE_BYTES: usize = 1 << 20;

/// Looks at free space every few seconds.
pub(super) async fn watch(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        look(&inner).await;
        ballast(&inner).await;
    }
}

/// Looks at free space once and sets the watermark.
pub(super) async fn look(inner: &Arc<Inner>) {
    let (disk, dir) = (Arc::clone(&inner.disk), inner.dir.clone());
    match inner.host.run_blocking(move || disk.free_bytes(&dir)).await {
        Ok(free) => {
            let full = free < inner.config.free_bytes_min.0;
            if full && !inner.full.load(std::sync::atomic::Ordering::Relaxed) {
                let min = inner.config.free_bytes_min;
                tracing::error!(free, %min, "the disk is nearly full: publishes are refused");
            }
            inner.metrics.free_bytes.set(free.min(i64::MAX as u64) as i64);
            inner.set_full(full);
        }
        Err(error) => tracing::warn!(%error, "the free space is not known"),
    }
}

/// Makes the ballast while there is room, removes it when the disk is about to meet its end.
async fn ballast(inner: &Arc<Inner>) {
    let bytes = inner.config.ballast_bytes.0;
    if bytes == 0 {
        return;
    }
    let (disk, path) = (Arc::clone(&inner.disk), inner.dir.join("BALLAST"));
    let min = inner.config.free_bytes_min.0;
    let work = move || -> io::Result<()> {
        let free = disk.free_bytes(&path.parent().map_or_else(|| path.clone(), PathBuf::from))?;
        let there = disk.exists(&path);
        if there && free < bytes.min(min / 2) {
            tracing::error!(free, "the disk is full: the ballast is released; make room");
            return disk.remove(&path);
        }
        if there || free < min.saturating_add(bytes.saturating_mul(2)) {
            return Ok(());
        }
        let file = disk.open(&path, Open::Replace)?;
        let piece = vec![0; BALLAST_PIECE_BYTES];
        let mut at = 0;
        while at < bytes {
            let count = (bytes - at).min(BALLAST_PIECE_BYTES as u64);
            file.write_at(&piece[..count as usize], at)?;
            at += count;
        }
        Ok(())
    };
    if let Err(error) = inner.host.run_blocking(work).await {
        tracing::warn!(%error, "the ballast file cannot be changed");
    }
}

/// Keeps pre-written journal files ready.
pub(super) async fn spares(inner: Arc<Inner>) {
    loop {
        let (count, free) = inner.journal.slots.count();
        inner.metrics.slots.set(count as i64);
        if free > 0 && count >= inner.config.journal_slots as usize {
            inner.spare_due.notified().await;
            continue;
        }
        let work = {
            let inner = Arc::clone(&inner);
            move || inner.journal.slots.add(0, true)
        };
        if let Err(error) = inner.host.run_blocking(work).await {
            tracing::warn!(%error, "a journal file cannot be made ahead of need");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
