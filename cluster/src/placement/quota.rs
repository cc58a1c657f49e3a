//! How many replicas each node should hold.

use std::collections::BTreeMap;

use super::Candidate;

/// A node that may hold replicas.
pub(super) struct Slot {
    pub(super) id: u64,
    pub(super) zone: usize,
    /// Its quota, rounded down and up.
    pub(super) floor: usize,
    pub(super) ceil: usize,
}

/// How many replicas of one shard a zone holds.
pub(super) struct Zone {
    /// At least, in a full row.
    pub(super) base: usize,
    /// At most: `base`, or one more.
    pub(super) max: usize,
}

/// The nodes by id, and what one shard's row looks like.
pub(super) struct Slots {
    pub(super) nodes: Vec<Slot>,
    pub(super) zones: Vec<Zone>,
    /// How many zones of a row hold one more than their base.
    pub(super) extras: usize,
}

/// Splits `shards * replicas` over zones, then over the nodes of each, by weight. Spreading comes first: a zone holds
/// its even share of each shard's replicas, rounded down or up, however heavy it is.
pub(super) fn slots<'a>(nodes: impl Iterator<Item = &'a Candidate>, shards: usize, replicas: usize) -> Slots {
    let nodes: Vec<&Candidate> = nodes.collect();
    let mut members: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        members.entry(&node.zone).or_default().push(index);
    }
    let members: Vec<Vec<usize>> = members.into_values().collect();
    let zones = spread(&members, replicas);

    let weight = |node: &usize| f64::from(nodes[*node].weight.max(1));
    let weights: Vec<f64> = members.iter().map(|zone| zone.iter().map(weight).sum()).collect();
    let limits: Vec<_> = zones.iter().map(|zone| ((zone.base * shards) as f64, (zone.max * shards) as f64)).collect();
    let quotas = share((shards * replicas) as f64, &weights, &limits);

    let mut slots: Vec<Slot> = nodes.iter().map(|node| Slot { id: node.id.0, zone: 0, floor: 0, ceil: 0 }).collect();
    for (zone, (members, quota)) in members.iter().zip(quotas).enumerate() {
        let weights: Vec<f64> = members.iter().map(weight).collect();
        let quotas = share(quota, &weights, &vec![(0.0, shards as f64); members.len()]);
        for (node, quota) in members.iter().zip(quotas) {
            let (floor, ceil) = ((quota + ROUNDING).floor() as usize, (quota - ROUNDING).ceil() as usize);
            slots[*node] = Slot { zone, floor, ceil: ceil.max(floor), ..slots[*node] };
        }
    }
    let extras = replicas - zones.iter().map(|zone| zone.base).sum::<usize>();
    Slots { nodes: slots, zones, extras }
}

/// Sums of quotas may miss a whole number by less than this; all planners compute them in the same order.
const ROUNDING: f64 = 1e-6;

/// The evenest spread of one row over the zones, as far as their nodes reach.
fn spread(members: &[Vec<usize>], replicas: usize) -> Vec<Zone> {
    let room = |max: usize| members.iter().map(|zone| zone.len().min(max)).sum::<usize>();
    let max = (1..=replicas).find(|max| room(*max) >= replicas).unwrap_or(replicas);
    // With exactly as much room as replicas every zone holds its most.
    let base = if room(max) == replicas { max } else { max - 1 };
    members.iter().map(|zone| Zone { base: zone.len().min(base), max: zone.len().min(max) }).collect()
}

/// Splits `total` by weight within limits (least, most), whose sums enclose it. Those whose share is outside get their
/// limit and the rest is split again; of the two sides the one that is further out is settled first.
fn share(total: f64, weights: &[f64], limits: &[(f64, f64)]) -> Vec<f64> {
    let mut quotas: Vec<Option<f64>> = vec![None; weights.len()];
    loop {
        let open: Vec<usize> = (0..weights.len()).filter(|index| quotas[*index].is_none()).collect();
        let left = total - quotas.iter().flatten().sum::<f64>();
        let weight: f64 = open.iter().map(|index| weights[*index]).sum();
        let even = |index: usize| left * weights[index] / weight;
        let missing: f64 = open.iter().map(|index| (limits[*index].0 - even(*index)).max(0.0)).sum();
        let excess: f64 = open.iter().map(|index| (even(*index) - limits[*index].1).max(0.0)).sum();
        if missing <= ROUNDING && excess <= ROUNDING {
            return (0..weights.len()).map(|index| quotas[index].unwrap_or_else(|| even(index))).collect();
        }
        for index in open {
            let (least, most) = limits[index];
            if missing > excess && even(index) < least {
                quotas[index] = Some(least);
            } else if missing <= excess && even(index) > most {
                quotas[index] = Some(most);
            }
        }
    }
}
