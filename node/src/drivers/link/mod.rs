//! Links: the QUIC connections between nodes, mTLS always. Everything node-to-node runs on them.
//!
//! A link carries lanes. Small requests of a lane share one long-lived ordered stream per direction, and
//! what is queued at one wake-up leaves in one flush; bulk and deliver open streams of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::{Generation, NodeId, Start};

use crate::drivers::pki::Credentials;
use crate::host::{Host, Listener, Promise, SocketBuffers, Tasks};

mod certificate;
mod clock;
mod config;
mod dial;
mod frame;
mod hello;
mod lane;
mod metrics;
mod namesake;
mod peers;
mod serve;
mod starts;
#[cfg(test)]
mod tests;
mod tls;
mod tripwire;
mod vigil;

pub use certificate::CertificateFiles;
pub use config::{LinkConfig, MTU_MAX, MTU_MIN};
pub use frame::{FrameReceiver, FrameSender};
use metrics::Metrics;
use peers::{Link, Table, code};
pub use starts::{KeepStarts, Starts};

/// The first byte of a bidirectional stream; the lane follows.
const KIND_HELLO: u8 = 0;
/// Requests of a lane, many at a time.
const KIND_REQUESTS: u8 = 1;
/// A stream of its own.
const KIND_STREAM: u8 = 2;
/// The largest SWIM packet.
const GOSSIP_BYTES_MAX: usize = 64 * 1024;
/// How long `open` and `gossip` wait for a link that is not up.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);
/// How long the goodbye of `close` may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

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
    /// Drawn at each start; 0: not told.
    pub start: u64,
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
    /// Drawn at its start; 0: not told.
    pub start: u64,
    /// Where clients reach it, host:port.
    pub client_address: String,
    /// Where links reach it.
    pub peer_address: SocketAddr,
}

impl Peer {
    /// Its present start.
    fn begun(&self) -> Start {
        Start { generation: self.generation, id: self.start }
    }
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

impl Lane {
    const COUNT: usize = 7;

    fn from_byte(byte: u8) -> Option<Lane> {
        [Lane::Control, Lane::Raft, Lane::Gossip, Lane::Publish, Lane::Deliver, Lane::Call, Lane::Bulk]
            .get(usize::from(byte))
            .copied()
    }

    /// QUIC sends streams of a greater priority first.
    fn priority(self) -> i32 {
        Lane::COUNT as i32 - self as i32
    }

    /// The largest frame of the lane, requests and answers, in bytes.
    pub const fn frame_bytes_max(self) -> usize {
        match self {
            Lane::Control | Lane::Call | Lane::Bulk => 4 << 20,
            Lane::Raft => 16 << 20,
            Lane::Gossip => GOSSIP_BYTES_MAX,
            Lane::Publish | Lane::Deliver => 10 << 20,
        }
    }
}

/// What all tasks of the links share.
struct Inner {
    host: Arc<dyn Host>,
    config: LinkConfig,
    me: Me,
    cluster: AtomicU64,
    endpoint: quinn::Endpoint,
    client: Mutex<quinn::ClientConfig>,
    certificate: Mutex<certificate::Held>,
    tasks: Tasks,
    metrics: Metrics,
    clock: clock::Clock,
    namesake: namesake::Namesake,
    ledger: starts::Ledger,
    table: Mutex<Table>,
    verdicts: watch::Sender<Arc<Verdicts>>,
    door: watch::Sender<Option<Arc<dyn Inbound>>>,
    dice: Mutex<StdRng>,
    reasons: Mutex<BTreeSet<String>>,
    /// `close` was called: the endpoint ends, and that is no fault.
    closing: CancellationToken,
}

impl Links {
    /// Binds `bind` (UDP for QUIC and TCP for the tripwire, the same port) and starts accepting.
    ///
    /// # Errors
    /// A setting out of range, a certificate that does not fit the key or the name, an address in use:
    /// one sentence that names it.
    pub async fn start(
        host: Arc<dyn Host>,
        config: LinkConfig,
        bind: SocketAddr,
        mut me: Me,
        credentials: Credentials,
        tasks: &Tasks,
    ) -> io::Result<Links> {
        config.check().map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        if me.peer_address.ip().is_unspecified() {
            let reason = format!("peers cannot reach {}: set the address that they are told", me.peer_address);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let held = certificate::Held::new(&credentials);
        let settings = tls::settings(&host, &config, &me, credentials)?;
        let (endpoint, listener, granted) = bind_both(&host, &config, bind, settings.endpoint, settings.server).await?;
        if me.peer_address.port() == 0 {
            me.peer_address.set_port(endpoint.local_addr()?.port());
        }
        let metrics = Metrics::default();
        report(&config, granted, &metrics);
        let mut seed = [0; 32];
        host.entropy(&mut seed);
        let inner = Arc::new(Inner {
            cluster: AtomicU64::new(me.cluster),
            host,
            config,
            me,
            endpoint,
            client: Mutex::new(settings.client),
            certificate: Mutex::new(held),
            tasks: tasks.clone(),
            metrics,
            clock: clock::Clock::new(),
            namesake: namesake::Namesake::new(),
            ledger: starts::Ledger::new(),
            table: Mutex::default(),
            verdicts: watch::Sender::default(),
            door: watch::Sender::new(None),
            dice: Mutex::new(StdRng::from_seed(seed)),
            reasons: Mutex::default(),
            closing: CancellationToken::new(),
        });
        tasks.spawn_vital("link accept", dial::accept(inner.clone()));
        tasks.spawn_vital("link tripwires", tripwire::accept(inner.clone(), listener));
        Ok(Links { inner })
    }

    /// This node as it was started, with the bound port filled in.
    pub fn me(&self) -> &Me {
        &self.inner.me
    }

    /// The node has joined a cluster: from now on nodes of others are refused.
    pub fn join(&self, cluster: u64) {
        self.inner.cluster.store(cluster, Ordering::Release);
        let slots: Vec<_> = self.inner.table().slots.values().cloned().collect();
        for link in slots.iter().filter_map(|slot| slot.current()) {
            if link.cluster != 0 && link.cluster != cluster {
                link.connection.close(code::REFUSED, b"it is part of another cluster");
            }
        }
    }

    /// Registers the metrics of all links.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.inner.metrics.register(registry);
    }

