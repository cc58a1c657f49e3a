//! Links: the QUIC connections between nodes, mTLS always. Everything node-to-node runs on them.
//!
//! A link carries lanes. Small requests of a lane share one long-lived ordered stream per direction, and
//! what is queued at one wake-up leaves in one flush; bulk and deliver open streams of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weft_cluster::ids::{Generation, NodeId};

use crate::drivers::pki::Credentials;
use crate::host::{Host, Promise, Tasks};

mod config;

pub use config::{LinkConfig, MTU_MAX, MTU_MIN};

/// What this node says of itself in its Hello, and the secret of its data folder.
#[derive(Clone, Debug)]
pub struct Me {
    /// Store id.
    pub id: NodeId,
    /// Its name; must be the name in its certificate.
    pub name: String,
    /// Its zone; may be empty.
    pub zone: String,
    /// Grows at each start.
    pub generation: Generation,
    /// `storage::Identity::secret`, for stable QUIC reset keys.
    pub secret: [u8; 32],
    /// The cluster; 0 while the node is empty. `Links::join` sets it later.
    pub cluster: u64,
    /// Where clients reach it, host:port.
    pub client_address: String,
    /// Where links reach it, as others see it. Port 0: the bound port.
    pub peer_address: SocketAddr,
    /// The binary's version.
    pub version: String,
    /// The highest feature level it speaks.
    pub level_max: u32,
}

/// What a stream carries; also its priority, first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Hello, pings, bootstrap, failover, forwarded registry commands: `internal.v1.ControlRequest`.
    Control = 0,
    /// `internal.v1.RaftRequest`.
    Raft = 1,
    /// SWIM packets too large for a datagram.
    Gossip = 2,
    /// `internal.v1.ForwardAppend`.
    Publish = 3,
    /// Deliver streams and registry watches.
    Deliver = 4,
    /// Calls of users' services.
    Call = 5,
    /// Segment files.
    Bulk = 6,
}

/// The node at the other end, as its Hello and its certificate say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Store id.
    pub id: NodeId,
    /// The name in its certificate.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Grows at each of its starts.
    pub generation: Generation,
    /// Where clients reach it, host:port.
    pub client_address: String,
    /// Where links reach it.
    pub peer_address: SocketAddr,
}

/// Why a request over a link has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Not a byte of it has left this node: it may be sent again, here or elsewhere.
    #[error("no link to {0}")]
    NotSent(NodeId),
    /// It may or may not have been acted on.
    #[error("the link to {0} was lost before the answer")]
    Lost(NodeId),
    /// It may or may not be acted on yet.
    #[error("{0} did not answer in time")]
    Deadline(NodeId),
    /// The peer's door refused it before acting on it.
    #[error("{0} refused: {1}")]
    Refused(NodeId, String),
    /// A frame over the lane's limit.
    #[error("a frame of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge {
        /// Bytes of the frame.
        bytes: usize,
        /// The lane's limit.
        bytes_max: usize,
    },
}

/// What the link alone can say of a peer: reversible, this node's own view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answers.
    Up,
    /// Silent for `link.suspect_after`: send nothing new there.
    Suspect,
    /// The tripwire closed and pings stay unanswered, or a newer generation showed up.
    Dead,
}

/// Verdicts of all peers ever met, by node.
pub type Verdicts = BTreeMap<NodeId, (Generation, Verdict)>;

/// One frame as parts, so that headers and payloads are joined without a copy.
pub type Parts = Vec<Bytes>;

/// A bidirectional stream of its own, as length-delimited frames.
pub struct LinkStream {
    /// Sends frames; each is at most `FRAME_BYTES_MAX`.
    pub send: FrameSender,
    /// Receives frames.
    pub receive: FrameReceiver,
}

