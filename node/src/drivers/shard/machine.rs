//! A replica's state machine: applies committed entries to the shard's state and its segments.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use weft_cluster::ids::{LogPosition, NodeId, Offset, PartitionId, RaftGroup, ShardId, TopicId};
use weft_cluster::shard::{AppendResult, Outcome, State};
use weft_proto::internal::v1::{
    GroupStat, PartitionStat, SegmentFile, ShardEntry, ShardState, SnapshotManifest, StoredMembership,
};

use super::seat::{Replica, Seat};
use crate::drivers::raft::{Applied, Manifest, Staged, StateMachine, fetch_file};
use crate::drivers::storage::{Checkpointed, SegmentInfo, Staging, is_full};
use crate::host::Promise;

/// A replica as its last checkpoint has it, or an empty one.
pub(super) fn recover(shard: ShardId, checkpoint: Option<(LogPosition, Bytes)>) -> io::Result<Replica> {
    let Some((at, bytes)) = checkpoint else {
        return Ok(Replica { state: State::default(), frozen: None, installing: false });
    };
    let state = decode(shard, bytes)?;
    if state.applied() != Some(at) {
        return Err(invalid(format!("the checkpoint of shard {shard} is not of position {at}")));
    }
    Ok(Replica { state, frozen: Some(at), installing: false })
}

fn decode(shard: ShardId, bytes: Bytes) -> io::Result<State> {
    let unreadable = |reason: String| invalid(format!("the state of shard {shard} is not readable: {reason}"));
    let state = ShardState::decode(bytes).map_err(|error| unreadable(error.to_string()))?;
    State::from_proto(state).map_err(|error| unreadable(error.to_string()))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The state machine of one replica.
pub(super) struct Machine {
    seat: Arc<Seat>,
    /// New ends that readers do not know of yet.
    ends: BTreeMap<PartitionId, Offset>,
}

impl Machine {
    pub(super) fn new(seat: Arc<Seat>) -> Self {
        Machine { seat, ends: BTreeMap::new() }
    }

    /// Stores what an entry did. The replica's lock is held, so that no checkpoint sees half of it.
    fn store(&mut self, outcome: &Outcome) -> io::Result<()> {
        for append in &outcome.appends {
            let AppendResult::Stored(stored) = append else { continue };
            let (partition, base) = (stored.partition, stored.base_offset);
            let end = base.0 + u64::from(stored.count);
            self.seat.segments.append(partition, base, stored.header.clone(), stored.body.clone())?;
            if self.seat.has_readers(partition) {
                let (header, body) = (stored.header.clone(), stored.body.clone());
                self.seat.commons.cache.push(partition, base.0, end, header, body);
            }
            self.ends.insert(partition, Offset(end));
        }
        for partition in &outcome.dropped {
            self.ends.remove(partition);
            self.seat.drop_partition(*partition)?;
        }
        Ok(())
    }
}

/// A snapshot whose files are all here.
struct Received {
    staging: Staging,
    state: State,
    bytes: Bytes,
}

impl Received {
    async fn fetch(seat: Arc<Seat>, from: NodeId, at: LogPosition, manifest: Manifest) -> io::Result<Received> {
        let (shard, group) = (seat.shard, RaftGroup::of(seat.shard));
        let manifest = SnapshotManifest::decode(manifest.bytes)
            .map_err(|error| invalid(format!("the manifest of shard {shard} from {from} is not readable: {error}")))?;
        let state = decode(shard, manifest.state.clone())?;
        if state.applied() != Some(at) {
            return Err(invalid(format!("the snapshot of shard {shard} from {from} is not of position {at}")));
        }
        let wanted: Vec<SegmentInfo> = manifest.segments.iter().map(info).collect();
        let mut staging = seat.segments.stage(&wanted)?;
        for file in staging.missing.clone() {
            fetch_file(&seat.commons.links, from, group, &file, &mut staging).await?;
        }
        let staging = staging.check().await?;
        Ok(Received { staging, state, bytes: manifest.state })
    }
}

impl StateMachine for Machine {
    fn applied(&self) -> Option<LogPosition> {
        self.seat.replica().state.applied()
    }

    fn membership(&self) -> Bytes {
        let replica = self.seat.replica();
        replica.state.membership().map(|membership| membership.encode_to_vec().into()).unwrap_or_default()
    }

    fn apply(&mut self, at: LogPosition, command: Bytes) -> io::Result<Applied> {
        let unreadable = |reason: String| invalid(format!("entry {at} of a shard cannot be applied: {reason}"));
        let entry = ShardEntry::decode(command).map_err(|error| unreadable(error.to_string()))?;
        let mut outcome = Outcome::default();
        let seat = self.seat.clone();
        let mut replica = seat.replica();
        replica.state.apply(at, entry, &mut outcome).map_err(|error| unreadable(error.to_string()))?;
        self.store(&outcome)?;
        drop(replica);
        Ok(Box::new(outcome))
    }

    fn note(&mut self, at: LogPosition, membership: Option<Bytes>) {
        // The raft driver encoded it; one that cannot be read leaves the former in place.
        let membership = membership.and_then(|bytes| StoredMembership::decode(bytes).ok());
        self.seat.replica().state.note(at, membership);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.seat.segments.flush_much()?;
        self.seat.publish(std::mem::take(&mut self.ends));
        Ok(())
    }

    fn snapshot(&mut self) -> io::Result<(LogPosition, Manifest, Box<dyn Send + Sync>)> {
        let replica = self.seat.replica();
        let at = replica.state.applied().ok_or_else(|| invalid("an empty replica has no snapshot".to_owned()))?;
        self.seat.segments.flush()?;
        let (files, pin) = self.seat.segments.manifest()?;
        let state = replica.state.to_proto().encode_to_vec().into();
        let segments = files.iter().map(file).collect();
        let bytes = SnapshotManifest { state, segments }.encode_to_vec().into();
        Ok((at, Manifest { bytes }, pin))
    }

    fn stage(
        &self,
        from: NodeId,
        at: LogPosition,
        membership: Bytes,
        manifest: Manifest,
    ) -> Promise<'static, io::Result<Staged>> {
        let seat = self.seat.clone();
        Box::pin(async move {
            let shard = seat.shard;
            tracing::info!(%shard, %from, %at, "fetches a snapshot");
            let received = Received::fetch(seat, from, at, manifest).await?;
            let expected = received.state.membership().map(Message::encode_to_vec).unwrap_or_default();
            if expected != membership {
                tracing::debug!(%shard, "the snapshot's membership is newer than its state");
            }
            Ok(Box::new(received) as Staged)
        })
    }

    fn install(&mut self, at: LogPosition, staged: Staged) -> Promise<'_, io::Result<()>> {
        Box::pin(async move {
            tracing::info!(shard = %self.seat.shard, %at, "installs a snapshot");
            let received = staged.downcast::<Received>().map_err(|_| invalid("no state of a shard".to_owned()))?;
            let Received { staging, state, bytes } = *received;
            // A checkpoint now would pair the old state with the new files.
            self.seat.replica().installing = true;
            let committed = staging.commit(at, bytes).await;
            {
                let mut replica = self.seat.replica();
                replica.installing = false;
                committed?;
                replica.state = state;
                replica.frozen = Some(at);
            }
            self.ends.clear();
            self.seat.reload();
            Ok(())
        })
    }
}

