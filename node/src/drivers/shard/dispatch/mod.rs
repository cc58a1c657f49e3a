//! Consumers of groups: one task per group of a topic on this shard runs the dispatcher for one epoch; each
//! consumer's deliver stream joins it.

mod events;
mod group;
mod round;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use weft_cluster::delivery::{ConsumerId, OffsetRange};
use weft_cluster::ids::{Epoch, GroupId, PartitionId, TopicId};
use weft_proto::internal::v1::{DeliverOpen, DeliverRequest, DeliverResponse, deliver_request, deliver_response};
use weft_proto::v1::{self, AckAnswer, AckRefusal, DeliveryFrame, EpochFrame, Error, ErrorCode, Retry};

use super::refusal;
use super::seat::Seat;

/// Delivery frames that wait for one consumer. Its credit keeps it below; one that is not read is cut off.
const FRAMES_WAITING_MAX: usize = 4096;
/// Acks of one consumer that wait for their commit; more are read when those are answered.
const ACKS_WAITING_MAX: usize = 1024;
/// Inputs of all consumers that wait for the group's task.
const INPUTS_WAITING_MAX: usize = 1024;
/// How long a join waits for a group that the registry has and the shard does not have yet.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
const JOIN_PAUSE: Duration = Duration::from_millis(5);

/// The group tasks of a shard.
#[derive(Default)]
pub(super) struct Dispatchers {
    running: Mutex<BTreeMap<(TopicId, GroupId), Handle>>,
    consumers: AtomicU64,
    /// Tasks started so far: a term has one leader in one life of its process, so they tell those of an epoch apart.
    started: AtomicU32,
}

#[derive(Clone)]
struct Handle {
    epoch: Epoch,
    inputs: mpsc::Sender<Message>,
}

/// From a consumer's stream to its group's task.
enum Message {
    Join { consumer: ConsumerId, credit: u64, frames: mpsc::Sender<DeliveryFrame> },
    Leave { consumer: ConsumerId, lost: bool },
    Credit { consumer: ConsumerId, events: u64 },
    Ack { consumer: ConsumerId, ranges: Vec<OffsetRange>, reply: oneshot::Sender<Vec<AckRefusal>> },
    Nack { consumer: ConsumerId, ranges: Vec<OffsetRange>, delay: Duration },
    Extend { consumer: ConsumerId, ranges: Vec<OffsetRange> },
}

/// A consumer's place in its group. Dropped, in whatever way its stream ends, it gives back what is in flight there.
struct Membership {
    seat: Arc<Seat>,
    consumer: ConsumerId,
    inputs: mpsc::Sender<Message>,
    left: bool,
}

impl Membership {
    /// Passes a request on; the acks before a leave come before it. False if the group's task has let go.
    async fn send(&mut self, message: Message) -> bool {
        self.left |= matches!(message, Message::Leave { .. });
        self.inputs.send(message).await.is_ok()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let leave = Message::Leave { consumer: self.consumer, lost: true };
        // A task that has ended has forgotten the consumer already.
        if let Err(mpsc::error::TrySendError::Full(leave)) = self.inputs.try_send(leave) {
            let inputs = self.inputs.clone();
            self.seat.commons.tasks.spawn("leave a group", async move { drop(inputs.send(leave).await) });
        }
    }
}

/// Serves a consumer of a group. `Ok` when the consumer is gone; `Err` is why this side ends it.
pub(super) async fn serve(
    seat: Arc<Seat>,
    open: DeliverOpen,
    mut requests: Receiver<DeliverRequest>,
    responses: &Sender<DeliverResponse>,
) -> Result<(), Error> {
    let (topic, group) = (TopicId(open.topic), GroupId(open.group));
    let epoch = await_group(&seat, &open, topic, group).await?;
    let consumer = ConsumerId(seat.dispatchers.consumers.fetch_add(1, Ordering::Relaxed));
    let (frames_in, mut frames) = mpsc::channel(FRAMES_WAITING_MAX);
    let join = Message::Join { consumer, credit: open.credit, frames: frames_in };
    let inputs = join_group(&seat, topic, group, epoch, join).await?;
    let mut membership = Membership { seat: seat.clone(), consumer, inputs, left: false };
    for partition in &open.partitions {
        let frame = EpochFrame { partition: *partition, epoch: epoch.0 };
        if !send(responses, deliver_response::Frame::Epoch(frame)).await {
            return Ok(());
        }
    }
    let mut acks: FuturesUnordered<BoxFuture<'static, AckAnswer>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(answer) = acks.next(), if !acks.is_empty() => {
                if !send(responses, deliver_response::Frame::Ack(answer)).await {
                    return Ok(());
                }
            }
            frame = frames.recv(), if !membership.left => match frame {
                Some(frame) => {
                    if !send(responses, deliver_response::Frame::Deliveries(frame)).await {
                        return Ok(());
                    }
                }
                None => return Err(cut_off(&seat, epoch)),
            },
            request = requests.recv(), if acks.len() < ACKS_WAITING_MAX => {
                let Some(request) = request else { return Ok(()) };
                let Some(message) = message(consumer, request, &acks) else { continue };
                if !membership.send(message).await {
                    return Err(cut_off(&seat, epoch));
                }
            }
        }
        if membership.left && acks.is_empty() {
            return Ok(());
        }
    }
}

