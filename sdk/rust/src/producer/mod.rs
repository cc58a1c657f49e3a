//! The producer: packs events into batches per partition, pipelines them, and sends them again through
//! failovers, so that each is stored once and in order.

mod lane;
mod sender;
mod state;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, oneshot};
use weft_proto::v1::events_client::EventsClient;
use weft_proto::v1::{Ack, Event, OpenProducerRequest, Receipt, Topic};

use self::lane::{Identity, Reply};
use self::state::{Finished, State};
use crate::client::{Client, Clock};
use crate::error::Error;

/// Settings of a producer; made by [`Client::producer`].
#[derive(Clone)]
pub struct ProducerBuilder {
    client: Client,
    topic: String,
    settings: Settings,
}

#[derive(Clone)]
pub(crate) struct Settings {
    name: String,
    ack: Ack,
    linger: Duration,
    batch_bytes: usize,
    in_flight_bytes_max: usize,
    patience: Duration,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> ProducerBuilder {
        let settings = Settings {
            name: String::new(),
            ack: Ack::Committed,
            linger: Duration::from_millis(20),
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

    /// How long an event may wait for company while an earlier batch of its partition is unanswered; an event of
    /// a partition with nothing unanswered is sent at once. Default 20 ms.
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
        self.settings.in_flight_bytes_max = bytes.max(1);
        self
    }

    /// How long a batch is tried before its events fail. Default 2 minutes. Those that may be stored fail with
    /// `OUTCOME_UNKNOWN`, see [`Producer`].
    pub fn patience(mut self, patience: Duration) -> Self {
        self.settings.patience = patience;
        self
    }

    /// Asks for the topic and a producer id, and starts.
    ///
    /// # Errors
    /// `UnknownTopic`, and those of any request.
    pub async fn open(self) -> Result<Producer, Error> {
        let described = self.client.topics().describe(&self.topic).await?;
        let topic = described.topic.ok_or_else(|| Error::unknown("the node sent a description without a topic"))?;
        if topic.partitions == 0 {
            return Err(Error::unknown("the node sent a topic without partitions"));
        }
        let identity = open_identity(&self.client, &self.settings.name).await?;
        let dice = StdRng::seed_from_u64(self.client.roll());
        let (keyless, event_bytes) = (self.client.roll(), topic.event_bytes_max as usize);
        let state = State::new(topic.partitions, event_bytes, identity, keyless, dice, self.settings.clone());
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            room: Notify::new(),
            work: Notify::new(),
            progress: Notify::new(),
            clock: self.client.clock(),
            topic,
        });
        tokio::spawn(sender::run(self.client, shared.clone(), self.settings));
        Ok(Producer { owner: Arc::new(Owner(shared)) })
    }
}

/// Asks for a producer's id and session.
async fn open_identity(client: &Client, name: &str) -> Result<Identity, Error> {
    let request = OpenProducerRequest { name: name.to_owned() };
    let opened = client
        .request("open a producer", request, |channel, request| async move {
            EventsClient::new(channel).open_producer(request).await
        })
        .await?;
    Ok(Identity { id: opened.producer_id, epoch: opened.producer_epoch })
}

/// Publishes events to one topic. Cheap to clone; all clones share batches and order.
///
/// Events of one partition (so of one key) are stored in the order in which `send` and `push` took them,
/// each once, through retries and failovers, as long as the process lives.
///
/// An event is sent again only under its first number, which is stored once. If that cannot go on (it was tried for
/// longer than [`ProducerBuilder::patience`], or the cluster has forgotten the producer), each event that may or may
/// not be stored fails with `OUTCOME_UNKNOWN`: sending it again may store it twice. What is certainly not stored goes
/// on under a new producer id; a producer with a name ends.
///
/// Dropping the last clone lets what
/// was taken go out, but nobody learns whether it did: call [`Producer::close`].
#[derive(Clone)]
pub struct Producer {
    owner: Arc<Owner>,
}

/// Ends the sender when the last clone of the producer is gone.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().closing = true;
        self.0.work.notify_one();
    }
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Bytes were freed.
    room: Notify,
    /// The sender has something to look at.
    work: Notify,
    /// Batches were answered.
    progress: Notify,
    clock: Clock,
    topic: Topic,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the producer's state")
    }

    /// Tells events and waiters what came of their batches.
    fn tell(&self, finished: Finished) {
        for (batch, result) in finished {
            batch.answer(result);
        }
        self.room.notify_waiters();
        self.progress.notify_waiters();
    }
}

