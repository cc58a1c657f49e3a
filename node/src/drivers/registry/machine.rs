//! The registry's state machine: `weft_cluster::registry::State`, kept in checkpoints and published on every run.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use prost::Message;
use weft_cluster::ids::{LogPosition, NodeId};
use weft_cluster::registry::State;
use weft_proto::internal::v1::{RegistryCheckpoint, RegistryEntry, RegistryState, StoredMembership, WatchEntry};

use super::Registry;
use crate::drivers::raft::{Applied, Group, Manifest, Staged, StateMachine};
use crate::drivers::storage::{Checkpointed, FULL_PAUSE, Storage, is_full};
use crate::host::Promise;

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("registry: {error}"))
}

/// What checkpoints need of the replica.
pub(in crate::drivers) struct Kept {
    inner: Mutex<Inner>,
    group: OnceLock<Group>,
}

#[derive(Default)]
struct Inner {
    state: State,
    membership: Bytes,
    frozen: Option<LogPosition>,
}

impl Kept {
    /// The group runs: checkpoints purge its log from now on.
    pub(in crate::drivers) fn started(&self, group: Group) {
        // Set once per replica; a second call would be the same group.
        let _ = self.group.set(group);
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Checkpointed for Kept {
    fn freeze(&self) -> Option<(LogPosition, Bytes)> {
        let (at, state, membership) = self.with(|inner| {
            let at = inner.state.applied().filter(|at| Some(*at) != inner.frozen)?;
            Some((at, inner.state.clone(), inner.membership.clone()))
        })?;
        let membership = StoredMembership::decode(membership).expect("encoded by the raft driver");
        let state = state.to_proto().encode_to_vec().into();
        Some((at, RegistryCheckpoint { state, membership: Some(membership) }.encode_to_vec().into()))
    }

    fn checkpointed(&self, at: LogPosition) {
        self.with(|inner| inner.frozen = inner.frozen.max(Some(at)));
        if let Some(group) = self.group.get() {
            group.checkpointed(at);
        }
    }
}

/// This node's replica of the registry.
pub(in crate::drivers) struct Replica {
    kept: Arc<Kept>,
    registry: Registry,
    storage: Storage,
    entries: Vec<WatchEntry>,
}

impl Replica {
    /// A replica from its last checkpoint, or a new one.
    pub(in crate::drivers) fn recover(
        registry: Registry,
        storage: Storage,
        checkpoint: Option<(LogPosition, Bytes)>,
    ) -> io::Result<(Replica, Arc<Kept>)> {
        let mut inner = Inner::default();
        if let Some((at, bytes)) = checkpoint {
            let checkpoint = RegistryCheckpoint::decode(bytes).map_err(invalid)?;
            let state = RegistryState::decode(checkpoint.state).map_err(invalid)?;
            inner.state = State::from_proto(state).map_err(invalid)?;
            inner.membership = checkpoint.membership.unwrap_or_default().encode_to_vec().into();
            inner.frozen = Some(at);
            if inner.state.applied() != Some(at) {
                return Err(invalid("the checkpoint is not of the position it is filed under"));
            }
            registry.publish(&inner.state, Vec::new());
        }
        let kept = Arc::new(Kept { inner: Mutex::new(inner), group: OnceLock::new() });
        Ok((Replica { kept: kept.clone(), registry, storage, entries: Vec::new() }, kept))
    }
}

/// A snapshot that has been read.
struct Received {
    state: State,
    membership: Bytes,
}

impl StateMachine for Replica {
    fn applied(&self) -> Option<LogPosition> {
        self.kept.with(|inner| inner.state.applied())
    }

    fn membership(&self) -> Bytes {
        self.kept.with(|inner| inner.membership.clone())
    }

    fn apply(&mut self, at: LogPosition, command: Bytes) -> io::Result<Applied> {
        let entry = RegistryEntry::decode(command).map_err(invalid)?;
        let outcome = self.kept.with(|inner| inner.state.apply(at, &entry));
        self.entries.push(WatchEntry { index: at.index, term: at.term, entry: Some(entry) });
        Ok(Box::new(outcome))
    }

    fn note(&mut self, at: LogPosition, membership: Option<Bytes>) {
        self.kept.with(|inner| {
            inner.state.note(at);
            if let Some(membership) = membership {
                inner.membership = membership;
            }
        });
        self.entries.push(WatchEntry { index: at.index, term: at.term, entry: None });
    }

    fn flush(&mut self) -> io::Result<()> {
        let state = self.kept.with(|inner| inner.state.clone());
        self.registry.publish(&state, std::mem::take(&mut self.entries));
        Ok(())
    }

    fn snapshot(&mut self) -> io::Result<(LogPosition, Manifest, Box<dyn Send + Sync>)> {
        let state = self.kept.with(|inner| inner.state.clone());
        let at = state.applied().ok_or_else(|| invalid("nothing to take a snapshot of"))?;
        Ok((at, Manifest { bytes: state.to_proto().encode_to_vec().into() }, Box::new(())))
    }

    fn stage(
        &self,
        _from: NodeId,
        at: LogPosition,
        membership: Bytes,
        manifest: Manifest,
    ) -> Promise<'static, io::Result<Staged>> {
        Box::pin(async move {
            let state = RegistryState::decode(manifest.bytes).map_err(invalid)?;
            let state = State::from_proto(state).map_err(invalid)?;
            if state.applied() != Some(at) {
                return Err(invalid("the snapshot is not of the position that its sender names"));
            }
            Ok(Box::new(Received { state, membership }) as Staged)
        })
    }

    fn install(&mut self, _at: LogPosition, staged: Staged) -> Promise<'_, io::Result<()>> {
        Box::pin(async move {
            let received = staged.downcast::<Received>().map_err(|_| invalid("no state of a registry"))?;
            let Received { state, membership } = *received;
            self.kept.with(|inner| {
                inner.state = state;
                inner.membership = membership;
            });
            self.entries.clear();
            loop {
                match self.storage.checkpoint().await {
                    // The state is here and the log is not purged before it is durable: it can wait.
                    Err(error) if is_full(&error) => tokio::time::sleep(FULL_PAUSE).await,
                    taken => return taken,
                }
            }
        })
    }
}
