//! Raft: many groups on one node. openraft is named in this folder only; the rest of the house sees
//! groups, proposals, positions and leaderships.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use weft_cluster::ids::{Epoch, LogPosition, NodeId, RaftGroup, ReplicaId};
use weft_cluster::view::Member;
use weft_proto::internal::v1::{ControlRequest, ControlResponse, NodeRecord};
use weft_proto::v1;

mod config;

pub use config::RaftConfig;

use crate::drivers::link::{LinkStream, Links};
use crate::drivers::registry::Registry;
use crate::drivers::shard::Shards;
use crate::drivers::storage::{RecoveredGroup, SegmentInfo, Staging, Storage};
use crate::host::{Host, Promise, Tasks};

/// What a replicated state machine did with a command; returned to the proposer.
pub type Applied = Box<dyn std::any::Any + Send>;

/// A snapshot as it travels: small. Files that it names are fetched over bulk streams.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The registry: an encoded `RegistryState`. A shard: an encoded `SnapshotManifest`.
    pub bytes: Bytes,
}

/// The state of one group, driven by its log. One owner task calls it, in order.
pub trait StateMachine: Send + 'static {
    /// The last position applied, from the checkpoint it was made of; `None` for a new replica.
    fn applied(&self) -> Option<LogPosition>;
    /// The membership as of `applied` (an encoded `internal.v1.StoredMembership`); empty for a new replica.
    fn membership(&self) -> Bytes;
    /// Applies a command. An error stops the node: apply may not fail on what was committed.
    fn apply(&mut self, at: LogPosition, command: Bytes) -> io::Result<Applied>;
    /// A membership or blank entry took effect at `at`; `membership` is `None` for a blank one.
    fn note(&mut self, at: LogPosition, membership: Option<Bytes>);
    /// A run of applies is over: publish what readers may see.
    fn flush(&mut self);
    /// The present state for a replica that is too far behind; its files stay pinned while `Pin` lives.
    fn snapshot(&mut self) -> io::Result<(LogPosition, Manifest, Box<dyn Send + Sync>)>;
    /// Replaces the state by a snapshot from `from`, fetching the files it lacks. Durable when it returns.
    fn install(
        &mut self,
        from: NodeId,
        at: LogPosition,
        membership: Bytes,
        manifest: Manifest,
    ) -> Promise<'_, io::Result<()>>;
}

/// Who leads a group, as this node's replica knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The Raft term.
    pub epoch: Epoch,
    /// The leader's node, if known.
    pub leader: Option<NodeId>,
    /// This node leads, and has applied an entry of its own term: it may act as the owner.
    pub acting: bool,
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not proposed: another node leads (if known).
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    /// Proposed, but leadership was lost before it was known to be committed: it may or may not be.
    #[error("leadership was lost before the commit was known")]
    Unknown,
    /// The group is stopped or fenced here.
    #[error("the group is stopped: {0}")]
    Stopped(String),
}

/// A committed and applied proposal.
pub struct Committed {
    /// Where it is in the log.
    pub at: LogPosition,
    /// What the state machine returned.
    pub applied: Applied,
    /// Nodes known to have it fsynced: at least a majority.
    pub fsynced: Vec<NodeId>,
}

/// One replica of a group on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

impl Group {
    /// Which.
    pub fn id(&self) -> RaftGroup {
        panic!("contract only")
    }
    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        panic!("contract only")
    }
    /// Proposes a command and waits until it is applied here.
    pub async fn propose(&self, _command: Bytes) -> Result<Committed, ProposeError> {
        panic!("contract only")
    }
    /// Who leads, published on change.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        panic!("contract only")
    }
    /// A read point: when it returns, all that was committed before the call is applied here. Never a lease.
    pub async fn read_index(&self) -> Result<LogPosition, ProposeError> {
        panic!("contract only")
    }
    /// A checkpoint that covers `at` is durable: the log before it may be purged, save a tail for replicas
    /// that lag. Called from the replica's `Checkpointed::checkpointed`; never blocks.
    pub fn checkpointed(&self, _at: LogPosition) {
        panic!("contract only")
    }
    /// Hands leadership to a node that holds a voter and waits (at most 2 s) until it acts.
    pub async fn transfer(&self, _to: NodeId) -> Result<Epoch, ProposeError> {
        panic!("contract only")
    }
}

