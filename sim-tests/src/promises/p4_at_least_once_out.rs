//! P4: every stored event has reached the group, and none is delivered once its ack is confirmed.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Entry, Place, What, final_log};

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut acked: BTreeMap<Place, u64> = BTreeMap::new();
    let mut delivered: BTreeSet<Place> = BTreeSet::new();
    for entry in entries {
        match &entry.what {
            What::AckOk { partition, offset, .. } => {
                acked.entry((*partition, *offset)).or_insert(entry.at_us);
            }
            What::Delivered { partition, offset, epoch, .. } => {
                let place = (*partition, *offset);
                delivered.insert(place);
                if let Some(at) = acked.get(&place) {
                    broken.push(format!(
                        "{partition}/{offset} was delivered to {} at {} us (epoch {epoch}), its ack was confirmed at {at} us",
                        entry.who, entry.at_us
                    ));
                }
            }
            _ => {}
        }
    }
    // A history without a group has nothing to deliver.
    if !delivered.is_empty() {
        for (place, id) in final_log(entries).iter().filter(|(place, _)| !delivered.contains(*place)) {
            broken.push(format!("event {id} at {}/{} never reached the group", place.0, place.1));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::promises::testing::{ack, acked, delivered, history, stored};

    #[test]
    fn a_delivery_after_the_ack_and_a_missing_one_are_noticed() {
        assert!(check(&history(vec![delivered(1, 0, 1), ack(0, 1), acked(0, 1), stored(1, 0)])).is_empty());
        assert_eq!(check(&history(vec![delivered(1, 0, 1), acked(0, 1), delivered(1, 0, 2)])).len(), 1);
        assert_eq!(check(&history(vec![delivered(1, 0, 1), stored(1, 0), stored(2, 1)])).len(), 1);
    }
}
