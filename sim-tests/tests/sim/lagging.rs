//! A node that is not dead and not well: it leads some shards and follows others, and does both slowly.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_sim::history::What;
use weft_sim::plan::{Fault, Plan};
use weft_sim::run::Verdict;

use super::scenarios::{longest_gap, ms, noted, plan, sound};

const LASTS: Duration = ms(10_000);
/// Far below the limits that `link.queue_bytes_max` and `shards.queue_bytes_max` set, and below what comes in the time.
const QUEUED_BYTES_MAX: i64 = 512 << 10;

/// Thirteen seconds of load, in ten of which something is wrong. That the slow node has all in the end is P2.
fn slowly(seed: u64, fault: Fault) -> Verdict {
    let load = Plan { producers: 6, partitions: 12, gauges: true, ..plan(seed, ms(13_000), vec![(ms(1_000), fault)]) };
    let verdict = sound(load);
    assert!(noted(&verdict, "ended").is_none(), "slow is not dead");
    verdict
}

/// The most that any node had in a queue from a moment on, and how much each has at the end.
fn queued(verdict: &Verdict, gauge: &str, from: Duration) -> (i64, BTreeMap<String, i64>) {
    let (mut most, mut last) = (0, BTreeMap::new());
    for entry in verdict.history.iter().filter(|entry| Duration::from_micros(entry.at_us) >= from) {
        if let What::Gauge { node, name, value } = &entry.what
            && name == gauge
        {
            most = most.max(*value);
            last.insert(node.clone(), *value);
        }
    }
    (most, last)
}

/// What is stored in the time is many times as much as ever waits: what a replica lacks is in the log, and read from
/// there when the replica takes more.
fn check_queues(verdict: &Verdict, from: Duration) {
    for gauge in ["weft_link_queue_bytes", "weft_storage_queue_bytes", "weft_shard_queued_bytes"] {
        let (most, last) = queued(verdict, gauge, from);
        assert!(last.len() == 3 && most < QUEUED_BYTES_MAX, "{gauge}: {most} bytes");
        // With its load gone, and the fault, nothing waits any more.
        assert!(last.values().all(|bytes| *bytes < 4 << 10), "{gauge}: {last:?} at the end");
    }
}

/// Half a second for each write and each sync: the others are the majority of what it leads, too.
#[test]
fn a_slow_disk_holds_up_no_commit_and_fills_no_queue() {
    for seed in [41, 42] {
        let verdict = slowly(seed, Fault::SlowDisk { node: 0, by: ms(500), lasts: LASTS });
        let slow = noted(&verdict, "SlowDisk").expect("the fault begins");
        let gap = longest_gap(&verdict, slow);
        assert!(gap < ms(2_000), "{seed}: {gap:?}");
        check_queues(&verdict, slow);
    }
}

#[test]
fn slow_links_hold_up_no_commit_and_fill_no_queue() {
    for seed in [43, 44] {
        let verdict = slowly(seed, Fault::SlowLinks { node: 0, up_to: ms(100), lasts: LASTS });
        let slow = noted(&verdict, "SlowLinks").expect("the fault begins");
        let gap = longest_gap(&verdict, slow);
        assert!(gap < ms(2_000), "{seed}: {gap:?}");
        check_queues(&verdict, slow);
    }
}
