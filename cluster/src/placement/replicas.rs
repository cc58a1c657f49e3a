//! Gives each shard its replicas, moving as few as can be.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};

use super::liking;
use super::quota::Slots;

/// The rows of the new table as indexes of `slots.nodes`; what stays is first, in its old order.
///
/// `kept`: what each shard holds on available nodes.
pub(super) fn place(slots: &Slots, kept: Vec<Vec<usize>>, replicas: usize) -> Vec<Vec<usize>> {
    let mut board = Board { slots, rows: vec![Vec::new(); kept.len()], held: vec![BTreeSet::new(); slots.nodes.len()] };
    for (shard, row) in kept.into_iter().enumerate() {
        for node in row {
            board.add(shard, node);
        }
    }
    for shard in 0..board.rows.len() {
        board.drop_crowded(shard);
    }
    for shard in 0..board.rows.len() {
        while board.rows[shard].len() < replicas && board.fill(shard) {}
    }
    for node in 0..slots.nodes.len() {
        while board.held[node].len() > slots.nodes[node].ceil && board.relieve(node) {}
    }
    for node in 0..slots.nodes.len() {
        while board.fullness(node) == 0 && board.feed(node) {}
    }
    board.rows
}

struct Board<'a> {
    slots: &'a Slots,
    rows: Vec<Vec<usize>>,
    held: Vec<BTreeSet<usize>>,
}

/// How a search came to a node: `shard` would move here from `from`.
#[derive(Clone, Copy)]
struct Step {
    from: usize,
    shard: usize,
}

