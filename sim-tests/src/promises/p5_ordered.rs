//! P5: within an epoch, events of one key are delivered in order and one at a time: the next only after someone has
//! acked the one before. Publishes of one key by one producer are stored in the order in which they were sent.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Entry, What};

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let mut broken = Vec::new();
    one_at_a_time(entries, &mut broken);
    stored_in_order(entries, &mut broken);
    broken
}

fn one_at_a_time(entries: &[Entry], broken: &mut Vec<String>) {
    // Per partition, epoch and key: what was delivered.
    let mut lanes: BTreeMap<(u32, u64, &str), BTreeSet<u64>> = BTreeMap::new();
    let mut acked: BTreeSet<(u32, u64, u64)> = BTreeSet::new();
    for entry in entries {
        match &entry.what {
            What::AckInvoke { partition, offset, epoch } => {
                acked.insert((*partition, *epoch, *offset));
            }
            What::Delivered { partition, offset, epoch, key, .. } => {
                let lane = lanes.entry((*partition, *epoch, key)).or_default();
                for before in lane.range(..offset).filter(|before| !acked.contains(&(*partition, *epoch, **before))) {
                    broken.push(format!(
                        "{partition}/{offset} (key {key}, epoch {epoch}) was delivered while {partition}/{before} was in flight"
                    ));
                }
                if lane.last().is_some_and(|last| last > offset) && !lane.contains(offset) {
                    broken.push(format!("{partition}/{offset} (key {key}, epoch {epoch}) was first delivered late"));
                }
                lane.insert(*offset);
            }
            _ => {}
        }
    }
}

fn stored_in_order(entries: &[Entry], broken: &mut Vec<String>) {
    // Ids grow in the order in which a producer sends.
    let mut sender: BTreeMap<u64, &str> = BTreeMap::new();
    for entry in entries {
        if let What::PublishInvoke { id, idempotent: true, .. } = &entry.what {
            sender.insert(*id, &entry.who);
        }
    }
    let mut newest: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for entry in entries {
        let What::Final { id, key, partition, offset, .. } = &entry.what else { continue };
        let Some(who) = sender.get(id) else { continue };
        if let Some(before) = newest.insert((who, key), *id).filter(|before| before > id) {
            broken.push(format!("{partition}/{offset}: {who} sent event {id} of key {key} before event {before}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::promises::testing::{ack, delivered, history, publish, stored};

    #[test]
    fn two_in_flight_and_a_wrong_order_are_noticed() {
        assert!(check(&history(vec![delivered(1, 0, 1), ack(0, 1), delivered(2, 1, 1)])).is_empty());
        assert_eq!(check(&history(vec![delivered(1, 0, 1), delivered(2, 1, 1)])).len(), 1);
        // A new epoch starts anew.
        assert!(check(&history(vec![delivered(1, 0, 1), delivered(1, 0, 2)])).is_empty());
        assert_eq!(check(&history(vec![delivered(2, 1, 1), ack(1, 1), delivered(1, 0, 1)])).len(), 1);
        assert_eq!(check(&history(vec![publish(1), publish(2), stored(2, 0), stored(1, 1)])).len(), 1);
    }
}
