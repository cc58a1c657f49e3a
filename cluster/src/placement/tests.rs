use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weft_proto::internal::v1::ReplicaRecord;

use super::*;

/// A table to which plans are applied at once.
#[derive(Clone, Default)]
struct Table(BTreeMap<u32, ShardRecord>);

impl Table {
    fn plan(&mut self, nodes: &[Candidate], shards: u32, replication: u32) -> Vec<PlannedShard> {
        let planned = plan(self.0.values(), nodes, shards, replication);
        for row in &planned {
            let replicas = row.nodes.iter().map(|node| ReplicaRecord { replica_id: 0, node: *node }).collect();
            let record = ShardRecord { shard: row.shard, replicas, target: Vec::new(), preferred: row.preferred };
            self.0.insert(row.shard, record);
        }
        planned
    }

    fn pairs(&self) -> BTreeSet<(u32, u64)> {
        self.0.values().flat_map(|row| row.replicas.iter().map(|replica| (row.shard, replica.node))).collect()
    }

    /// Peak over weight-proportional average, of replicas and of preferred leaders.
    fn peaks(&self, nodes: &[Candidate]) -> (f64, f64) {
        let weight: u32 = nodes.iter().map(|node| node.weight).sum();
        let peak = |count: &dyn Fn(u64) -> usize, total: usize| {
            let share = |node: &Candidate| total as f64 * f64::from(node.weight) / f64::from(weight);
            nodes.iter().map(|node| count(node.id.0) as f64 / share(node)).fold(0.0, f64::max)
        };
        let pairs = self.pairs();
        let replicas = peak(&|id| pairs.iter().filter(|(_, node)| *node == id).count(), pairs.len());
        let leaders = peak(&|id| self.0.values().filter(|row| row.preferred == id).count(), self.0.len());
        (replicas, leaders)
    }
}

fn nodes(count: u64, zones: u64, weights: &[u32]) -> Vec<Candidate> {
    (0..count)
        .map(|index| Candidate {
            id: NodeId(liking(7, index)),
            zone: format!("z{}", index % zones),
            weight: weights[(index / zones) as usize % weights.len()],
            available: true,
        })
        .collect()
}

/// Nodes, zones, shards, weights; then the most that is allowed: peaks of replicas and leaders, and moves on add and
/// on remove as multiples of the proportional minimum. The figures are those that other tables are measured by.
const FIGURES: [(u64, u64, u32, &[u32], f64, f64, f64, f64); 4] = [
    (5, 1, 256, &[100], 1.01, 1.02, 1.02, 1.05),
    (12, 3, 256, &[100], 1.02, 1.04, 1.02, 1.10),
    (100, 3, 1024, &[100], 1.05, 1.08, 1.05, 1.35),
    (100, 3, 1024, &[100, 200, 400], 1.12, 1.20, 1.20, 1.35),
];

#[test]
fn balance_and_moves_are_as_published() {
    for (count, zones, shards, weights, replicas_max, leaders_max, add_max, remove_max) in FIGURES {
        let all = nodes(count + 1, zones, weights);
        let (some, added) = (&all[..count as usize], &all[count as usize]);
        let mut table = Table::default();
        table.plan(some, shards, 3);
        let (replicas, leaders) = table.peaks(some);
        let before = table.pairs();
        assert_eq!(before.len(), shards as usize * 3);

        let mut grown = table.clone();
        grown.plan(&all, shards, 3);
        let weight: u32 = all.iter().map(|node| node.weight).sum();
        let minimum = f64::from(shards * 3 * added.weight) / f64::from(weight);
        let add = grown.pairs().difference(&before).count() as f64 / minimum;

        let mut shrunk = table.clone();
        shrunk.plan(&some[1..], shards, 3);
        let minimum = before.iter().filter(|(_, node)| *node == some[0].id.0).count() as f64;
        let remove = shrunk.pairs().difference(&before).count() as f64 / minimum;
        println!(
            "N={count} zones={zones} shards={shards} {weights:?}: {replicas:.3} / {leaders:.3}, moved {add:.2} / {remove:.2}"
        );
        assert!(replicas <= replicas_max && leaders <= leaders_max, "{count}: {replicas} {leaders}");
        assert!(add <= add_max && remove <= remove_max, "{count}: {add} {remove}");
        for row in grown.0.values().chain(shrunk.0.values()) {
            let zone = |id| all.iter().find(|node| node.id.0 == id).map(|node| node.zone.as_str());
            let spread: BTreeSet<_> = row.replicas.iter().map(|replica| zone(replica.node)).collect();
            assert_eq!(spread.len() as u64, zones.min(3));
        }
    }
}

#[test]
fn a_thousand_nodes_are_planned() {
    let all = nodes(1_000, 5, &[100, 300]);
    let mut table = Table::default();
    table.plan(&all[..600], 2_048, 3);
    table.plan(&all, 2_048, 3);
    let (replicas, leaders) = table.peaks(&all);
    assert!(replicas < 1.35 && leaders < 2.0, "few per node, so coarse: {replicas} {leaders}");
}

