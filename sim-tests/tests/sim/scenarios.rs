//! Runs with chosen faults, each for one thing that must hold.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_sim::history::{Place, What};
use weft_sim::plan::{Fault, Habits, Plan, YEAR_MS};
use weft_sim::run::{Outputs, Verdict, run};

pub(crate) const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Three nodes, four shards, three partitions and these faults.
pub(crate) fn plan(seed: u64, storm: Duration, faults: Vec<(Duration, Fault)>) -> Plan {
    Plan { storm, faults, ..Plan::calm(seed) }
}

/// On a thread of its own, since the seed belongs to the thread.
pub(crate) fn play(plan: Plan) -> Verdict {
    let verdict = std::thread::spawn(move || run(&plan, &Outputs::default())).join().expect("the simulation ends");
    verdict.expect("no file is involved")
}

pub(crate) fn sound(plan: Plan) -> Verdict {
    let verdict = play(plan);
    assert!(verdict.broken.is_empty(), "{:#?}", verdict.broken);
    verdict
}

/// When the harness noted something that contains `text` for the first time.
pub(crate) fn noted(verdict: &Verdict, text: &str) -> Option<Duration> {
    verdict.history.iter().find_map(|entry| match &entry.what {
        What::Fault { text: note } if note.contains(text) => Some(Duration::from_micros(entry.at_us)),
        _ => None,
    })
}

/// The longest time that a partition went without a receipt, from `from` to the end of the storm.
pub(crate) fn longest_gap(verdict: &Verdict, from: Duration) -> Duration {
    let end = noted(verdict, "heal").expect("the storm ends");
    let mut last: BTreeMap<u32, Duration> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    for entry in &verdict.history {
        let at = Duration::from_micros(entry.at_us);
        let What::PublishOk { partition, .. } = entry.what else { continue };
        if at >= from && at <= end {
            longest = longest.max(at - *last.get(&partition).unwrap_or(&from));
            last.insert(partition, at);
        }
    }
    last.values().fold(longest, |longest, last| longest.max(end - *last))
}

/// As it must: what such disks have confirmed is not there.
#[test]
fn p1_breaks_when_disks_lie_and_a_majority_loses_power() {
    let power = Fault::PowerLoss { nodes: vec![0, 1, 2], away: ms(300) };
    let verdict = play(Plan { disks_lie: true, ..plan(1, ms(6_000), vec![(ms(3_000), power)]) });
    let confirmed = |line: &String| line.starts_with("P1: ") && line.contains("has a receipt for");
    assert!(verdict.broken.iter().any(confirmed), "{:#?}", verdict.broken);
}

/// Nobody knows a leader then, and nobody's verdict says that one has died.
#[test]
fn after_a_power_loss_of_all_nodes_the_groups_elect_at_once() {
    let power = Fault::PowerLoss { nodes: vec![0, 1, 2], away: ms(300) };
    let verdict = sound(plan(2, ms(12_000), vec![(ms(3_000), power)]));
    let dark = noted(&verdict, "PowerLoss").expect("the power fails");
    let gap = longest_gap(&verdict, dark);
    assert!(gap < ms(4_000), "{gap:?}; Raft's own election takes 6 s at least");
}

/// The second to die leads while the first, which has just come back, has heard of no leader yet.
#[test]
fn a_survivor_that_knows_no_leader_stands_too() {
    for (seed, first) in [(3, 0), (4, 1), (5, 2)] {
        let second = (first + 1) % 3;
        let faults = vec![
            (ms(3_000), Fault::Kill { node: first, away: ms(300) }),
            (ms(3_350), Fault::Kill { node: second, away: ms(6_000) }),
        ];
        let verdict = sound(plan(seed, ms(9_000), faults));
        let killed = noted(&verdict, "Kill").expect("a node is killed");
        let gap = longest_gap(&verdict, killed);
        assert!(gap < ms(3_000), "{gap:?}; Raft's own election takes 6 s at least");
    }
}

/// Nothing is closed when a host loses its power: its links are silent, gossip confirms, three pings stay unanswered.
#[test]
fn the_shards_of_a_host_that_goes_silent_elect_once_gossip_confirms_it() {
    for (seed, node) in [(6, 0), (7, 1)] {
        let silent = Fault::Partition { side: vec![node], clients: true, lasts: ms(9_000) };
        let verdict = sound(plan(seed, ms(12_000), vec![(ms(3_000), silent)]));
        let gap = longest_gap(&verdict, noted(&verdict, "Partition").expect("it was noted"));
        assert!(gap < ms(5_000), "{gap:?}; Raft's own election takes 6 s at least");
    }
}

