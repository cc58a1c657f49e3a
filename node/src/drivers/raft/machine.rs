//! openraft's state machine over one of ours.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::NodeId;

use super::convert::{log_id, position, stored_from_bytes, stored_to_bytes};
use super::types::{LogId, Response, SnapshotMeta, StoredMembership, TypeConfig};
use super::{Manifest, Metrics, Staged, StateMachine};
use crate::drivers::storage;
use crate::host::{Host, Tasks};

/// A snapshot as openraft hands it around.
pub(super) struct Snapshot {
    /// At its sender.
    pub(super) manifest: Manifest,
    /// Keeps the sender's files.
    pin: Option<Box<dyn Send + Sync>>,
    /// At its receiver, if it has arrived; nothing stands for a state that the machine already has.
    staged: Option<Staged>,
}

impl Snapshot {
    /// Stands for a state that the machine already has.
    fn marker() -> Snapshot {
        Snapshot { manifest: Manifest { bytes: bytes::Bytes::new() }, pin: None, staged: None }
    }

    /// Whether there is nothing to send.
    pub(super) fn is_marker(&self) -> bool {
        self.pin.is_none() && self.staged.is_none()
    }
}

type Made = openraft::Snapshot<super::types::Committed, u64, super::types::Place, Snapshot>;

struct Shared {
    host: Arc<dyn Host>,
    tasks: Tasks,
    metrics: Metrics,
    machine: Mutex<Box<dyn StateMachine>>,
    /// The term of the last entry applied.
    term: watch::Sender<u64>,
    started: AtomicBool,
    /// What is committed waits for room on the disk.
    paused: AtomicBool,
    /// The replica stops.
    stopped: CancellationToken,
}

/// One of our state machines, as openraft sees it. Clones share it.
#[derive(Clone)]
pub(super) struct Machine(Arc<Shared>);

impl Machine {
    pub(super) fn new(
        host: Arc<dyn Host>,
        tasks: Tasks,
        metrics: Metrics,
        machine: Box<dyn StateMachine>,
        stopped: CancellationToken,
    ) -> Machine {
        let term = machine.applied().map_or(0, |at| at.term);
        Machine(Arc::new(Shared {
            host,
            tasks,
            metrics,
            machine: Mutex::new(machine),
            term: watch::Sender::new(term),
            started: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            stopped,
        }))
    }

    /// Whether what is committed waits for room on the disk.
    pub(super) fn paused(&self) -> bool {
        self.0.paused.load(Ordering::Acquire)
    }

    /// Makes a run of applies visible, however long the disk is full: what is committed is applied when there is room,
    /// and the replica neither forgets it nor goes on without it.
    async fn flush(&self, machine: &mut dyn StateMachine) -> io::Result<()> {
        let mut pause = None;
        loop {
            match machine.flush() {
                Ok(()) => return Ok(()),
                Err(error) if storage::is_full(&error) => {
                    pause.get_or_insert_with(|| Pause::begin(&self.0, &error));
                    tokio::select! {
                        biased;
                        () = self.0.stopped.cancelled() => return Err(error),
                        () = tokio::time::sleep(storage::FULL_PAUSE) => {}
                    }
                }
                Err(error) => return self.end(format!("write what is applied: {error}")).await,
            }
        }
    }

    /// Ends the process, and never returns: a replica that cannot apply what is committed must not go on as if it
    /// had. A task of the Host does it, since openraft's own are out of the simulated Host's reach.
    async fn end<T>(&self, reason: String) -> T {
        let host = self.0.host.clone();
        self.0.tasks.spawn("abort", async move { host.abort(&reason) });
        std::future::pending().await
    }

    /// From now on a snapshot is asked for by a replica that lags, not by the recovery.
    pub(super) fn started(&self) {
        self.0.started.store(true, Ordering::Release);
    }

    /// The term of the last entry applied, published when it grows.
    pub(super) fn term(&self) -> watch::Receiver<u64> {
        self.0.term.subscribe()
    }

