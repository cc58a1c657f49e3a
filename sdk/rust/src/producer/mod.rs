//! The producer: packs events into batches per partition, pipelines them, and sends them again through
//! failovers, so that each is stored once and in order.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use weft_proto::v1::{Ack, Event, Receipt};

use crate::client::Client;
use crate::error::Error;

/// Settings of a producer; made by [`Client::producer`].
#[derive(Clone)]
pub struct ProducerBuilder {
    client: Client,
    topic: String,
    pub(crate) settings: Settings,
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) ack: Ack,
    pub(crate) linger: Duration,
    pub(crate) batch_bytes: usize,
    pub(crate) in_flight_bytes_max: usize,
    pub(crate) patience: Duration,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> ProducerBuilder {
        let settings = Settings {
            name: String::new(),
            ack: Ack::Committed,
            linger: Duration::from_millis(1),
            batch_bytes: 128 << 10,
            in_flight_bytes_max: 32 << 20,
            patience: Duration::from_secs(120),
        };
        ProducerBuilder { client, topic: topic.to_owned(), settings }
    }

    /// Makes the producer durable across restarts: the same name gets the same id and the next epoch, which
    /// fences the one before. Default: no name, a fresh id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// When a publish is answered. Default `Ack::Committed`.
    pub fn ack(mut self, ack: Ack) -> Self {
        self.settings.ack = ack;
        self
    }

    /// How long an event may wait for others to share its batch. Default 1 ms.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.settings.linger = linger;
        self
    }

    /// Bytes at which a batch is sent without more waiting. Default 128 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.settings.batch_bytes = bytes;
        self
    }

    /// Bytes of events that may be unanswered; `send` and `push` wait at it. Default 32 MiB.
    pub fn in_flight_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.in_flight_bytes_max = bytes;
        self
    }

    /// How long a batch is tried before its events fail. Default 2 minutes.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.settings.patience = patience;
        self
    }

    /// Asks for the topic and a producer id, and starts.
    ///
    /// # Errors
    /// `UnknownTopic`, and those of any request.
    pub async fn open(self) -> Result<Producer, Error> {
        let _ = (self.client, self.topic);
        Err(Error::Closed)
    }
}

/// Publishes events to one topic. Cheap to clone; all clones share batches and order.
///
/// Events of one partition (so of one key) are stored in the order in which `send` and `push` took them,
/// each once, through retries and failovers, as long as the process lives.
#[derive(Clone)]
pub struct Producer {}

/// What was answered so far, as [`Producer::flush`] returns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Events answered with a receipt.
    pub events: u64,
    /// Events that failed.
    pub failed: u64,
}

impl Producer {
    /// Takes an event and returns a future of its receipt, whose `offset` is this event's and `count` 1.
    /// Waits while too many bytes are unanswered.
    ///
    /// # Errors
    /// `Invalid` (too large, over a limit), `Closed`, and what has ended the producer.
    pub async fn send(&self, _event: Event) -> Result<Pending, Error> {
        Err(Error::Closed)
    }

    /// Takes an event without a future of its own, for bulk: the cheapest way. A failure shows at `flush`.
    pub async fn push(&self, _event: Event) -> Result<(), Error> {
        Err(Error::Closed)
    }

    /// Sends all that is waiting and waits until everything taken before is answered.
    ///
    /// Returns how many events were answered since the producer was opened.
    ///
    /// # Errors
    /// The first failure since the last flush.
    pub async fn flush(&self) -> Result<Published, Error> {
        Err(Error::Closed)
    }

    /// Flushes and ends the producer; `send` and `push` of its clones fail from now on.
    pub async fn close(&self) -> Result<Published, Error> {
        Err(Error::Closed)
    }
}

/// The receipt of one event, when it comes.
pub struct Pending(());

impl Future for Pending {
    type Output = Result<Receipt, Error>;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err(Error::Closed))
    }
}
