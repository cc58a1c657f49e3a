//! Which peers are known, which link to each is in use, and what is thought of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use quinn::{Connection, VarInt};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::NodeId;

use super::lane::LaneClient;
use super::metrics::{Metrics, PeerLabel};
use super::{Inner, Lane, LinkError, Parts, Peer, Verdict, lane};

/// Nodes remembered at most: far more than a cluster has.
const PEERS_MAX: usize = 16_384;
/// Tripwires watched per peer at most.
const TRIPWIRES_MAX: usize = 4;

/// Why a link was closed, as the other end reads it.
pub(super) mod code {
    use super::VarInt;

    /// The node stops.
    pub(in super::super) const STOPPING: VarInt = VarInt::from_u32(1);
    /// The peer is refused; the reason says why.
    pub(in super::super) const REFUSED: VarInt = VarInt::from_u32(2);
    /// Another link to the same node is in use, and nothing is left on this one.
    pub(in super::super) const RETIRED: VarInt = VarInt::from_u32(3);
    /// A newer generation of the node has come.
    pub(in super::super) const SUPERSEDED: VarInt = VarInt::from_u32(4);
    /// No ping was answered.
    pub(in super::super) const DEAD: VarInt = VarInt::from_u32(5);
    /// The node is no longer part of the cluster.
    pub(in super::super) const FORGOTTEN: VarInt = VarInt::from_u32(6);
    /// The peer is refused: a node of its name is there and answers. The reason says which.
    pub(in super::super) const NAMESAKE: VarInt = VarInt::from_u32(7);
    /// The peer is refused: a newer start of it is known. The reason says which.
    pub(in super::super) const OLD: VarInt = VarInt::from_u32(8);
}

/// One connection to a peer whose Hello was accepted.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) peer: Peer,
    /// The peer's cluster when the link came up; 0 while it was empty.
    pub(super) cluster: u64,
    /// Whether this node dialled it.
    pub(super) dialled: bool,
    /// Another link to the peer is in use: this one ends when nothing runs on it any more.
    pub(super) retired: AtomicBool,
    /// Wakes the watch for a probe.
    pub(super) probe: Notify,
    /// One count for each request and stream that runs on the link, and one for the link itself.
    pub(super) activity: Arc<()>,
    /// Counts the requests sent, so that none has to look it up.
    pub(super) requests: Counter,
    lanes: Mutex<BTreeMap<Lane, Arc<LaneClient>>>,
}

impl Link {
    pub(super) fn new(connection: Connection, peer: Peer, cluster: u64, dialled: bool, metrics: &Metrics) -> Self {
        let requests = metrics.requests.get_or_create_owned(&PeerLabel { peer: peer.name.clone() });
        Link {
            connection,
            peer,
            requests,
            cluster,
            dialled,
            retired: AtomicBool::new(false),
            probe: Notify::new(),
            activity: Arc::new(()),
            lanes: Mutex::default(),
        }
    }

    pub(super) fn label(&self) -> PeerLabel {
        PeerLabel { peer: self.peer.name.clone() }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Nothing runs on it.
    pub(super) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.activity) == 1
    }

    fn lane(&self, inner: &Arc<Inner>, lane: Lane) -> Arc<LaneClient> {
        let mut lanes = lock(&self.lanes);
        if let Some(client) = lanes.get(&lane).filter(|client| client.is_open()) {
            return client.clone();
        }
        let client = LaneClient::start(inner, self, lane);
        lanes.insert(lane, client.clone());
        client
    }

    /// The smaller node id's dial is kept, so that both ends choose the same link.
    fn preferred(&self, me: NodeId) -> bool {
        self.dialled == (me < self.peer.id)
    }
}

/// What is known of one peer.
pub(super) struct Slot {
    pub(super) id: NodeId,
    pub(super) address: Mutex<SocketAddr>,
    /// The link in use.
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    /// Open links that are not in use any more.
    retired: Mutex<Vec<Arc<Link>>>,
    /// No link, and the verdict is dead: nothing waits for a link to come.
    pub(super) dead: AtomicBool,
    /// Wakes the dialler before its pause is over.
    pub(super) wake: Notify,
    pub(super) forgotten: CancellationToken,
    pub(super) tripwires: Arc<Semaphore>,
    /// One request at a time waits for a link and for room, per lane: so they stay in order.
    gates: [Semaphore; Lane::COUNT],
}

