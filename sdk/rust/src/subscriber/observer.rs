//! Observers: packed batches as they are stored, decoded when asked, and resumed where they were.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{SelectAll, Stream};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use weft_batch::Batch;
use weft_proto::v1::events_client::EventsClient;
use weft_proto::v1::subscribe_request::Frame as Request;
use weft_proto::v1::subscribe_response::Frame;
use weft_proto::v1::{Event, PackedFrame, StartAt, SubscribeOpen, SubscribeRequest, SubscribeResponse, Topic};

use super::SubscriberBuilder;
use crate::client::{Client, MESSAGE_BYTES_MAX};
use crate::error::{Error, ErrorCode, Retry};
use crate::keeper::Connection;

/// Bytes in flight unless said otherwise.
const CREDIT_BYTES: u64 = 4 << 20;
/// How long a subscription is tried at all nodes before it fails.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one node may take to answer a subscription.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// Sees every event of a topic; acks nothing. After a failure it goes on at another node where it was.
pub struct Observer {
    client: Client,
    topic: Topic,
    template: SubscribeOpen,
    feeds: SelectAll<Feed>,
    /// Per feed number: what is needed to go on.
    open: BTreeMap<u64, FeedState>,
    /// Feeds to be opened, and not before when. Kept here, so that a `next` that is dropped half-way forgets none.
    reopen: VecDeque<SubscribeOpen>,
    rest_until: Option<Instant>,
    next_feed: u64,
    /// The next offset of each partition.
    positions: BTreeMap<u32, u64>,
    /// Where each partition ended when it opened, as far as known.
    ended: BTreeMap<u32, u64>,
    current: Option<Current>,
    tries: u32,
}

struct FeedState {
    /// `None`: all partitions.
    partition: Option<u32>,
    connection: Connection,
    requests: mpsc::Sender<SubscribeRequest>,
    /// Credit used and not yet given back.
    used: u64,
}

type Item = (u64, Result<SubscribeResponse, tonic::Status>);
type Feed = std::pin::Pin<Box<dyn Stream<Item = Item> + Send>>;

struct Current {
    partition: u32,
    epoch: u64,
    base: u64,
    records: std::vec::IntoIter<(u32, Bytes)>,
}

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
    ///
    /// # Errors
    /// `Corrupt` if the record is no event.
    pub fn event(&self) -> Result<Event, Error> {
        Event::decode(self.record.clone()).map_err(|error| corrupt(format!("offset {}: {error}", self.offset)))
    }
}

/// A stored batch that an observer sees: the cheapest way to read in bulk.
#[derive(Clone, Debug)]
pub struct ObservedBatch {
    /// The partition.
    pub partition: u32,
    /// Events below this offset are to be skipped: they were asked for by nobody, or seen before.
    pub from_offset: u64,
    /// The batch; its header says the offset of its first event.
    pub batch: Batch,
}

impl Observer {
    pub(super) async fn open(builder: SubscriberBuilder) -> Result<Observer, Error> {
        let credit = builder.credit.unwrap_or(CREDIT_BYTES);
        let template = SubscribeOpen { credit, ..builder.frame() };
        let now = matches!(template.start(), StartAt::Now | StartAt::Unspecified);
        let (topic, ends) = places(&builder, now.then_some(template.partition)).await?;
        let mut observer = Observer {
            client: builder.client,
            topic,
            positions: if now { ends.clone() } else { BTreeMap::new() },
            ended: ends,
            template: template.clone(),
            feeds: SelectAll::new(),
            open: BTreeMap::new(),
            reopen: VecDeque::new(),
            rest_until: None,
            next_feed: 0,
            current: None,
            tries: 0,
        };
        observer.subscribe(template).await?;
        Ok(observer)
    }

    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Where the topic's partitions ended when this opened, as far as their owners answered: the offset of the next event
    /// of each.
    pub fn ended(&self) -> &BTreeMap<u32, u64> {
        &self.ended
    }

    /// With `until_end`: the offset at which a partition is over, as far as known.
    fn last(&self, partition: u32) -> Option<u64> {
        self.ended.get(&partition).copied().filter(|_| self.template.until_end)
    }

