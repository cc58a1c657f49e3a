//! Gossip: who is in the cluster, by SWIM over the links.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use weft_cluster::ids::NodeId;
use weft_cluster::view::Member;

use crate::drivers::link::Links;
use crate::host::{Host, Tasks};

mod cards;
mod config;
mod seeds;
mod swim;
#[cfg(test)]
mod tests;

pub use config::GossipConfig;
use swim::{Input, Swim};

/// Packets that wait for SWIM's task; more are dropped, which SWIM bears.
const QUEUE_MAX: usize = 1_024;
/// What `leave` leaves the links to send its packets.
const LEAVE_LINGER: Duration = Duration::from_millis(50);
/// How long `leave` waits for SWIM's task.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// All members that gossip knows, this node too. States are SWIM's: Alive, Down or Left.
pub type Members = Arc<BTreeMap<NodeId, Member>>;

/// The gossip of this node. Cheap to clone.
#[derive(Clone)]
pub struct Gossip {
    inputs: mpsc::Sender<Input>,
    members: watch::Receiver<Members>,
    metrics: Metrics,
}

/// What gossip counts.
#[derive(Clone, Default)]
struct Metrics {
    members_alive: Gauge,
    members_known: Gauge,
    downs: Counter,
    rejoins: Counter,
    packets_refused: Counter,
    packets_dropped: Counter,
}

impl Gossip {
    /// Starts SWIM as `links.me()`. `seeds`: host:port of nodes to ask for the others, resolved again and
    /// again until somebody answers; empty for the first node. `full`: whether this node's disk is under its watermark.
    pub fn start(
        host: Arc<dyn Host>,
        config: GossipConfig,
        links: Links,
        seeds: Vec<String>,
        full: watch::Receiver<bool>,
        tasks: &Tasks,
    ) -> Gossip {
        let mut dice = [0; 32];
        host.entropy(&mut dice);
        let metrics = Metrics::default();
        let (published, members) = watch::channel(Members::default());
        let (inputs, queue) = mpsc::channel(QUEUE_MAX);
        let swim = Swim::new(links.clone(), &config, dice, metrics.clone(), published);
        tasks.spawn_vital("gossip", swim.run(config.clone(), queue, full));
        if !seeds.is_empty() {
            let looking = seeds::run(host, links, seeds, config, inputs.clone(), members.clone());
            tasks.spawn("gossip seeds", looking);
        }
        Gossip { inputs, members, metrics }
    }

    /// Tells all members how many replicas on this node are out of use, at each change.
    pub fn tell_fenced(&self, mut fenced: watch::Receiver<u32>, tasks: &Tasks) {
        let inputs = self.inputs.clone();
        fenced.mark_changed();
        tasks.spawn("gossip fenced", async move {
            while fenced.changed().await.is_ok() {
                let count = *fenced.borrow_and_update();
                if inputs.send(Input::Fenced(count)).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Hands over a packet from a link. Never blocks; dropped if the queue is full.
    pub fn receive(&self, from: SocketAddr, packet: Bytes) {
        if self.inputs.try_send(Input::Packet(from, packet)).is_err() {
            self.metrics.packets_dropped.inc();
        }
    }

    /// The members, published on change.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }

    /// Tells the others that this node leaves in order; returns when that is sent (at most about 1 s).
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.inputs.send(Input::Leave(done)).await.is_ok() {
            let _ = tokio::time::timeout(LEAVE_PATIENCE, left).await;
            tokio::time::sleep(LEAVE_LINGER).await;
        }
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let metrics = &self.metrics;
        registry.register("weft_gossip_members_alive", "Members that are alive", metrics.members_alive.clone());
        registry.register("weft_gossip_members_known", "Members known", metrics.members_known.clone());
        registry.register("weft_gossip_downs", "Members declared down", metrics.downs.clone());
        registry.register("weft_gossip_rejoins", "Times this node was held for down", metrics.rejoins.clone());
        let (refused, dropped) = (&metrics.packets_refused, &metrics.packets_dropped);
        registry.register("weft_gossip_packets_refused", "Packets that made no sense", refused.clone());
        registry.register("weft_gossip_packets_dropped", "Packets over the queue's limit", dropped.clone());
    }
}