impl Slot {
    fn new(id: NodeId, address: SocketAddr) -> Self {
        Slot {
            id,
            address: Mutex::new(address),
            link: watch::Sender::new(None),
            retired: Mutex::default(),
            dead: AtomicBool::new(false),
            wake: Notify::new(),
            forgotten: CancellationToken::new(),
            tripwires: Arc::new(Semaphore::new(TRIPWIRES_MAX)),
            gates: [const { Semaphore::const_new(1) }; Lane::COUNT],
        }
    }

    pub(super) fn current(&self) -> Option<Arc<Link>> {
        self.link.borrow().clone()
    }

    /// Waits for a link; `NotSent` if the peer is dead or forgotten.
    pub(super) async fn linked(&self) -> Result<Arc<Link>, LinkError> {
        let mut links = self.link.subscribe();
        loop {
            if let Some(link) = links.borrow_and_update().clone().filter(|link| !link.is_closed()) {
                return Ok(link);
            }
            if self.dead.load(Ordering::Acquire) || self.forgotten.is_cancelled() {
                return Err(LinkError::NotSent(self.id));
            }
            tokio::select! {
                changed = links.changed() => changed.map_err(|_| LinkError::NotSent(self.id))?,
                () = self.forgotten.cancelled() => {}
            }
        }
    }

    /// Queues a request on the link in use, after those that came before it.
    pub(super) async fn push(
        &self,
        inner: &Arc<Inner>,
        lane: Lane,
        body: &Parts,
        bytes: usize,
    ) -> Result<(lane::Pending, Arc<Link>), LinkError> {
        let _turn = self.gates[lane as usize].acquire().await.map_err(|_| LinkError::NotSent(self.id))?;
        loop {
            let link = self.linked().await?;
            if let Ok(pending) = link.lane(inner, lane).push(body, bytes).await {
                return Ok((pending, link));
            }
            // The lane has just ended. If the link has too, its watch will say so.
            tokio::task::yield_now().await;
        }
    }
}

/// All peers.
#[derive(Default)]
pub(super) struct Table {
    pub(super) slots: BTreeMap<NodeId, Arc<Slot>>,
    /// Who answered last at an address.
    pub(super) at: BTreeMap<SocketAddr, NodeId>,
    /// One dial at a time per address.
    pub(super) dials: BTreeMap<SocketAddr, Arc<Semaphore>>,
}

/// Why a peer whose certificate is good is refused all the same.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A node of its name is there and answers.
    Namesake(String),
    /// It runs on an old copy of its folder.
    Old(String),
    Other(String),
}

impl Refusal {
    pub(super) fn reason(&self) -> &str {
        let (Refusal::Namesake(reason) | Refusal::Old(reason) | Refusal::Other(reason)) = self;
        reason
    }

    /// What a link that is refused is closed with.
    pub(super) fn code(&self) -> VarInt {
        match self {
            Refusal::Namesake(_) => code::NAMESAKE,
            Refusal::Old(_) => code::OLD,
            Refusal::Other(_) => code::REFUSED,
        }
    }
}

impl Inner {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(super) fn slot(&self, node: NodeId) -> Option<Arc<Slot>> {
        self.table().slots.get(&node).cloned()
    }

    /// The open link in use to whoever answered last at `address`.
    pub(super) fn link_at(&self, address: SocketAddr) -> Option<Arc<Link>> {
        let slot = {
            let table = self.table();
            table.slots.get(table.at.get(&address)?)?.clone()
        };
        slot.current().filter(|link| !link.is_closed())
    }

