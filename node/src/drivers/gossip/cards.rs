//! What members say of themselves beside SWIM: one card per node, the newest wins. Cards travel with SWIM's
//! packets, and since those give up after some rounds, are pushed to whoever comes up and compared now and then.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weft_cluster::ids::{Generation, NodeId};

/// Nodes remembered at most.
const CARDS_MAX: usize = 16_384;
/// The longest text on a card.
const TEXT_BYTES_MAX: usize = 256;
/// Cards in one packet: with the longest texts they stay below what a link carries.
const PACKET_CARDS_MAX: usize = 64;
/// Entries of a digest.
const DIGEST_MAX: usize = 3_000;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Card {
    pub(super) node: NodeId,
    pub(super) generation: Generation,
    /// Grows with each change within a generation.
    pub(super) revision: u32,
    pub(super) name: String,
    pub(super) client_address: String,
    pub(super) version: String,
    /// Its disk is under the watermark.
    pub(super) disk_full: bool,
    /// Replicas on it that are out of use.
    pub(super) replicas_fenced: u32,
    /// It leaves in order.
    pub(super) leaving: bool,
}

/// How new a card is.
pub(super) type Age = (Generation, u32);

impl Card {
    fn age(&self) -> Age {
        (self.generation, self.revision)
    }

    fn is_sane(&self) -> bool {
        let texts = [&self.name, &self.client_address, &self.version];
        self.node != NodeId(0) && texts.iter().all(|text| text.len() <= TEXT_BYTES_MAX)
    }
}

/// The newest card of each node.
#[derive(Default)]
pub(super) struct Cards {
    by_node: BTreeMap<NodeId, Card>,
    changes: u64,
}

impl Cards {
    /// Grows with each card kept.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Card> {
        self.by_node.get(&node)
    }

    /// Keeps a card if it is newer than the one here; says whether it was.
    pub(super) fn insert(&mut self, card: Card) -> bool {
        let room = self.by_node.len() < CARDS_MAX || self.by_node.contains_key(&card.node);
        if !room || !card.is_sane() || self.by_node.get(&card.node).is_some_and(|have| have.age() >= card.age()) {
            return false;
        }
        self.by_node.insert(card.node, card);
        self.changes += 1;
        true
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.by_node.remove(&node);
    }

    /// All cards, in packets.
    pub(super) fn packets(&self) -> Vec<Vec<Card>> {
        let all: Vec<Card> = self.by_node.values().cloned().collect();
        all.chunks(PACKET_CARDS_MAX).map(<[Card]>::to_vec).collect()
    }

    /// What is here, without the texts.
    pub(super) fn digest(&self) -> Vec<(NodeId, Age)> {
        self.by_node.values().take(DIGEST_MAX).map(|card| (card.node, card.age())).collect()
    }

    /// What whoever sent `digest` lacks, in packets, and whether it has something newer.
    pub(super) fn compare(&self, digest: &[(NodeId, Age)]) -> (Vec<Vec<Card>>, bool) {
        let theirs: BTreeMap<NodeId, Age> = digest.iter().copied().collect();
        let lacking = |card: &&Card| theirs.get(&card.node).is_none_or(|age| *age < card.age());
        let lacks: Vec<Card> = self.by_node.values().filter(lacking).cloned().collect();
        let newer = theirs.iter().any(|(node, age)| self.by_node.get(node).is_none_or(|card| card.age() < *age));
        (lacks.chunks(PACKET_CARDS_MAX).map(<[Card]>::to_vec).collect(), newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(node: u64, generation: u64, revision: u32) -> Card {
        Card {
            node: NodeId(node),
            generation: Generation(generation),
            revision,
            name: format!("n{node}"),
            client_address: String::new(),
            version: String::new(),
            disk_full: false,
            replicas_fenced: 0,
            leaving: false,
        }
    }

    #[test]
    fn the_newest_card_stays() {
        let mut cards = Cards::default();
        assert!(cards.insert(card(1, 1, 5)));
        assert!(!cards.insert(card(1, 1, 5)));
        assert!(!cards.insert(card(1, 1, 4)));
        assert!(cards.insert(card(1, 2, 0)));
        assert!(!cards.insert(card(0, 1, 0)));
        assert!(!cards.insert(Card { name: "x".repeat(300), ..card(2, 1, 0) }));
    }

    #[test]
    fn a_comparison_gives_each_side_what_it_lacks() {
        let (mut one, mut two) = (Cards::default(), Cards::default());
        for node in 1..=100 {
            one.insert(card(node, 1, 0));
        }
        two.insert(card(1, 2, 0));
        let (for_one, more) = two.compare(&one.digest());
        assert_eq!((for_one, more), (vec![vec![card(1, 2, 0)]], true));
        let (for_two, more) = one.compare(&two.digest());
        assert!(more);
        assert_eq!(for_two.len(), 2);
        for card in for_two.into_iter().flatten() {
            two.insert(card);
        }
        assert_eq!(two.compare(&one.digest()), (vec![vec![card(1, 2, 0)]], false));
    }
}
