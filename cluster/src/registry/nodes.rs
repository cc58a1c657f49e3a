//! The cluster's birth and its nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_proto::internal::v1::{
    Bootstrap, NodeRecord, PlanSeats, RegisterNode, RemoveNode, SetFeatureLevel, ShardRecord,
};
use weft_proto::v1::{Error, ErrorCode};

use super::apply::{Answer, DONE, full, invalid, not_now};
use super::limits::{
    FEATURE_LEVEL, NODE_TEXT_BYTES_MAX, NODES_MAX, REGISTRY_SEATS_MAX, REPLICATION_MAX, SHARDS_MAX, SUPERSEDED_MAX,
    WEIGHT_DEFAULT, WEIGHT_MAX,
};
use super::{State, names};
use crate::errors::error;
use crate::ids::{Generation, NodeId, Start};

impl State {
    /// Founds the cluster. The records' registry replica ids are 1..=k for the k first voters, 0 for others.
    pub(super) fn bootstrap(&mut self, level: u32, command: &Bootstrap) -> Answer {
        if self.cluster_id != 0 {
            return Err(not_now(format!("the cluster is founded already, as {:016x}", self.cluster_id)));
        }
        check_bootstrap(level, command)?;
        let nodes: Vec<_> =
            command.nodes.iter().map(|node| check_node(node, command.level)).collect::<Result<_, _>>()?;
        self.cluster_id = command.cluster_id;
        self.level = command.level;
        self.shards_total = command.shards;
        self.replication = command.replication;
        self.next_replica_id = nodes.iter().map(|node| node.registry_replica_id).max().unwrap_or(0) + 1;
        self.next_topic_id = 1;
        self.next_group_id = 1;
        self.next_producer_id = 1;
        self.next_instance_id = 1;
        for node in nodes {
            self.put_node(node);
        }
        DONE
    }

    pub(super) fn register_node(&mut self, command: &RegisterNode) -> Answer {
        let node = command.node.as_ref().ok_or_else(|| invalid("the command holds no node"))?;
        let mut node = check_node(node, self.level)?;
        let id = NodeId(node.id);
        if self.superseded.contains(&id) {
            let message = format!(
                "data folder {id} of node {:?} was superseded by another one of that name, or removed; start with an empty folder",
                node.name
            );
            return Err(error(ErrorCode::NodeRefused, message));
        }
        node.registry_replica_id = 0;
        if let Some(known) = self.node(id) {
            check_renewal(known, &node)?;
            node.registry_replica_id = known.registry_replica_id;
        } else if let Some(old) = self.node_by_name(&node.name).cloned() {
            if old.registry_replica_id != 0 {
                node.registry_replica_id = self.allocate_replica_id();
            }
            self.supersede(NodeId(old.id));
        } else if self.nodes.len() >= NODES_MAX {
            return Err(full("nodes", NODES_MAX));
        }
        self.put_node(node);
        DONE
    }

    pub(super) fn remove_node(&mut self, command: &RemoveNode) -> Answer {
        let id = NodeId(command.id);
        let node = self.node(id).ok_or_else(|| error(ErrorCode::NotFound, format!("no node has the id {id}")))?;
        if node.registry_replica_id != 0 && self.registry_seats().count() == 1 {
            return Err(not_now(format!("node {:?} is the registry's only voter", node.name)));
        }
        let holds =
            |row: &&ShardRecord| row.replicas.iter().all(|replica| replica.node == id.0) && !row.replicas.is_empty();
        let only = self.shards().filter(holds).count();
        if only > 0 {
            return Err(not_now(format!("node {:?} has the last copy of {only} shards", node.name)));
        }
        self.supersede(id);
        DONE
    }

    /// Gives a registry's voter a new replica id. That the registry could commit this shows that its majority works
    /// without the voter.
    pub(super) fn replace_seat(&mut self, failed: u64) -> Answer {
        let seat = self.nodes().find(|node| node.registry_replica_id == failed && failed != 0).cloned();
        let Some(mut node) = seat else {
            return Err(not_now(format!("replica {failed} of the registry is replaced already")));
        };
        if self.registry_seats().count() == 1 {
            return Err(not_now(format!("node {:?} is the registry's only voter", node.name)));
        }
        node.registry_replica_id = self.allocate_replica_id();
        self.put_node(node);
        DONE
    }

    pub(super) fn set_feature_level(&mut self, command: &SetFeatureLevel) -> Answer {
        let level = command.level;
        if level < self.level {
            return Err(not_now(format!("the cluster runs at feature level {}; it never goes back", self.level)));
        }
        if let Some(node) = self.nodes().find(|node| node.level_max < level) {
            return Err(error(
                ErrorCode::FeatureLevel,
                format!("node {:?} knows feature levels up to {}; upgrade it first", node.name, node.level_max),
            ));
        }
        self.level = level;
        DONE
    }

    pub(super) fn allocate_replica_id(&mut self) -> u64 {
        self.next_replica_id += 1;
        self.next_replica_id - 1
    }

    pub(super) fn put_node(&mut self, node: NodeRecord) {
        let id = NodeId(node.id);
        let named = self.node_names.insert(node.name.clone(), id);
        assert!(named.is_none_or(|named| named == id), "names of nodes are unique");
        self.nodes.insert(id, Arc::new(node));
    }

    fn take_node(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.remove(&id) {
            self.node_names.remove(&node.name);
        }
    }

