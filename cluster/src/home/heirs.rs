//! Which node becomes the home of instances whose home is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_proto::internal::v1::{InstanceRecord, Rehomed};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{InstanceId, NodeId};
use crate::view::{ClusterView, MemberState};

/// A home that gossip has never met may be on its way back: it keeps its instances for so long.
const UNMET_AFTER: Duration = Duration::from_secs(10);

/// The instances of each home.
#[derive(Debug, Default)]
pub struct Homes {
    instances: BTreeMap<NodeId, BTreeSet<InstanceId>>,
    /// When a home was first missed.
    unmet: BTreeMap<NodeId, Instant>,
}

impl Homes {
    /// An instance has come, moved or gone.
    pub fn moved(&mut self, id: InstanceId, from: Option<NodeId>, to: Option<NodeId>) {
        if from == to {
            return;
        }
        if let Some(from) = from
            && let Some(held) = self.instances.get_mut(&from)
        {
            held.remove(&id);
            if held.is_empty() {
                self.instances.remove(&from);
            }
        }
        if let Some(to) = to {
            self.instances.entry(to).or_default().insert(id);
        }
    }

    /// The instances of a home.
    pub fn of(&self, home: NodeId) -> impl Iterator<Item = InstanceId> {
        self.instances.get(&home).into_iter().flatten().copied()
    }

    /// Homes whose instances need another one: dead, left, or not in the cluster any more.
    pub fn dead(&mut self, now: Instant, view: &ClusterView) -> Vec<NodeId> {
        let Homes { instances, unmet } = self;
        unmet.retain(|home, _| instances.contains_key(home) && !view.members.contains_key(home));
        let mut is_dead = |home: &NodeId| match view.members.get(home).map(|member| member.state) {
            _ if *home == view.me => false,
            Some(MemberState::Alive | MemberState::Suspect) => false,
            Some(MemberState::Down | MemberState::Left) => true,
            None if view.registry.node(*home).is_none() => true,
            None => now.saturating_duration_since(*unmet.entry(*home).or_insert(now)) >= UNMET_AFTER,
        };
        instances.keys().copied().filter(|home| is_dead(home)).collect()
    }
}

/// New homes for instances of `from`: the live node that rendezvous hashing likes best for each, of the instance's own
/// zone if it has one there. Those that find none are left out.
pub fn rehome<'a>(
    view: &ClusterView,
    from: NodeId,
    instances: impl Iterator<Item = &'a InstanceRecord>,
) -> Vec<Rehomed> {
    let live = view.registry.nodes().filter(|node| node.id != from.0 && view.usable(NodeId(node.id)));
    let live: Vec<(u64, &str)> = live.map(|node| (node.id, node.zone.as_str())).collect();
    let heir = |instance: &InstanceRecord| {
        let near = live.iter().filter(|(_, zone)| *zone == instance.zone);
        let best = near.max_by_key(|(node, _)| liking(instance.id, *node));
        best.or_else(|| live.iter().max_by_key(|(node, _)| liking(instance.id, *node))).map(|(node, _)| *node)
    };
    instances.filter_map(|instance| Some(Rehomed { id: instance.id, home: heir(instance)? })).collect()
}