fn info(file: &SegmentFile) -> SegmentInfo {
    SegmentInfo {
        partition: PartitionId { topic: TopicId(file.topic), index: file.partition },
        base: Offset(file.base_offset),
        bytes: file.bytes,
        crc: file.crc,
    }
}

fn file(info: &SegmentInfo) -> SegmentFile {
    SegmentFile {
        topic: info.partition.topic.0,
        partition: info.partition.index,
        base_offset: info.base.0,
        bytes: info.bytes,
        crc: info.crc,
    }
}

/// The replica as the storage's checkpoints see it.
pub(super) struct Checkpoints(pub(super) Arc<Seat>);

impl Checkpointed for Checkpoints {
    fn freeze(&self) -> Option<(LogPosition, Bytes)> {
        let replica = self.0.replica();
        let applied = replica.state.applied()?;
        if replica.installing || replica.frozen == Some(applied) {
            return None;
        }
        match self.0.segments.flush() {
            Ok(()) => {}
            // Its last checkpoint and the journal have it all.
            Err(error) if is_full(&error) => return None,
            Err(error) => self.0.commons.host.abort(&format!("write the segments of shard {}: {error}", self.0.shard)),
        }
        Some((applied, replica.state.to_proto().encode_to_vec().into()))
    }

    fn checkpointed(&self, at: LogPosition) {
        // Only now: a checkpoint that met a full disk is taken again, even if nothing is applied meanwhile.
        {
            let mut replica = self.0.replica();
            replica.frozen = replica.frozen.max(Some(at));
        }
        self.0.checkpointed(at);
    }
}

/// Offsets, size and cursors of a partition; `None` if it is not here. The epoch is left 0.
pub(super) fn stat(seat: &Seat, id: PartitionId) -> Option<PartitionStat> {
    let bytes = seat.segments.bytes(id);
    let replica = seat.replica();
    let partition = replica.state.partition(id)?;
    let group = |(group, state): (weft_cluster::ids::GroupId, &weft_cluster::shard::Group)| GroupStat {
        group: group.0,
        acked_below: state.cursor.acked_below(),
        acked_above: state.cursor.acked_above(),
    };
    Some(PartitionStat {
        topic: id.topic.0,
        partition: id.index,
        start_offset: partition.start().0,
        end_offset: partition.end().0,
        bytes,
        epoch: 0,
        groups: partition.groups().map(group).collect(),
    })
}
