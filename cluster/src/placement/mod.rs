//! The planner: which nodes hold the replicas of each shard, and which of them should lead.
//!
//! Per-zone, weight-proportional quotas; replicas that are in place stay; vacancies are filled by rendezvous
//! hashing (HRW); only what exceeds a node's rounded-up quota moves; preferred leaders are balanced last, by swaps
//! that move no data, and only when replicas move: one that a person has chosen stays. No pure hash balances as well, and this moves no more than one would.

mod leaders;
mod quota;
mod replicas;
mod seats;

use std::collections::{BTreeMap, BTreeSet};

use weft_proto::internal::v1::{PlannedShard, ShardRecord};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::NodeId;

pub use seats::{Sitter, next_seats};

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
/// The replicas of a shard spread over as many zones as there are. Without an available node there is no plan: it
/// is empty. The same arguments give the same plan on every node.
pub fn plan<'a>(
    table: impl IntoIterator<Item = &'a ShardRecord>,
    nodes: &[Candidate],
    shards: u32,
    replication: u32,
) -> Vec<PlannedShard> {
    let available: BTreeMap<u64, &Candidate> =
        nodes.iter().filter(|node| node.available).map(|node| (node.id.0, node)).collect();
    let replicas = (replication as usize).min(available.len());
    if replicas == 0 || shards == 0 {
        return Vec::new();
    }
    let slots = quota::slots(available.into_values(), shards as usize, replicas);
    let present = present(table, shards as usize);
    let index: BTreeMap<u64, usize> = slots.nodes.iter().enumerate().map(|(index, node)| (node.id, index)).collect();
    let kept = present.iter().map(|row| row.nodes.iter().filter_map(|id| index.get(id).copied()).collect()).collect();
    let rows = replicas::place(&slots, kept, replicas);
    let preferred: Vec<_> = present.iter().map(|row| index.get(&row.preferred).copied()).collect();
    // Where no replica moves, leaders stay as they are: uneven, if a person has chosen some.
    let settled = rows.iter().zip(&present).zip(&preferred).all(|((row, present), preferred)| {
        let nodes = row.iter().map(|node| slots.nodes[*node].id).collect();
        present.holds(nodes) && preferred.is_some_and(|leader| row.contains(&leader))
    });
    if settled {
        return Vec::new();
    }
    let preferred = leaders::balance(slots.nodes.len(), &rows, preferred);

    let planned = rows.iter().zip(preferred).enumerate().map(|(shard, (row, preferred))| PlannedShard {
        shard: u32::try_from(shard).expect("below the shard count"),
        nodes: row.iter().map(|node| slots.nodes[*node].id).collect(),
        preferred: slots.nodes[preferred].id,
    });
    planned.zip(&present).filter(|(new, old)| !old.same(new)).map(|(new, _)| new).collect()
}

/// A row of the table as it is, or is coming to be.
#[derive(Clone, Default)]
struct Present {
    nodes: Vec<u64>,
    preferred: u64,
}

impl Present {
    fn same(&self, new: &PlannedShard) -> bool {
        self.preferred == new.preferred && self.holds(new.nodes.iter().copied().collect())
    }

    fn holds(&self, nodes: BTreeSet<u64>) -> bool {
        self.nodes.iter().copied().collect::<BTreeSet<u64>>() == nodes
    }
}

fn present<'a>(table: impl IntoIterator<Item = &'a ShardRecord>, shards: usize) -> Vec<Present> {
    let mut present = vec![Present::default(); shards];
    for row in table {
        let Some(place) = present.get_mut(row.shard as usize) else { continue };
        let held = if row.target.is_empty() { &row.replicas } else { &row.target };
        *place = Present { nodes: held.iter().map(|replica| replica.node).collect(), preferred: row.preferred };
    }
    present
}

/// How much a node is liked for a shard: rendezvous hashing, so that nodes that come or go disturb no other choice.
fn liking(shard: usize, node: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(shard as u64).to_le_bytes());
    bytes[8..].copy_from_slice(&node.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests;