    /// The slot of a node, made if it is new, at its newest address.
    pub(super) fn learn(self: &Arc<Self>, node: NodeId, address: SocketAddr) -> Option<Arc<Slot>> {
        if node == self.me.id || node == NodeId(0) {
            return None;
        }
        let slot = {
            let mut table = self.table();
            if let Some(slot) = table.slots.get(&node) {
                let before = std::mem::replace(&mut *lock(&slot.address), address);
                if before != address {
                    slot.wake.notify_one();
                }
                return Some(slot.clone());
            }
            if table.slots.len() >= PEERS_MAX {
                tracing::error!(%node, "more than {PEERS_MAX} peers are known; this one is left out");
                return None;
            }
            let slot = Arc::new(Slot::new(node, address));
            table.slots.insert(node, slot.clone());
            slot
        };
        self.tasks.spawn("link keeper", super::dial::keep(self.clone(), slot.clone()));
        Some(slot)
    }

    /// Puts an accepted link into use, or beside the one in use.
    ///
    /// # Errors
    /// The peer must be refused, for the reason given.
    pub(super) async fn register(self: &Arc<Self>, link: Arc<Link>) -> Result<(), Refusal> {
        let (id, generation) = (link.peer.id, link.peer.generation);
        // The name first: a copy under another name must not make the start of the real node an old one.
        self.check_name(&link)?;
        self.admit(&link.peer).await?;
        let slot =
            self.learn(id, link.peer.peer_address).ok_or_else(|| Refusal::Other("too many peers are known".into()))?;
        self.table().at.insert(link.peer.peer_address, id);
        let me = self.me.id;
        let mut superseded = None;
        slot.link.send_modify(|current| match current.take() {
            Some(old) if old.is_closed() => *current = Some(link.clone()),
            Some(old) if old.peer.generation < generation => {
                superseded = Some(old);
                *current = Some(link.clone());
            }
            // Both have dialled: both ends keep the same one. If one end has dialled twice, it has lost its first.
            Some(old) if old.preferred(me) && !link.preferred(me) => {
                slot.retire(link.clone());
                *current = Some(old);
            }
            Some(old) => {
                slot.retire(old);
                *current = Some(link.clone());
            }
            None => *current = Some(link.clone()),
        });
        if let Some(old) = superseded {
            old.connection.close(code::SUPERSEDED, b"a newer generation of this node has come");
        }
        self.metrics.connects.get_or_create(&link.label()).inc();
        tracing::info!(
            peer = link.peer.name, node = %id, %generation, address = %link.peer.peer_address,
            dialled = link.dialled, "link up"
        );
        self.say(&slot, &link.peer, Verdict::Up);
        self.tasks.spawn("link", super::serve::run(self.clone(), slot.clone(), link.clone()));
        if link.dialled {
            self.tasks.spawn("link tripwire", super::tripwire::keep(self.clone(), link));
        }
        Ok(())
    }

    /// Two nodes with one name, or one folder: the one that is here and answers stays.
    fn check_name(&self, link: &Link) -> Result<(), Refusal> {
        let (name, id) = (&link.peer.name, link.peer.id);
        if *name == self.me.name {
            let reason = format!("its name `{name}` is this node's own: two nodes have one name");
            return Err(Refusal::Namesake(reason));
        }
        let slots: Vec<Arc<Slot>> = self.table().slots.values().cloned().collect();
        let verdicts = self.verdicts.borrow().clone();
        let up = |other: &NodeId| verdicts.get(other).is_some_and(|(_, verdict)| *verdict == Verdict::Up);
        let same = slots.iter().filter(|slot| slot.id == id && up(&id)).find_map(|slot| slot.current());
        if let Some(same) = same.filter(|same| same.peer.name != *name && !same.is_closed()) {
            same.probe.notify_one();
            let reason = format!("its data folder is that of node `{}`, which answers", same.peer.name);
            return Err(Refusal::Namesake(reason));
        }
        let mut others = slots.iter().filter(|slot| slot.id != id && up(&slot.id)).filter_map(|slot| slot.current());
        let Some(other) = others.find(|other| other.peer.name == *name && !other.is_closed()) else { return Ok(()) };
        // It may be the one whose place the newcomer takes: then it will not answer.
        other.probe.notify_one();
        Err(Refusal::Namesake(format!("its name `{name}` is that of node {}, which answers", other.peer.id)))
    }