    fn supersede(&mut self, id: NodeId) {
        self.take_node(id);
        self.superseded.push_back(id);
        if self.superseded.len() > SUPERSEDED_MAX {
            self.superseded.pop_front();
        }
    }

    /// Gives the registry's seats to these nodes.
    pub(super) fn plan_seats(&mut self, command: &PlanSeats) -> Answer {
        let seated: BTreeSet<u64> = self.registry_seats().map(|(node, _)| node.0).collect();
        let (present, wanted) = (&command.present, &command.nodes);
        if present.iter().copied().collect::<BTreeSet<_>>() != seated {
            return Err(not_now("the registry's seats have changed since the plan was made"));
        }
        let wanted: BTreeSet<u64> = wanted.iter().copied().collect();
        if wanted.is_empty() || wanted.len() > REGISTRY_SEATS_MAX {
            return Err(invalid(format!("{} seats are asked for: use 1 to {REGISTRY_SEATS_MAX}", wanted.len())));
        }
        if let Some(unknown) = wanted.iter().find(|id| self.node(NodeId(**id)).is_none()) {
            return Err(error(ErrorCode::NotFound, format!("no node has the id {}", NodeId(*unknown))));
        }
        for id in seated.symmetric_difference(&wanted) {
            let mut node = self.node(NodeId(*id)).expect("seats and plan name known nodes").clone();
            node.registry_replica_id = if wanted.contains(id) { self.allocate_replica_id() } else { 0 };
            self.put_node(node);
        }
        DONE
    }
}

fn check_bootstrap(level: u32, command: &Bootstrap) -> Result<(), Error> {
    if command.level > FEATURE_LEVEL || level > command.level {
        return Err(error(
            ErrorCode::FeatureLevel,
            format!(
                "a cluster of level {} is asked for by a command of level {level}; this version knows up to {FEATURE_LEVEL}",
                command.level
            ),
        ));
    }
    if command.cluster_id == 0 || command.level == 0 {
        return Err(invalid("a cluster's id and feature level are not 0"));
    }
    if !command.shards.is_power_of_two() || command.shards > SHARDS_MAX {
        return Err(invalid(format!("shards is {}: use a power of two from 1 to {SHARDS_MAX}", command.shards)));
    }
    if !(1..=REPLICATION_MAX).contains(&command.replication) {
        return Err(invalid(format!("replication is {}: use 1 to {REPLICATION_MAX}", command.replication)));
    }
    if command.nodes.len() > NODES_MAX {
        return Err(full("nodes", NODES_MAX));
    }
    let ids: BTreeSet<_> = command.nodes.iter().map(|node| node.id).collect();
    let names: BTreeSet<_> = command.nodes.iter().map(|node| &node.name).collect();
    if ids.len() < command.nodes.len() || names.len() < command.nodes.len() {
        return Err(invalid("two of the nodes have one id or one name"));
    }
    let mut seats: Vec<_> = command.nodes.iter().map(|node| node.registry_replica_id).filter(|id| *id != 0).collect();
    seats.sort_unstable();
    if seats.is_empty() || seats.len() > REGISTRY_SEATS_MAX || !seats.iter().copied().eq(1..=seats.len() as u64) {
        return Err(invalid(format!(
            "registry replica ids are {seats:?}: use 1..=k with k up to {REGISTRY_SEATS_MAX}"
        )));
    }
    Ok(())
}

/// Checks a record and fills in the defaults.
fn check_node(node: &NodeRecord, level: u32) -> Result<NodeRecord, Error> {
    names::check("node", &node.name).map_err(invalid)?;
    if node.id == 0 {
        return Err(invalid(format!("node {:?} has the id 0", node.name)));
    }
    for text in [&node.zone, &node.client_address, &node.peer_address, &node.version] {
        if text.len() > NODE_TEXT_BYTES_MAX {
            return Err(invalid(format!(
                "zone, addresses and version of node {:?} have at most {NODE_TEXT_BYTES_MAX} bytes each",
                node.name
            )));
        }
    }
    if node.weight > WEIGHT_MAX {
        return Err(invalid(format!("weight of node {:?} is {}: use 1 to {WEIGHT_MAX}", node.name, node.weight)));
    }
    if node.level_max < level {
        return Err(error(
            ErrorCode::FeatureLevel,
            format!(
                "node {:?} knows feature levels up to {}; the cluster runs at {level}: use a newer version",
                node.name, node.level_max
            ),
        ));
    }
    let weight = if node.weight == 0 { WEIGHT_DEFAULT } else { node.weight };
    Ok(NodeRecord { weight, ..node.clone() })
}

fn check_renewal(known: &NodeRecord, node: &NodeRecord) -> Result<(), Error> {
    if known.name != node.name {
        let message = format!(
            "data folder {} belongs to node {:?}; start it under that name, or {:?} with an empty folder",
            NodeId(node.id),
            known.name,
            node.name
        );
        return Err(error(ErrorCode::NodeRefused, message));
    }
    if start_of(node).is_old(start_of(known)) {
        let message = format!(
            "start {} of node {:?} is over, its start {} is registered: its data folder is an old copy, without what \
             the node has acknowledged since; start it with an empty folder, and its replicas come back under new ids",
            node.generation, node.name, known.generation
        );
        return Err(error(ErrorCode::NodeRefused, message));
    }
    Ok(())
}

/// Which start of its node a record tells of.
pub fn start_of(node: &NodeRecord) -> Start {
    Start { generation: Generation(node.generation), id: node.start }
}
