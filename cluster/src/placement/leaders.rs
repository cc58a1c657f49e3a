//! Chooses which replica of each shard should lead. Moves no data.

use std::collections::{BTreeSet, VecDeque};

/// The preferred leader of each row. A preferred one stays unless its node leads more than its share, which is the
/// replicas it holds over the replicas per shard, rounded up: a choice within these shares always exists.
///
/// `nodes`: how many there are. `rows`: what each shard holds, never empty. `preferred`: as it was.
pub(super) fn balance(nodes: usize, rows: &[Vec<usize>], preferred: Vec<Option<usize>>) -> Vec<usize> {
    let mut held = vec![0; nodes];
    let mut most = 1;
    for row in rows {
        most = most.max(row.len());
        row.iter().for_each(|node| held[*node] += 1);
    }
    let share: Vec<usize> = held.iter().map(|held: &usize| held.div_ceil(most)).collect();

    let mut led = vec![BTreeSet::new(); nodes];
    for (shard, (row, preferred)) in rows.iter().zip(preferred).enumerate() {
        if let Some(leader) = preferred.filter(|leader| row.contains(leader)) {
            led[leader].insert(shard);
        }
    }
    let chosen: BTreeSet<usize> = led.iter().flatten().copied().collect();
    for (shard, row) in rows.iter().enumerate().filter(|(shard, _)| !chosen.contains(shard)) {
        let room = |node: usize| share[node] as i64 - led[node].len() as i64;
        let turn = |place: usize| (place + row.len() - shard % row.len()) % row.len();
        let best = row.iter().enumerate().max_by_key(|(place, node)| (room(**node), turn(*place)));
        let (_, best) = best.expect("a row is never empty");
        led[*best].insert(shard);
    }
    for node in 0..nodes {
        while led[node].len() > share[node] && hand_over(node, rows, &share, &mut led) {}
    }
    let mut leaders = vec![0; rows.len()];
    for (node, shards) in led.iter().enumerate() {
        shards.iter().for_each(|shard| leaders[*shard] = node);
    }
    leaders
}

/// Takes one leadership from `start` along the shortest chain of swaps to a node with room.
fn hand_over(start: usize, rows: &[Vec<usize>], share: &[usize], led: &mut [BTreeSet<usize>]) -> bool {
    let mut came: Vec<Option<(usize, usize)>> = vec![None; led.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(from) = queue.pop_front() {
        for shard in led[from].iter().copied() {
            for to in rows[shard].iter().copied() {
                if to == start || came[to].is_some() {
                    continue;
                }
                came[to] = Some((from, shard));
                if led[to].len() < share[to] {
                    shift(&came, to, led);
                    return true;
                }
                queue.push_back(to);
            }
        }
    }
    false
}

fn shift(came: &[Option<(usize, usize)>], mut to: usize, led: &mut [BTreeSet<usize>]) {
    while let Some((from, shard)) = came[to] {
        led[from].remove(&shard);
        led[to].insert(shard);
        to = from;
    }
}