    /// Tells all peers that this node stops, closes all links and waits until that is sent (at most 1 s).
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.endpoint.close(code::STOPPING, b"the node stops");
        let _ = tokio::time::timeout(CLOSE_PATIENCE, self.inner.endpoint.wait_idle()).await;
    }

    /// Tells where a node is, so that a link can be opened and kept up.
    pub fn learn(&self, node: NodeId, at: SocketAddr) {
        self.inner.learn(node, at);
    }

    /// Opens a link to an address whose node is not known yet (a seed) and says who answered.
    ///
    /// # Errors
    /// `NotSent(NodeId(0))`: nobody answered. `Refused`: one of the two refuses the other.
    pub async fn dial(&self, at: SocketAddr) -> Result<Peer, LinkError> {
        Ok(dial::dial(&self.inner, at).await?)
    }

    /// Drops what is known of a node and closes its link.
    pub fn forget(&self, node: NodeId) {
        self.inner.forget(node);
    }

    /// Sends one request and waits for its answer. Opens the link if its address is known.
    ///
    /// Requests to one peer and lane leave in the order in which they were first polled. While the link or its
    /// queue has no room, the request waits, at most for `patience`. A peer that is dead is not waited for.
    ///
    /// # Errors
    /// See `LinkError`; `NotSent` is said only if no byte has left this node.
    pub async fn request(&self, to: NodeId, lane: Lane, body: Parts, patience: Duration) -> Result<Bytes, LinkError> {
        let deadline = tokio::time::Instant::now() + patience;
        self.request_by(to, lane, body, deadline, Some(deadline)).await
    }

