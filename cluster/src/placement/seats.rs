//! Which nodes vote in the registry's own group.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::NodeId;

/// Voters of the registry that are never given up for lack of nodes.
const SEATS_MIN: usize = 3;

/// A node as the planner of seats sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sitter {
    /// Store id.
    pub id: NodeId,
    /// Its zone; nodes of one zone fail together.
    pub zone: String,
    /// It has a seat now.
    pub seated: bool,
    /// It has left, or has been away for too long to be waited for.
    pub gone: bool,
}

/// The seats that should come next: one is given, taken, or goes to another node. `None`: they are as they should be.
///
/// 3 seats up to 4 nodes, 5 from 5 nodes up, 7 from 7 up if `seats_max` allows it, spread over zones. With too few nodes for
/// an odd number nothing is added: an even number bears no more losses than one less. A node that is gone keeps its seat
/// until another can take it: what it has stored still counts.
pub fn next_seats(nodes: &[Sitter], seats_max: usize) -> Option<BTreeSet<NodeId>> {
    let present = nodes.iter().filter(|node| !node.gone).count();
    let wanted = if present.is_multiple_of(2) { present.saturating_sub(1) } else { present };
    let wanted = wanted.clamp(SEATS_MIN, seats_max.max(SEATS_MIN));
    let seated: BTreeSet<NodeId> = nodes.iter().filter(|node| node.seated).map(|node| node.id).collect();
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    nodes.iter().filter(|node| node.seated && !node.gone).for_each(|node| *in_zone.entry(&node.zone).or_default() += 1);
    let sitting = |node: &&Sitter| in_zone.get(node.zone.as_str()).copied().unwrap_or(0);

    let heir = nodes.iter().filter(|node| !node.seated && !node.gone).min_by_key(|node| (sitting(node), node.id));
    let gone = nodes.iter().find(|node| node.seated && node.gone);
    let crowded = nodes.iter().filter(|node| node.seated && !node.gone).max_by_key(|node| (sitting(node), node.id));
    let (taken, given) = match (gone, heir, crowded) {
        (Some(gone), _, _) if seated.len() > wanted => (Some(gone), None),
        (Some(gone), Some(heir), _) => (Some(gone), Some(heir)),
        (None, _, Some(crowded)) if seated.len() > wanted => (Some(crowded), None),
        (_, Some(heir), _) if seated.len() < wanted && present >= wanted => (None, Some(heir)),
        // A zone with two more than the heir's gives one away.
        (None, Some(heir), Some(crowded)) if sitting(&crowded) > sitting(&heir) + 1 => (Some(crowded), Some(heir)),
        _ => return None,
    };
    let mut seats = seated;
    taken.map(|node| seats.remove(&node.id));
    seats.extend(given.map(|node| node.id));
    Some(seats)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a1+` is node 1 of zone a with a seat, `b2-` one of zone b that is gone and has a seat, `c3` and `c3x` have none.
    fn nodes(text: &str) -> Vec<Sitter> {
        let node = |word: &str| Sitter {
            id: NodeId(word[1..2].parse().expect("a digit")),
            zone: word[..1].to_owned(),
            seated: word.ends_with(['+', '-']),
            gone: word.ends_with(['-', 'x']),
        };
        text.split(' ').map(node).collect()
    }

    #[test]
    fn seats_follow_the_nodes_one_at_a_time() {
        let cases: [(&str, usize, Option<&[u64]>); 15] = [
            ("a1+", 5, None),
            // Two voters are no better than one.
            ("a1+ b2", 5, None),
            ("a1+ a2 b3", 5, Some(&[1, 3])),
            ("a1+ a2 b3+", 5, Some(&[1, 2, 3])),
            ("a1+ b2+ c3+", 5, None),
            ("a1+ b2+ c3+ a4", 5, None),
            ("a1+ b2+ c3+ a4 b5", 5, Some(&[1, 2, 3, 4])),
            ("a1+ b2+ c3+ a4+ b5", 5, Some(&[1, 2, 3, 4, 5])),
            ("a1+ b2+ c3+ a4+ b5+ c6 a7", 5, None),
            ("a1+ b2+ c3+ a4+ b5+ c6 a7", 7, Some(&[1, 2, 3, 4, 5, 6])),
            // Gone, and nobody to take the seat: it stays. Somebody: it moves, to the zone that lost it.
            ("a1+ b2+ c3-", 5, None),
            ("a1+ b2+ c3- a4 c5", 5, Some(&[1, 2, 5])),
            ("a1+ b2+ c3+ a4+ b5-", 5, Some(&[1, 2, 3, 4])),
            ("a1+ b2+ c3+ a4+ b5x", 5, Some(&[1, 2, 3])),
            // Three in one zone, and a node in another.
            ("a1+ a2+ a3+ b4", 5, Some(&[1, 2, 4])),
        ];
        for (before, most, after) in cases {
            let after = after.map(|ids| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>());
            assert_eq!(next_seats(&nodes(before), most), after, "{before}, at most {most}");
        }
    }

    #[test]
    fn changes_come_to_an_end() {
        let mut sitters = nodes("a1+ a2+ a3+ b4 b5 c6 c7x");
        for _ in 0..10 {
            let Some(seats) = next_seats(&sitters, 5) else { break };
            sitters.iter_mut().for_each(|node| node.seated = seats.contains(&node.id));
        }
        assert_eq!(next_seats(&sitters, 5), None);
        let seated = |zone: &str| sitters.iter().filter(|node| node.seated && node.zone == zone).count();
        assert_eq!((seated("a"), seated("b"), seated("c")), (2, 2, 1));
    }
}