    /// A peer says that another node has this one's name or folder. While any peer has a link with this one, it is the
    /// other that is refused by most: a copy that runs at a third node's address must not end the real one.
    pub(super) fn refused_for_name(&self, reason: &str) {
        let slots: Vec<Arc<Slot>> = self.table().slots.values().cloned().collect();
        if !slots.iter().filter_map(|slot| slot.current()).any(|link| !link.is_closed()) {
            self.namesake.refused(reason);
        }
    }

    /// A link has ended. Answers whether it was the one in use and no other is left.
    pub(super) fn unlink(&self, slot: &Slot, link: &Arc<Link>) -> bool {
        lock(&slot.retired).retain(|other| !Arc::ptr_eq(other, link));
        let mut alone = false;
        slot.link.send_if_modified(|current| {
            if !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
                return false;
            }
            *current = slot.promote();
            alone = current.is_none();
            true
        });
        alone
    }

    /// Publishes what is thought of a peer, unless a newer generation of it is known. Answers whether that is news.
    pub(super) fn say(&self, slot: &Slot, peer: &Peer, verdict: Verdict) -> bool {
        self.say_if(slot, peer, verdict, || true)
    }

    /// The same after the end of a link, unless another has come up meanwhile.
    pub(super) fn say_unlinked(&self, slot: &Slot, peer: &Peer, verdict: Verdict) -> bool {
        self.say_if(slot, peer, verdict, || slot.current().is_none())
    }

    fn say_if(&self, slot: &Slot, peer: &Peer, verdict: Verdict, holds: impl FnOnce() -> bool) -> bool {
        let said = self.verdicts.send_if_modified(|verdicts| {
            // Under the lock of the verdicts: who puts a link into use says so after it has.
            if !holds() {
                return false;
            }
            slot.dead.store(verdict == Verdict::Dead, Ordering::Release);
            let entry = (peer.generation, verdict);
            if verdicts.get(&peer.id).is_some_and(|had| *had == entry || had.0 > peer.generation) {
                return false;
            }
            Arc::make_mut(verdicts).insert(peer.id, entry);
            true
        });
        if verdict == Verdict::Dead {
            // Those that wait for a link are told.
            slot.link.send_modify(|_| {});
        }
        if !said {
            return false;
        }
        let label = PeerLabel { peer: peer.name.clone() };
        self.metrics.verdict.get_or_create(&label).set(verdict as i64);
        match verdict {
            Verdict::Up => tracing::debug!(peer = peer.name, "up"),
            Verdict::Suspect => {
                self.metrics.suspicions.get_or_create(&label).inc();
                tracing::warn!(peer = peer.name, "suspect: nothing new is sent there");
            }
            Verdict::Dead => {
                self.metrics.deaths.get_or_create(&label).inc();
            }
        }
        true
    }

    /// A peer does not answer any more.
    pub(super) fn bury(&self, slot: &Slot, peer: &Peer) {
        if self.say(slot, peer, Verdict::Dead) {
            told_dead(peer);
        }
    }

    /// Drops what is known of a node.
    pub(super) fn forget(&self, node: NodeId) {
        let slot = {
            let mut table = self.table();
            table.at.retain(|_, at| *at != node);
            table.slots.remove(&node)
        };
        let Some(slot) = slot else { return };
        self.clock.forget(node);
        self.forget_start(node);
        slot.forgotten.cancel();
        let current = slot.current();
        for link in current.into_iter().chain(lock(&slot.retired).drain(..)) {
            link.connection.close(code::FORGOTTEN, b"this node is no longer part of the cluster");
            self.metrics.forget(&link.peer.name);
        }
        self.verdicts.send_if_modified(|verdicts| Arc::make_mut(verdicts).remove(&node).is_some());
    }
}

pub(super) fn told_dead(peer: &Peer) {
    tracing::warn!(peer = peer.name, generation = %peer.generation, "dead");
}

impl Slot {
    fn retire(&self, link: Arc<Link>) {
        link.retired.store(true, Ordering::Release);
        lock(&self.retired).push(link);
    }

    /// The newest open link among the retired, back in use.
    fn promote(&self) -> Option<Arc<Link>> {
        let mut retired = lock(&self.retired);
        let at = retired.iter().rposition(|link| !link.is_closed())?;
        let link = retired.remove(at);
        link.retired.store(false, Ordering::Release);
        Some(link)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