    /// Like `request`; waits for the link and for room until `sent_by`, and for the answer until `deadline`, if there
    /// is one. Dropped before the answer, a request on the call lane is cancelled at the peer.
    ///
    /// # Errors
    /// As those of `request`.
    pub async fn request_by(
        &self,
        to: NodeId,
        lane: Lane,
        body: Parts,
        sent_by: tokio::time::Instant,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Bytes, LinkError> {
        let bytes = body.iter().map(Bytes::len).sum();
        if bytes > lane.frame_bytes_max() {
            return Err(LinkError::TooLarge { bytes, bytes_max: lane.frame_bytes_max() });
        }
        let slot = self.inner.slot(to).ok_or(LinkError::NotSent(to))?;
        let pushed = tokio::time::timeout_at(sent_by, slot.push(&self.inner, lane, &body, bytes)).await;
        let (pending, link) = match pushed {
            Ok(Ok(pushed)) => pushed,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(LinkError::NotSent(to)),
        };
        drop(body);
        let _activity = link.activity.clone();
        link.requests.inc();
        let result = pending.answer(deadline).await;
        let metrics = &self.inner.metrics;
        let failures = match &result {
            Err(LinkError::NotSent(_)) => &metrics.requests_not_sent,
            Err(LinkError::Lost(_)) => &metrics.requests_lost,
            Err(LinkError::Deadline(_)) => &metrics.requests_late,
            _ => return result,
        };
        failures.get_or_create(&link.label()).inc();
        result
    }

    /// Opens a stream of its own; waits up to 2 s for a link, unless the peer is dead.
    ///
    /// # Errors
    /// `NotSent`: there is no link.
    pub async fn open(&self, to: NodeId, lane: Lane) -> Result<LinkStream, LinkError> {
        let slot = self.inner.slot(to).ok_or(LinkError::NotSent(to))?;
        let opened = tokio::time::timeout(OPEN_PATIENCE, async {
            let link = slot.linked().await?;
            let opened = open_stream(&link.connection, KIND_STREAM, lane).await;
            let (send, receive) = opened.ok_or(LinkError::NotSent(to))?;
            Ok(serve::own_stream(&self.inner, &link, lane, send, receive))
        });
        opened.await.unwrap_or(Err(LinkError::NotSent(to)))
    }

    /// Sends a SWIM packet: a datagram, or a uni stream if it is larger. Dropped if the queue is full.
    pub fn gossip(&self, to: SocketAddr, packet: Bytes) {
        self.inner.gossip_out(to, packet);
    }

    /// Peers with a link that is up.
    pub fn peers(&self) -> Vec<Peer> {
        let slots: Vec<_> = self.inner.table().slots.values().cloned().collect();
        slots.iter().filter_map(|slot| slot.current()).map(|link| link.peer.clone()).collect()
    }

    /// The verdicts, published on change.
    pub fn verdicts(&self) -> watch::Receiver<Arc<Verdicts>> {
        self.inner.verdicts.subscribe()
    }

    /// Resolves when peers have refused this node for 10 s because another of its name answers them; with what they say.
    pub async fn doubled(&self) -> String {
        self.inner.namesake.stays().await
    }

    /// Takes the starts of peers that this node's disk remembers, and has new ones written there before their nodes are
    /// let in. Call it before `serve`.
    pub fn remember(&self, starts: Starts, keep: KeepStarts) {
        self.inner.remember(starts, keep);
    }

    /// Tells of starts that others have met; links to nodes whose start is over end.
    pub fn met(&self, starts: impl IntoIterator<Item = (NodeId, Start)>) {
        self.inner.met(starts);
    }

    /// Resolves when a peer refuses this node because it has met a newer start of it: this node's folder is an old copy.
    pub async fn outdated(&self) -> String {
        self.inner.ledger.is_over().await
    }

    /// A peer says that `node` is dead: ask it at once (three pings 20 ms apart) instead of waiting.
    pub fn doubt(&self, node: NodeId) {
        if let Some(link) = self.inner.slot(node).and_then(|slot| slot.current()) {
            link.probe.notify_one();
        }
    }

    /// Sets the door for what peers send. Requests that come before it is set wait for it.
    pub fn serve(&self, inbound: Arc<dyn Inbound>) {
        self.inner.door.send_replace(Some(inbound));
    }
}

impl Inner {
    fn cluster(&self) -> u64 {
        self.cluster.load(Ordering::Acquire)
    }

