//! Subscribers: observers see every event, consumers share a durable group's events and ack them.

use std::time::Duration;

use bytes::Bytes;
use weft_proto::v1::{Event, Topic};

use crate::client::Client;
use crate::error::Error;

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the first event held.
    Earliest,
    /// After the last event stored when it opens.
    Now,
    /// At this offset of each partition (or of the one chosen). Observers only.
    Offset(u64),
}

/// Settings of a subscription; made by [`Client::subscriber`].
#[derive(Clone)]
pub struct SubscriberBuilder {
    client: Client,
    topic: String,
    start: Option<StartAt>,
    partition: Option<u32>,
    until_end: bool,
    credit: u64,
    ack_deadline: Duration,
}

impl SubscriberBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> SubscriberBuilder {
        SubscriberBuilder {
            client,
            topic: topic.to_owned(),
            start: None,
            partition: None,
            until_end: false,
            credit: 0,
            ack_deadline: Duration::ZERO,
        }
    }

    /// Where to begin. Default: observers `Now`; groups `Earliest`, and only when the group is new.
    pub fn start(mut self, start: StartAt) -> Self {
        self.start = Some(start);
        self
    }

    /// Observers: this partition alone.
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Observers: end at the offsets that were last when it opened.
    pub fn until_end(mut self) -> Self {
        self.until_end = true;
        self
    }

    /// How much may be in flight: events for a group (default 256), bytes for an observer (default 1 MiB).
    pub fn credit(mut self, credit: u64) -> Self {
        self.credit = credit;
        self
    }

    /// Groups: how long a delivery may stay unacked before it is given out again. Default 30 s. Only the join
    /// that creates the group sets it.
    pub fn ack_deadline(mut self, deadline: Duration) -> Self {
        self.ack_deadline = deadline;
        self
    }

    /// Subscribes as an observer.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, `OffsetTrimmed`, and those of any request.
    pub async fn observe(self) -> Result<Observer, Error> {
        let _ = (self.client, self.topic, self.start, self.partition, self.until_end, self.credit, self.ack_deadline);
        Err(Error::Closed)
    }

    /// Joins a durable group, which is created if it is new.
    ///
    /// # Errors
    /// `UnknownTopic`, `InvalidArgument`, and those of any request.
    pub async fn group(self, _name: &str) -> Result<Consumer, Error> {
        Err(Error::Closed)
    }
}

/// Sees every event of a topic; acks nothing. After a failure it goes on at another node where it was.
pub struct Observer {}

/// An event that an observer sees.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The partition.
    pub partition: u32,
    /// Its place there.
    pub offset: u64,
    /// The epoch of the owner that stored it.
    pub epoch: u64,
    /// The event, encoded; see [`Observed::event`].
    pub record: Bytes,
}

impl Observed {
    /// Decodes the event.
    pub fn event(&self) -> Result<Event, Error> {
        Err(Error::Closed)
    }
}

impl Observer {
    /// The next event; `None` at the end (with `until_end`).
    ///
    /// # Errors
    /// What cannot be healed by another node: `UnknownTopic`, `OffsetTrimmed`, `Corrupt` batches.
    pub async fn next(&mut self) -> Result<Option<Observed>, Error> {
        Err(Error::Closed)
    }

    /// The topic.
    pub fn topic(&self) -> &Topic {
        panic!("not open")
    }
}

/// A member of a group. Dropped, its unacked deliveries go to other members after their deadline.
pub struct Consumer {}

impl Consumer {
    /// The next delivery. Waits for one; follows failovers by itself.
    ///
    /// # Errors
    /// What cannot be healed by another node, for example `UnknownTopic` after the topic is deleted.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        Err(Error::Closed)
    }

    /// Waits until all acks made so far are answered: committed, or refused (then they come again).
    pub async fn flush_acks(&self) -> Result<(), Error> {
        Err(Error::Closed)
    }

    /// Flushes the acks and leaves; what is not acked goes to others.
    pub async fn close(self) -> Result<(), Error> {
        Err(Error::Closed)
    }
}

/// An event to handle.
pub struct Delivery {
    /// The partition.
    pub partition: u32,
    /// Its place there.
    pub offset: u64,
    /// The epoch of the owner that gives it out.
    pub epoch: u64,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// The event.
    pub event: Event,
    /// To ack, nack or extend.
    pub handle: Handle,
}

/// Acks, nacks or extends one delivery. Cheap to clone; may be sent to another task.
#[derive(Clone)]
pub struct Handle {}

impl Handle {
    /// Marks the event as handled and goes on; acks are gathered and sent together.
    pub fn ack(&self) {}

    /// Acks and waits until that is committed: the event is never delivered to the group again.
    ///
    /// # Errors
    /// `StaleEpoch` if the delivery is void: the event comes again, or came to another consumer.
    pub async fn ack_confirmed(&self) -> Result<(), Error> {
        Err(Error::Closed)
    }

    /// Gives the event back; it is given out again after `delay` (zero: the group's backoff).
    pub fn nack(&self, _delay: Duration) {}

    /// Restarts the ack deadline.
    pub fn extend(&self) {}

    /// False once the delivery is void: a newer epoch acts, or it was refused. Stop handling it.
    pub fn is_valid(&self) -> bool {
        false
    }

    /// Resolves when the delivery becomes void.
    pub async fn voided(&self) {}
}
