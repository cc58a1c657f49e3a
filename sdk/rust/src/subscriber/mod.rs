//! Subscribers: observers see every event, consumers share a durable group's events and ack them.

mod consumer;
mod courier;
mod group;
mod observer;

use std::time::Duration;

use weft_proto::v1::{self, SubscribeOpen};

pub use consumer::{Consumer, Delivery, Handle};
pub use observer::{Observed, ObservedBatch, Observer};

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
    credit: Option<u64>,
    ack_deadline: Duration,
}

impl SubscriberBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> SubscriberBuilder {
        let topic = topic.to_owned();
        let (start, partition, until_end, credit) = (None, None, false, None);
        SubscriberBuilder { client, topic, start, partition, until_end, credit, ack_deadline: Duration::ZERO }
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

    /// How much may be in flight: events for a group (default 256), bytes for an observer (default 4 MiB).
    pub fn credit(mut self, credit: u64) -> Self {
        self.credit = Some(credit.max(1));
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
        Observer::open(self).await
    }

    /// Joins a durable group, which is created if it is new.
    ///
    /// # Errors
    /// `Invalid` without a name or with an offset to start at; `UnknownTopic`, and those of any request.
    pub async fn group(self, name: &str) -> Result<Consumer, Error> {
        if name.is_empty() {
            return Err(Error::invalid("a group needs a name"));
        }
        if matches!(self.start, Some(StartAt::Offset(_))) || self.partition.is_some() || self.until_end {
            return Err(Error::invalid("a group begins at the earliest event or now, over all partitions"));
        }
        let credit = self.credit.unwrap_or(group::CREDIT);
        let open = SubscribeOpen { group: name.to_owned(), credit, ..self.frame() };
        Consumer::open(self.client, open).await
    }

    /// The first frame, as far as observers and groups agree.
    fn frame(&self) -> SubscribeOpen {
        let (start, offset) = match self.start {
            None => (v1::StartAt::Unspecified, 0),
            Some(StartAt::Earliest) => (v1::StartAt::Earliest, 0),
            Some(StartAt::Now) => (v1::StartAt::Now, 0),
            Some(StartAt::Offset(offset)) => (v1::StartAt::Offset, offset),
        };
        SubscribeOpen {
            topic: self.topic.clone(),
            namespace: self.client.namespace().to_owned(),
            group: String::new(),
            start: start.into(),
            partition: self.partition,
            offset,
            credit: 0,
            ack_deadline_ms: u32::try_from(self.ack_deadline.as_millis()).unwrap_or(u32::MAX),
            until_end: self.until_end,
        }
    }
}