/// What is on its disk may be old, and gossip has met nobody yet: it answers NOT_READY until it knows its cluster.
#[test]
fn a_node_that_comes_back_speaks_of_all_members_or_of_none() {
    let faults = vec![
        (ms(2_000), Fault::Kill { node: 0, away: ms(1_000) }),
        (ms(5_000), Fault::PowerLoss { nodes: vec![0, 1, 2], away: ms(300) }),
    ];
    let verdict = sound(plan(14, ms(10_000), faults));
    let mut told: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for entry in &verdict.history {
        if let What::Members { node, known } = &entry.what {
            told.entry(node).or_default().push(*known);
        }
    }
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    assert!(told.values().flatten().all(|known| *known == 3), "{told:?}");
}

/// A node joins, replicas move to it, and where a leader's replica moves, the leader hands over first.
#[test]
fn a_leader_that_is_moved_away_hands_over_first() {
    let nodes = Plan { nodes: 4, late: 1, shards: 8, partitions: 6, ..Plan::calm(0) };
    let verdict =
        sound(Plan { seed: 6, storm: ms(12_000), faults: vec![(ms(2_000), Fault::Join { node: 3 })], ..nodes });
    let joined = noted(&verdict, "n4 starts").expect("a node joins");
    let moved = verdict.history.iter().any(|entry| matches!(&entry.what, What::Owner { owner, .. } if owner == "n4"));
    assert!(moved, "the new node leads something in the end");
    let gap = longest_gap(&verdict, joined);
    assert!(gap < ms(1_000), "a hand-over is no failover: {gap:?}");
    let failed = verdict.history.iter().find(|entry| matches!(entry.what, What::PublishFail { .. }));
    assert!(failed.is_none(), "{failed:?}");
}

#[test]
fn a_disk_that_fails_ends_its_node() {
    let fault = Fault::FailingDisk { node: 0, lasts: ms(2_000) };
    let verdict = sound(plan(7, ms(9_000), vec![(ms(2_000), fault)]));
    assert!(noted(&verdict, "n1 ended: aborted: ").is_some(), "a write that fails is not tried again");
}

#[test]
fn full_disks_refuse_publishes_and_lose_nothing() {
    let full = |node| (ms(2_000), Fault::FullDisk { node, room: 768 << 10, lasts: ms(6_000) });
    let verdict = sound(plan(8, ms(14_000), vec![full(0), full(1), full(2)]));
    let when = |wanted: fn(&What) -> bool| {
        verdict.history.iter().rev().find(|entry| wanted(&entry.what)).map(|entry| Duration::from_micros(entry.at_us))
    };
    let refused = when(|what| matches!(what, What::PublishFail { error, .. } if error.contains("disk")));
    let refused = refused.expect("publishes are refused at the watermark");
    let taken = when(|what| matches!(what, What::PublishOk { .. })).expect("publishes are taken");
    assert!(refused < taken, "and taken again when there is room");
    assert!(noted(&verdict, "ended").is_none(), "the watermark keeps room for what is under way");
}

/// At once, with what is committed still to be written: others lead what it led, and it catches up.
#[test]
fn a_disk_that_fills_at_once_stops_nothing() {
    let full = Fault::FullDisk { node: 0, room: 0, lasts: ms(5_000) };
    let verdict = sound(plan(9, ms(12_000), vec![(ms(2_000), full)]));
    assert!(noted(&verdict, "ended").is_none(), "no node ends");
    let gap = longest_gap(&verdict, noted(&verdict, "FullDisk").expect("the disk fills"));
    assert!(gap < ms(4_000), "{gap:?} without a receipt while two disks have room");
}

/// Nothing can be stored anywhere, and nobody ends: when there is room all goes on.
#[test]
fn disks_that_fill_at_once_everywhere_hold_everything_up_and_lose_nothing() {
    let full = |node| (ms(2_000), Fault::FullDisk { node, room: 0, lasts: ms(5_000) });
    let verdict = sound(plan(12, ms(14_000), vec![full(0), full(1), full(2)]));
    assert!(noted(&verdict, "ended").is_none(), "no node ends");
    let until = noted(&verdict, "FullDisk").expect("the disks fill") + ms(5_000);
    let later = verdict
        .history
        .iter()
        .any(|entry| matches!(entry.what, What::PublishOk { .. }) && Duration::from_micros(entry.at_us) > until);
    assert!(later, "publishes are taken again");
}

/// The owner meets the damage when it is read, and leaves the shard to those that have it whole.
#[test]
fn rotten_segments_are_read_elsewhere() {
    let verdict = sound(plan(10, ms(6_000), vec![(ms(3_000), Fault::RottenSegments { node: 0, dice: 1 })]));
    assert!(noted(&verdict, "has flipped").is_some(), "the node had segments");
}

