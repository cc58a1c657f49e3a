//! P1: an event with a COMMITTED receipt is in the log at its place, and a receipt names two nodes at least that
//! have it fsynced. What was certainly refused is not there. At the end every event is on the disks of two nodes.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Entry, Place, What, final_log};

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let log = final_log(entries);
    let stored: BTreeSet<u64> = log.values().copied().collect();
    let mut broken = Vec::new();
    for entry in entries {
        match &entry.what {
            What::PublishOk { id, partition, offset, fsynced, duplicate, .. } => {
                match log.get(&(*partition, *offset)) {
                    Some(there) if there == id => {}
                    Some(other) => broken.push(format!(
                        "event {id} has a receipt for {partition}/{offset}, where the log holds event {other}"
                    )),
                    None => broken.push(format!("event {id} has a receipt for {partition}/{offset} and is lost")),
                }
                if fsynced.len() < 2 && !duplicate {
                    broken.push(format!("the receipt of event {id} names only {fsynced:?} as having it fsynced"));
                }
            }
            What::PublishFail { id, error } if stored.contains(id) => {
                broken.push(format!("event {id} was refused ({error}) and is stored"));
            }
            _ => {}
        }
    }
    on_a_majority(entries, &log, &mut broken);
    broken
}

/// Two of three replicas hold every event, if the disks were read at all.
fn on_a_majority(entries: &[Entry], log: &BTreeMap<Place, u64>, broken: &mut Vec<String>) {
    let mut copies: BTreeMap<Place, u32> = BTreeMap::new();
    for entry in entries {
        if let What::OnDisk { partition, offset, .. } = &entry.what {
            *copies.entry((*partition, *offset)).or_default() += 1;
        }
    }
    if !copies.is_empty() {
        for ((partition, offset), id) in log {
            let count = copies.get(&(*partition, *offset)).copied().unwrap_or_default();
            if count < 2 {
                broken.push(format!("event {id} at {partition}/{offset} is on the disks of {count} nodes"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::promises::testing::{history, publish, receipt, stored};

    #[test]
    fn a_lost_and_a_misplaced_event_are_noticed() {
        let good = vec![publish(1), receipt(1, 0), publish(2), receipt(2, 1), stored(1, 0), stored(2, 1)];
        assert!(check(&history(good)).is_empty());
        assert_eq!(check(&history(vec![publish(1), receipt(1, 0)])).len(), 1);
        let swapped = vec![receipt(1, 0), receipt(2, 1), stored(2, 0), stored(1, 1)];
        assert_eq!(check(&history(swapped)).len(), 2);
    }
}