/// The door for what peers send. `gateways::peer` is the one implementation; it may answer slowly
/// without holding up others: every request runs as a task of its own.
pub trait Inbound: Send + Sync + 'static {
    /// A request of a lane; the answer goes back as one frame. `Err` becomes `LinkError::Refused`.
    fn request(&self, from: NodeId, lane: Lane, body: Bytes) -> Promise<'static, Result<Parts, String>>;
    /// A stream of its own; ends when the future does.
    fn stream(&self, from: NodeId, lane: Lane, stream: LinkStream) -> Promise<'static, ()>;
    /// A SWIM packet. Must not block.
    fn gossip(&self, from: SocketAddr, packet: Bytes);
}

/// The links of this node. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    // Private: the state shared with the link tasks.
    inner: Arc<Inner>,
}

impl Links {
    /// Binds `bind` (UDP for QUIC and TCP for the tripwire, the same port) and starts accepting.
    ///
    /// # Errors
    /// A setting out of range, a certificate that does not fit the key or the name, an address in use:
    /// one sentence that names it.
    pub async fn start(
        _host: Arc<dyn Host>,
        _config: LinkConfig,
        _bind: SocketAddr,
        _me: Me,
        _credentials: Credentials,
        _tasks: &Tasks,
    ) -> std::io::Result<Links> {
        panic!("contract only")
    }

    /// This node as it was started, with the bound port filled in.
    pub fn me(&self) -> &Me {
        panic!("contract only")
    }

    /// The node has joined a cluster: from now on nodes of others are refused.
    pub fn join(&self, _cluster: u64) {
        panic!("contract only")
    }

    /// Registers the metrics of all links.
    pub fn register(&self, _registry: &mut prometheus_client::registry::Registry) {
        panic!("contract only")
    }

    /// Tells all peers that this node stops, closes all links and waits until that is sent (at most 1 s).
    pub async fn close(&self) {
        panic!("contract only")
    }

    /// Tells where a node is, so that a link can be opened and kept up.
    pub fn learn(&self, _node: NodeId, _at: SocketAddr) {
        panic!("contract only")
    }

    /// Opens a link to an address whose node is not known yet (a seed) and says who answered.
    pub async fn dial(&self, _at: SocketAddr) -> Result<Peer, LinkError> {
        panic!("contract only")
    }

    /// Drops what is known of a node and closes its link.
    pub fn forget(&self, _node: NodeId) {
        panic!("contract only")
    }

    /// Sends one request and waits for its answer. Opens the link if its address is known.
    pub async fn request(
        &self,
        _to: NodeId,
        _lane: Lane,
        _body: Parts,
        _patience: Duration,
    ) -> Result<Bytes, LinkError> {
        panic!("contract only")
    }

    /// Opens a stream of its own.
    pub async fn open(&self, _to: NodeId, _lane: Lane) -> Result<LinkStream, LinkError> {
        panic!("contract only")
    }

    /// Sends a SWIM packet: a datagram, or a uni stream if it is larger. Dropped if the queue is full.
    pub fn gossip(&self, _to: SocketAddr, _packet: Bytes) {
        panic!("contract only")
    }

    /// Peers with a link that is up.
    pub fn peers(&self) -> Vec<Peer> {
        panic!("contract only")
    }

    /// The verdicts, published on change.
    pub fn verdicts(&self) -> tokio::sync::watch::Receiver<Arc<Verdicts>> {
        panic!("contract only")
    }

    /// A peer says that `node` is dead: ask it at once (three pings 20 ms apart) instead of waiting.
    pub fn doubt(&self, _node: NodeId) {
        panic!("contract only")
    }

    /// Sets the door for what peers send. Requests that come before it is set wait for it.
    pub fn serve(&self, _inbound: Arc<dyn Inbound>) {
        panic!("contract only")
    }
}

struct Inner;
/// Sends frames on a stream of its own.
pub struct FrameSender(());
/// Receives frames from a stream of its own.
pub struct FrameReceiver(());

impl FrameSender {
    /// Sends one frame; waits for the peer's flow control.
    pub async fn send(&mut self, _parts: Parts) -> Result<(), LinkError> {
        panic!("contract only")
    }
    /// Ends the stream in order: the peer's `next` answers `None`.
    pub fn finish(&mut self) {
        panic!("contract only")
    }
}
impl FrameReceiver {
    /// The next frame; `None` at the end in order.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        panic!("contract only")
    }
}