struct Inner;

/// What the raft driver is built from.
pub struct Parts {
    /// The world.
    pub host: Arc<dyn Host>,
    /// Where its tasks run.
    pub tasks: Tasks,
    /// The storage, open.
    pub storage: Storage,
    /// What `Storage::open` found.
    pub recovered: Vec<RecoveredGroup>,
    /// The links, up.
    pub links: Links,
    /// The members that gossip knows.
    pub members: watch::Receiver<Arc<BTreeMap<NodeId, Member>>>,
    /// This node, as the registry should know it; `registry_replica_id` is ignored.
    pub me: NodeRecord,
    /// Peer addresses to ask at the start, `host:port`.
    pub seeds: Vec<String>,
    /// Times and limits.
    pub config: RaftConfig,
}

/// All groups of this node, the registry's included, and the door for what peers send. Cheap to clone.
#[derive(Clone)]
pub struct Rafts {
    inner: Arc<Inner>,
}

impl Rafts {
    /// Makes the handles and starts this node's replica of the registry if it has one. Does not wait for peers.
    pub async fn open(_parts: Parts) -> io::Result<(Rafts, Registry)> {
        panic!("contract only")
    }

    /// Starts the replicas found on disk, then founds or joins the cluster in the background, follows the
    /// shard table and watches for dead leaders. Call it before `links.serve`.
    pub async fn serve(&self, _shards: Shards) -> io::Result<()> {
        panic!("contract only")
    }

    /// A replica that runs on this node.
    pub fn group(&self, _group: RaftGroup) -> Option<Group> {
        panic!("contract only")
    }

    /// Lane::Raft: one encoded `RaftRequest`, answered by an encoded `RaftResponse`.
    pub async fn request(&self, _from: NodeId, _body: Bytes) -> Result<crate::drivers::link::Parts, String> {
        panic!("contract only")
    }

    /// Lane::Control: all requests except `partition_stats`, which the peer door answers from `Shards`.
    pub async fn control(&self, _from: NodeId, _request: ControlRequest) -> ControlResponse {
        panic!("contract only")
    }

    /// A registry watch: a stream of Lane::Control whose first frame (a `WatchRequest`) is `first`.
    pub async fn watch(&self, _from: NodeId, _first: Bytes, _stream: LinkStream) {
        panic!("contract only")
    }

    /// A segment file for a peer: a stream of Lane::Bulk whose first frame (a `FetchRequest`) is `first`.
    pub async fn fetch(&self, _from: NodeId, _first: Bytes, _stream: LinkStream) {
        panic!("contract only")
    }

    /// A planned stop, first step: hands every leadership to a peer that is up (at most `patience`) and says so.
    pub async fn drain(&self, _patience: std::time::Duration) {
        panic!("contract only")
    }

    /// Second step: stops all replicas. The storage may be closed afterwards.
    pub async fn stop(&self) {
        panic!("contract only")
    }

    /// Hands this group's leadership to a node, wherever the leader is.
    pub async fn transfer(&self, _group: RaftGroup, _to: NodeId) -> Result<Epoch, v1::Error> {
        panic!("contract only")
    }
}

/// Fetches one segment file of a snapshot from the node that sent its manifest, into `staging`.
pub async fn fetch_file(
    _links: &Links,
    _from: NodeId,
    _group: RaftGroup,
    _file: &SegmentInfo,
    _staging: &mut Staging,
) -> io::Result<()> {
    panic!("contract only")
}