/// The damage is found by the scrub if nothing else reads it, the replica is fenced, and a new one is filled from the
/// others. That all disks hold the same at the end, this one too, is P2; that none holds damage, P9.
#[test]
fn rotten_segments_are_found_and_healed() {
    let rot = |node, dice| (ms(3_000), Fault::RottenSegments { node, dice });
    let verdict = sound(Plan { heals: true, ..plan(12, ms(6_000), vec![rot(0, 1)]) });
    assert!(noted(&verdict, "has flipped").is_some(), "the node had segments");
    let held = |name: &str| {
        verdict.history.iter().filter(|entry| matches!(&entry.what, What::OnDisk { node, .. } if node == name)).count()
    };
    assert!(held("n1") > 500 && held("n1") == held("n2"), "{} of {}", held("n1"), held("n2"));
}

/// Time decides when, never who: neither the order of events, nor ownership, nor a group's ack deadlines look at a wall
/// clock.
#[test]
fn wall_clocks_that_jump_by_a_year_delay_nothing() {
    let jump = |at, node, by_ms| (ms(at), Fault::Clock { node, by_ms });
    let faults = vec![
        jump(2_500, 0, YEAR_MS),
        jump(3_500, 1, -YEAR_MS),
        jump(4_500, 2, YEAR_MS),
        jump(5_500, 0, -2 * YEAR_MS),
        jump(6_500, 2, -YEAR_MS),
    ];
    let group = Habits { leaves_per_mille: 0, nacks_per_mille: 0, forgets_per_mille: 60, ..Habits::default() };
    let verdict = sound(Plan { group, ..plan(13, ms(9_000), faults) });
    let gap = longest_gap(&verdict, noted(&verdict, "Clock").expect("a clock jumps"));
    assert!(gap < ms(1_000), "no failover: {gap:?}");
    let mut given: BTreeMap<Place, Duration> = BTreeMap::new();
    let mut again = Vec::new();
    for entry in &verdict.history {
        if let What::Delivered { partition, offset, .. } = entry.what {
            let at = Duration::from_micros(entry.at_us);
            again.extend(given.insert((partition, offset), at).map(|before| at - before));
        }
    }
    assert!(again.len() > 5, "what is forgotten comes again");
    let deadline = group.ack_deadline;
    assert!(again.iter().all(|wait| *wait + ms(100) > deadline && *wait < deadline + ms(1_000)), "{again:?}");
}

/// The clients lose every node, and what they have sent meanwhile comes at once when they are back.
#[test]
fn what_waited_for_a_connection_is_taken_once_and_in_order() {
    let faults = vec![(ms(2_000), Fault::Partition { side: vec![0, 1, 2], clients: true, lasts: ms(4_000) })];
    let verdict = sound(Plan { partitions: 6, ..plan(11, ms(9_000), faults) });
    let (cut, back) = (noted(&verdict, "Partition").expect("a cut"), noted(&verdict, "pass again").expect("its end"));
    let mut waited = std::collections::BTreeSet::new();
    let mut answered = 0;
    for entry in verdict.history.iter().filter(|entry| entry.who == "producer-0") {
        let at = Duration::from_micros(entry.at_us);
        match entry.what {
            What::PublishInvoke { id, .. } if at > cut && at < back => drop(waited.insert(id)),
            What::PublishOk { id, .. } if waited.contains(&id) => answered += 1,
            _ => {}
        }
    }
    assert!(waited.len() > 64 && answered == waited.len(), "{answered} of {} have receipts", waited.len());
}

#[test]
fn a_link_that_survives_a_dead_one_says_that_its_peer_lives() {
    // Of two links to a peer one was held for dead behind a one-way partition, and nothing was sent there ever after.
    sound(Plan::of(22));
}

/// The longest time that a producer had no receipt of a partition that it published to, while a fault lasted.
fn longest_wait(verdict: &Verdict, from: Duration, lasts: Duration) -> Duration {
    let mut asked: BTreeMap<u64, Duration> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    for entry in &verdict.history {
        let at = Duration::from_micros(entry.at_us);
        match entry.what {
            What::PublishInvoke { id, .. } if entry.who.starts_with("producer") && at < from + lasts => {
                asked.insert(id, at);
            }
            What::PublishOk { id, .. } => {
                longest = longest.max(asked.remove(&id).map_or(Duration::ZERO, |asked| at - asked));
            }
            _ => {}
        }
    }
    assert!(asked.is_empty(), "{} publishes have no receipt", asked.len());
    longest
}

/// Each of the two leads partitions that publishers at the other write to; the third node reaches both.
#[test]
fn a_node_that_is_cut_off_from_an_owner_sends_its_publishers_elsewhere() {
    const LASTS: Duration = ms(24_000);
    let cut = Fault::Cut { nodes: [0, 1], lasts: LASTS };
    let verdict = sound(Plan { partitions: 6, ..plan(61, ms(28_000), vec![(ms(3_000), cut)]) });
    let waited = longest_wait(&verdict, noted(&verdict, "Cut").expect("the fault begins"), LASTS);
    assert!(waited > ms(1_000) && waited < ms(20_000), "{waited:?}");
}
