//! P7: creating and deleting topics is linearizable, and a node's copy of the registry is a prefix of its log: two
//! copies at one index are the same, and a topic that is gone does not come back.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Entry, What};

/// Searching for an order of more calls than this at a time takes too long; the workload keeps well below.
const OPEN_CALLS_MAX: usize = 20;

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, calls) in calls_by_name(entries) {
        if !linearizable(&calls) {
            broken.push(format!("no order of the calls explains the answers about topic {name}: {calls:?}"));
        }
    }
    copies(entries, &mut broken);
    broken
}

#[derive(Clone, Debug)]
struct Call {
    create: bool,
    from: u64,
    /// `u64::MAX` while the outcome is unknown: it may take effect at any later time, or never.
    to: u64,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
    Unknown,
}

fn calls_by_name(entries: &[Entry]) -> BTreeMap<String, Vec<Call>> {
    let mut open: BTreeMap<u64, (String, Call)> = BTreeMap::new();
    for entry in entries {
        let (call, outcome) = match &entry.what {
            What::RegistryInvoke { call, name, create } => {
                let made = Call { create: *create, from: entry.at_us, to: u64::MAX, outcome: Outcome::Unknown };
                open.insert(*call, (name.clone(), made));
                continue;
            }
            What::RegistryOk { call, .. } => (call, Outcome::Done),
            What::RegistryRefused { call } => (call, Outcome::Refused),
            _ => continue,
        };
        if let Some((_, call)) = open.get_mut(call) {
            (call.to, call.outcome) = (entry.at_us, outcome);
        }
    }
    let mut calls: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    open.into_values().for_each(|(name, call)| calls.entry(name).or_default().push(call));
    calls
}

/// Wing and Gong's search, over (calls done, topic exists), each visited once.
fn linearizable(calls: &[Call]) -> bool {
    let mut calls = calls.to_vec();
    calls.sort_by_key(|call| call.from);
    let mut seen: BTreeSet<(Vec<usize>, bool)> = BTreeSet::new();
    let mut stack: Vec<(Vec<usize>, bool)> = vec![((0..calls.len()).collect(), false)];
    while let Some((left, exists)) = stack.pop() {
        if left.iter().all(|index| calls[*index].outcome == Outcome::Unknown) {
            return true;
        }
        if !seen.insert((left.clone(), exists)) {
            continue;
        }
        // Only a call that began before all others left have ended can be next.
        let first_end = left.iter().map(|index| calls[*index].to).min().unwrap_or(u64::MAX);
        let candidates = left.iter().copied().filter(|index| calls[*index].from <= first_end).take(OPEN_CALLS_MAX);
        for index in candidates {
            let call = &calls[index];
            let effect = call.create != exists;
            let rest: Vec<usize> = left.iter().copied().filter(|other| *other != index).collect();
            match call.outcome {
                Outcome::Done if effect => stack.push((rest, call.create)),
                Outcome::Refused if !effect => stack.push((rest, exists)),
                Outcome::Unknown => stack.push((rest, if effect { call.create } else { exists })),
                Outcome::Done | Outcome::Refused => {}
            }
        }
    }
    false
}

fn copies(entries: &[Entry], broken: &mut Vec<String>) {
    let mut at_index: BTreeMap<u64, (&Vec<u32>, &str)> = BTreeMap::new();
    for entry in entries {
        let What::Copy { node, index, topics } = &entry.what else { continue };
        let (first, by) = at_index.entry(*index).or_insert((topics, node));
        if *first != topics {
            broken.push(format!("at index {index} {by} has the topics {first:?} and {node} {topics:?}"));
        }
    }
    let mut gone: BTreeSet<u32> = BTreeSet::new();
    let mut present: BTreeSet<u32> = BTreeSet::new();
    for (index, (topics, node)) in at_index {
        let now: BTreeSet<u32> = topics.iter().copied().collect();
        gone.extend(present.difference(&now));
        if let Some(topic) = now.intersection(&gone).next() {
            broken.push(format!("topic {topic} was gone and is back at index {index} on {node}"));
        }
        present = now;
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::history::What;
    use crate::promises::testing::history;

    fn invoke(call: u64, create: bool) -> What {
        What::RegistryInvoke { call, name: "t".into(), create }
    }

    #[test]
    fn answers_without_an_order_are_noticed() {
        let ok = |call| What::RegistryOk { call, topic: 1 };
        let refused = |call| What::RegistryRefused { call };
        let unknown = |call| What::RegistryUnknown { call, error: String::new() };
        assert!(check(&history(vec![invoke(1, true), ok(1), invoke(2, false), ok(2)])).is_empty());
        assert_eq!(check(&history(vec![invoke(1, true), ok(1), invoke(2, true), ok(2)])).len(), 1);
        assert_eq!(check(&history(vec![invoke(1, false), ok(1)])).len(), 1);
        // Two at a time: one of them was first.
        assert!(check(&history(vec![invoke(1, true), invoke(2, true), ok(2), refused(1)])).is_empty());
        // What is unknown may have taken effect, or not.
        assert!(check(&history(vec![invoke(1, true), unknown(1), invoke(2, true), refused(2)])).is_empty());
        assert!(check(&history(vec![invoke(1, true), unknown(1), invoke(2, true), ok(2)])).is_empty());
    }

    #[test]
    fn copies_that_differ_are_noticed() {
        let copy = |node: &str, index, topics: &[u32]| What::Copy { node: node.into(), index, topics: topics.to_vec() };
        assert!(check(&history(vec![copy("n1", 5, &[1, 2]), copy("n2", 5, &[1, 2]), copy("n2", 4, &[1])])).is_empty());
        assert_eq!(check(&history(vec![copy("n1", 5, &[1, 2]), copy("n2", 5, &[1])])).len(), 1);
        assert_eq!(check(&history(vec![copy("n1", 4, &[1]), copy("n1", 5, &[]), copy("n1", 6, &[1])])).len(), 1);
    }
}
