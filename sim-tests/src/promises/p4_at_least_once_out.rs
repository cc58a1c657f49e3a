//! P4: every stored event has reached the group, and none is delivered once its ack is confirmed.
//!
//! A delivery may be on its way for long (a partition holds it up) and come after the ack of a later attempt. It was
//! given out before, and (epoch, dispatch, attempt) say so: only one newer than what was acked breaks the promise.

use std::collections::BTreeMap;

use crate::history::{Entry, Given, Place, What, final_log};

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let mut broken = Vec::new();
    // When the ack was confirmed, and the newest delivery by then.
    let mut acked: BTreeMap<Place, (u64, (u64, Given))> = BTreeMap::new();
    let mut delivered: BTreeMap<Place, (u64, Given)> = BTreeMap::new();
    for entry in entries {
        match &entry.what {
            What::AckOk { partition, offset, .. } => {
                let place = (*partition, *offset);
                let newest = delivered.get(&place).copied().unwrap_or_default();
                acked.entry(place).or_insert((entry.at_us, newest));
            }
            What::Delivered { partition, offset, epoch, given, .. } => {
                let (place, this) = ((*partition, *offset), (*epoch, *given));
                let newest = delivered.entry(place).or_default();
                *newest = this.max(*newest);
                if let Some((at, _)) = acked.get(&place).filter(|(_, newest)| this > *newest) {
                    broken.push(format!(
                        "{partition}/{offset} was delivered to {} at {} us (epoch {epoch}, dispatch {}, attempt {}), its \
                         ack was confirmed at {at} us",
                        entry.who, entry.at_us, given.0, given.1
                    ));
                }
            }
            _ => {}
        }
    }
    // A history without a group has nothing to deliver.
    if !delivered.is_empty() {
        for (place, id) in final_log(entries).iter().filter(|(place, _)| !delivered.contains_key(*place)) {
            broken.push(format!("event {id} at {}/{} never reached the group", place.0, place.1));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::history::What;
    use crate::promises::testing::{ack, acked, delivered, history, stored};

    #[test]
    fn a_delivery_after_the_ack_and_a_missing_one_are_noticed() {
        assert!(check(&history(vec![delivered(1, 0, 1), ack(0, 1), acked(0, 1), stored(1, 0)])).is_empty());
        assert_eq!(check(&history(vec![delivered(1, 0, 1), acked(0, 1), delivered(1, 0, 2)])).len(), 1);
        // The older one was on its way since before.
        assert!(check(&history(vec![delivered(1, 0, 2), acked(0, 2), delivered(1, 0, 1)])).is_empty());
        // A dispatch that starts anew counts its attempts from 1.
        let again =
            |given| What::Delivered { partition: 0, offset: 0, epoch: 1, given, id: 1, key: "k".into(), intact: true };
        assert_eq!(check(&history(vec![again((1, 2)), acked(0, 1), again((2, 1))])).len(), 1);
        assert!(check(&history(vec![again((2, 1)), acked(0, 1), again((1, 2))])).is_empty());
        assert_eq!(check(&history(vec![delivered(1, 0, 1), stored(1, 0), stored(2, 1)])).len(), 1);
    }
}
