use std::collections::BTreeMap;

/// A group's acks are refused once its cursor holds so many ranges above `acked_below`. The look-ahead of delivery
/// keeps far below it.
pub const CURSOR_RANGES_MAX: usize = 100_000;

/// Which offsets of a partition a group has handled: all below one, and disjoint ranges above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    acked_below: u64,
    /// First to last, both acked. Disjoint, not adjacent, all above `acked_below`.
    acked: BTreeMap<u64, u64>,
}

impl Cursor {
    /// A cursor that has acked all below `offset`, and nothing else.
    pub fn at(offset: u64) -> Cursor {
        Cursor { acked_below: offset, acked: BTreeMap::new() }
    }

    /// All below is acked; this offset is not.
    pub fn acked_below(&self) -> u64 {
        self.acked_below
    }

    /// Acked above `acked_below`: (first, last), sorted, disjoint, not adjacent.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = (u64, u64)> {
        self.acked.iter().map(|(first, last)| (*first, *last))
    }

    /// How many offsets above `acked_below` are acked.
    pub fn acked_above(&self) -> u64 {
        self.ranges().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether an offset is acked.
    pub fn contains(&self, offset: u64) -> bool {
        offset < self.acked_below || self.acked.range(..=offset).next_back().is_some_and(|(_, last)| offset <= *last)
    }

    /// Acks first..=last; what is acked already stays so. `last` is below `u64::MAX`.
    pub fn ack(&mut self, first: u64, last: u64) {
        assert!(first <= last && last < u64::MAX, "ranges are checked against the partition's end");
        if last < self.acked_below {
            return;
        }
        let (mut first, mut last) = (first.max(self.acked_below), last);
        // Swallow the range before, if it touches, and all that begin within or right after.
        let before = self.acked.range(..first).next_back().map(|(start, end)| (*start, *end));
        if let Some((start, end)) = before
            && end + 1 >= first
        {
            self.acked.remove(&start);
            (first, last) = (start, last.max(end));
        }
        while let Some((start, end)) = self.acked.range(first..=last + 1).next().map(|(start, end)| (*start, *end)) {
            self.acked.remove(&start);
            last = last.max(end);
        }
        if first == self.acked_below {
            self.acked_below = last + 1;
        } else {
            self.acked.insert(first, last);
        }
    }
}