async fn send(responses: &Sender<DeliverResponse>, frame: deliver_response::Frame) -> bool {
    responses.send(DeliverResponse { frame: Some(frame) }).await.is_ok()
}

/// Waits until the shard has the group on all of these partitions, and returns the epoch.
async fn await_group(seat: &Seat, open: &DeliverOpen, topic: TopicId, group: GroupId) -> Result<Epoch, Error> {
    let has = || {
        let replica = seat.replica();
        open.partitions.iter().all(|index| {
            let partition = replica.state.partition(PartitionId { topic, index: *index });
            partition.is_some_and(|partition| partition.group(group).is_some())
        })
    };
    let until = tokio::time::Instant::now() + JOIN_PATIENCE;
    loop {
        let epoch = seat.acting()?.epoch;
        if has() {
            return Ok(epoch);
        }
        if tokio::time::Instant::now() > until {
            return Err(refusal::refusal(ErrorCode::NotReady, Retry::Same, "the shard does not know the group yet"));
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}

/// Joins the group's task of this epoch, which is started if it does not run.
async fn join_group(
    seat: &Arc<Seat>,
    topic: TopicId,
    group: GroupId,
    epoch: Epoch,
    join: Message,
) -> Result<mpsc::Sender<Message>, Error> {
    let mut join = join;
    // A task that ends at this moment is replaced by the second try.
    for _ in 0..3 {
        let handle = handle(seat, topic, group, epoch);
        match handle.inputs.send(join).await {
            Ok(()) => return Ok(handle.inputs),
            Err(mpsc::error::SendError(returned)) => join = returned,
        }
        seat.acting()?;
    }
    Err(refusal::not_owner(None))
}

fn handle(seat: &Arc<Seat>, topic: TopicId, group: GroupId, epoch: Epoch) -> Handle {
    let mut running = seat.dispatchers.running.lock().expect("no code panics while it holds the group tasks");
    if let Some(handle) = running.get(&(topic, group))
        && handle.epoch == epoch
        && !handle.inputs.is_closed()
    {
        return handle.clone();
    }
    let (inputs, inputs_out) = mpsc::channel(INPUTS_WAITING_MAX);
    let handle = Handle { epoch, inputs };
    running.insert((topic, group), handle.clone());
    let gone = seat.gone.clone();
    let number = seat.dispatchers.started.fetch_add(1, Ordering::Relaxed) + 1;
    let task = group::run(seat.clone(), topic, group, epoch, number, inputs_out);
    seat.commons.tasks.spawn("group dispatch", async move {
        gone.run_until_cancelled(task).await;
    });
    handle
}

/// Why the task of the group has let go of a consumer.
fn cut_off(seat: &Seat, epoch: Epoch) -> Error {
    match seat.acting() {
        Ok(leadership) if leadership.epoch == epoch => {
            refusal::overloaded("consumer_frames_max", FRAMES_WAITING_MAX as u64)
        }
        Ok(_) => refusal::not_owner(None),
        Err(error) => error,
    }
}

/// What a request is to the group's task. An ack's answer is added to `acks`.
fn message(
    consumer: ConsumerId,
    request: DeliverRequest,
    acks: &FuturesUnordered<BoxFuture<'static, AckAnswer>>,
) -> Option<Message> {
    Some(match request.frame? {
        deliver_request::Frame::Credit(events) => Message::Credit { consumer, events },
        deliver_request::Frame::Ack(frame) => {
            let (reply, outcome) = oneshot::channel();
            if frame.request_id != 0 {
                let request_id = frame.request_id;
                acks.push(Box::pin(async move {
                    AckAnswer { request_id, refused: outcome.await.unwrap_or_else(|_| vec![lost()]) }
                }));
            }
            Message::Ack { consumer, ranges: ranges(frame.ranges), reply }
        }
        deliver_request::Frame::Nack(frame) => {
            let delay = Duration::from_millis(u64::from(frame.delay_ms));
            Message::Nack { consumer, ranges: ranges(frame.ranges), delay }
        }
        deliver_request::Frame::Extend(frame) => Message::Extend { consumer, ranges: ranges(frame.ranges) },
        deliver_request::Frame::Leave(_) => Message::Leave { consumer, lost: false },
        deliver_request::Frame::Open(_) => return None,
    })
}

/// The ack was not committed before its owner went.
fn lost() -> AckRefusal {
    let message = "the owner lost its leadership before the ack was known to be committed";
    let error = refusal::refusal(ErrorCode::OutcomeUnknown, Retry::IfIdempotent, message);
    AckRefusal { range: None, error: Some(error) }
}

fn ranges(ranges: Vec<v1::OffsetRange>) -> Vec<OffsetRange> {
    let range = |range: v1::OffsetRange| OffsetRange {
        partition: range.partition,
        epoch: Epoch(range.epoch),
        first: range.first,
        last: range.last,
    };
    ranges.into_iter().map(range).collect()
}
