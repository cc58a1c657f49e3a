//! P2: offsets are dense, and everyone who reads a place (subscribers at any time, the disks at the end) finds the
//! same event there.

use std::collections::BTreeMap;

use crate::history::{Entry, Place, What};

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let mut broken = Vec::new();
    dense(entries, &mut broken);
    same_event(entries, &mut broken);
    same_bytes(entries, &mut broken);
    broken
}

fn dense(entries: &[Entry], broken: &mut Vec<String>) {
    let mut next: BTreeMap<(&str, u32), u64> = BTreeMap::new();
    for entry in entries {
        let (reader, partition, offset) = match &entry.what {
            What::Final { partition, offset, .. } => ("the final log", *partition, *offset),
            What::OnDisk { node, partition, offset, .. } => (node.as_str(), *partition, *offset),
            _ => continue,
        };
        let expected = next.entry((reader, partition)).or_default();
        if offset != *expected {
            broken.push(format!("{reader}: partition {partition} goes from offset {expected} to {offset}"));
        }
        *expected = offset + 1;
    }
}

fn same_event(entries: &[Entry], broken: &mut Vec<String>) {
    let mut there: BTreeMap<Place, (u64, String)> = BTreeMap::new();
    for entry in entries {
        let (place, id, seen) = match &entry.what {
            What::Observed { partition, offset, id, .. } => ((*partition, *offset), *id, entry.who.clone()),
            What::Delivered { partition, offset, id, .. } => ((*partition, *offset), *id, entry.who.clone()),
            What::PublishOk { partition, offset, id, .. } => ((*partition, *offset), *id, "a receipt".to_owned()),
            What::Final { partition, offset, id, .. } => ((*partition, *offset), *id, "the final log".to_owned()),
            What::OnDisk { node, partition, offset, id, .. } => ((*partition, *offset), *id, node.clone()),
            _ => continue,
        };
        let (first, by) = there.entry(place).or_insert((id, seen.clone()));
        if *first != id {
            broken.push(format!("{}/{}: {by} has event {first}, {seen} has event {id}", place.0, place.1));
        }
    }
}

fn same_bytes(entries: &[Entry], broken: &mut Vec<String>) {
    let mut digests: BTreeMap<Place, (u64, &str)> = BTreeMap::new();
    for entry in entries {
        let What::OnDisk { node, partition, offset, digest, .. } = &entry.what else { continue };
        let (first, by) = digests.entry((*partition, *offset)).or_insert((*digest, node));
        if first != digest {
            broken.push(format!("{partition}/{offset}: the bytes on {by} and {node} differ"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::history::What;
    use crate::promises::testing::{delivered, history, receipt, stored};

    #[test]
    fn a_hole_another_event_and_other_bytes_are_noticed() {
        assert!(check(&history(vec![receipt(1, 0), delivered(1, 0, 1), stored(1, 0), stored(2, 1)])).is_empty());
        assert_eq!(check(&history(vec![stored(1, 0), stored(2, 2)])).len(), 1);
        assert_eq!(check(&history(vec![delivered(9, 0, 1), stored(1, 0)])).len(), 1);
        let on = |node: &str, digest| What::OnDisk { node: node.into(), partition: 0, offset: 0, id: 1, digest };
        assert_eq!(check(&history(vec![on("n1", 5), on("n2", 6)])).len(), 1);
    }
}