#[test]
fn a_node_that_comes_back_under_a_new_id_takes_what_it_had() {
    let mut three = nodes(3, 3, &[100]);
    let mut table = Table::default();
    assert_eq!(table.plan(&three, 64, 3).len(), 64);
    three[1].id = NodeId(99);
    table.plan(&three, 64, 3);
    assert_eq!(table.pairs().iter().filter(|(_, node)| *node == 99).count(), 64);
}

#[test]
fn a_cluster_grows_from_one_node() {
    let all = nodes(3, 1, &[100]);
    let mut table = Table::default();
    for count in 1..=3 {
        table.plan(&all[..count], 16, 3);
        assert!(table.0.values().all(|row| row.replicas.len() == count));
        assert!(table.plan(&all[..count], 16, 3).is_empty());
    }
    let (replicas, leaders) = table.peaks(&all);
    assert!(replicas < 1.01 && leaders < 1.13, "{replicas} {leaders}");
}

#[test]
fn a_draining_node_is_emptied_and_leads_nothing() {
    let mut four = nodes(4, 1, &[100]);
    let mut table = Table::default();
    table.plan(&four, 64, 3);
    four[2].available = false;
    let drained = four[2].id.0;
    table.plan(&four, 64, 3);
    assert!(table.pairs().iter().all(|(_, node)| *node != drained));
    assert!(table.0.values().all(|row| row.preferred != drained));
    assert!(plan(table.0.values(), &[], 64, 3).is_empty(), "no node, no plan");
}

#[test]
fn a_target_counts_as_what_is_held() {
    let three = nodes(3, 1, &[100]);
    let mut table = Table::default();
    table.plan(&three, 8, 3);
    for row in table.0.values_mut() {
        row.target = std::mem::take(&mut row.replicas);
        row.replicas = vec![ReplicaRecord { replica_id: 1, node: 12345 }];
    }
    assert!(plan(table.0.values(), &three, 8, 3).is_empty());
}

#[test]
fn a_leader_that_a_person_chose_stays_until_replicas_move() {
    let four = nodes(4, 1, &[100]);
    let (three, chosen) = (&four[..3], four[0].id.0);
    let mut table = Table::default();
    table.plan(three, 8, 3);
    table.0.values_mut().for_each(|row| row.preferred = chosen);
    assert!(plan(table.0.values(), three, 8, 3).is_empty(), "uneven, as it was chosen");
    table.plan(&four, 8, 3);
    let led = table.0.values().filter(|row| row.preferred == chosen).count();
    assert!((1..=3).contains(&led), "spread anew, but what fits stays: {led}");
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let node = (1..30u64, 0..4u8, prop::sample::select(vec![1, 50, 100, 400]), prop::bool::weighted(0.9));
    prop::collection::vec(node, 1..14).prop_map(|nodes| {
        let by_id: BTreeMap<u64, Candidate> = nodes
            .into_iter()
            .map(|(id, zone, weight, available)| {
                (id, Candidate { id: NodeId(id), zone: format!("z{zone}"), weight, available })
            })
            .collect();
        by_id.into_values().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_sequence_of_memberships_is_planned_well(
        memberships in prop::collection::vec(candidates(), 1..5), bits in 0..7u32, replication in 1..6u32,
    ) {
        let shards = 1 << bits;
        let mut table = Table::default();
        for nodes in memberships {
            let before = table.clone();
            let planned = table.plan(&nodes, shards, replication);
            let mut shuffled = nodes.clone();
            shuffled.reverse();
            prop_assert_eq!(&plan(before.0.values(), &shuffled, shards, replication), &planned, "deterministic");

            let available: Vec<_> = nodes.into_iter().filter(|node| node.available).collect();
            if available.is_empty() {
                prop_assert!(planned.is_empty());
                continue;
            }
            let zone_of = |id| available.iter().find(|node| node.id.0 == id).map(|node| node.zone.clone());
            let zones: BTreeSet<_> = available.iter().map(|node| &node.zone).collect();
            let wanted = (replication as usize).min(available.len());
            for row in table.0.values() {
                let distinct: BTreeSet<_> = row.replicas.iter().map(|replica| replica.node).collect();
                prop_assert_eq!(row.replicas.len(), wanted);
                prop_assert_eq!(distinct.len(), wanted, "never two on one node");
                prop_assert!(distinct.contains(&row.preferred));
                let spread: BTreeSet<_> = distinct.iter().map(|id| zone_of(*id).expect("only available nodes")).collect();
                prop_assert_eq!(spread.len(), zones.len().min(wanted), "spread over zones");
            }
            let refs: BTreeMap<u64, &Candidate> = available.iter().map(|node| (node.id.0, node)).collect();
            let slots = quota::slots(refs.into_values(), shards as usize, wanted);
            for slot in &slots.nodes {
                let held = table.pairs().iter().filter(|(_, node)| *node == slot.id).count();
                let led = table.0.values().filter(|row| row.preferred == slot.id).count();
                prop_assert!(held <= slot.ceil, "{held} replicas for a quota of at most {}", slot.ceil);
                prop_assert!(led <= held.div_ceil(wanted));
            }
            prop_assert!(table.plan(&available, shards, replication).is_empty(), "stable when nothing changes");
        }
    }
}
