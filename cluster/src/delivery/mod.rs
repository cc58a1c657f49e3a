//! Group dispatch at the owner: which consumer gets which event, and when again.
//!
//! One [`Dispatcher`] serves one group on all partitions of its topic in one shard, for one epoch. It holds no
//! events, only their offsets and key hashes, within a bounded window per partition; and it is made anew from the
//! cursors when an epoch begins, so attempts count from 1 again.
//!
//! **When a lane moves on.** The next event of a key may be delivered once the ack of the one before is *received*;
//! the consumer hears that its ack is accepted only once it is *committed*. An ack that is lost with its owner was
//! never confirmed, and the new epoch gives its event out again, before the later ones of its key (P4, P5).
//!
//! **Who gets it.** Each event goes to the consumer with the fewest unsettled events, in turn among equals. A lane stays
//! with the consumer that had its last event as long as nobody has less to do.
//!
//! The driver must propose every accepted ack until it is committed or the epoch is over, in the order it got them.

mod consumers;
mod dice;
mod dispatcher;
mod ranges;
mod timers;
mod window;

use std::time::Duration;

pub use dispatcher::Dispatcher;

use crate::ids::Epoch;
use crate::shard::Cursor;

/// Events of a partition that are looked at past the first whose ack is not committed.
pub const LOOKAHEAD_EVENTS_MAX: usize = 10_000;

/// The most free credit of one consumer; more is not counted.
pub const CREDIT_MAX: u64 = 1_000_000;

/// The longest delay of a nack; a longer one counts as this.
pub const NACK_DELAY_MAX: Duration = Duration::from_secs(24 * 3600);

/// Settings of a group, as far as delivery is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// An event unacked for so long is given out again. Default 30 s.
    pub ack_deadline: Duration,
    /// The first wait after a nack without a delay; it doubles with each failure. Default 100 ms.
    pub backoff_min: Duration,
    /// The longest such wait. Default 30 s.
    pub backoff_max: Duration,
    /// Look-ahead per partition, in events. Default `LOOKAHEAD_EVENTS_MAX`.
    pub lookahead_events: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            ack_deadline: Duration::from_secs(30),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            lookahead_events: LOOKAHEAD_EVENTS_MAX,
        }
    }
}

/// One deliver stream of a consumer. The driver gives each stream an id of its own, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(pub u64);

/// Offsets first..=last of a partition, delivered under `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OffsetRange {
    /// Index of the partition in its topic.
    pub partition: u32,
    /// The epoch that the consumer was given with them.
    pub epoch: Epoch,
    /// The first offset.
    pub first: u64,
    /// The last, included.
    pub last: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A partition is served from now on. The cursor is the committed one.
    Open {
        /// Its index.
        partition: u32,
        /// Where the group is.
        cursor: Cursor,
    },
    /// A partition is no longer served: what is in flight of it is forgotten.
    Close {
        /// Its index.
        partition: u32,
    },
    /// Committed events are there to be delivered: the answer to `WantMore`. What lies before the wanted offset or
    /// past the window is ignored (and wanted again later); so are events after a gap.
    Events {
        /// The partition.
        partition: u32,
        /// Offset of the first.
        base: u64,
        /// `key_hash` of each envelope; 0: no key.
        key_hashes: Vec<u64>,
    },
    /// A consumer is there.
    Join {
        /// Its stream.
        consumer: ConsumerId,
        /// How many events it takes.
        credit: u64,
    },
    /// A consumer is gone: what it had in flight is given to others at once.
    Leave {
        /// Its stream.
        consumer: ConsumerId,
        /// It did not say so: what it had in flight counts as failed. A leave in order is nobody's failure.
        lost: bool,
    },
    /// A consumer takes more events. Each delivery costs one; nothing but this gives any back.
    Credit {
        /// Its stream.
        consumer: ConsumerId,
        /// How many more.
        events: u64,
    },
    /// A consumer has handled events. Answered by exactly one `Effect::Ack` with the same token.
    Ack {
        /// Its stream.
        consumer: ConsumerId,
        /// Chosen by the driver.
        token: u64,
        /// What it has handled.
        ranges: Vec<OffsetRange>,
    },
    /// A consumer could not handle events. What is not in flight for it is ignored.
    Nack {
        /// Its stream.
        consumer: ConsumerId,
        /// Which.
        ranges: Vec<OffsetRange>,
        /// Given out again after this; zero: the group's backoff with jitter.
        delay: Duration,
    },
    /// Restarts the ack deadline of what is in flight for a consumer.
    Extend {
        /// Its stream.
        consumer: ConsumerId,
        /// Which.
        ranges: Vec<OffsetRange>,
    },
    /// Acks of this group and epoch are committed.
    Committed {
        /// The partition.
        partition: u32,
        /// (first, last) offsets.
        ranges: Vec<(u64, u64)>,
    },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read these events and send them to the consumer, in this order. If they cannot be sent, `Leave`.
    Deliver {
        /// Its stream.
        consumer: ConsumerId,
        /// What.
        deliveries: Vec<Delivery>,
    },
    /// The answer to `Input::Ack`: propose `propose`, and when that is committed (at once, if it is empty) answer
    /// the consumer, with `refused`.
    Ack {
        /// The input's.
        token: u64,
        /// Sorted, disjoint; those that are committed already are left out.
        propose: Vec<ProposedRange>,
        /// What is not acked, and why.
        refused: Vec<RefusedRange>,
    },
    /// Feed `Input::Events` from this offset on, now or when there are any. Said once until they come.
    WantMore {
        /// The partition.
        partition: u32,
        /// The next offset that is not known here.
        from: u64,
    },
}

/// One event for a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delivery {
    /// The partition.
    pub partition: u32,
    /// The event.
    pub offset: u64,
    /// Counts the deliveries of the event by this dispatcher, from 1, for whatever reason it was given out again.
    pub attempt: u32,
}

/// Accepted acks of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposedRange {
    /// The partition.
    pub partition: u32,
    /// The first offset.
    pub first: u64,
    /// The last, included.
    pub last: u64,
}

/// Acks that are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedRange {
    /// Which.
    pub range: OffsetRange,
    /// Why.
    pub reason: RefusedBecause,
}

/// Why an ack is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBecause {
    /// It was delivered under another epoch (STALE_EPOCH).
    StaleEpoch,
    /// It is not in flight for this consumer: the deadline passed, or it was never delivered (FAILED_PRECONDITION).
    NotInFlight,
    /// The partition is not served here (NOT_OWNER).
    UnknownPartition,
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod tests;
