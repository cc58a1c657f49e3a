//! What a node knows of its cluster at one moment: immutable, published on a `watch`.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Its disk is under the watermark: it refuses publishes, and should lead nothing that others can.
    pub disk_full: bool,
    /// Replicas on it that are out of use until they are filled anew.
    pub replicas_fenced: u32,
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
    /// Members that others see and this node cannot reach.
    pub cut_off: BTreeSet<NodeId>,
}

impl ClusterView {
    /// The shard that holds a partition. `None` before the cluster is founded.
    pub fn shard_of(&self, partition: PartitionId) -> Option<ShardId> {
        let shards = self.registry.shards_total();
        (shards > 0).then(|| hashing::shard_of(partition, shards))
    }

    /// The owner of a partition, unless it is unknown or believed dead.
    pub fn owner_of(&self, partition: PartitionId) -> Option<Owner> {
        self.owner_of_shard(self.shard_of(partition)?)
    }

    /// Whether this node, since its start, has come to know its cluster: its copy of the registry has the record of
    /// this start, and it has met a majority of the registry's voters.
    pub fn settled(&self) -> bool {
        let generation = self.members.get(&self.me).map(|me| me.generation.0);
        let registered =
            self.registry.node(self.me).is_some_and(|me| generation.is_some_and(|now| me.generation >= now));
        let voters = self.registry_voters().count();
        registered && self.registry_voters().filter(|voter| self.usable(*voter)).count() * 2 > voters
    }

    /// Whether new work may be sent to a node.
    pub fn usable(&self, node: NodeId) -> bool {
        node == self.me || self.members.get(&node).is_some_and(|member| member.state == MemberState::Alive)
    }

