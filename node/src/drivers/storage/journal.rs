//! The journal's queue and its task: gathers what waits into one frame, writes and syncs it, calls back.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_cluster::ids::LogPosition;

use super::frame::{Encoder, Kind, Place, Record, frame_bytes, payload_start};
use super::group::Group;
use super::slots::{Slots, Target};
use super::{Done, Inner, locked, space};

/// A frame takes more records while it is smaller than this (and than a slot).
const FRAME_BYTES_TARGET: usize = 4 << 20;
/// How often a write under way is looked at before it is held to hang.
const HANG_LOOKS: u32 = 8;
/// After this time without a write a seal closes the last frame, so that rot in it is told from a torn tail.
const SEAL_AFTER: Duration = Duration::from_secs(1);

/// Records that belong together: in one frame, with one callback.
pub(super) struct Item {
    /// Whose; `None` for a seal.
    pub(super) group: Option<Arc<Group>>,
    pub(super) records: Vec<(Record, Bytes)>,
    /// Serial of the first `Entry` record; the others follow.
    pub(super) serial: u64,
    pub(super) done: Option<Done>,
}

/// The queue in front of the journal's files.
pub(super) struct Journal {
    pub(super) slots: Slots,
    queue: Mutex<Queue>,
    wake: Notify,
    target_bytes: usize,
}

struct Queue {
    items: Vec<Item>,
    committed: BTreeMap<u64, (Arc<Group>, LogPosition)>,
    bytes: usize,
    lsn_next: u64,
    durable_lsn: u64,
    closed: bool,
}

/// What goes into one frame.
struct Batch {
    lsn: u64,
    items: Vec<Item>,
    records: usize,
    payload_bytes: usize,
}

/// What writes frames: moved to where work may block and back.
struct Writer {
    encoder: Encoder,
    prev_crc: u32,
    sealed: bool,
}

fn item_bytes(item: &Item) -> usize {
    item.records.iter().map(|(record, _)| super::frame::RECORD_BYTES + record.bytes as usize).sum()
}

impl Journal {
    /// A journal whose next frame has `lsn_next`, after `durable_lsn`.
    pub(super) fn new(slots: Slots, slot_bytes: u64, lsn_next: u64, durable_lsn: u64) -> Journal {
        let (items, committed) = (Vec::new(), BTreeMap::new());
        let queue = Queue { items, committed, bytes: 0, lsn_next, durable_lsn, closed: false };
        let target_bytes = FRAME_BYTES_TARGET.min(slot_bytes as usize / 2);
        Journal { slots, queue: Mutex::new(queue), wake: Notify::new(), target_bytes }
    }

    /// Queues an item; its callback runs once it is durable. When the journal is closed the callback is returned:
    /// the caller calls it, without a lock held.
    #[must_use]
    pub(super) fn push(&self, item: Item) -> Option<Done> {
        let mut queue = locked(&self.queue);
        if queue.closed {
            return item.done;
        }
        queue.bytes += item_bytes(&item);
        queue.items.push(item);
        drop(queue);
        self.wake.notify_one();
        None
    }

    /// Notes what is committed, for the next frame.
    pub(super) fn note_committed(&self, group: &Arc<Group>, at: LogPosition) {
        locked(&self.queue).committed.insert(group.id.0, (Arc::clone(group), at));
    }

    /// Resolves when all that was queued before is durable.
    pub(super) async fn barrier(&self) -> io::Result<()> {
        self.write(None, Vec::new()).await
    }

    /// Queues records and waits until they are durable.
    pub(super) async fn write(&self, group: Option<Arc<Group>>, records: Vec<(Record, Bytes)>) -> io::Result<()> {
        let (done, written) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| drop(done.send(result)));
        drop(self.push(Item { group, records, serial: 0, done: Some(done) }));
        written.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// LSN of the next frame that will be gathered: what is queued from now on is in it or later.
    pub(super) fn lsn_next(&self) -> u64 {
        locked(&self.queue).lsn_next
    }

    /// LSN of the last frame that was written and synced.
    pub(super) fn durable_lsn(&self) -> u64 {
        locked(&self.queue).durable_lsn
    }

    /// Bytes that wait.
    pub(super) fn queue_bytes(&self) -> usize {
        locked(&self.queue).bytes
    }

    /// Refuses all that comes from now on.
    pub(super) fn close(&self) {
        locked(&self.queue).closed = true;
        self.wake.notify_one();
    }

    fn gather(&self) -> Option<Batch> {
        let mut queue = locked(&self.queue);
        if queue.items.is_empty() {
            return None;
        }
        let (mut records, mut payload_bytes, mut count) = (0, 0, 0);
        for item in &queue.items {
            let bytes: usize = item.records.iter().map(|(record, _)| record.bytes as usize).sum();
            let more = frame_bytes(records + item.records.len(), payload_bytes + bytes) as usize;
            if count > 0 && more > self.target_bytes {
                break;
            }
            (records, payload_bytes, count) = (records + item.records.len(), payload_bytes + bytes, count + 1);
        }
        let whole = count == queue.items.len();
        let mut items = if whole { std::mem::take(&mut queue.items) } else { queue.items.drain(..count).collect() };
        if records > 0 {
            // What is committed may be in an item that waits for the next frame: without it a log would end before.
            let committed = if whole { std::mem::take(&mut queue.committed) } else { BTreeMap::new() };
            let committed = committed.into_values().map(|(group, at)| {
                let record = Record::bare(Kind::Committed, 0, group.id.0, at.index, at.term);
                Item { group: Some(group), records: vec![record], serial: 0, done: None }
            });
            let before = items.len();
            items.extend(committed);
            records += items.len() - before;
            queue.lsn_next += 1;
        }
        queue.bytes -= items[..count].iter().map(item_bytes).sum::<usize>();
        Some(Batch { lsn: queue.lsn_next - 1, items, records, payload_bytes })
    }
}