/// How much a node is liked for an instance: nodes that come or go disturb no other choice.
fn liking(instance: u64, node: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&instance.to_le_bytes());
    bytes[8..].copy_from_slice(&node.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_proto::internal::v1::{NodeRecord, RegistryState};

    use super::*;
    use crate::ids::Generation;
    use crate::registry::State;
    use crate::view::Member;

    fn view(nodes: &[(u64, &str, MemberState)]) -> ClusterView {
        let record = |(id, zone, _): &(u64, &str, MemberState)| NodeRecord {
            id: *id,
            name: format!("n{id}"),
            zone: (*zone).to_owned(),
            ..Default::default()
        };
        let member = |(id, zone, state): &(u64, &str, MemberState)| Member {
            id: NodeId(*id),
            name: format!("n{id}"),
            zone: (*zone).to_owned(),
            generation: Generation(1),
            client_address: String::new(),
            peer_address: String::new(),
            version: String::new(),
            disk_full: false,
            replicas_fenced: 0,
            state: *state,
        };
        let registry = RegistryState {
            cluster_id: 1,
            shards_total: 1,
            nodes: nodes.iter().map(record).collect(),
            ..Default::default()
        };
        ClusterView {
            me: NodeId(1),
            registry: Arc::new(State::from_proto(registry).expect("a good state")),
            registry_leader: None,
            members: nodes.iter().map(member).map(|member| (member.id, member)).collect(),
            owners: BTreeMap::new(),
            cut_off: Default::default(),
        }
    }

    fn instance(id: u64, zone: &str) -> InstanceRecord {
        InstanceRecord { id, home: 9, zone: zone.into(), ..Default::default() }
    }

    #[test]
    fn instances_go_to_live_nodes_of_their_zone_or_else_to_any() {
        use MemberState::{Alive, Down, Suspect};
        let view = view(&[(1, "a", Alive), (2, "a", Alive), (3, "b", Suspect), (4, "c", Alive), (9, "b", Down)]);
        let instances: Vec<_> = (1..=300).map(|id| instance(id, ["a", "b", "c"][id as usize % 3])).collect();
        let rehomed = rehome(&view, NodeId(9), instances.iter());
        assert_eq!(rehomed.len(), 300);
        let mut counts = BTreeMap::new();
        for (instance, rehomed) in instances.iter().zip(&rehomed) {
            let fits: &[u64] = match instance.zone.as_str() {
                "a" => &[1, 2],
                "c" => &[4],
                _ => &[1, 2, 4],
            };
            assert!(fits.contains(&rehomed.home), "{instance:?} to {rehomed:?}");
            *counts.entry((instance.zone.clone(), rehomed.home)).or_insert(0) += 1;
        }
        for ((zone, home), count) in counts {
            let fair = match zone.as_str() {
                "a" => 50,
                "c" => 100,
                _ => 33,
            };
            assert!(count > fair / 2 && count < fair * 2, "{count} of zone {zone} went to {home}");
        }
        assert!(rehome(&view, NodeId(9), [].into_iter()).is_empty());
    }

    #[test]
    fn a_node_that_comes_moves_nothing_between_the_others() {
        use MemberState::Alive;
        let three = view(&[(1, "a", Alive), (2, "a", Alive), (3, "a", Alive)]);
        let four = view(&[(1, "a", Alive), (2, "a", Alive), (3, "a", Alive), (4, "a", Alive)]);
        let instances: Vec<_> = (1..=200).map(|id| instance(id, "a")).collect();
        let (before, after) = (rehome(&three, NodeId(9), instances.iter()), rehome(&four, NodeId(9), instances.iter()));
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || after.home == 4));
    }

    #[test]
    fn homes_that_are_down_or_left_or_unknown_are_dead() {
        use MemberState::{Alive, Down, Left, Suspect};
        let mut view = view(&[
            (1, "a", Down),
            (2, "a", Alive),
            (3, "a", Suspect),
            (4, "a", Down),
            (5, "a", Left),
            (6, "a", Alive),
        ]);
        // The registry knows node 6, gossip has not met it; node 7 is nowhere.
        view.members.remove(&NodeId(6));
        let mut homes = Homes::default();
        for node in 1..=7 {
            homes.moved(InstanceId(node), None, Some(NodeId(node)));
            homes.moved(InstanceId(node + 10), None, Some(NodeId(node)));
        }
        let start = crate::origin();
        let dead = [4, 5, 7].map(NodeId);
        assert_eq!(homes.dead(start, &view), dead);
        assert_eq!(homes.dead(start + UNMET_AFTER / 2, &view), dead);
        assert_eq!(homes.dead(start + UNMET_AFTER, &view), [4, 5, 6, 7].map(NodeId));
        assert_eq!(homes.of(NodeId(4)).collect::<Vec<_>>(), [InstanceId(4), InstanceId(14)]);
        homes.moved(InstanceId(4), Some(NodeId(4)), Some(NodeId(2)));
        homes.moved(InstanceId(14), Some(NodeId(4)), None);
        assert_eq!(homes.dead(start + UNMET_AFTER, &view), [5, 6, 7].map(NodeId));
    }
}
