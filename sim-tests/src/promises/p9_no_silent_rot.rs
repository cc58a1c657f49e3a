//! P9: what anyone is given is what was published, bit for bit, whatever a disk has done to it.

use crate::history::{Entry, What};

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let bad = entries.iter().filter_map(|entry| match &entry.what {
        What::Observed { partition, offset, id, intact: false, .. }
        | What::Delivered { partition, offset, id, intact: false, .. }
        | What::Final { partition, offset, id, intact: false, .. } => {
            Some(format!("{} was served a damaged event {id} at {partition}/{offset}", entry.who))
        }
        _ => None,
    });
    bad.collect()
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::history::What;
    use crate::promises::testing::{history, stored};

    #[test]
    fn damage_is_noticed() {
        assert!(check(&history(vec![stored(1, 0)])).is_empty());
        let bad = What::Observed { partition: 0, offset: 0, epoch: 1, id: 1, intact: false };
        assert_eq!(check(&history(vec![bad])).len(), 1);
    }
}