    /// Whether a node is held for dead: what it had here is given up. A suspect one may only be slow.
    pub fn down(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.state == MemberState::Down)
    }

    /// Whether a node's disk has room for more events, as far as is known.
    pub fn has_room(&self, node: NodeId) -> bool {
        !self.members.get(&node).is_some_and(|member| member.disk_full)
    }

    /// Whether a majority of a shard's replicas have room for more events. True before it is planned.
    pub fn majority_has_room(&self, shard: ShardId) -> bool {
        let full = self.replicas_of(shard).filter(|node| !self.has_room(*node)).count();
        full == 0 || full * 2 < self.replicas_of(shard).count()
    }

    /// The node that has a name: as the registry knows it, or else as gossip does.
    pub fn node_named(&self, name: &str) -> Option<NodeId> {
        let registered = self.registry.node_by_name(name).map(|node| NodeId(node.id));
        registered.or_else(|| self.members.values().find(|member| member.name == name).map(|member| member.id))
    }

    /// The nodes that vote, or are to vote, in the registry's own group, by id.
    pub fn registry_voters(&self) -> impl Iterator<Item = NodeId> {
        self.registry.registry_seats().map(|(node, _)| node)
    }

    /// The owner of a shard, unless it is unknown or believed dead.
    pub fn owner_of_shard(&self, shard: ShardId) -> Option<Owner> {
        self.owners.get(&shard).copied().filter(|owner| self.usable(owner.node))
    }

    /// The owner of a partition that others can reach and this node cannot.
    pub fn owner_out_of_reach(&self, partition: PartitionId) -> Option<NodeId> {
        let owner = self.owners.get(&self.shard_of(partition)?)?.node;
        self.cut_off.contains(&owner).then_some(owner)
    }

    /// The nodes that hold a replica of a shard, in the order of the table; empty before it is planned.
    pub fn replicas_of(&self, shard: ShardId) -> impl Iterator<Item = NodeId> {
        self.registry.shard(shard).into_iter().flat_map(|row| &row.replicas).map(|replica| NodeId(replica.node))
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

#[cfg(test)]
mod tests {
    use weft_proto::internal::v1::{NodeRecord, RegistryState, ReplicaRecord, ShardRecord};

    use super::*;
    use crate::ids::TopicId;

    fn view() -> ClusterView {
        let node = |id, name: &str, registry_replica_id| NodeRecord {
            id,
            name: name.into(),
            registry_replica_id,
            ..Default::default()
        };
        let replicas = [2, 1].map(|node| ReplicaRecord { replica_id: node, node }).to_vec();
        let registry = RegistryState {
            cluster_id: 1,
            shards_total: 1,
            nodes: vec![node(1, "n1", 1), node(2, "n2", 0)],
            shards: vec![ShardRecord { shard: 0, replicas, ..Default::default() }],
            ..Default::default()
        };
        let member = |id, name: &str, state| Member {
            id: NodeId(id),
            name: name.into(),
            zone: String::new(),
            generation: Generation(1),
            client_address: String::new(),
            peer_address: String::new(),
            version: String::new(),
            disk_full: id == 3,
            replicas_fenced: 0,
            state,
        };
        let members = [member(2, "n2", MemberState::Alive), member(3, "n3", MemberState::Suspect)];
        ClusterView {
            me: NodeId(1),
            registry: Arc::new(State::from_proto(registry).expect("a good state")),
            registry_leader: None,
            members: members.into_iter().map(|member| (member.id, member)).collect(),
            owners: BTreeMap::new(),
            cut_off: Default::default(),
        }
    }

    #[test]
    fn names_are_found_in_the_registry_and_in_gossip() {
        let view = view();
        assert_eq!(view.node_named("n1"), Some(NodeId(1)));
        assert_eq!(view.node_named("n3"), Some(NodeId(3)));
        assert_eq!(view.node_named("n4"), None);
        assert_eq!(view.name_of(NodeId(1)), "n1");
        assert_eq!(view.name_of(NodeId(3)), "n3");
        assert_eq!(view.name_of(NodeId(4)), "0000000000000004");
        assert_eq!(view.registry_voters().collect::<Vec<_>>(), [NodeId(1)]);
        assert_eq!(view.replicas_of(ShardId(0)).collect::<Vec<_>>(), [NodeId(2), NodeId(1)]);
    }

    #[test]
    fn a_node_that_has_just_started_knows_its_cluster_once_it_is_in_it_and_has_met_it() {
        let mut view = view();
        let me = Member { id: NodeId(1), generation: Generation(2), ..view.members[&NodeId(2)].clone() };
        view.members.insert(NodeId(1), me);
        let with = |view: &ClusterView, generation, seats: [u64; 3]| {
            let nodes = (1..=3).map(|id| NodeRecord {
                id,
                name: format!("n{id}"),
                generation: if id == 1 { generation } else { 1 },
                registry_replica_id: seats[id as usize - 1],
                ..Default::default()
            });
            let registry =
                RegistryState { cluster_id: 1, shards_total: 1, nodes: nodes.collect(), ..Default::default() };
            ClusterView { registry: Arc::new(State::from_proto(registry).expect("a good state")), ..view.clone() }
        };
        assert!(!view.settled(), "the record is of another start");
        assert!(!with(&view, 1, [1, 2, 3]).settled(), "the record is of the start before");
        assert!(with(&view, 2, [1, 2, 3]).settled(), "n1 and n2 are a majority; n3 is suspect");
        assert!(!with(&view, 2, [1, 0, 3]).settled(), "n1 alone is none");
        view.members.remove(&NodeId(1));
        assert!(!with(&view, 2, [1, 2, 3]).settled(), "gossip has not begun");
    }

    #[test]
    fn events_need_room_at_a_majority() {
        let mut view = view();
        let record = RegistryState {
            cluster_id: 1,
            shards_total: 1,
            shards: vec![ShardRecord {
                shard: 0,
                replicas: (1..=3).map(|id| ReplicaRecord { replica_id: id, node: id }).collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        view.registry = Arc::new(State::from_proto(record).expect("a good state"));
        assert!(view.has_room(NodeId(2)) && !view.has_room(NodeId(3)));
        assert!(view.majority_has_room(ShardId(0)) && view.majority_has_room(ShardId(9)));
        view.members.get_mut(&NodeId(2)).expect("it is there").disk_full = true;
        assert!(!view.majority_has_room(ShardId(0)));
    }

    #[test]
    fn an_owner_that_is_not_alive_is_none() {
        let mut view = view();
        let partition = PartitionId { topic: TopicId(1), index: 0 };
        assert_eq!(view.owner_of(partition), None);
        for (node, usable) in [(1, true), (2, true), (3, false), (4, false)] {
            let owner = Owner { node: NodeId(node), epoch: Epoch(5) };
            view.owners.insert(ShardId(0), owner);
            assert_eq!(view.owner_of(partition), usable.then_some(owner));
            assert!(!view.down(NodeId(node)), "a suspect may only be slow");
        }
    }
}
