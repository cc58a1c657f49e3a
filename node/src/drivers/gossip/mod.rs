//! Gossip: who is in the cluster, by SWIM over the links.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use weft_cluster::ids::NodeId;
use weft_cluster::view::Member;

use crate::drivers::link::Links;
use crate::host::{Host, Tasks};

mod config;

pub use config::GossipConfig;

/// All members that gossip knows, this node too. States are SWIM's: Alive, Down or Left.
pub type Members = Arc<BTreeMap<NodeId, Member>>;

/// The gossip of this node. Cheap to clone.
#[derive(Clone)]
pub struct Gossip(());

impl Gossip {
    /// Starts SWIM as `links.me()`. `seeds`: host:port of nodes to ask for the others, resolved again and
    /// again until somebody answers; empty for the first node.
    pub fn start(
        _host: Arc<dyn Host>,
        _config: GossipConfig,
        _links: Links,
        _seeds: Vec<String>,
        _tasks: &Tasks,
    ) -> Gossip {
        panic!("contract only")
    }

    /// Hands over a packet from a link. Never blocks; dropped if the queue is full.
    pub fn receive(&self, _from: SocketAddr, _packet: Bytes) {
        panic!("contract only")
    }

    /// The members, published on change.
    pub fn members(&self) -> watch::Receiver<Members> {
        panic!("contract only")
    }

    /// Tells the others that this node leaves in order; returns when that is sent.
    pub async fn leave(&self) {
        panic!("contract only")
    }

    /// Registers the metrics.
    pub fn register(&self, _registry: &mut Registry) {
        panic!("contract only")
    }
}
