//! The shard table: which replicas each shard has, and which it should come to have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::internal::v1::{
    PlanShards, PlannedShard, PreferLeader, ReplaceReplica, ReplicaRecord, ShardMoved, ShardRecord,
};
use weft_proto::v1::{Error, ErrorCode};

use super::State;
use super::apply::{Answer, DONE, invalid, not_now};
use super::limits::REPLICATION_MAX;
use crate::errors::error;
use crate::ids::{NodeId, RaftGroup, ShardId};

impl State {
    /// Takes new rows, all or none. A shard without replicas gets them; one that has some gets a target, which
    /// replaces the target of a move that is under way.
    pub(super) fn plan_shards(&mut self, command: &PlanShards) -> Answer {
        if command.base_version != self.shards_version {
            return Err(not_now(format!(
                "the plan is for version {} of the shard table, which is at {}",
                command.base_version, self.shards_version
            )));
        }
        let mut planned = BTreeSet::new();
        for row in &command.shards {
            self.check_row(row)?;
            if !planned.insert(row.shard) {
                return Err(invalid(format!("the plan has two rows for shard {}", row.shard)));
            }
        }
        for row in &command.shards {
            let record = self.planned_row(row);
            self.shards.insert(ShardId(row.shard), Arc::new(record));
        }
        if !command.shards.is_empty() {
            self.shards_version += 1;
        }
        DONE
    }

    /// Notes that a shard's voters are these replicas now. The target is cleared once it is reached.
    pub(super) fn shard_moved(&mut self, command: &ShardMoved) -> Answer {
        let id = ShardId(command.shard);
        let Some(row) = self.shard(id) else {
            return Err(error(ErrorCode::NotFound, format!("shard {id} has no row in the table")));
        };
        let voters: BTreeSet<u64> = command.replica_ids.iter().copied().collect();
        let known = || row.target.iter().chain(&row.replicas);
        let replicas: BTreeMap<u64, ReplicaRecord> = known()
            .filter(|replica| voters.contains(&replica.replica_id))
            .map(|replica| (replica.replica_id, *replica))
            .collect();
        if voters.is_empty() || replicas.len() < voters.len() {
            return Err(not_now(format!("the table knows not all of replicas {voters:?} of shard {id}")));
        }
        let reached = row.target.is_empty() || ids(&row.target) == voters;
        let target = if reached { Vec::new() } else { row.target.clone() };
        // Kept in the order of the plan, so that a row reads the same before and after its move.
        let ordered: BTreeMap<usize, ReplicaRecord> = {
            let places = known().map(|replica| replica.replica_id).collect::<Vec<_>>();
            let place = |id: u64| places.iter().position(|known| *known == id).unwrap_or(usize::MAX);
            replicas.into_iter().map(|(id, replica)| (place(id), replica)).collect()
        };
        let record = ShardRecord {
            shard: row.shard,
            replicas: ordered.into_values().collect(),
            target,
            preferred: row.preferred,
        };
        if record != *row {
            self.shards.insert(id, Arc::new(record));
            self.shards_version += 1;
        }
        DONE
    }

    /// Gives a node a new replica of a group in place of one whose data failed a check: what it has forgotten it must
    /// not vote on again under the old id. One at a time in a group, and never the only one, whose data somebody may
    /// still want to look at.
    pub(super) fn replace_replica(&mut self, command: &ReplaceReplica) -> Answer {
        let (group, failed) = (RaftGroup(command.group), command.replica_id);
        let Some(shard) = group.shard() else { return self.replace_seat(failed) };
        let Some(row) = self.shard(shard).cloned() else {
            return Err(error(ErrorCode::NotFound, format!("shard {shard} has no row in the table")));
        };
        let wanted = if row.target.is_empty() { &row.replicas } else { &row.target };
        if !wanted.iter().any(|replica| replica.replica_id == failed) {
            return Err(not_now(format!("replica {failed} of shard {shard} is replaced or moved away already")));
        }
        if row.replicas.len() == 1 {
            return Err(not_now(format!("replica {failed} is the only one of shard {shard}")));
        }
        let stands_in = |new: &ReplicaRecord| {
            row.replicas.iter().any(|old| old.node == new.node && old.replica_id != new.replica_id)
        };
        let present = row.replicas.iter().any(|replica| replica.replica_id == failed);
        if present && row.target.iter().any(stands_in) {
            return Err(not_now(format!("another replica of shard {shard} is being replaced")));
        }
        let mut target = wanted.clone();
        let new = self.allocate_replica_id();
        target.iter_mut().filter(|replica| replica.replica_id == failed).for_each(|replica| replica.replica_id = new);
        self.shards.insert(shard, Arc::new(ShardRecord { target, ..row }));
        self.shards_version += 1;
        DONE
    }

