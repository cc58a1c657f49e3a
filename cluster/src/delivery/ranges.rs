use super::{OffsetRange, ProposedRange, RefusedBecause, RefusedRange};

/// Sorts ranges and joins those that touch, so that no offset is looked at twice however a client writes its frame.
/// Ranges that end before they begin hold nothing and fall away.
pub(super) fn merged(mut ranges: Vec<OffsetRange>) -> Vec<OffsetRange> {
    ranges.retain(|range| range.first <= range.last);
    if ranges.len() < 2 {
        return ranges;
    }
    ranges.sort_unstable();
    let mut out: Vec<OffsetRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last)
                if (last.partition, last.epoch) == (range.partition, range.epoch)
                    && range.first <= last.last.saturating_add(1) =>
            {
                last.last = last.last.max(range.last);
            }
            _ => out.push(range),
        }
    }
    out
}

/// What becomes of the ranges of one ack, gathered offset by offset into runs.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) propose: Vec<ProposedRange>,
    pub(super) refused: Vec<RefusedRange>,
}

impl Answer {
    pub(super) fn propose(&mut self, partition: u32, offset: u64) {
        match self.propose.last_mut() {
            Some(last) if last.partition == partition && last.last.checked_add(1) == Some(offset) => last.last = offset,
            _ => self.propose.push(ProposedRange { partition, first: offset, last: offset }),
        }
    }

    /// `range` comes after all that was refused before.
    pub(super) fn refuse(&mut self, range: OffsetRange, reason: RefusedBecause) {
        match self.refused.last_mut() {
            Some(last)
                if (last.range.partition, last.range.epoch, last.reason) == (range.partition, range.epoch, reason)
                    && last.range.last.checked_add(1) == Some(range.first) =>
            {
                last.range.last = range.last;
            }
            _ => self.refused.push(RefusedRange { range, reason }),
        }
    }
}
