//! P6: at most one node acts for a shard in an epoch, whoever is asked and whenever; and a partition's epochs only
//! grow along its log.

use std::collections::BTreeMap;

use crate::history::{Entry, What};

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut owners: BTreeMap<(u32, u64), (&str, &str)> = BTreeMap::new();
    let mut epochs: BTreeMap<u32, u64> = BTreeMap::new();
    for entry in entries {
        match &entry.what {
            What::Owner { node, shard, owner, epoch } if !owner.is_empty() && *epoch > 0 => {
                let (first, by) = owners.entry((*shard, *epoch)).or_insert((owner, node));
                if first != owner {
                    broken.push(format!("shard {shard} epoch {epoch}: {by} says {first} acts, {node} says {owner}"));
                }
            }
            What::Final { partition, offset, epoch, .. } => {
                let last = epochs.entry(*partition).or_default();
                if epoch < last {
                    broken.push(format!("{partition}/{offset} has epoch {epoch} after {last}"));
                }
                *last = *epoch;
            }
            _ => {}
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::history::What;
    use crate::promises::testing::history;

    #[test]
    fn two_owners_of_an_epoch_are_noticed() {
        let says =
            |node: &str, owner: &str, epoch| What::Owner { node: node.into(), shard: 1, owner: owner.into(), epoch };
        assert!(check(&history(vec![says("n1", "n1", 1), says("n2", "n1", 1), says("n2", "n2", 2)])).is_empty());
        assert_eq!(check(&history(vec![says("n1", "n1", 1), says("n2", "n2", 1)])).len(), 1);
    }
}
