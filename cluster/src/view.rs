//! What a node knows of its cluster at one moment: immutable, published on a `watch`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::hashing;
use crate::ids::{Epoch, Generation, NodeId, PartitionId, ShardId};
use crate::registry::State;

/// A node as gossip and this node's own link see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
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
    /// Where links reach it, host:port.
    pub peer_address: String,
    /// Its binary's version.
    pub version: String,
    /// Alive or not.
    pub state: MemberState,
}

/// How a member is believed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Answers.
    Alive,
    /// Silent for a moment: nothing new is sent there. Reversible, this node's own verdict.
    Suspect,
    /// Dead or gone, as confirmed by gossip or by the tripwire and pings.
    Down,
    /// Left in order.
    Left,
}

/// Who acts for a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Under which epoch.
    pub epoch: Epoch,
}

/// The cluster at one moment.
#[derive(Clone, Debug)]
pub struct ClusterView {
    /// This node.
    pub me: NodeId,
    /// The registry as far as this node has it: always a prefix of the log.
    pub registry: Arc<State>,
    /// The registry's leader, if known.
    pub registry_leader: Option<NodeId>,
    /// All members that gossip knows, this node too.
    pub members: BTreeMap<NodeId, Member>,
    /// The newest owner announced for each shard.
    pub owners: BTreeMap<ShardId, Owner>,
}

impl ClusterView {
    /// The shard that holds a partition. `None` before the cluster is founded.
    pub fn shard_of(&self, partition: PartitionId) -> Option<ShardId> {
        let shards = self.registry.shards_total();
        (shards > 0).then(|| hashing::shard_of(partition, shards))
    }

    /// The owner of a partition, unless it is unknown or believed dead.
    pub fn owner_of(&self, partition: PartitionId) -> Option<Owner> {
        let owner = *self.owners.get(&self.shard_of(partition)?)?;
        self.usable(owner.node).then_some(owner)
    }

    /// Whether new work may be sent to a node.
    pub fn usable(&self, node: NodeId) -> bool {
        node == self.me || self.members.get(&node).is_some_and(|member| member.state == MemberState::Alive)
    }

    /// The name of a node, or its id in hex if it has none here.
    pub fn name_of(&self, node: NodeId) -> String {
        self.members
            .get(&node)
            .map(|member| member.name.clone())
            .or_else(|| self.registry.node(node).map(|record| record.name.clone()))
            .unwrap_or_else(|| node.to_string())
    }
}
