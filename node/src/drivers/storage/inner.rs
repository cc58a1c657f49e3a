//! The storage behind its handles.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::{NodeId, RaftGroup, Start};

use super::checkpoint::{self, Checkpoints};
use super::files::Files;
use super::frame::{Kind, Record};
use super::group::{Group, Log};
use super::identity::{self, Identity};
use super::journal::{self, Item, Journal};
use super::meta::group_dir;
use super::open::{self, Opened};
use super::segments::ShardFiles;
use super::space::{self, Space};
use super::{Checkpointed, Metrics, RecoveredGroup, StorageConfig, locked, scrub, starts};
use crate::host::{Disk, Host, Tasks};

/// The log cache is looked after once per so many journal bytes.
const EVICT_EVERY_BYTES: u64 = 1 << 20;
/// `close` gives up after this time.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Inner {
    pub(super) host: Arc<dyn Host>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) config: StorageConfig,
    pub(super) metrics: Metrics,
    pub(super) journal: Journal,
    /// Of the last frame before this process.
    pub(super) prev_crc: u32,
    pub(super) files: Arc<Files>,
    pub(super) identity: Mutex<Identity>,
    pub(super) groups: Mutex<BTreeMap<u64, Arc<Group>>>,
    pub(super) registered: Mutex<BTreeMap<u64, Arc<dyn Checkpointed>>>,
    pub(super) checkpoints: Mutex<Checkpoints>,
    /// Checkpoints and installed snapshots, one at a time.
    pub(super) changes: tokio::sync::Mutex<()>,
    pub(super) checkpoint_due: Notify,
    pub(super) spare_due: Notify,
    pub(super) closed: Notify,
    pub(super) space: Arc<Space>,
    pub(super) lost: bool,
    evict_bytes: Mutex<u64>,
    asked: mpsc::Sender<oneshot::Sender<io::Result<()>>>,
    stopping: CancellationToken,
}

impl Inner {
    pub(super) async fn open(
        host: Arc<dyn Host>,
        dir: PathBuf,
        config: StorageConfig,
        tasks: &Tasks,
    ) -> io::Result<(Arc<Inner>, Vec<RecoveredGroup>)> {
        let disk = host.disk();
        let space = Arc::new(Space::new(&config));
        let work = {
            let (host, disk, dir, config) = (Arc::clone(&host), Arc::clone(&disk), dir.clone(), config.clone());
            let space = Arc::clone(&space);
            move || {
                disk.create_dir_all(&dir)?;
                let lock: Arc<dyn Send + Sync> = Arc::from(disk.lock(&dir.join("LOCK"))?);
                open::open(&*host, &disk, &dir, &config, &space).map(|opened| (lock, opened))
            }
        };
        let (lock, opened) = host.run_blocking(work).await?;
        let Opened { identity, slots, groups, recovered, files, .. } = opened;
        opened.problems.iter().for_each(|problem| tracing::error!(problem, "the data folder is damaged"));
        let journal = Journal::new(slots, config.journal_slot_bytes.0, opened.lsn_next, opened.durable_lsn);
        let metrics = Metrics { files_open: files.open_count.clone(), ..Metrics::default() };
        metrics.groups_fenced.set(recovered.iter().filter(|group| group.fenced.is_some()).count() as i64);
        let (asked, requests) = mpsc::channel(16);
        let checkpoints = Checkpoints {
            number: opened.manifest_number,
            meta_next: opened.meta_next,
            // What was replayed counts: without a checkpoint the next start would replay it all again.
            journal_bytes: opened.journal_bytes,
            ..Checkpoints::default()
        };
        let inner = Arc::new(Inner {
            host,
            disk,
            dir,
            config,
            metrics,
            journal,
            prev_crc: opened.prev_crc,
            files,
            identity: Mutex::new(identity),
            groups: Mutex::new(groups),
            registered: Mutex::default(),
            checkpoints: Mutex::new(checkpoints),
            changes: tokio::sync::Mutex::default(),
            checkpoint_due: Notify::new(),
            spare_due: Notify::new(),
            closed: Notify::new(),
            space,
            lost: opened.lost,
            evict_bytes: Mutex::default(),
            asked,
            stopping: tasks.stopping().clone(),
        });
        space::look(&inner).await;
        tasks.spawn_vital("storage journal", journal::run(Arc::clone(&inner), inner.prev_crc, lock));
        tasks.spawn_vital("storage checkpoints", checkpoint::run(Arc::clone(&inner), requests));
        tasks.spawn("storage space", space::watch(Arc::clone(&inner)));
        tasks.spawn("storage scrub", scrub::run(Arc::clone(&inner)));
        tasks.spawn("storage journal files", space::spares(Arc::clone(&inner)));
        Ok((inner, recovered))
    }

