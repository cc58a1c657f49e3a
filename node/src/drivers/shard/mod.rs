//! Shards: the owner's side of partitions. Gathers what is waiting into one proposal per shard, applies what
//! is committed to the segments and the shard's state, and hands events to observers and groups.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use weft_cluster::ids::{LogPosition, PartitionId, ShardId};
use weft_proto::internal::v1::{DeliverOpen, DeliverRequest, DeliverResponse, ForwardAppend, PartitionStat};
use weft_proto::v1;

use crate::drivers::raft::{Group, StateMachine};

/// The shards that have a replica on this node. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    inner: Arc<Inner>,
}

impl Shards {
    /// The state machine of a replica, from its last checkpoint if it has one. Called by the raft driver
    /// before the group starts.
    pub fn machine(
        &self,
        _shard: ShardId,
        _checkpoint: Option<(LogPosition, Bytes)>,
    ) -> io::Result<Box<dyn StateMachine>> {
        panic!("contract only")
    }

    /// The group runs: spawn its owner task. Called by the raft driver once per started replica.
    pub fn started(&self, _shard: ShardId, _group: Group) {
        panic!("contract only")
    }

    /// The replica is gone from this node.
    pub fn stopped(&self, _shard: ShardId) {
        panic!("contract only")
    }

    /// Appends a packed batch as the owner. `NOT_OWNER` with the owner's id if another node acts.
    pub async fn append(&self, _append: ForwardAppend) -> Result<v1::Receipt, v1::Error> {
        panic!("contract only")
    }

    /// Serves one deliver stream (observer feed or consumer of a group) until either side ends.
    /// `requests`: the frames after `open`. Back-pressure: `responses` is bounded.
    pub async fn deliver(
        &self,
        _open: DeliverOpen,
        _requests: tokio::sync::mpsc::Receiver<DeliverRequest>,
        _responses: tokio::sync::mpsc::Sender<DeliverResponse>,
    ) {
        panic!("contract only")
    }

    /// Offsets, sizes and cursors of partitions that this node owns; others are left out.
    pub fn stats(&self, _partitions: &[PartitionId]) -> Vec<PartitionStat> {
        panic!("contract only")
    }
}

struct Inner;
