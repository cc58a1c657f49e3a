//! The task that owns SWIM's state: packets, timers and requests come in, packets and members go out. It
//! never waits for anything else: a slow turn of it gets this node suspected.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use foca::{AccumulatingRuntime, BroadcastHandler, Foca, Invalidates, OwnedNotification, PostcardCodec, Timer};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use weft_cluster::ids::NodeId;
use weft_cluster::membership::{self, Identity, PACKET_BYTES_MAX, Standing};
use weft_cluster::view::{Member, MemberState};

use super::cards::{Age, Card, Cards};
use super::{GossipConfig, Members, Metrics};
use crate::drivers::link::{Links, Me};

/// A SWIM packet follows.
const KIND_SWIM: u8 = 0;
/// Cards follow.
const KIND_CARDS: u8 = 1;
/// A digest follows; it is answered with the cards it lacks, and with a digest if it has newer ones.
const KIND_DIGEST: u8 = 2;
/// The digest that answers one: it is answered with cards only.
const KIND_DIGEST_BACK: u8 = 3;
/// Packets taken from the queue before timers get their turn.
const PACKETS_PER_TURN: usize = 64;

/// What the task is told.
pub(super) enum Input {
    /// A packet from the node at an address.
    Packet(SocketAddr, Bytes),
    /// Where seeds have answered.
    Seeds(Vec<SocketAddr>),
    /// How many replicas on this node are out of use now.
    Fenced(u32),
    /// Leave in order; answered when that is sent.
    Leave(oneshot::Sender<()>),
}

/// The key of a card among SWIM's broadcasts.
pub(super) struct Key(NodeId, Age);

impl Invalidates for Key {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0 && self.1 >= other.1
    }
}

/// Takes cards that travel with SWIM's packets.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Cards>>);

impl Shelf {
    fn cards(&self) -> MutexGuard<'_, Cards> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BroadcastHandler<Identity> for Shelf {
    type Key = Key;
    type Error = postcard::Error;

    fn receive_item(&mut self, data: &[u8], _from: Option<&Identity>) -> Result<Option<Key>, postcard::Error> {
        let card: Card = postcard::from_bytes(data)?;
        let key = Key(card.node, (card.generation, card.revision));
        Ok(self.cards().insert(card).then_some(key))
    }
}

/// The state of the task.
pub(super) struct Swim {
    me: Me,
    links: Links,
    metrics: Metrics,
    members: watch::Sender<Members>,
    foca: Foca<Identity, PostcardCodec, StdRng, Shelf>,
    runtime: AccumulatingRuntime<Identity>,
    shelf: Shelf,
    card: Card,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    timers_set: u64,
    /// Whose turn it is to compare cards.
    turn: usize,
    left: bool,
    /// Members may have changed since they were published.
    dirty: bool,
    /// The changes to the cards that are published.
    changes: u64,
}

impl Swim {
    pub(super) fn new(
        links: Links,
        config: &GossipConfig,
        seed: [u8; 32],
        metrics: Metrics,
        members: watch::Sender<Members>,
    ) -> Self {
        let me = links.me().clone();
        let identity = Identity {
            node: me.id,
            address: me.peer_address,
            zone: me.zone.clone(),
            generation: me.generation,
            bump: 0,
        };
        let card = Card {
            node: me.id,
            generation: me.generation,
            revision: 0,
            name: me.name.clone(),
            client_address: me.client_address.clone(),
            version: me.version.clone(),
            disk_full: false,
            replicas_fenced: 0,
            leaving: false,
        };
        let shelf = Shelf::default();
        let settings = membership::config(&config.timing());
        let dice = StdRng::from_seed(seed);
        let foca = Foca::with_custom_broadcast(identity, settings, dice, PostcardCodec, shelf.clone());
        let mut swim = Swim {
            me,
            links,
            metrics,
            members,
            foca,
            runtime: AccumulatingRuntime::new(),
            shelf,
            card: card.clone(),
            timers: BTreeMap::new(),
            timers_set: 0,
            turn: 0,
            left: false,
            dirty: true,
            changes: 0,
        };
        swim.spread(&card);
        swim.settle();
        swim
    }