    /// The door, once it is set.
    async fn door(&self) -> Option<Arc<dyn Inbound>> {
        let mut door = self.door.subscribe();
        door.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// SWIM packets are never waited for: without a door they are dropped.
    fn gossip_in(&self, link: &Link, packet: Bytes) {
        match &*self.door.borrow() {
            Some(door) => door.gossip(link.peer.peer_address, packet),
            None => drop(self.metrics.gossip_dropped.inc()),
        }
    }

    fn gossip_out(self: &Arc<Self>, to: SocketAddr, packet: Bytes) {
        if let Some(link) = self.link_at(to) {
            return self.gossip_over(&link, packet);
        }
        let first = {
            let mut table = self.table();
            // Whoever is known at the address is being dialled by its keeper; what is dialled already, too.
            let known = table.at.get(&to).is_some_and(|node| table.slots.contains_key(node));
            let dialled = table.dials.contains_key(&to);
            if !known && !dialled {
                table.dials.insert(to, Arc::new(Semaphore::new(1)));
            }
            !known && !dialled
        };
        if !first {
            self.metrics.gossip_dropped.inc();
            return;
        }
        let inner = self.clone();
        self.tasks.spawn("link seed", async move {
            if dial::dial(&inner, to).await.is_ok()
                && let Some(link) = inner.link_at(to)
            {
                inner.gossip_over(&link, packet);
            }
        });
    }

    fn gossip_over(self: &Arc<Self>, link: &Arc<Link>, packet: Bytes) {
        let mut datagram = BytesMut::with_capacity(packet.len() + 1);
        datagram.put_u8(serve::DATAGRAM_GOSSIP);
        datagram.extend_from_slice(&packet);
        if link.connection.max_datagram_size().is_some_and(|bytes_max| datagram.len() <= bytes_max) {
            if link.connection.send_datagram(datagram.freeze()).is_err() {
                self.metrics.gossip_dropped.inc();
            }
            return;
        }
        let (inner, link) = (self.clone(), link.clone());
        self.tasks.spawn("link gossip", async move {
            let sending = async {
                let mut stream = link.connection.open_uni().await.ok()?;
                let _ = stream.set_priority(Lane::Gossip.priority());
                stream.write_chunk(packet).await.ok()?;
                stream.finish().ok()
            };
            if tokio::time::timeout(OPEN_PATIENCE, sending).await.ok().flatten().is_none() {
                inner.metrics.gossip_dropped.inc();
            }
        });
    }

    /// A peer broke the rules on a stream, which is closed.
    fn broken_stream(&self, peer: NodeId, lane: Lane, reason: &str) {
        let name = self.slot(peer).and_then(|slot| slot.current()).map(|link| link.label());
        let label = name.unwrap_or(metrics::PeerLabel { peer: peer.to_string() });
        self.metrics.streams_broken.get_or_create(&label).inc();
        tracing::warn!(peer = label.peer, ?lane, reason, "stream closed: the peer broke the rules");
    }
}

/// Opens a stream and writes its head, without which the peer would not see it.
async fn open_stream(
    connection: &quinn::Connection,
    kind: u8,
    lane: Lane,
) -> Option<(quinn::SendStream, quinn::RecvStream)> {
    let (mut send, receive) = connection.open_bi().await.ok()?;
    let _ = send.set_priority(lane.priority());
    send.write_all(&[kind, lane as u8]).await.ok()?;
    Some((send, receive))
}

/// UDP and TCP on one port. If the system chooses the port, the one it chose for UDP may be taken for TCP.
async fn bind_both(
    host: &Arc<dyn Host>,
    config: &LinkConfig,
    bind: SocketAddr,
    endpoint: quinn::EndpointConfig,
    server: quinn::ServerConfig,
) -> io::Result<(quinn::Endpoint, Box<dyn Listener>, SocketBuffers)> {
    const TRIES: usize = 8;
    let bytes = config.socket_buffer.as_u64() as usize;
    let buffers = SocketBuffers { receive_bytes: bytes, send_bytes: bytes };
    let named = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what} {bind}: {error}"));
    let mut tries = 0;
    loop {
        let bound = host.quic(bind, buffers, endpoint.clone(), server.clone()).await;
        let (endpoint, granted) = bound.map_err(|error| named("bind UDP for links,", error))?;
        tries += 1;
        match host.listen(endpoint.local_addr()?).await {
            Ok(listener) => return Ok((endpoint, listener, granted)),
            Err(_) if bind.port() == 0 && tries < TRIES => {}
            Err(error) => return Err(named("bind TCP for the tripwire,", error)),
        }
    }
}

fn report(config: &LinkConfig, granted: SocketBuffers, metrics: &Metrics) {
    let (receive, send) = (granted.receive_bytes, granted.send_bytes);
    metrics.socket_receive_bytes.set(receive as i64);
    metrics.socket_send_bytes.set(send as i64);
    let asked = config.socket_buffer.as_u64() as usize;
    if receive < asked || send < asked {
        tracing::warn!(
            asked,
            receive,
            send,
            "the system cut the UDP buffers of links: bursts will be lost and sent again; raise the sysctls \
             net.core.rmem_max and net.core.wmem_max"
        );
    } else {
        tracing::debug!(receive, send, "UDP buffers of links");
    }
}
