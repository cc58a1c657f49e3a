//! Shards: the owner's side of partitions. Gathers what is waiting into one proposal per shard, applies what
//! is committed to the segments and the shard's state, and hands events to observers and groups.

mod config;
mod metrics;
pub mod refusal;

mod admit;
mod queue;

mod cache;
mod readpoint;
mod seat;

mod machine;

mod owner;
mod settings;

mod dispatch;
mod feed;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::watch;
use weft_cluster::caller::Caller;
use weft_cluster::ids::{LogPosition, NodeId, PartitionId, RaftGroup, ShardId};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::{
    DeliverOpen, DeliverRequest, DeliverResponse, ForwardAppend, PartitionStat, deliver_response,
};
use weft_proto::v1;

pub use config::ShardConfig;
pub use metrics::Metrics;

use cache::TailCache;
use queue::NodeRoom;
use seat::Seat;

use crate::drivers::link::Links;
use crate::drivers::raft::{Group, StateMachine};
use crate::drivers::storage::Storage;
use crate::host::{Host, Promise, Tasks};

/// What all shards of the node share.
struct Commons {
    host: Arc<dyn Host>,
    storage: Storage,
    links: Links,
    view: watch::Receiver<Arc<ClusterView>>,
    config: ShardConfig,
    metrics: Metrics,
    tasks: Tasks,
    cache: TailCache,
    /// Bytes that may still wait over all shards.
    room: Arc<NodeRoom>,
}

impl Commons {
    fn me(&self) -> NodeId {
        self.view.borrow().me
    }

    fn view(&self) -> Arc<ClusterView> {
        self.view.borrow().clone()
    }

    fn room_bytes(config: &ShardConfig) -> usize {
        bytes_of(config.queue_bytes_max).max(weft_batch::BATCH_BYTES_MAX)
    }

    /// Bytes that wait or are being committed, over all shards.
    fn queued_bytes(&self) -> i64 {
        i64::try_from(self.room.taken()).unwrap_or(i64::MAX)
    }

    // One batch of the largest size always fits, whatever the configuration says.
    fn shard_queue_bytes(&self) -> usize {
        bytes_of(self.config.shard_queue_bytes_max).max(weft_batch::BATCH_BYTES_MAX)
    }
}

fn bytes_of(size: bytesize::ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// The shards that have a replica on this node. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    inner: Arc<Inner>,
}

struct Inner {
    commons: Arc<Commons>,
    seats: Mutex<BTreeMap<ShardId, Arc<Seat>>>,
}

impl Shards {
    /// The shards of this node, none yet: the raft driver brings them with `machine` and `started`.
    ///
    /// `view`: what this node knows of the cluster; topics and groups enter the shards as it shows them.
    pub fn start(
        host: Arc<dyn Host>,
        storage: Storage,
        links: Links,
        view: watch::Receiver<Arc<ClusterView>>,
        config: ShardConfig,
        tasks: Tasks,
    ) -> Shards {
        let metrics = Metrics::default();
        let cache = TailCache::new(bytes_of(config.tail_bytes_max), metrics.tail_bytes.clone());
        let room = NodeRoom::new(Commons::room_bytes(&config));
        let commons = Commons { host, storage, links, view, config, metrics, tasks, cache, room };
        Shards { inner: Arc::new(Inner { commons: Arc::new(commons), seats: Mutex::default() }) }
    }