    /// Runs until it is cancelled.
    pub(super) async fn run(
        mut self,
        config: GossipConfig,
        mut inputs: mpsc::Receiver<Input>,
        mut full: watch::Receiver<bool>,
    ) {
        // What it says now counts too.
        full.mark_changed();
        let mut storage_open = true;
        let mut digests = interval(config.digest_period);
        digests.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lacks = interval(config.seed_retry);
        lacks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(PACKETS_PER_TURN);
        loop {
            // Without a timer nobody is known: only an input changes that.
            let due = self.timers.keys().next().map(|(due, _)| *due);
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.on_timers(),
                count = inputs.recv_many(&mut batch, PACKETS_PER_TURN) => {
                    if count == 0 {
                        // The handles are gone: the node stops, and this task is ended from outside.
                        std::future::pending::<()>().await;
                    }
                    batch.drain(..).for_each(|input| self.on_input(input));
                }
                changed = full.changed(), if storage_open => {
                    storage_open = changed.is_ok();
                    self.on_space(*full.borrow_and_update());
                }
                _ = digests.tick() => self.send_digest(),
                _ = lacks.tick() => {
                    self.dirty = true;
                    self.ask_for_cards();
                }
            }
            self.settle();
        }
    }

    fn on_input(&mut self, input: Input) {
        match input {
            // Whoever has left must not be talked into coming back.
            _ if self.left => {}
            Input::Packet(from, packet) => self.on_packet(from, packet),
            Input::Seeds(addresses) => self.announce(&addresses),
            Input::Fenced(count) => {
                if count != self.card.replicas_fenced {
                    self.revise(|card| card.replicas_fenced = count);
                }
            }
            Input::Leave(done) => {
                self.leave();
                let _ = done.send(());
            }
        }
    }

    fn on_timers(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let timer = entry.remove();
            if self.left {
                continue;
            }
            if let Err(error) = self.foca.handle_timer(timer, &mut self.runtime) {
                tracing::debug!(%error, "a timer of SWIM");
            }
        }
    }

    fn on_packet(&mut self, from: SocketAddr, packet: Bytes) {
        let Some((kind, body)) = packet.split_first() else { return };
        let good = match *kind {
            KIND_SWIM => match self.foca.handle_data(body, &mut self.runtime) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(%from, %error, "a packet of SWIM");
                    false
                }
            },
            KIND_CARDS => self.on_cards(body),
            KIND_DIGEST | KIND_DIGEST_BACK => self.on_digest(from, *kind == KIND_DIGEST, body),
            _ => false,
        };
        if !good {
            self.metrics.packets_refused.inc();
        }
    }

    fn on_cards(&mut self, body: &[u8]) -> bool {
        let Ok(cards) = postcard::from_bytes::<Vec<Card>>(body) else { return false };
        for card in cards {
            self.spread(&card);
        }
        true
    }

    fn on_digest(&mut self, from: SocketAddr, answer: bool, body: &[u8]) -> bool {
        let Ok(digest) = postcard::from_bytes::<Vec<(NodeId, Age)>>(body) else { return false };
        let (lacks, newer) = self.shelf.cards().compare(&digest);
        for cards in lacks {
            self.send(from, KIND_CARDS, &cards);
        }
        if newer && answer {
            let digest = self.shelf.cards().digest();
            self.send(from, KIND_DIGEST_BACK, &digest);
        }
        true
    }

    /// Keeps a card if it is new, and passes it on.
    fn spread(&mut self, card: &Card) {
        let data = postcard::to_stdvec(card).expect("a card of texts and numbers encodes");
        if data.len() <= PACKET_BYTES_MAX
            && let Err(error) = self.foca.add_broadcast(&data)
        {
            tracing::debug!(%error, "a card");
        }
    }

    /// Announces to seeds that are not up as members.
    fn announce(&mut self, addresses: &[SocketAddr]) {
        let up: BTreeSet<SocketAddr> = self.foca.iter_members().map(|member| member.id().address).collect();
        for address in addresses.iter().filter(|at| **at != self.me.peer_address && !up.contains(*at)) {
            if let Err(error) = self.foca.announce(Identity::seed(*address), &mut self.runtime) {
                tracing::debug!(%address, %error, "announce to a seed");
            }
        }
    }

    fn on_space(&mut self, full: bool) {
        if full != self.card.disk_full {
            self.revise(|card| card.disk_full = full);
        }
    }

    /// Changes this node's card and tells everybody who is up.
    fn revise(&mut self, change: impl FnOnce(&mut Card)) {
        self.dirty = true;
        change(&mut self.card);
        self.card.revision += 1;
        let card = self.card.clone();
        self.spread(&card);
        if self.left {
            return;
        }
        for address in self.up_addresses() {
            self.send(address, KIND_CARDS, &vec![card.clone()]);
        }
    }

    fn leave(&mut self) {
        self.revise(|card| card.leaving = true);
        if let Err(error) = self.foca.leave_cluster(&mut self.runtime) {
            tracing::debug!(%error, "leave the cluster");
        }
        self.left = true;
        self.settle();
    }

    fn up_addresses(&self) -> Vec<SocketAddr> {
        self.foca.iter_members().map(|member| member.id().address).collect()
    }

    /// Compares cards with one member, each in its turn.
    fn send_digest(&mut self) {
        let addresses = self.up_addresses();
        if addresses.is_empty() || self.left {
            return;
        }
        self.turn = (self.turn + 1) % addresses.len();
        let digest = self.shelf.cards().digest();
        self.send(addresses[self.turn], KIND_DIGEST, &digest);
    }

    /// Asks members whose card is missing or of an older start.
    fn ask_for_cards(&mut self) {
        if self.left {
            return;
        }
        let digest = self.shelf.cards().digest();
        let fresh = |identity: &Identity| {
            self.shelf.cards().get(identity.node).is_some_and(|card| card.generation >= identity.generation)
        };
        let lacking: Vec<SocketAddr> =
            self.foca.iter_members().map(|member| member.id()).filter(|id| !fresh(id)).map(|id| id.address).collect();
        for address in lacking {
            self.send(address, KIND_DIGEST, &digest);
        }
    }

    fn send(&self, to: SocketAddr, kind: u8, body: &impl Serialize) {
        let mut packet = vec![kind];
        packet.extend(postcard::to_stdvec(body).expect("texts and numbers encode"));
        self.links.gossip(to, packet.into());
    }

    /// Does what SWIM wants done, and publishes.
    fn settle(&mut self) {
        while let Some((to, data)) = self.runtime.to_send() {
            let mut packet = BytesMut::with_capacity(data.len() + 1);
            packet.put_u8(KIND_SWIM);
            packet.extend_from_slice(&data);
            self.links.gossip(to.address, packet.freeze());
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_set += 1;
            self.timers.insert((Instant::now() + after, self.timers_set), timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            self.dirty = true;
            self.on_notification(&notification);
        }
        let changes = self.shelf.cards().changes();
        if std::mem::take(&mut self.dirty) || changes != self.changes {
            self.changes = changes;
            self.publish();
        }
    }

    fn on_notification(&mut self, notification: &OwnedNotification<Identity>) {
        match notification {
            OwnedNotification::MemberUp(member) => {
                tracing::info!(node = %member.node, address = %member.address, "member up");
                self.links.learn(member.node, member.address);
                // Broadcasts are bounded: whoever comes up late would miss what was said before.
                for cards in self.shelf.cards().packets() {
                    self.send(member.address, KIND_CARDS, &cards);
                }
            }
            OwnedNotification::MemberDown(member) => {
                tracing::info!(node = %member.node, address = %member.address, "member down");
                self.metrics.downs.inc();
                // If its link is silent, too, it is dead: no closed tripwire tells of a host that lost its power.
                self.links.doubt(member.node);
            }
            OwnedNotification::Rename(_, member) => self.links.learn(member.node, member.address),
            OwnedNotification::Rejoin(member) => {
                tracing::warn!(bump = member.bump, "the others held this node for down; it is back");
                self.metrics.rejoins.inc();
            }
            OwnedNotification::Defunct if !self.left => tracing::warn!("the others hold this node for down"),
            _ => {}
        }
    }

    /// Publishes the members if they have changed.
    fn publish(&mut self) {
        let standings = membership::standings(self.foca.iter_membership_state());
        self.forget_gone(&standings);
        let mut members = BTreeMap::new();
        for standing in standings.values().filter(|standing| standing.identity.node != self.me.id) {
            if let Some(member) = self.member(standing) {
                members.insert(member.id, member);
            }
        }
        members.insert(self.me.id, self.myself());
        let up = members.values().filter(|member| member.state == MemberState::Alive).count();
        self.metrics.members_alive.set(up as i64);
        self.metrics.members_known.set(members.len() as i64);
        self.members.send_if_modified(|published| {
            let changed = **published != members;
            if changed {
                *published = Arc::new(members);
            }
            changed
        });
    }

    /// SWIM has forgotten some that were down for long: links and cards do too.
    fn forget_gone(&mut self, standings: &BTreeMap<NodeId, Standing>) {
        let before = self.members.borrow().clone();
        for gone in before.keys().filter(|node| **node != self.me.id && !standings.contains_key(node)) {
            tracing::info!(node = %gone, "member forgotten");
            self.shelf.cards().forget(*gone);
            self.links.forget(*gone);
        }
    }

    /// `None` while nobody has said more of it than its identity.
    fn member(&self, standing: &Standing) -> Option<Member> {
        let identity = &standing.identity;
        let card = self.shelf.cards().get(identity.node)?.clone();
        let leaving = card.leaving && card.generation == identity.generation;
        let state = match standing.up {
            _ if leaving => MemberState::Left,
            true => MemberState::Alive,
            false => MemberState::Down,
        };
        // What is said of an earlier start is over.
        let present = card.generation == identity.generation;
        Some(Member {
            id: identity.node,
            name: card.name,
            zone: identity.zone.clone(),
            generation: identity.generation,
            client_address: card.client_address,
            peer_address: identity.address.to_string(),
            version: card.version,
            disk_full: card.disk_full && present,
            replicas_fenced: if present { card.replicas_fenced } else { 0 },
            state,
        })
    }

    fn myself(&self) -> Member {
        let Me { id, name, zone, generation, client_address, peer_address, version, .. } = self.me.clone();
        let state = if self.card.leaving { MemberState::Left } else { MemberState::Alive };
        Member {
            id,
            name,
            zone,
            generation,
            client_address,
            peer_address: peer_address.to_string(),
            version,
            disk_full: self.card.disk_full,
            replicas_fenced: self.card.replicas_fenced,
            state,
        }
    }
}
