//! Publish streams: packed batches pass through, single events are packed with what else waits; answers are
//! gathered into one message per wake-up.

use futures::future::BoxFuture;
use futures::{FutureExt, Stream as Frames, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;
use tonic::{Status, Streaming};
use weft_batch::BATCH_BYTES_MAX;
use weft_cluster::caller::Caller;
use weft_cluster::ids::{PartitionId, TopicId};
use weft_proto::internal::v1::TopicRecord;
use weft_proto::v1::{
    Ack, Error, ErrorCode, PublishAnswer, PublishBatch, PublishEvents, PublishOpen, PublishStreamRequest,
    PublishStreamResponse, Receipt, publish_answer, publish_stream_request,
};

use super::packing::{Packed, Packing};
use super::publish::each;
use super::room::Taken;
use super::{Events, first_frame, named};
use crate::drivers::forward::Publisher;
use crate::wire::{self, checks};

/// Batches of one partition under way, before single events wait to be packed together.
const PACKED_UNDER_WAY_MAX: usize = 2;
/// Frames read before what they ask for is sent out.
const FRAMES_PER_TURN: usize = 64;
/// Answers in one message.
const ANSWERS_MAX: usize = 4096;

type Frame = publish_stream_request::Frame;
type Responses = Sender<Result<PublishStreamResponse, Status>>;

/// Serves one publish stream until the client ends it and all is answered.
pub(super) async fn serve(
    events: &Events,
    caller: Caller,
    mut requests: Streaming<PublishStreamRequest>,
    responses: &Responses,
) -> Result<(), Status> {
    let Some(first) = first_frame(&mut requests).await? else { return Ok(()) };
    let Some(Frame::Open(open)) = first.frame else {
        return Err(invalid("the first frame of a publish stream is `open`"));
    };
    let mut stream = Stream::open(events, caller, open).await.map_err(wire::status)?;
    let (mut reading, mut leaving) = (true, false);
    let mut waiting: Option<(Frame, BoxFuture<'static, OwnedSemaphorePermit>)> = None;
    loop {
        stream.dispatch();
        if !stream.respond(responses).await {
            return Ok(());
        }
        if !reading && waiting.is_none() && stream.is_idle() {
            return if leaving { Err(events.leaving()) } else { Ok(()) };
        }
        let may_read = reading && waiting.is_none() && stream.taken.bytes() < stream.bytes_max;
        tokio::select! {
            biased;
            answers = stream.publisher.answers() => stream.answered(answers),
            permit = async { waiting.as_mut().expect("checked below").1.as_mut().await }, if waiting.is_some() => {
                let (frame, _) = waiting.take().expect("it was just polled");
                stream.taken.add(permit);
                stream.take(frame)?;
            }
            message = requests.message(), if may_read => {
                reading = read_turn(message, &mut requests, |message| {
                    waiting = stream.admit(message)?;
                    Ok(waiting.is_none() && stream.taken.bytes() < stream.bytes_max)
                })?;
            }
            () = responses.closed() => return Ok(()),
            // What was read is answered, the rest is for another node.
            () = events.inner.stop.cancelled(), if reading => (reading, leaving) = (false, true),
        }
    }
}

/// Hands the first message and what else has arrived to `take`, while it says that it takes more, up to
/// [`FRAMES_PER_TURN`]. Nothing is read that is not handed over. False at the stream's end.
fn read_turn<T>(
    first: Result<Option<T>, Status>,
    requests: &mut (impl Frames<Item = Result<T, Status>> + Unpin),
    mut take: impl FnMut(T) -> Result<bool, Status>,
) -> Result<bool, Status> {
    let mut next = first;
    for turn in 1.. {
        let Some(message) = next? else { return Ok(false) };
        if !take(message)? || turn == FRAMES_PER_TURN {
            break;
        }
        let Some(ready) = requests.next().now_or_never() else { break };
        next = ready.transpose();
    }
    Ok(true)
}

fn invalid(message: &str) -> Status {
    wire::status(wire::error(ErrorCode::InvalidArgument, message))
}

/// What an answer of the publisher is for, and the room that it gives back.
struct Asked {
    ids: Ids,
    bytes: usize,
}

enum Ids {
    Batch(u64),
    Events(Vec<Name>),
}

/// A single event: its request id, and the room that it has taken.
struct Name {
    id: u64,
    bytes: usize,
}

struct Stream<'a> {
    events: &'a Events,
    topic: TopicRecord,
    ack: Ack,
    publisher: Publisher<Asked>,
    packing: Packing<Name>,
    taken: Taken,
    bytes_max: usize,
    answers: Vec<PublishAnswer>,
}

impl<'a> Stream<'a> {
    async fn open(events: &'a Events, caller: Caller, open: PublishOpen) -> Result<Stream<'a>, Error> {
        let ack = checks::ack(open.ack)?;
        let topic = events.topic(&open.namespace, &open.topic).await?;
        let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let config = &events.inner.config;
        Ok(Stream {
            events,
            ack,
            publisher: events.inner.forward.publisher(caller),
            packing: Packing::new(topic.clone(), bytes(config.batch_bytes_max), 0),
            taken: events.inner.room.taken(),
            bytes_max: bytes(config.stream_bytes_max),
            answers: Vec::new(),
            topic,
        })
    }

    fn is_idle(&self) -> bool {
        self.publisher.is_idle() && self.answers.is_empty() && self.packing.partitions().is_empty()
    }

    /// Takes a frame if there is room for it; else returns it with the wait for room.
    fn admit(
        &mut self,
        message: PublishStreamRequest,
    ) -> Result<Option<(Frame, BoxFuture<'static, OwnedSemaphorePermit>)>, Status> {
        let frame = message.frame.ok_or_else(|| invalid("a frame of the publish stream is empty"))?;
        let bytes = match &frame {
            Frame::Open(_) => return Err(invalid("`open` comes once")),
            Frame::Batch(batch) => batch.packed.len(),
            Frame::Events(frame) => frame.events.iter().map(prost::Message::encoded_len).sum(),
        };
        if self.taken.try_take(bytes) {
            self.take(frame)?;
            return Ok(None);
        }
        self.events.inner.metrics.publish_waits.inc();
        let room = self.events.inner.room.clone();
        Ok(Some((frame, room.wait(bytes).boxed())))
    }

    fn take(&mut self, frame: Frame) -> Result<(), Status> {
        match frame {
            Frame::Batch(batch) => self.take_batch(batch),
            Frame::Events(frame) => self.take_events(frame)?,
            Frame::Open(_) => return Err(invalid("`open` comes once")),
        }
        Ok(())
    }

    fn take_batch(&mut self, batch: PublishBatch) {
        let bytes = batch.packed.len();
        if let Err(error) = self.check(&batch) {
            self.taken.give(bytes);
            self.answer(batch.request_id, Err(error));
            return;
        }
        let partition = PartitionId { topic: TopicId(self.topic.id), index: batch.partition };
        // What came before goes before.
        self.send_packed(partition);
        let asked = Asked { ids: Ids::Batch(batch.request_id), bytes };
        let deadline = self.events.inner.forward.publish_deadline();
        self.publisher.push(partition, batch.packed, self.ack, deadline, asked);
    }

    /// The owner checks the batch itself; here only what decides where it goes.
    fn check(&self, batch: &PublishBatch) -> Result<(), Error> {
        let (partitions, bytes) = (self.topic.partitions, batch.packed.len());
        if batch.partition >= partitions {
            let message = format!("the topic has {partitions} partitions, there is no {}", batch.partition);
            return Err(wire::error(ErrorCode::UnknownPartition, message));
        }
        if bytes > BATCH_BYTES_MAX {
            let message = format!("a batch of {bytes} bytes, at most {BATCH_BYTES_MAX}");
            return Err(wire::over(ErrorCode::TooLarge, "batch_bytes_max", BATCH_BYTES_MAX as u64, message));
        }
        Ok(())
    }

    fn take_events(&mut self, frame: PublishEvents) -> Result<(), Status> {
        let now = self.events.inner.host.wall();
        for (place, event) in frame.events.iter().enumerate() {
            let id = frame.first_request_id.checked_add(place as u64);
            let id = id.ok_or_else(|| invalid("the request ids run over"))?;
            let name = Name { id, bytes: prost::Message::encoded_len(event) };
            match self.packing.push(event, now, name) {
                Ok(Some(full)) => self.push(full),
                Ok(None) => {}
                Err((name, error)) => {
                    self.taken.give(name.bytes);
                    self.answer(name.id, Err(error));
                }
            }
        }
        Ok(())
    }

    /// Sends what is packed, unless enough of its partition is under way: then more may join it.
    fn dispatch(&mut self) {
        for partition in self.packing.partitions() {
            if self.publisher.waiting(partition) < PACKED_UNDER_WAY_MAX {
                self.send_packed(partition);
            }
        }
    }

    fn send_packed(&mut self, partition: PartitionId) {
        if let Some(packed) = self.packing.take(partition.index) {
            self.push(packed);
        }
    }

    fn push(&mut self, packed: Packed<Name>) {
        let bytes = packed.names.iter().map(|name| name.bytes).sum();
        let asked = Asked { ids: Ids::Events(packed.names), bytes };
        let deadline = self.events.inner.forward.publish_deadline();
        self.publisher.push(packed.partition, packed.batch, self.ack, deadline, asked);
    }

    fn answered(&mut self, answers: Vec<(Asked, Result<Receipt, Error>)>) {
        for (asked, outcome) in answers {
            self.taken.give(asked.bytes);
            match asked.ids {
                Ids::Batch(id) => self.answer(id, outcome),
                Ids::Events(names) => {
                    for (place, name) in names.into_iter().enumerate() {
                        self.answer(name.id, each(&outcome, place));
                    }
                }
            }
        }
    }

    fn answer(&mut self, request_id: u64, outcome: Result<Receipt, Error>) {
        let metrics = &self.events.inner.metrics;
        let result = match outcome {
            Ok(receipt) => {
                metrics.receipts.inc();
                publish_answer::Result::Receipt(receipt)
            }
            Err(error) => {
                metrics.errors.inc();
                publish_answer::Result::Error(named(error, &self.topic.name))
            }
        };
        self.answers.push(PublishAnswer { request_id, result: Some(result) });
    }

    /// Sends the answers that there are. False when the client has gone.
    async fn respond(&mut self, responses: &Responses) -> bool {
        while !self.answers.is_empty() {
            let rest = self.answers.split_off(self.answers.len().min(ANSWERS_MAX));
            let answers = std::mem::replace(&mut self.answers, rest);
            if responses.send(Ok(PublishStreamResponse { answers })).await.is_err() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_that_is_read_is_taken() {
        let frames = FRAMES_PER_TURN * 2 + 3;
        let mut requests = futures::stream::iter((0..frames).map(Ok));
        let mut taken = Vec::new();
        let mut turns = 0;
        loop {
            turns += 1;
            let first = requests.next().now_or_never().expect("an iterator is ready").transpose();
            let more = read_turn(first, &mut requests, |frame| {
                taken.push(frame);
                Ok(frame != 10)
            });
            if !more.expect("no frame is an error") {
                break;
            }
        }
        assert_eq!(taken, (0..frames).collect::<Vec<_>>());
        assert_eq!(turns, 3, "0..=10, then FRAMES_PER_TURN, and the rest with the end");
    }
}
