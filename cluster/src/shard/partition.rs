use std::collections::BTreeMap;

use weft_proto::internal::v1::{PutGroup, Range};
use weft_proto::v1::{ErrorCode, StartAt};

use super::Refusal;
use super::cursor::{CURSOR_RANGES_MAX, Cursor};
use super::producers::Producers;
use crate::ids::{GroupId, Offset};

/// The largest event of a topic that names no limit.
pub const EVENT_BYTES_MAX_DEFAULT: u32 = 1 << 20;

/// A partition of a shard: its offsets, the producers that write to it and its groups' cursors.
#[derive(Clone, Debug, PartialEq)]
pub struct Partition {
    pub(super) start: Offset,
    pub(super) end: Offset,
    pub(super) event_bytes_max: u32,
    pub(super) producers: Producers,
    pub(super) groups: BTreeMap<GroupId, Group>,
}

/// A group on a partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What it has handled.
    pub cursor: Cursor,
    /// How long a delivery may stay unacked; 0: the default.
    pub ack_deadline_ms: u32,
}

impl Default for Partition {
    fn default() -> Partition {
        Partition {
            start: Offset(0),
            end: Offset(0),
            event_bytes_max: EVENT_BYTES_MAX_DEFAULT,
            producers: Producers::default(),
            groups: BTreeMap::new(),
        }
    }
}

impl Partition {
    /// The first offset held.
    pub fn start(&self) -> Offset {
        self.start
    }

    /// The next offset to be given.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// The largest record accepted.
    pub fn event_bytes_max(&self) -> u32 {
        self.event_bytes_max
    }

    /// A group's cursor and settings.
    pub fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group)
    }

    /// All groups, by id.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = (GroupId, &Group)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    pub(super) fn set_event_bytes_max(&mut self, bytes: u32) {
        self.event_bytes_max = if bytes == 0 { EVENT_BYTES_MAX_DEFAULT } else { bytes };
    }

    pub(super) fn extend(&mut self, count: u32) {
        self.end = Offset(self.end.0 + u64::from(count));
    }

    /// Starts a cursor for a group that is new here; one that is known keeps its own.
    pub(super) fn put_group(&mut self, put: &PutGroup) {
        let now = put.start == StartAt::Now as u32;
        let start = if now { self.end } else { self.start };
        let cursor = || Group { cursor: Cursor::at(start.0), ack_deadline_ms: 0 };
        self.groups.entry(GroupId(put.group)).or_insert_with(cursor).ack_deadline_ms = put.ack_deadline_ms;
    }

    pub(super) fn drop_group(&mut self, group: GroupId) {
        self.groups.remove(&group);
    }

    /// All of the ranges, or none.
    pub(super) fn ack(&mut self, group: GroupId, ranges: &[Range]) -> Result<(), Refusal> {
        let state = self.groups.get_mut(&group).ok_or_else(|| {
            Refusal::new(ErrorCode::UnknownGroup, format!("group {group} is not on this partition (yet)"))
        })?;
        if let Some(bad) = ranges.iter().find(|range| range.first > range.last || range.last >= self.end.0) {
            let message = format!("acks of {}..={} are out of range, the end is {}", bad.first, bad.last, self.end);
            return Err(Refusal::new(ErrorCode::InvalidArgument, message));
        }
        if state.cursor.ranges().len() + ranges.len() > CURSOR_RANGES_MAX {
            let message = format!("a cursor holds at most {CURSOR_RANGES_MAX} separate ranges of acks");
            let max = CURSOR_RANGES_MAX as u64;
            return Err(Refusal::over(ErrorCode::Overloaded, "cursor_ranges_max", max, message));
        }
        for range in ranges {
            state.cursor.ack(range.first, range.last);
        }
        Ok(())
    }
}
