//! The planner: which nodes hold the replicas of each shard, and which of them should lead.

use weft_proto::internal::v1::{PlannedShard, ShardRecord};

use crate::ids::NodeId;

/// A node as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Store id.
    pub id: NodeId,
    /// Its zone; nodes of one zone fail together.
    pub zone: String,
    /// Relative capacity, at least 1.
    pub weight: u32,
    /// False: it drains. Its replicas move away and it gets none. Nodes that are gone for good are left out.
    pub available: bool,
}

/// Plans the shard table: only the rows that change.
///
/// `table`: the present rows (a row's `target`, where it has one, counts as what it holds). `nodes`: in any order.
/// `shards`: how many there are. `replication`: replicas per shard, capped by the number of available nodes.
/// The same arguments give the same plan on every node.
pub fn plan<'a>(
    _table: impl IntoIterator<Item = &'a ShardRecord>,
    _nodes: &[Candidate],
    _shards: u32,
    _replication: u32,
) -> Vec<PlannedShard> {
    panic!("contract only")
}