/// What was answered so far, as [`Producer::flush`] returns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Events answered with a receipt.
    pub events: u64,
    /// Events that failed and are not stored.
    pub failed: u64,
    /// Events that failed with `OUTCOME_UNKNOWN`: they may or may not be stored.
    pub unknown: u64,
}

impl Producer {
    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.owner.0.topic
    }

    /// Takes an event and returns a future of its receipt. Waits while too many bytes are unanswered.
    ///
    /// # Errors
    /// `TooLarge`, `Invalid` (over a limit), `Closed`, and what has ended the producer.
    pub async fn send(&self, event: Event) -> Result<Pending, Error> {
        let (reply, receipt) = oneshot::channel();
        self.take(event, Some(reply)).await?;
        Ok(Pending(receipt))
    }

    /// Takes an event without a future of its own, for bulk: the cheapest way. A failure shows at `flush`.
    ///
    /// # Errors
    /// As of [`Producer::send`].
    pub async fn push(&self, event: Event) -> Result<(), Error> {
        self.take(event, None).await
    }

    async fn take(&self, event: Event, reply: Option<Reply>) -> Result<(), Error> {
        let shared = &self.owner.0;
        loop {
            let room = shared.room.notified();
            tokio::pin!(room);
            {
                let mut state = shared.lock();
                if state.has_room() || state.ended.is_some() {
                    if state.push(&event, reply, (shared.clock)())? {
                        shared.work.notify_one();
                    }
                    return Ok(());
                }
                // Under the lock, so that no answer is missed between the look and the wait.
                room.as_mut().enable();
            }
            room.await;
        }
    }

    /// The first failure since the last flush, as far as is known by now: who pushes without an end need not flush to
    /// learn that it is in vain.
    pub fn failure(&self) -> Option<Error> {
        self.owner.0.lock().failure()
    }

    /// Resolves when the producer has ended by itself, with why: its topic was deleted, another of its name has taken
    /// over, its client is closed. It takes no event any more.
    pub async fn ended(&self) -> Error {
        let shared = &self.owner.0;
        loop {
            let progress = shared.progress.notified();
            tokio::pin!(progress);
            {
                let state = shared.lock();
                if let Some(error) = &state.ended {
                    return error.clone();
                }
                progress.as_mut().enable();
            }
            progress.await;
        }
    }

    /// What was answered since the producer was opened.
    pub fn published(&self) -> Published {
        self.owner.0.lock().counts()
    }

    /// Why events are tried again and again at present, if they are: for who wants to tell a person. `DiskFull`, for
    /// one, may last until somebody makes room.
    pub fn waits_for(&self) -> Option<Error> {
        self.owner.0.lock().waits_for()
    }

    /// Sends all that is waiting and waits until everything taken before is answered.
    ///
    /// Returns how many events were answered since the producer was opened.
    ///
    /// # Errors
    /// The first failure since the last flush.
    pub async fn flush(&self) -> Result<Published, Error> {
        let shared = &self.owner.0;
        let generation = shared.lock().seal_all();
        shared.work.notify_one();
        loop {
            let progress = shared.progress.notified();
            tokio::pin!(progress);
            {
                let mut state = shared.lock();
                if state.answered(generation) {
                    return state.report();
                }
                progress.as_mut().enable();
            }
            progress.await;
        }
    }

    /// Flushes and ends the producer; `send` and `push` of its clones fail from now on.
    ///
    /// # Errors
    /// As of [`Producer::flush`].
    pub async fn close(&self) -> Result<Published, Error> {
        self.owner.0.lock().closing = true;
        self.flush().await
    }
}

/// The receipt of one event, when it comes.
pub struct Pending(oneshot::Receiver<Result<EventReceipt, Error>>);

impl Future for Pending {
    type Output = Result<EventReceipt, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The sender drops a reply only with the whole producer.
        Pin::new(&mut self.0).poll(context).map(|told| told.unwrap_or(Err(Error::Closed)))
    }
}

/// Where one event is, and the receipt of the batch that it came with.
#[derive(Clone, Debug, PartialEq)]
pub struct EventReceipt {
    /// The partition.
    pub partition: u32,
    /// The event's place there; `None` if it was only accepted.
    pub offset: Option<u64>,
    /// The epoch of the owner that committed it.
    pub epoch: u64,
    /// The batch's receipt: the nodes and zones that had it fsynced, and whether it was stored before.
    pub batch: Arc<Receipt>,
}

impl EventReceipt {
    fn new(batch: &Arc<Receipt>, index: u32) -> EventReceipt {
        EventReceipt {
            partition: batch.partition,
            offset: batch.offset.map(|first| first + u64::from(index)),
            epoch: batch.epoch,
            batch: batch.clone(),
        }
    }
}