    /// Brings a peer's snapshot here whole. The state is replaced only when openraft says so.
    pub(super) async fn stage(&self, from: NodeId, meta: &SnapshotMeta, manifest: Manifest) -> io::Result<Snapshot> {
        let Some(at) = meta.last_log_id.as_ref().map(position) else { return Ok(Snapshot::marker()) };
        let staged = {
            let machine = self.0.machine.lock().await;
            if machine.applied() >= Some(at) {
                return Ok(Snapshot::marker());
            }
            machine.stage(from, at, stored_to_bytes(&meta.last_membership), manifest)
        };
        Ok(Snapshot { staged: Some(staged.await?), ..Snapshot::marker() })
    }
}

/// A replica that waits for room on the disk, until it drops.
struct Pause<'a>(&'a Shared);

impl<'a> Pause<'a> {
    fn begin(shared: &'a Shared, error: &io::Error) -> Pause<'a> {
        let lack = storage::lack(error);
        tracing::error!(%error, lack, "a replica waits before it applies more");
        shared.paused.store(true, Ordering::Release);
        shared.metrics.paused_groups.inc();
        Pause(shared)
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.paused.store(false, Ordering::Release);
        self.0.metrics.paused_groups.dec();
    }
}

fn meta_of(machine: &dyn StateMachine) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: machine.applied().map(log_id),
        last_membership: stored_from_bytes(&machine.membership())?,
    })
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = Snapshot;

    /// A marker only: the log may be purged as far as checkpoints reach, and a peer gets a manifest when it asks.
    async fn build_snapshot(&mut self) -> io::Result<Made> {
        let machine = self.0.machine.lock().await;
        Ok(Made { meta: meta_of(machine.as_ref())?, snapshot: Snapshot::marker() })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let machine = self.0.machine.lock().await;
        Ok((machine.applied().map(log_id), stored_from_bytes(&machine.membership())?))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut machine = self.0.machine.lock().await;
        let mut answers = Vec::new();
        let mut term = *self.0.term.borrow();
        while let Some((entry, responder)) = entries.try_next().await? {
            let at = position(&entry.log_id);
            // The state has it already.
            if machine.applied().is_some_and(|applied| at.index <= applied.index) {
                continue;
            }
            let response = match entry.payload {
                EntryPayload::Blank => {
                    machine.note(at, None);
                    Response::none()
                }
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(entry.log_id), membership);
                    machine.note(at, Some(stored_to_bytes(&stored)));
                    Response::none()
                }
                EntryPayload::Normal(command) => match machine.apply(at, command.body()) {
                    Ok(applied) => Response::new(applied),
                    Err(error) => return self.end(format!("apply committed entry {at}: {error}")).await,
                },
            };
            term = at.term;
            if let Some(responder) = responder {
                answers.push((responder, response));
            }
        }
        // Proposers are answered only after readers can see what they proposed.
        self.flush(machine.as_mut()).await?;
        drop(machine);
        for (responder, response) in answers {
            responder.send(response);
        }
        self.0.term.send_if_modified(|last| std::mem::replace(last, term) != term);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    /// openraft has accepted the snapshot: the vote was not stale, and what is committed here is older. It purges
    /// the log and appends only after this.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Snapshot) -> io::Result<()> {
        let Some(at) = meta.last_log_id.as_ref().map(position) else { return Ok(()) };
        let mut machine = self.0.machine.lock().await;
        if machine.applied() >= Some(at) {
            return Ok(());
        }
        let staged = snapshot.staged.ok_or_else(|| io::Error::other("a snapshot without its state"))?;
        machine.install(at, staged).await?;
        self.flush(machine.as_mut()).await?;
        if machine.applied() != Some(at) {
            return Err(io::Error::other("the state machine is not at the snapshot it installed"));
        }
        self.0.metrics.snapshots_installed.inc();
        self.0.term.send_if_modified(|term| std::mem::replace(term, at.term) != at.term);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Made>> {
        let mut machine = self.0.machine.lock().await;
        if machine.applied().is_none() {
            return Ok(None);
        }
        if !self.0.started.load(Ordering::Acquire) {
            return Ok(Some(Made { meta: meta_of(machine.as_ref())?, snapshot: Snapshot::marker() }));
        }
        let (at, manifest, pin) = match machine.snapshot() {
            // To openraft any error is the replica's end. The sender makes nothing of a marker, and asks again.
            Err(error) if storage::is_full(&error) => {
                return Ok(Some(Made { meta: meta_of(machine.as_ref())?, snapshot: Snapshot::marker() }));
            }
            made => made?,
        };
        let meta = SnapshotMeta { last_log_id: Some(log_id(at)), ..meta_of(machine.as_ref())? };
        Ok(Some(Made { meta, snapshot: Snapshot { manifest, pin: Some(pin), staged: None } }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weft_cluster::ids::LogPosition;

    use super::*;
    use crate::drivers::raft::Applied;
    use crate::host::Promise;
    use crate::host::testing::{MemoryDisk, TestHost};

    /// Meets a full disk so many times.
    struct Full(usize);

    impl StateMachine for Full {
        fn applied(&self) -> Option<LogPosition> {
            Some(LogPosition { term: 1, index: 1 })
        }
        fn membership(&self) -> Bytes {
            Bytes::new()
        }
        fn apply(&mut self, _at: LogPosition, _command: Bytes) -> io::Result<Applied> {
            unreachable!("nothing is applied here")
        }
        fn note(&mut self, _at: LogPosition, _membership: Option<Bytes>) {}
        fn flush(&mut self) -> io::Result<()> {
            match self.0.checked_sub(1) {
                None => Ok(()),
                Some(left) => {
                    self.0 = left;
                    Err(io::ErrorKind::StorageFull.into())
                }
            }
        }
        fn snapshot(&mut self) -> io::Result<(LogPosition, Manifest, Box<dyn Send + Sync>)> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn stage(&self, _: NodeId, _: LogPosition, _: Bytes, _: Manifest) -> Promise<'static, io::Result<Staged>> {
            unreachable!("nobody sends a snapshot")
        }
        fn install(&mut self, _: LogPosition, _: Staged) -> Promise<'_, io::Result<()>> {
            unreachable!("nobody sends a snapshot")
        }
    }

    fn machine(times: usize) -> (Machine, CancellationToken) {
        let host: Arc<dyn Host> = TestHost::new(MemoryDisk::default(), 1);
        let stopped = CancellationToken::new();
        let machine = Box::new(Full(times));
        (Machine::new(host.clone(), Tasks::new(host), Metrics::default(), machine, stopped.clone()), stopped)
    }

    #[tokio::test]
    async fn what_is_applied_waits_for_room() {
        let (mut machine, _stopped) = machine(2);
        let paused = machine.clone();
        let mut applying = std::pin::pin!(machine.apply(futures::stream::empty()));
        assert!(futures::poll!(applying.as_mut()).is_pending());
        assert!(paused.paused());
        assert_eq!(paused.0.metrics.paused_groups.get(), 1);
        applying.await.expect("there is room in the end");
        assert!(!paused.paused());
        assert_eq!(paused.0.metrics.paused_groups.get(), 0);
    }

    #[tokio::test]
    async fn a_snapshot_that_a_full_disk_does_not_take_is_no_ones_end() {
        let (mut machine, _stopped) = machine(0);
        machine.started();
        let made = machine.get_current_snapshot().await.expect("no error").expect("a marker");
        assert!(made.snapshot.is_marker());
    }

    #[tokio::test]
    async fn a_replica_that_stops_waits_no_longer() {
        let (mut machine, stopped) = machine(usize::MAX);
        let mut applying = std::pin::pin!(machine.apply(futures::stream::empty()));
        assert!(futures::poll!(applying.as_mut()).is_pending());
        stopped.cancel();
        assert!(storage::is_full(&applying.await.expect_err("nothing was written")));
    }
}
