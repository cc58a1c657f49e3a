//! P3: an event is stored at most once, however often and through whatever nodes it was sent.

use std::collections::BTreeMap;

use crate::history::{Entry, What};

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let mut first: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
    let mut broken = Vec::new();
    for entry in entries {
        let What::Final { partition, offset, id, .. } = &entry.what else { continue };
        if let Some((other, at)) = first.insert(*id, (*partition, *offset)) {
            broken.push(format!("event {id} is stored at {other}/{at} and at {partition}/{offset}"));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::promises::testing::{history, stored};

    #[test]
    fn a_double_is_noticed() {
        assert!(check(&history(vec![stored(1, 0), stored(2, 1)])).is_empty());
        assert_eq!(check(&history(vec![stored(1, 0), stored(1, 1)])).len(), 1);
    }
}