impl Writer {
    /// Writes a frame and syncs it.
    ///
    /// # Errors
    /// `StorageFull`: nothing that counts was written, and the same may be tried again. Any other is final.
    fn write(&mut self, slots: &Slots, batch: &Batch) -> io::Result<(Target, u64)> {
        let bytes = frame_bytes(batch.records, batch.payload_bytes);
        let target = slots.place(bytes, batch.lsn, self.prev_crc)?;
        let records = || batch.items.iter().flat_map(|item| &item.records);
        let (frame, crc) = self.encoder.encode(batch.lsn, self.prev_crc, batch.records, records);
        assert_eq!(frame.len() as u64, bytes, "a frame is as long as was counted");
        target.file.write_at(frame, target.at)?;
        // After a failed sync, of a full disk too, nobody knows what of the frame is there.
        target.file.sync_data().map_err(|error| io::Error::other(format!("sync: {error}")))?;
        slots.written(&target, bytes, batch.lsn);
        self.prev_crc = crc;
        Ok((target, bytes))
    }
}

/// The journal's task. Ends only with the process, or after `Journal::close`.
pub(super) async fn run(inner: Arc<Inner>, prev_crc: u32, lock: Arc<dyn Send + Sync>) {
    let mut writer = Writer { encoder: Encoder::default(), prev_crc, sealed: true };
    loop {
        let Some(batch) = inner.journal.gather() else {
            if locked(&inner.journal.queue).closed {
                break;
            }
            inner.metrics.queue_bytes.set(0);
            let idle = tokio::time::timeout(SEAL_AFTER, inner.journal.wake.notified());
            if writer.sealed {
                inner.journal.wake.notified().await;
            } else if idle.await.is_err() {
                let seal = Record::bare(Kind::Seal, 0, 0, 0, 0);
                drop(inner.journal.push(Item { group: None, records: vec![seal], serial: 0, done: None }));
            }
            continue;
        };
        inner.metrics.queue_bytes.set(inner.journal.queue_bytes() as i64);
        if batch.records == 0 {
            finish(batch.items);
            continue;
        }
        let started = Instant::now();
        let (back, batch, (target, bytes)) = write(&inner, writer, batch).await;
        writer = back;
        writer.sealed = batch.items.iter().all(|item| item.group.is_none());
        inner.metrics.frames.inc();
        inner.metrics.frame_bytes.inc_by(bytes);
        inner.metrics.frame_seconds.observe(started.elapsed().as_secs_f64());
        place(&batch, &target);
        locked(&inner.journal.queue).durable_lsn = batch.lsn;
        if !writer.sealed {
            inner.frame_written(bytes);
        }
        finish(batch.items);
    }
    // The folder's lock is held until the last write has ended.
    drop((writer, lock));
    inner.closed.notify_one();
    std::future::pending::<()>().await;
}

/// Writes a frame, however long the disk is full: nothing is acked meanwhile. Any other failure ends the process.
async fn write(inner: &Arc<Inner>, mut writer: Writer, mut batch: Batch) -> (Writer, Batch, (Target, u64)) {
    let mut waits = false;
    loop {
        let work = {
            let inner = Arc::clone(inner);
            move || {
                let result = writer.write(&inner.journal.slots, &batch);
                (writer, batch, result)
            }
        };
        let (back, same, result) = unless_it_hangs(inner, inner.host.run_blocking(work)).await;
        match result {
            Ok(written) => {
                if waits {
                    tracing::info!("the journal goes on");
                }
                return (back, same, written);
            }
            Err(error) if space::is_full(&error) => {
                if !waits {
                    let lack = space::lack(&error);
                    tracing::error!(%error, lack, "the journal waits, and this node with it");
                }
                waits = true;
                if inner.wait_for_room().await.is_err() {
                    // The node stops without this frame, of which nobody was told that it is durable.
                    std::future::pending::<()>().await;
                }
            }
            Err(error) => inner.host.abort(&format!("the journal cannot be written: {error}")),
        }
        (writer, batch) = (back, same);
    }
}

/// Waits for disk work; ends the process if it takes longer than `storage.hang_after`. Time in which the whole process
/// stood still, as after SIGSTOP or on a host that was suspended, counts as one of [`HANG_LOOKS`] parts at most.
async fn unless_it_hangs<T>(inner: &Inner, work: impl Future<Output = T>) -> T {
    let hang_after = inner.config.hang_after;
    let mut work = std::pin::pin!(work);
    for _ in 0..HANG_LOOKS {
        if let Ok(done) = tokio::time::timeout(hang_after / HANG_LOOKS, &mut work).await {
            return done;
        }
    }
    inner.host.abort(&format!("a journal write takes longer than {hang_after:?}: the disk hangs"))
}

/// Tells the logs where their entries are.
fn place(batch: &Batch, target: &Target) {
    let mut at = payload_start(batch.records);
    for item in &batch.items {
        let Some(group) = item.group.as_ref() else { continue };
        let mut serial = item.serial;
        let mut log = None;
        for (record, _) in &item.records {
            if record.kind == Kind::Entry {
                let log = log.get_or_insert_with(|| locked(&group.log));
                log.placed(record.index, serial, Place { slot: target.slot, frame: target.at, at, lsn: batch.lsn });
                serial += 1;
            }
            at += record.bytes;
        }
    }
}

fn finish(items: Vec<Item>) {
    for done in items.into_iter().filter_map(|item| item.done) {
        done(Ok(()));
    }
}