impl Board<'_> {
    fn add(&mut self, shard: usize, node: usize) {
        if self.held[node].insert(shard) {
            self.rows[shard].push(node);
        }
    }

    fn remove(&mut self, shard: usize, node: usize) {
        assert!(self.held[node].remove(&shard), "only what is held is removed");
        self.rows[shard].retain(|held| *held != node);
    }

    fn in_zone(&self, shard: usize, zone: usize) -> usize {
        self.rows[shard].iter().filter(|node| self.slots.nodes[**node].zone == zone).count()
    }

    /// Whether `shard` may come to `node`, if it leaves `leaving` for it.
    fn allowed(&self, shard: usize, node: usize, leaving: Option<usize>) -> bool {
        if self.held[node].contains(&shard) {
            return false;
        }
        let (to, from) = (self.slots.nodes[node].zone, leaving.map(|leaving| self.slots.nodes[leaving].zone));
        if from == Some(to) {
            return true;
        }
        let (count, zone) = (self.in_zone(shard, to), &self.slots.zones[to]);
        // An extra that leaves makes room for another one.
        let gone = from.is_some_and(|from| self.in_zone(shard, from) > self.slots.zones[from].base);
        count < zone.base || (count < zone.max && self.extras(shard) - usize::from(gone) < self.slots.extras)
    }

    /// How many replicas of a row are beyond the bases of their zones.
    fn extras(&self, shard: usize) -> usize {
        let zones = self.slots.zones.iter().enumerate();
        zones.map(|(index, zone)| self.in_zone(shard, index).saturating_sub(zone.base)).sum()
    }

    /// Nodes that can give one away and are not below their quota then.
    fn sated(&self) -> Vec<usize> {
        (0..self.held.len()).filter(|node| self.held[*node].len() > self.slots.nodes[*node].floor).collect()
    }

    /// 0: the node is below its quota; 1: it has room up to the rounded-up quota; 2: it is full.
    fn fullness(&self, node: usize) -> u8 {
        let (held, slot) = (self.held[node].len(), &self.slots.nodes[node]);
        u8::from(held >= slot.floor) + u8::from(held >= slot.ceil)
    }

    /// Takes replicas from zones that hold too many of one shard.
    fn drop_crowded(&mut self, shard: usize) {
        for (index, zone) in self.slots.zones.iter().enumerate() {
            while self.in_zone(shard, index) > zone.max {
                self.drop_one(shard, |zone| zone == index);
            }
        }
        while self.extras(shard) > self.slots.extras {
            let counts: Vec<usize> = (0..self.slots.zones.len()).map(|zone| self.in_zone(shard, zone)).collect();
            self.drop_one(shard, |zone| counts[zone] > self.slots.zones[zone].base);
        }
    }

    fn drop_one(&mut self, shard: usize, from: impl Fn(usize) -> bool) {
        let excess = |node: usize| self.held[node].len() as i64 - self.slots.nodes[node].ceil as i64;
        let here = self.rows[shard].iter().copied().filter(|node| from(self.slots.nodes[*node].zone));
        let worst = here.max_by_key(|node| (excess(*node), Reverse(liking(shard, self.slots.nodes[*node].id))));
        let worst = worst.expect("a crowded zone has replicas");
        self.remove(shard, worst);
    }

    /// Fills one vacancy: with the best liked node below its quota, else by making room along a shortest path.
    fn fill(&mut self, shard: usize) -> bool {
        let nodes: Vec<usize> = (0..self.slots.nodes.len()).filter(|node| self.allowed(shard, *node, None)).collect();
        let like = |node: usize| liking(shard, self.slots.nodes[node].id);
        let Some(best) = nodes.iter().copied().min_by_key(|node| (self.fullness(*node), Reverse(like(*node)))) else {
            return false;
        };
        if self.fullness(best) < 2 {
            self.add(shard, best);
            return true;
        }
        // The quotas have room for all, so there is a path; without one balance gives way, not the replica.
        let start = self.make_room(&nodes, 2).unwrap_or(best);
        self.add(shard, start);
        true
    }

    /// Moves one replica away from a node over its quota; false if nothing can.
    fn relieve(&mut self, node: usize) -> bool {
        let mut best = None;
        for to in (0..self.held.len()).filter(|to| self.fullness(*to) < 2) {
            for shard in self.held[node].iter().copied().filter(|shard| self.allowed(*shard, to, Some(node))) {
                let liking = liking(shard, self.slots.nodes[to].id);
                best = best.max(Some((Reverse(self.fullness(to)), liking, shard, to)));
            }
        }
        if let Some((.., shard, to)) = best {
            self.remove(shard, node);
            self.add(shard, to);
        }
        best.is_some() || self.make_room(&[node], 2).is_some()
    }

    /// Moves one replica to a node below its quota, or to another such node if that is all there is to do.
    fn feed(&mut self, to: usize) -> bool {
        let mut best = None;
        let sated = self.sated();
        for from in sated.iter().copied() {
            let excess = self.held[from].len() - self.slots.nodes[from].floor;
            for shard in self.held[from].iter().copied().filter(|shard| self.allowed(*shard, to, Some(from))) {
                best = best.max(Some((excess, liking(shard, self.slots.nodes[to].id), shard, from)));
            }
        }
        if let Some((.., shard, from)) = best {
            self.remove(shard, from);
            self.add(shard, to);
        }
        best.is_some() || self.make_room(&sated, 1).is_some()
    }

    /// Frees one place on one of `starts` by the fewest moves, the last of them to a node whose fullness is below `full`:
    /// a breadth-first search for an augmenting path. On a shortest one the moves do not disturb each other.
    fn make_room(&mut self, starts: &[usize], full: u8) -> Option<usize> {
        let mut steps: Vec<Option<Step>> = vec![None; self.slots.nodes.len()];
        let mut seen: BTreeSet<usize> = starts.iter().copied().collect();
        let mut queue: VecDeque<usize> = starts.iter().copied().collect();
        while let Some(from) = queue.pop_front() {
            for shard in self.held[from].iter().copied() {
                for to in 0..self.slots.nodes.len() {
                    if seen.contains(&to) || !self.allowed(shard, to, Some(from)) {
                        continue;
                    }
                    steps[to] = Some(Step { from, shard });
                    if self.fullness(to) < full {
                        return Some(self.shift(&steps, to));
                    }
                    seen.insert(to);
                    queue.push_back(to);
                }
            }
        }
        None
    }

    /// Makes the moves of a path that ends at `to`; the start of it.
    fn shift(&mut self, steps: &[Option<Step>], mut to: usize) -> usize {
        while let Some(Step { from, shard }) = steps[to] {
            self.remove(shard, from);
            self.add(shard, to);
            to = from;
        }
        to
    }
}
