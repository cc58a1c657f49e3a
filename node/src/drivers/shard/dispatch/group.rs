//! The task of one group on one shard for one epoch: feeds the dispatcher and does what it says.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, OptionFuture};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use weft_cluster::delivery::{self, Config, ConsumerId, Dispatcher, Effect, Input, RefusedBecause, RefusedRange};
use weft_cluster::ids::{Epoch, GroupId, PartitionId, TopicId};
use weft_proto::v1::{self, AckRefusal, Delivery, DeliveryFrame, ErrorCode, Retry};

use super::super::refusal;
use super::super::seat::{Reader, Seat};
use super::Message;
use super::events::Events;
use super::round::{Ended, Round};

/// Bytes of events in one delivery frame; one event may exceed it.
const FRAME_BYTES_MAX: usize = 256 << 10;
/// Inputs handled before what they caused is sent out.
const INPUTS_PER_TURN: usize = 256;

/// Runs as the epoch's `number`th task, until the epoch is over or the last consumer has left and its acks are committed.
pub(super) async fn run(
    seat: Arc<Seat>,
    topic: TopicId,
    group: GroupId,
    epoch: Epoch,
    number: u32,
    mut inputs: mpsc::Receiver<Message>,
) {
    let Some(mut leadership) = seat.leaderships() else { return };
    let mut task = Task::new(seat.clone(), topic, group, epoch, number);
    task.open();
    let mut joined = false;
    let mut acks: OptionFuture<BoxFuture<'static, Ended>> = None.into();
    let mut acks_run = false;
    let mut messages = Vec::new();
    loop {
        if let Err(error) = task.work().await {
            tracing::error!(shard = %seat.shard, %topic, %group, %error, "read events for a group");
            return;
        }
        if !acks_run && !task.round.is_empty() {
            let round = std::mem::take(&mut task.round);
            acks = Some(Box::pin(round.run(seat.clone(), topic, group, epoch)) as BoxFuture<'static, Ended>).into();
            acks_run = true;
        }
        if joined && task.consumers.is_empty() && !acks_run && inputs.is_empty() {
            // Whoever comes now finds the channel closed and starts a new task.
            inputs.close();
            if inputs.is_empty() {
                return;
            }
        }
        let deadline = task.core.next_deadline().map(Instant::from_std);
        tokio::select! {
            biased;
            changed = leadership.changed() => {
                let now = leadership.borrow_and_update().clone();
                if changed.is_err() || !now.acting || now.epoch != epoch {
                    return;
                }
            }
            Some(ended) = &mut acks, if acks_run => {
                (acks, acks_run) = (None.into(), false);
                task.committed(ended);
            }
            count = inputs.recv_many(&mut messages, INPUTS_PER_TURN) => {
                if count == 0 {
                    return;
                }
                joined = true;
                messages.drain(..).for_each(|message| task.take(message));
            }
            () = task.bell.notified() => task.more = true,
            () = sleep_until(deadline) => task.input(Input::Tick),
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Task {
    seat: Arc<Seat>,
    topic: TopicId,
    group: GroupId,
    epoch: Epoch,
    number: u32,
    core: Dispatcher,
    effects: Vec<Effect>,
    consumers: BTreeMap<ConsumerId, mpsc::Sender<DeliveryFrame>>,
    events: Events,
    /// Per partition, from where the core wants more.
    wants: BTreeMap<u32, u64>,
    /// More may be there for them.
    more: bool,
    round: Round,
    replies: BTreeMap<u64, oneshot::Sender<Vec<AckRefusal>>>,
    tokens: u64,
    bell: Arc<Notify>,
    readers: Vec<Reader>,
}

impl Task {
    fn new(seat: Arc<Seat>, topic: TopicId, group: GroupId, epoch: Epoch, number: u32) -> Self {
        let config = Config { ack_deadline: ack_deadline(&seat, topic, group), ..Config::default() };
        Task {
            topic,
            group,
            epoch,
            number,
            core: Dispatcher::new(epoch, config, seat.commons.host.random_id()),
            effects: Vec::new(),
            consumers: BTreeMap::new(),
            events: Events::new(seat.clone(), topic),
            wants: BTreeMap::new(),
            more: false,
            round: Round::default(),
            replies: BTreeMap::new(),
            tokens: 0,
            bell: Arc::new(Notify::new()),
            readers: Vec::new(),
            seat,
        }
    }

    /// Opens all partitions of the topic that have the group, at their committed cursors.
    fn open(&mut self) {
        let cursors: Vec<_> = {
            let replica = self.seat.replica();
            let of_topic = replica.state.partitions().filter(|(id, _)| id.topic == self.topic);
            of_topic.filter_map(|(id, state)| Some((id, state.group(self.group)?.cursor.clone()))).collect()
        };
        for (id, cursor) in cursors {
            self.readers.push(self.seat.listen(id, &self.bell));
            self.input(Input::Open { partition: id.index, cursor });
        }
    }

    fn input(&mut self, input: Input) {
        self.core.handle(Instant::now().into_std(), input, &mut self.effects);
    }

    fn take(&mut self, message: Message) {
        let input = match message {
            Message::Join { consumer, credit, frames } => {
                self.consumers.insert(consumer, frames);
                Input::Join { consumer, credit }
            }
            Message::Leave { consumer, lost } => {
                if self.consumers.remove(&consumer).is_none() {
                    return;
                }
                Input::Leave { consumer, lost }
            }
            Message::Credit { consumer, events } => Input::Credit { consumer, events },
            Message::Ack { consumer, ranges, reply } => {
                self.tokens += 1;
                self.replies.insert(self.tokens, reply);
                Input::Ack { consumer, token: self.tokens, ranges }
            }
            Message::Nack { consumer, ranges, delay } => Input::Nack { consumer, ranges, delay },
            Message::Extend { consumer, ranges } => Input::Extend { consumer, ranges },
        };
        self.input(input);
    }

    fn committed(&mut self, mut ended: Ended) {
        for (partition, ranges) in std::mem::take(&mut ended.committed) {
            self.input(Input::Committed { partition, ranges });
        }
        ended.answer();
    }

    /// Does what the core says until it wants nothing that is there.
    async fn work(&mut self) -> io::Result<()> {
        loop {
            if self.effects.is_empty() {
                if !std::mem::take(&mut self.more) {
                    return Ok(());
                }
                self.feed().await?;
                continue;
            }
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Deliver { consumer, deliveries } => self.deliver(consumer, deliveries).await?,
                    Effect::Ack { token, propose, refused } => {
                        let refused = refused.into_iter().map(refusal_of).collect();
                        let reply = self.replies.remove(&token).expect("the core answers each ack once");
                        self.round.add(propose, refused, reply);
                    }
                    Effect::WantMore { partition, from } => {
                        self.wants.insert(partition, from);
                        self.more = true;
                    }
                }
            }
        }
    }

    /// Gives the core the events that it wants, as far as they are committed.
    async fn feed(&mut self) -> io::Result<()> {
        let wants: Vec<_> = self.wants.iter().map(|(partition, from)| (*partition, *from)).collect();
        for (partition, from) in wants {
            if from >= self.seat.end(PartitionId { topic: self.topic, index: partition }) {
                continue;
            }
            let runs = self.events.keys(partition, from).await?;
            if !runs.is_empty() {
                self.wants.remove(&partition);
            }
            // The core says itself from where it wants more.
            let key_hashes: Vec<u64> = runs.iter().flat_map(|run| run.key_hashes.iter().copied()).collect();
            if let Some(first) = runs.first() {
                self.input(Input::Events { partition, base: first.base, key_hashes });
            }
        }
        Ok(())
    }

    async fn deliver(&mut self, consumer: ConsumerId, deliveries: Vec<delivery::Delivery>) -> io::Result<()> {
        let mut frame = DeliveryFrame::default();
        let mut bytes = 0;
        self.seat.commons.metrics.deliveries.inc_by(deliveries.len() as u64);
        for delivery in deliveries {
            let event = self.events.event(delivery.partition, delivery.offset).await?;
            if bytes + event.len() > FRAME_BYTES_MAX && !frame.deliveries.is_empty() {
                self.send(consumer, std::mem::take(&mut frame));
                bytes = 0;
            }
            bytes += event.len();
            frame.deliveries.push(Delivery {
                partition: delivery.partition,
                offset: delivery.offset,
                epoch: self.epoch.0,
                attempt: delivery.attempt,
                event,
                dispatch: self.number,
            });
        }
        self.send(consumer, frame);
        Ok(())
    }

    /// Hands a frame to the consumer's stream; one that does not read is cut off.
    fn send(&mut self, consumer: ConsumerId, frame: DeliveryFrame) {
        let Some(frames) = self.consumers.get(&consumer) else { return };
        match frames.try_send(frame) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(_)) => drop(self.seat.commons.metrics.slow_consumers.inc()),
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
        self.consumers.remove(&consumer);
        self.input(Input::Leave { consumer, lost: true });
    }
}

fn ack_deadline(seat: &Seat, topic: TopicId, group: GroupId) -> Duration {
    let replica = seat.replica();
    let mut of_topic = replica.state.partitions().filter(|(id, _)| id.topic == topic);
    let ms = of_topic.find_map(|(_, partition)| Some(partition.group(group)?.ack_deadline_ms));
    match ms {
        None | Some(0) => Config::default().ack_deadline,
        Some(ms) => Duration::from_millis(u64::from(ms)),
    }
}

fn refusal_of(refused: RefusedRange) -> AckRefusal {
    let range = v1::OffsetRange {
        partition: refused.range.partition,
        epoch: refused.range.epoch.0,
        first: refused.range.first,
        last: refused.range.last,
    };
    let error = match refused.reason {
        RefusedBecause::StaleEpoch => {
            refusal::refusal(ErrorCode::StaleEpoch, Retry::Never, "delivered under an epoch that is over")
        }
        RefusedBecause::NotInFlight => refusal::refusal(
            ErrorCode::FailedPrecondition,
            Retry::Never,
            "not in flight for this consumer: its ack deadline passed, or it was never delivered to it",
        ),
        RefusedBecause::UnknownPartition => refusal::not_owner(None),
    };
    AckRefusal { range: Some(range), error: Some(error) }
}