    /// What they count.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.commons.metrics
    }

    /// The state machine of a replica, from its last checkpoint if it has one. Called by the raft driver
    /// before the group starts, once the group is in the storage.
    ///
    /// # Errors
    /// `InvalidData` if the checkpoint is not readable.
    pub fn machine(
        &self,
        shard: ShardId,
        checkpoint: Option<(LogPosition, Bytes)>,
    ) -> io::Result<Box<dyn StateMachine>> {
        let commons = self.inner.commons.clone();
        let segments = commons.storage.segments(RaftGroup::of(shard));
        let replica = machine::recover(shard, checkpoint)?;
        let seat = Arc::new(Seat::new(shard, commons, segments, replica));
        if let Some(former) = self.seats().insert(shard, seat.clone()) {
            former.gone.cancel();
        }
        seat.commons.storage.register(RaftGroup::of(shard), Arc::new(machine::Checkpoints(seat.clone())));
        Ok(Box::new(machine::Machine::new(seat)))
    }

    /// The group runs: spawn its owner task. Called by the raft driver once per started replica.
    pub fn started(&self, shard: ShardId, group: Group) {
        let Some(seat) = self.seat(shard) else { return };
        seat.started(group);
        let gone = seat.gone.clone();
        self.inner.commons.tasks.spawn("shard owner", async move {
            gone.run_until_cancelled(owner::run(seat.clone())).await;
            owner::leave(&seat);
        });
    }

    /// The replica is gone from this node.
    pub fn stopped(&self, shard: ShardId) {
        let seat = self.seats().remove(&shard);
        if let Some(seat) = seat {
            seat.gone.cancel();
        }
    }

    /// Appends a packed batch as the owner. `NOT_OWNER` with the owner's id if another node acts.
    ///
    /// The batch takes its place in the shard's queue before this returns: call it in the order in which
    /// the batches of a producer came. The promise resolves when the batch is committed (or, with ACCEPTED,
    /// when it is queued).
    pub fn append(&self, caller: &Caller, append: ForwardAppend) -> Promise<'static, Result<v1::Receipt, v1::Error>> {
        let seat = self.seat(ShardId(append.shard));
        match seat.ok_or_else(|| refusal::not_owner(None)).and_then(|seat| admit::append(&seat, append)) {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::debug!(%caller, reason = error.message, "a batch is refused");
                Box::pin(std::future::ready(Err(error)))
            }
        }
    }

    /// Serves one deliver stream (observer feed or consumer of a group) until either side ends.
    ///
    /// `requests`: the frames after `open`. Back-pressure: `responses` is bounded. All partitions are of one
    /// shard. The last frame is `gone` if it is this side that ends it.
    pub async fn deliver(
        &self,
        caller: &Caller,
        open: DeliverOpen,
        requests: Receiver<DeliverRequest>,
        responses: Sender<DeliverResponse>,
    ) {
        let _counted = Counted::new(self.inner.commons.metrics.deliver_streams.clone());
        let ended = match self.seat_of(&open) {
            Ok(seat) if open.group == 0 => feed::serve(seat, open, requests, &responses).await,
            Ok(seat) => dispatch::serve(seat, open, requests, &responses).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::debug!(%caller, reason = error.message, "a deliver stream ends");
            let frame = Some(deliver_response::Frame::Gone(error));
            // If the reader is gone, nobody needs to know.
            let _ = responses.send(DeliverResponse { frame }).await;
        }
    }

    /// Resolves when a node is held for dead. Its link may not know it yet: nothing closes a connection into a black hole.
    pub async fn lost(&self, node: NodeId) {
        let mut view = self.inner.commons.view.clone();
        if view.wait_for(|view| view.down(node)).await.is_err() {
            // This node is stopping, and its tasks with it.
            std::future::pending::<()>().await;
        }
    }

    /// Offsets, sizes and cursors of partitions that this node owns, for `caller`; others are left out.
    ///
    /// They show all that was committed before the call: a majority of each shard confirms that this node still
    /// owns it (at most 500 ms), and those that none confirms are left out.
    pub async fn stats(&self, caller: &Caller, partitions: &[PartitionId]) -> Vec<PartitionStat> {
        tracing::trace!(%caller, partitions = partitions.len(), "partitions are asked for");
        let view = self.inner.commons.view();
        let mut by_shard = BTreeMap::<ShardId, Vec<PartitionId>>::new();
        for partition in partitions {
            if let Some(shard) = view.shard_of(*partition) {
                by_shard.entry(shard).or_default().push(*partition);
            }
        }
        let confirmed = by_shard.into_iter().map(|(shard, partitions)| async move {
            let seat = self.seat(shard)?;
            let epoch = seat.confirm().await.ok()?;
            let stat = |id: &PartitionId| Some(PartitionStat { epoch: epoch.0, ..machine::stat(&seat, *id)? });
            Some(partitions.iter().filter_map(stat).collect::<Vec<_>>())
        });
        futures::future::join_all(confirmed).await.into_iter().flatten().flatten().collect()
    }

    /// The seat that serves a deliver stream, if all its partitions are there and this node acts.
    fn seat_of(&self, open: &DeliverOpen) -> Result<Arc<Seat>, v1::Error> {
        let view = self.inner.commons.view();
        let topic = weft_cluster::ids::TopicId(open.topic);
        let mut shards = open.partitions.iter().map(|index| view.shard_of(PartitionId { topic, index: *index }));
        let first = shards.next().ok_or_else(|| refusal::invalid("a deliver stream names no partition"))?;
        let shard = first.ok_or_else(|| refusal::not_owner(None))?;
        if shards.any(|other| other != Some(shard)) {
            return Err(refusal::invalid("a deliver stream names partitions of several shards"));
        }
        let seat = self.seat(shard).ok_or_else(|| refusal::not_owner(None))?;
        seat.acting()?;
        Ok(seat)
    }

    fn seat(&self, shard: ShardId) -> Option<Arc<Seat>> {
        self.seats().get(&shard).cloned()
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<ShardId, Arc<Seat>>> {
        self.inner.seats.lock().expect("no code panics while it holds the seats")
    }
}

/// Counts what is open in a gauge while it lives.
struct Counted(prometheus_client::metrics::gauge::Gauge);

impl Counted {
    fn new(gauge: prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Counted(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