    pub(super) fn group(&self, group: RaftGroup) -> Option<Arc<Group>> {
        locked(&self.groups).get(&group.0).cloned()
    }

    /// A number for a state file or a received snapshot.
    pub(super) fn meta_number(&self) -> u64 {
        let mut counts = locked(&self.checkpoints);
        counts.meta_next += 1;
        counts.meta_next - 1
    }

    pub(super) async fn join_cluster(self: &Arc<Self>, cluster: u64) -> io::Result<()> {
        let _alone = self.changes.lock().await;
        let mut identity = locked(&self.identity).clone();
        match identity.cluster {
            Some(known) if known == cluster => return Ok(()),
            Some(known) => {
                let dir = self.dir.display();
                let message = format!("{dir} belongs to cluster {known:016x}, not to {cluster:016x}");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            None => identity.cluster = Some(cluster),
        }
        let inner = Arc::clone(self);
        let written = identity.clone();
        self.host.run_blocking(move || identity::write(&*inner.disk, &inner.dir, &written)).await?;
        *locked(&self.identity) = identity;
        Ok(())
    }

    pub(super) async fn starts(self: &Arc<Self>) -> BTreeMap<NodeId, Start> {
        let inner = Arc::clone(self);
        self.host.run_blocking(move || starts::read(&*inner.disk, &inner.dir)).await
    }

    pub(super) async fn keep_starts(self: &Arc<Self>, newer: BTreeMap<NodeId, Start>) {
        let _alone = self.changes.lock().await;
        let inner = Arc::clone(self);
        let kept = self.host.run_blocking(move || {
            let mut all = starts::read(&*inner.disk, &inner.dir);
            // Two of these may come in any order.
            for (node, start) in newer {
                if all.get(&node).is_none_or(|known| known.generation <= start.generation) {
                    all.insert(node, start);
                }
            }
            starts::write(&*inner.disk, &inner.dir, &all)
        });
        if let Err(error) = kept.await {
            tracing::warn!(%error, "the starts of other nodes are not on the disk");
        }
    }

    pub(super) async fn create_group(self: &Arc<Self>, id: RaftGroup, replica: u64) -> io::Result<Arc<Group>> {
        let group = {
            let mut groups = locked(&self.groups);
            if let Some(there) = groups.get(&id.0) {
                let fenced = locked(&there.log).fenced.clone();
                if there.replica == replica && fenced.is_none() {
                    return Ok(Arc::clone(there));
                }
                let fenced = fenced.map_or_else(String::new, |reason| format!(", fenced: {reason}"));
                let message = format!("group {id} is here as replica {}{fenced}", there.replica);
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            let files = ShardFiles::new(Arc::clone(&self.files), group_dir(&self.dir, id, replica));
            let group = Group::new(id, replica, files, Log::default());
            // Known to checkpoints before its record is written: a manifest may be early, never late.
            groups.insert(id.0, Arc::clone(&group));
            group
        };
        let record = Record::bare(Kind::Create, 0, id.0, replica, 0);
        self.journal.write(Some(Arc::clone(&group)), vec![record]).await?;
        Ok(group)
    }

    pub(super) async fn delete_group(self: &Arc<Self>, id: RaftGroup) -> io::Result<()> {
        locked(&self.registered).remove(&id.0);
        // A manifest may omit it before its record is written, but never name it after.
        let Some(group) = locked(&self.groups).remove(&id.0) else { return Ok(()) };
        let (done, written) = oneshot::channel();
        {
            let mut log = locked(&group.log);
            log.deleted = true;
            if log.fenced.is_some() {
                self.metrics.groups_fenced.dec();
            }
            let records = vec![Record::bare(Kind::Delete, 0, id.0, 0, 0)];
            let done = Box::new(move |result| drop(done.send(result)));
            drop(self.journal.push(Item { group: Some(Arc::clone(&group)), records, serial: 0, done: Some(done) }));
        }
        written.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        let mut counts = locked(&self.checkpoints);
        let last = counts.number + 1;
        counts.folder_garbage.push((group.files.dir.clone(), last));
        Ok(())
    }

    pub(super) async fn checkpoint(&self) -> io::Result<()> {
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the storage is closed");
        let (reply, taken) = oneshot::channel();
        self.asked.send(reply).await.map_err(|_| closed())?;
        taken.await.unwrap_or_else(|_| Err(closed()))
    }

    pub(super) async fn close(&self) {
        if self.stopping.is_cancelled() {
            tracing::warn!("the storage is closed after its tasks: the next start has more to replay");
            return;
        }
        let last = async {
            if let Err(error) = self.checkpoint().await {
                tracing::warn!(%error, "no last checkpoint: the next start has more to replay");
            }
            let seal = Record::bare(Kind::Seal, 0, 0, 0, 0);
            drop(self.journal.write(None, vec![seal]).await);
            self.journal.close();
            self.closed.notified().await;
        };
        tokio::select! {
            biased;
            () = last => {}
            () = self.stopping.cancelled() => {}
            () = tokio::time::sleep(CLOSE_PATIENCE) => tracing::warn!("the storage could not be closed in time"),
        }
    }

    /// A pause of whoever has met a full disk.
    ///
    /// # Errors
    /// `BrokenPipe`: the storage stops.
    pub(super) async fn wait_for_room(&self) -> io::Result<()> {
        self.space.due.notify_one();
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the storage is closed")),
            () = tokio::time::sleep(space::FULL_PAUSE) => Ok(()),
        }
    }

    /// True if a checkpoint would change anything.
    pub(super) fn is_dirty(&self) -> bool {
        let counts = locked(&self.checkpoints);
        if counts.journal_bytes > 0 || !counts.folder_garbage.is_empty() {
            return true;
        }
        drop(counts);
        locked(&self.groups).values().any(|group| group.files.has_garbage())
    }

    /// A frame of `bytes` bytes is durable.
    pub(super) fn frame_written(&self, bytes: u64) {
        {
            let mut counts = locked(&self.checkpoints);
            counts.journal_bytes += bytes;
            if counts.journal_bytes >= self.config.checkpoint_bytes.0 {
                self.checkpoint_due.notify_one();
            }
        }
        if self.journal.slots.count().1 == 0 {
            self.spare_due.notify_one();
        }
        let budget = self.config.log_cache_bytes.0;
        let due = {
            let mut waited = locked(&self.evict_bytes);
            *waited += bytes;
            let due = *waited >= EVICT_EVERY_BYTES.min(budget / 8);
            if due {
                *waited = 0;
            }
            due
        };
        if due {
            self.evict(budget as usize);
        }
    }

    /// Drops payloads of the groups that hold more than their part, once all together hold more than `budget`.
    fn evict(&self, budget: usize) {
        let groups: Vec<_> = locked(&self.groups).values().cloned().collect();
        let held: Vec<_> = groups.iter().map(|group| locked(&group.log).cached()).collect();
        let holders = held.iter().filter(|bytes| **bytes > 0).count();
        if held.iter().sum::<usize>() <= budget || holders == 0 {
            return;
        }
        // Three quarters, so that the next frame does not start this again.
        let part = budget / 4 * 3 / holders;
        for (group, bytes) in groups.iter().zip(held) {
            if bytes > part {
                locked(&group.log).evict(part);
            }
        }
    }
}
