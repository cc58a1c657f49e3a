//! Gathers what waits for a shard into its next entry: cost is per commit round, so the rounds are filled.

use std::collections::VecDeque;

use prost::Message;
use weft_proto::internal::v1::{AckCommand, Append, DropGroup, DropTopic, PutGroup, PutPartition, ShardEntry};

use crate::ids::Millis;

/// Bytes of one proposal, unless a single batch is larger.
pub const PROPOSAL_BYTES_MAX: usize = 1 << 20;

/// Commands other than appends and acks.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// Creates a partition or renews its settings.
    PutPartition(PutPartition),
    /// Creates a group's cursors.
    PutGroup(PutGroup),
    /// Removes a topic's partitions.
    DropTopic(DropTopic),
    /// Removes a group's cursors.
    DropGroup(DropGroup),
}

/// What waits to be proposed. `W`: whom to answer; the queue only hands it back.
#[derive(Debug)]
pub struct Queue<W> {
    appends: VecDeque<(Append, W)>,
    acks: VecDeque<(AckCommand, W)>,
    settings: VecDeque<(Setting, W)>,
    append_bytes: usize,
}

/// An entry, and whom to answer, each list in the order of the entry (and so of `Outcome`).
#[derive(Debug)]
pub struct Proposal<W> {
    /// What to propose.
    pub entry: ShardEntry,
    /// For `entry.appends` and `Outcome::appends`.
    pub appends: Vec<W>,
    /// For `entry.acks` and `Outcome::acks`.
    pub acks: Vec<W>,
    /// For the settings, as they were pushed.
    pub settings: Vec<W>,
}

impl<W> Default for Queue<W> {
    fn default() -> Queue<W> {
        Queue { appends: VecDeque::new(), acks: VecDeque::new(), settings: VecDeque::new(), append_bytes: 0 }
    }
}

impl<W> Queue<W> {
    /// Queues a batch. It must have passed `shard::check`.
    pub fn append(&mut self, append: Append, waiter: W) {
        self.append_bytes += append.packed.len();
        self.appends.push_back((append, waiter));
    }

    /// Queues acks.
    pub fn ack(&mut self, ack: AckCommand, waiter: W) {
        self.acks.push_back((ack, waiter));
    }

    /// Queues a setting.
    pub fn setting(&mut self, setting: Setting, waiter: W) {
        self.settings.push_back((setting, waiter));
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.acks.is_empty() && self.settings.is_empty()
    }

    /// Bytes of the batches that wait.
    pub fn append_bytes(&self) -> usize {
        self.append_bytes
    }

    /// All that waits, from the oldest on, while it fits `bytes_max`; at least one of each kind, so that none
    /// starves. `None` when nothing waits. Each kind keeps its order.
    pub fn take(&mut self, bytes_max: usize, log_time: Millis) -> Option<Proposal<W>> {
        if self.is_empty() {
            return None;
        }
        let entry = ShardEntry { log_time_ms: log_time.0, ..ShardEntry::default() };
        let mut proposal = Proposal { entry, appends: Vec::new(), acks: Vec::new(), settings: Vec::new() };
        let mut room = bytes_max;
        while let Some((setting, waiter)) = next(&mut self.settings, &mut room, proposal.settings.is_empty(), |_| 32) {
            put(&mut proposal.entry, setting);
            proposal.settings.push(waiter);
        }
        while let Some((ack, waiter)) = next(&mut self.acks, &mut room, proposal.acks.is_empty(), ack_bytes) {
            proposal.entry.acks.push(ack);
            proposal.acks.push(waiter);
        }
        while let Some((append, waiter)) = next(&mut self.appends, &mut room, proposal.appends.is_empty(), append_bytes)
        {
            self.append_bytes -= append.packed.len();
            proposal.entry.appends.push(append);
            proposal.appends.push(waiter);
        }
        Some(proposal)
    }

    /// Everyone who waits, when the queue is given up.
    pub fn drain(&mut self) -> Vec<W> {
        self.append_bytes = 0;
        let appends = self.appends.drain(..).map(|(_, waiter)| waiter);
        let acks = self.acks.drain(..).map(|(_, waiter)| waiter);
        let settings = self.settings.drain(..).map(|(_, waiter)| waiter);
        appends.chain(acks).chain(settings).collect()
    }
}

fn next<T, W>(
    queue: &mut VecDeque<(T, W)>,
    room: &mut usize,
    first: bool,
    bytes: impl Fn(&T) -> usize,
) -> Option<(T, W)> {
    let bytes = bytes(&queue.front()?.0);
    if !first && bytes > *room {
        return None;
    }
    *room = room.saturating_sub(bytes);
    queue.pop_front()
}

fn put(entry: &mut ShardEntry, setting: Setting) {
    match setting {
        Setting::PutPartition(put) => entry.put_partitions.push(put),
        Setting::PutGroup(put) => entry.put_groups.push(put),
        Setting::DropTopic(drop) => entry.drop_topics.push(drop),
        Setting::DropGroup(drop) => entry.drop_groups.push(drop),
    }
}

fn ack_bytes(ack: &AckCommand) -> usize {
    ack.encoded_len() + 4
}

fn append_bytes(append: &Append) -> usize {
    append.packed.len() + 24
}