    /// The next event; `None` at the end (with `until_end`). The future may be dropped at any time: nothing is skipped.
    ///
    /// # Errors
    /// What cannot be healed by another node: `UnknownTopic`, `OffsetTrimmed`, `Corrupt` records.
    pub async fn next(&mut self) -> Result<Option<Observed>, Error> {
        loop {
            if let Some(current) = &mut self.current
                && let Some((index, record)) = current.records.next()
            {
                let offset = current.base + u64::from(index);
                return Ok(Some(Observed { partition: current.partition, offset, epoch: current.epoch, record }));
            }
            let Some(batch) = self.next_batch().await? else { return Ok(None) };
            let header = *batch.batch.header();
            let end = self.last(batch.partition).unwrap_or(u64::MAX);
            let wanted = batch.from_offset..end;
            let records: Vec<(u32, Bytes)> = batch
                .batch
                .records()
                .filter(|(index, _)| wanted.contains(&(header.base_offset + u64::from(*index))))
                .collect();
            let (base, epoch) = (header.base_offset, header.term);
            self.current = Some(Current { partition: batch.partition, epoch, base, records: records.into_iter() });
        }
    }

    /// The next stored batch; `None` at the end (with `until_end`). Do not mix with a half-read `next`.
    ///
    /// # Errors
    /// As of [`Observer::next`].
    pub async fn next_batch(&mut self) -> Result<Option<ObservedBatch>, Error> {
        loop {
            self.go_on().await?;
            let Some((feed, response)) = self.feeds.next().await else {
                if self.open.is_empty() {
                    return Ok(None);
                }
                // Streams that ended without a word.
                let lost: Vec<u64> = self.open.keys().copied().collect();
                for feed in lost {
                    self.resume(feed, Error::Lost("the node ended the subscription".into()))?;
                }
                continue;
            };
            let outcome = match response.map(|response| response.frame) {
                Ok(Some(Frame::Packed(packed))) => self.received(feed, packed),
                Ok(Some(Frame::End(_))) => {
                    self.open.remove(&feed);
                    Ok(None)
                }
                Ok(_) => Ok(None),
                Err(status) => Err(Error::from(status)),
            };
            match outcome {
                Ok(Some(batch)) => return Ok(Some(batch)),
                Ok(None) => {}
                Err(error) => self.resume(feed, error)?,
            }
        }
    }

    /// Checks a batch, moves the position and gives credit back.
    fn received(&mut self, feed: u64, frame: PackedFrame) -> Result<Option<ObservedBatch>, Error> {
        let Some(state) = self.open.get_mut(&feed) else { return Ok(None) };
        state.used += frame.packed.len() as u64;
        if state.used >= self.template.credit / 4
            && state.requests.try_send(request(Request::Credit(state.used))).is_ok()
        {
            state.used = 0;
        }
        let batch = Batch::parse(frame.packed).map_err(|error| corrupt(error.to_string()))?;
        batch.check_body().map_err(|error| corrupt(error.to_string()))?;
        self.tries = 0;
        let position = self.positions.entry(frame.partition).or_insert(frame.from_offset);
        let from_offset = frame.from_offset.max(*position);
        let end = batch.header().end_offset();
        if end <= from_offset {
            return Ok(None);
        }
        *position = end;
        Ok(Some(ObservedBatch { partition: frame.partition, from_offset, batch }))
    }

    /// Plans to go on where a lost feed was, one feed for each partition, because each is at another offset.
    fn resume(&mut self, feed: u64, error: Error) -> Result<(), Error> {
        let Some(state) = self.open.remove(&feed) else { return Ok(()) };
        if error.retry() == Retry::Never {
            return Err(error);
        }
        tracing::debug!(%error, "an observer goes on elsewhere");
        self.client.doubt(&state.connection, &error);
        self.rest_until = Some(Instant::now() + self.client.backoff(self.tries));
        self.tries = self.tries.saturating_add(1);
        let partitions = match state.partition {
            Some(partition) => partition..partition + 1,
            None => 0..self.topic.partitions,
        };
        for partition in partitions {
            let position = self.positions.get(&partition).copied();
            if self.last(partition).is_some_and(|end| position.unwrap_or(0) >= end) {
                continue;
            }
            let mut open = SubscribeOpen { partition: Some(partition), ..self.template.clone() };
            if let Some(position) = position {
                open.start = StartAt::Offset.into();
                open.offset = position;
            }
            self.reopen.push_back(open);
        }
        Ok(())
    }

