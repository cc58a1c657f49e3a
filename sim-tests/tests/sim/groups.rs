//! Groups whose consumers come, go and stand still. That all is delivered, in order, is checked in every run (P4, P5);
//! here is how soon.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_sim::history::{Entry, Place, What};
use weft_sim::plan::{Fault, Habits, Plan};
use weft_sim::run::Verdict;

use super::scenarios::{ms, noted, plan, sound};

/// Long against what is waited for here.
const ACK_DEADLINE: Duration = ms(10_000);

fn at(entry: &Entry) -> Duration {
    Duration::from_micros(entry.at_us)
}

/// What a consumer has been given by a moment and did not ack, although nobody else got it since.
fn held(verdict: &Verdict, who: &str, by: Duration) -> Vec<Place> {
    let mut holders: BTreeMap<Place, &str> = BTreeMap::new();
    for entry in verdict.history.iter().take_while(|entry| at(entry) <= by) {
        match entry.what {
            What::Delivered { partition, offset, .. } => drop(holders.insert((partition, offset), &entry.who)),
            What::AckInvoke { partition, offset, .. } => drop(holders.remove(&(partition, offset))),
            _ => {}
        }
    }
    holders.into_iter().filter(|(_, holder)| *holder == who).map(|(place, _)| place).collect()
}

/// How long it took after a moment until these were delivered again, the slowest of them; or until a late ack was taken.
fn until_again(verdict: &Verdict, places: &[Place], from: Duration) -> Duration {
    let again = |place: &Place| {
        let given = |entry: &&Entry| match entry.what {
            What::Delivered { partition, offset, .. } | What::AckOk { partition, offset, .. } => {
                at(entry) > from && (partition, offset) == *place
            }
            _ => false,
        };
        at(verdict.history.iter().find(given).unwrap_or_else(|| panic!("{place:?} came again"))) - from
    };
    places.iter().map(again).max().unwrap_or_default()
}

#[test]
fn what_a_consumer_that_leaves_has_not_acked_comes_again_at_once() {
    let group = Habits { ack_deadline: ACK_DEADLINE, leaves_per_mille: 30, forgets_per_mille: 60, ..Habits::default() };
    let verdict = sound(Plan { group, ..plan(31, ms(6_000), Vec::new()) });
    let (mut left, mut given_back) = (0, 0);
    for entry in verdict.history.iter().filter(|entry| matches!(entry.what, What::Left)) {
        let held = held(&verdict, &entry.who, at(entry));
        let waited = until_again(&verdict, &held, at(entry));
        // All others may be joining anew at that moment.
        assert!(waited < ms(1_000), "{}: {waited:?} after it left at {:?}: {held:?}", entry.who, at(entry));
        (left, given_back) = (left + 1, given_back + held.len());
    }
    assert!(left > 5 && given_back > 5, "{given_back} events of {left} consumers");
}

/// Partitions that have taken an event soon after a moment: their owners live, or have heirs already.
fn served_after(verdict: &Verdict, from: Duration) -> BTreeSet<u32> {
    let soon = verdict.history.iter().filter(|entry| at(entry) > from + ms(200) && at(entry) < from + ms(2_000));
    let partition = |entry: &Entry| match entry.what {
        What::PublishOk { partition, .. } => Some(partition),
        _ => None,
    };
    soon.filter_map(partition).collect()
}

/// The node that a consumer is connected to dies: the owners learn of it from the link.
#[test]
fn what_a_consumer_had_through_a_dead_node_comes_again_at_once() {
    for fault in
        [Fault::Kill { node: 0, away: ms(8_000) }, Fault::Partition { side: vec![0], clients: true, lasts: ms(8_000) }]
    {
        let group =
            Habits { ack_deadline: ACK_DEADLINE, leaves_per_mille: 0, forgets_per_mille: 300, ..Habits::default() };
        let verdict = sound(Plan { group, ..plan(32, ms(9_000), vec![(ms(4_000), fault.clone())]) });
        let name = if matches!(fault, Fault::Kill { .. }) { "Kill" } else { "Partition" };
        let gone = noted(&verdict, name).expect("the fault begins");
        // What the node led itself comes when another does.
        let served = served_after(&verdict, gone);
        let mut held = held(&verdict, "consumer-0", gone);
        held.retain(|(partition, _)| served.contains(partition));
        assert!(!held.is_empty(), "{name}: it was given events, and forgot some");
        let waited = until_again(&verdict, &held, gone);
        // A black hole is one when gossip says so; a killed process is seen dead at once.
        assert!(waited < if name == "Kill" { ms(2_000) } else { ms(5_000) }, "{name}: {waited:?}: {held:?}");
    }
}

/// The node gives back what its consumers hold before it drains anything else.
#[test]
fn what_a_consumer_had_through_a_node_that_stops_comes_again_at_once() {
    let group = Habits { ack_deadline: ACK_DEADLINE, leaves_per_mille: 0, forgets_per_mille: 300, ..Habits::default() };
    let verdict = sound(Plan { group, ..plan(34, ms(9_000), vec![(ms(4_000), Fault::Stop { node: 0 })]) });
    let told = noted(&verdict, "Stop").expect("the node is told to stop");
    let held = held(&verdict, "consumer-0", told);
    assert!(!held.is_empty(), "it was given events, and forgot some");
    let waited = until_again(&verdict, &held, told);
    assert!(waited < ms(1_000), "{waited:?}: {held:?}");
}

/// Its members are connected to different nodes, and each shard decides for itself.
#[test]
fn members_get_the_same_share() {
    let group = Habits { leaves_per_mille: 0, forgets_per_mille: 0, nacks_per_mille: 0, ..Habits::default() };
    for seed in [35, 36, 37] {
        let verdict = sound(Plan { group, partitions: 6, ..plan(seed, ms(5_000), Vec::new()) });
        let mut given: BTreeMap<&str, usize> = BTreeMap::new();
        let deliveries = verdict.history.iter().filter(|entry| matches!(entry.what, What::Delivered { .. }));
        deliveries.for_each(|entry| *given.entry(&entry.who).or_default() += 1);
        let all: usize = given.values().sum();
        assert!(given.len() == 3 && given.values().all(|count| *count > all / 4), "{seed}: {given:?}");
    }
}

/// It keeps no more than its credit, and no longer than the ack deadline.
#[test]
fn a_consumer_that_stands_still_holds_up_its_own_events_only() {
    let group = Habits { slow: 1, leaves_per_mille: 0, forgets_per_mille: 0, ..Habits::default() };
    let verdict = sound(Plan { group, ..plan(33, ms(12_000), Vec::new()) });
    let mut stored: BTreeMap<Place, Duration> = BTreeMap::new();
    let mut waits: Vec<Duration> = Vec::new();
    for entry in &verdict.history {
        match entry.what {
            What::PublishOk { partition, offset, .. } => drop(stored.entry((partition, offset)).or_insert(at(entry))),
            What::Delivered { partition, offset, .. } => {
                waits.extend(stored.get(&(partition, offset)).map(|stored| at(entry).saturating_sub(*stored)));
            }
            _ => {}
        }
    }
    waits.sort_unstable();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    assert!(median < ms(1_000), "{median:?}");
    assert!(longest < 3 * group.ack_deadline, "{longest:?}");
}
