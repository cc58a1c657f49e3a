//! Raft: many groups on one node. openraft is named in this folder only; the rest of the house sees
//! groups, proposals, positions and leaderships.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use weft_cluster::ids::{Epoch, LogPosition, NodeId};
use weft_cluster::view::Member;
use weft_proto::internal::v1::NodeRecord;

mod config;
mod convert;
mod door;
mod fetch;
mod group;
mod log;
mod machine;
mod metrics;
mod network;
mod rafts;
mod ticks;
mod types;

pub use config::{RAFT_LOG_FILTER, RaftConfig};
pub use fetch::fetch_file;
pub(in crate::drivers) use group::End;
pub use group::Group;
pub use metrics::Metrics;
pub(in crate::drivers) use rafts::Context;
pub use rafts::Rafts;

use crate::drivers::link::Links;
use crate::drivers::storage::{RecoveredGroup, Storage};
use crate::host::{Host, Promise, Tasks};

/// What a replicated state machine did with a command; returned to the proposer.
pub type Applied = Box<dyn std::any::Any + Send>;

/// A snapshot as it travels: small. Files that it names are fetched over bulk streams.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The registry: an encoded `RegistryState`. A shard: an encoded `SnapshotManifest`.
    pub bytes: Bytes,
}

/// A snapshot that has arrived whole, as `StateMachine::install` takes it. Dropped, it leaves no trace.
pub type Staged = Box<dyn std::any::Any + Send>;

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
    /// A run of applies is over: publish what readers may see. An error stops the node, save a full disk
    /// (`storage::is_full`): then nothing is lost, and it is called again until it succeeds.
    fn flush(&mut self) -> io::Result<()>;
    /// The present state for a replica that is too far behind; its files stay pinned while `Pin` lives.
    fn snapshot(&mut self) -> io::Result<(LogPosition, Manifest, Box<dyn Send + Sync>)>;
    /// Checks a snapshot from `from` and fetches the files that are missing here. The state stays as it is, and
    /// the log goes on meanwhile. All that can go wrong with a snapshot must go wrong here.
    fn stage(
        &self,
        from: NodeId,
        at: LogPosition,
        membership: Bytes,
        manifest: Manifest,
    ) -> Promise<'static, io::Result<Staged>>;
    /// Replaces the state, which is older than `at`, by what `stage` has made. Durable when it returns.
    fn install(&mut self, at: LogPosition, staged: Staged) -> Promise<'_, io::Result<()>>;
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

#[cfg(test)]
mod tests;