    /// Opens the feeds that `resume` planned. One leaves the plan only once it is open.
    async fn go_on(&mut self) -> Result<(), Error> {
        if let Some(until) = self.rest_until {
            tokio::time::sleep_until(until).await;
            self.rest_until = None;
        }
        while let Some(open) = self.reopen.front().cloned() {
            self.subscribe(open).await?;
            self.reopen.pop_front();
        }
        Ok(())
    }

    /// Opens a feed at the present node, or the next.
    async fn subscribe(&mut self, open: SubscribeOpen) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut tries = 0;
        loop {
            let connection = self.client.connection(deadline).await?;
            let error = match self.subscribe_at(&connection, open.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.client.doubt(&connection, &error);
            let pause = self.client.backoff(tries);
            if error.retry() == Retry::Never || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }

    async fn subscribe_at(&mut self, connection: &Connection, open: SubscribeOpen) -> Result<(), Error> {
        let partition = open.partition;
        let (requests, frames) = mpsc::channel(16);
        let first = requests.try_send(request(Request::Open(open)));
        debug_assert!(first.is_ok(), "the channel is new and empty");
        let mut events = EventsClient::new(connection.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opening = async {
            let mut responses = events.subscribe(ReceiverStream::new(frames)).await?.into_inner();
            // The first frame is `opened`, or the reason why not.
            match responses.message().await? {
                Some(_) => Ok(responses),
                None => Err(tonic::Status::unavailable("the node ended the subscription")),
            }
        };
        let opened = tokio::time::timeout(OPEN_PATIENCE, opening).await;
        let responses = opened.map_err(|_| Error::Lost(format!("{}: no answer", connection.address).into()))??;
        let number = self.next_feed;
        self.next_feed += 1;
        let ended = (number, Err(tonic::Status::unavailable("the node ended the subscription")));
        let feed = responses.map(move |response| (number, response)).chain(futures::stream::iter([ended]));
        self.feeds.push(Box::pin(feed));
        let connection = connection.clone();
        self.open.insert(number, FeedState { partition, connection, requests, used: 0 });
        Ok(())
    }
}

/// The topic, and where its partitions end, as far as known.
///
/// `pinned`: the end of this partition (`None`: of all) must be known. An observer from now on that loses its node
/// before the first event could not tell where it was. While a partition has no owner, nobody knows its end.
async fn places(
    builder: &SubscriberBuilder,
    pinned: Option<Option<u32>>,
) -> Result<(Topic, BTreeMap<u32, u64>), Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut tries = 0;
    loop {
        let described = builder.client.topics().describe(&builder.topic).await?;
        let topic = described.topic.ok_or_else(|| Error::unknown("the node sent a description without a topic"))?;
        let ends: BTreeMap<u32, u64> =
            described.partitions.iter().filter_map(|place| Some((place.partition, place.end_offset?))).collect();
        let missing = (0..topic.partitions).find(|index| {
            pinned.is_some_and(|only| only.is_none_or(|only| only == *index)) && !ends.contains_key(index)
        });
        let Some(missing) = missing else { return Ok((topic, ends)) };
        let pause = builder.client.backoff(tries);
        if Instant::now() + pause >= deadline {
            let message = format!("partition {missing} of topic {} has no owner that says where it ends", topic.name);
            return Err(Error::Refused {
                code: ErrorCode::NoOwner,
                message: message.into(),
                retry: Retry::Same,
                owner: 0,
            });
        }
        tokio::time::sleep(pause).await;
        tries += 1;
    }
}

fn request(frame: Request) -> SubscribeRequest {
    SubscribeRequest { frame: Some(frame) }
}

fn corrupt(message: String) -> Error {
    Error::Refused { code: ErrorCode::Corrupt, message: message.into(), retry: Retry::Same, owner: 0 }
}