    /// Notes who should lead a shard, as a person has chosen. Plans keep it as long as no replica moves.
    pub(super) fn prefer_leader(&mut self, command: &PreferLeader) -> Answer {
        let id = ShardId(command.shard);
        let Some(row) = self.shard(id) else {
            return Err(error(ErrorCode::NotFound, format!("shard {id} has no row in the table")));
        };
        let held = if row.target.is_empty() { &row.replicas } else { &row.target };
        if !held.iter().any(|replica| replica.node == command.node) {
            let node = NodeId(command.node);
            let name = self.node(node).map_or_else(|| node.to_string(), |node| node.name.clone());
            return Err(not_now(format!("{name} holds no replica of shard {id} that stays")));
        }
        if row.preferred != command.node {
            let record = ShardRecord { preferred: command.node, ..row.clone() };
            self.shards.insert(id, Arc::new(record));
            self.shards_version += 1;
        }
        DONE
    }

    fn check_row(&self, row: &PlannedShard) -> Result<(), Error> {
        if row.shard >= self.shards_total {
            return Err(invalid(format!("there is no shard {}: the cluster has {}", row.shard, self.shards_total)));
        }
        let nodes: BTreeSet<u64> = row.nodes.iter().copied().collect();
        if nodes.is_empty() || nodes.len() > REPLICATION_MAX as usize || nodes.len() < row.nodes.len() {
            return Err(invalid(format!(
                "shard {} is planned on {} nodes: use 1 to {REPLICATION_MAX}, each once",
                row.shard,
                row.nodes.len()
            )));
        }
        if let Some(unknown) = nodes.iter().find(|id| self.node(NodeId(**id)).is_none()) {
            return Err(not_now(format!("shard {} is planned on unknown node {}", row.shard, NodeId(*unknown))));
        }
        if !nodes.contains(&row.preferred) {
            return Err(invalid(format!("shard {}'s preferred leader is none of its nodes", row.shard)));
        }
        Ok(())
    }

    fn planned_row(&mut self, row: &PlannedShard) -> ShardRecord {
        let old = self.shard(ShardId(row.shard)).cloned().unwrap_or_default();
        // A node that has a replica, or is getting one, keeps its id: the data it has counts. Where it is getting one
        // in place of one that failed, the new one counts.
        let held: BTreeMap<u64, u64> =
            old.replicas.iter().chain(&old.target).map(|replica| (replica.node, replica.replica_id)).collect();
        let wanted: Vec<ReplicaRecord> = row
            .nodes
            .iter()
            .map(|node| {
                let replica_id = held.get(node).copied().unwrap_or_else(|| self.allocate_replica_id());
                ReplicaRecord { replica_id, node: *node }
            })
            .collect();
        let (shard, preferred) = (row.shard, row.preferred);
        if old.replicas.is_empty() {
            ShardRecord { shard, replicas: wanted, target: Vec::new(), preferred }
        } else if ids(&old.replicas) == ids(&wanted) {
            ShardRecord { shard, replicas: old.replicas, target: Vec::new(), preferred }
        } else {
            ShardRecord { shard, replicas: old.replicas, target: wanted, preferred }
        }
    }
}

fn ids(replicas: &[ReplicaRecord]) -> BTreeSet<u64> {
    replicas.iter().map(|replica| replica.replica_id).collect()
}
