//! How a subscriber's credit is spread over the shards that deliver to it.

/// Credit that the shards hold. Decides only.
pub(super) struct Split {
    held: Vec<u64>,
}

impl Split {
    /// What each of `shards` gets of `credit` at first: an equal share, at least 1, so that none is shut out. What
    /// comes of it beyond the subscriber's credit waits at this node.
    pub(super) fn share(shards: usize, credit: u64) -> u64 {
        (credit / shards.max(1) as u64).max(1)
    }

    pub(super) fn new(shards: usize, share: u64) -> Self {
        Split { held: vec![share; shards] }
    }

    /// A shard has used some.
    pub(super) fn used(&mut self, shard: usize, credit: u64) {
        self.held[shard] = self.held[shard].saturating_sub(credit);
    }

    /// A shard has got more.
    pub(super) fn given(&mut self, shard: usize, credit: u64) {
        self.held[shard] = self.held[shard].saturating_add(credit);
    }

    /// How more is to be given: to those first that hold least. Returns what each shard is to get; 0 is left out.
    pub(super) fn give(&self, credit: u64) -> Vec<(usize, u64)> {
        let mut order: Vec<usize> = (0..self.held.len()).collect();
        order.sort_by_key(|shard| self.held[*shard]);
        let mut grants = vec![0; self.held.len()];
        let mut left = credit;
        // Raise the lowest to the level of the next until all is given.
        for count in 1..=order.len() {
            let level = self.held[order[count - 1]];
            let next = order.get(count).map_or(u64::MAX, |shard| self.held[*shard]);
            let room = (next - level).saturating_mul(count as u64);
            let now = left.min(room);
            for (place, shard) in order[..count].iter().enumerate() {
                let share = now / count as u64 + u64::from((place as u64) < now % count as u64);
                grants[*shard] += share;
            }
            left -= now;
            if left == 0 {
                break;
            }
        }
        grants.into_iter().enumerate().filter(|(_, grant)| *grant > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_hold_least_get_first() {
        let mut split = Split::new(3, Split::share(3, 30));
        assert_eq!(split.held, vec![10, 10, 10]);
        split.used(1, 10);
        split.used(2, 4);
        let mut give = |credit, grants: Vec<(usize, u64)>| {
            assert_eq!(split.give(credit), grants);
            grants.into_iter().for_each(|(shard, grant)| split.given(shard, grant));
        };
        give(6, vec![(1, 6)]);
        give(4, vec![(1, 2), (2, 2)]);
        give(7, vec![(0, 1), (1, 3), (2, 3)]);
        assert_eq!(split.held, vec![11, 11, 11]);
    }

    #[test]
    fn every_shard_has_a_share() {
        assert_eq!(Split::share(8, 3), 1);
        assert_eq!(Split::share(0, 3), 3);
        let split = Split::new(2, 1);
        assert_eq!(split.give(0), vec![]);
        assert_eq!(split.give(u64::MAX).len(), 2);
    }
}
