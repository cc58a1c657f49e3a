//! A subscription between a client and the shards: credit, acks on their way, epochs, and where it ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_cluster::ids::{GroupId, TopicId};
use weft_proto::internal::v1::{deliver_request, deliver_response};
use weft_proto::v1::{
    AckAnswer, AckFrame, AckRefusal, Delivery, DeliveryFrame, EpochFrame, Error, ErrorCode, ExtendFrame, NackFrame,
    OffsetRange, PackedFrame, SubscribeRequest, SubscribeResponse, subscribe_request, subscribe_response,
};

use super::Metrics;
use super::credit::Split;
use crate::drivers::forward::{Deliveries, DeliverySpec};
use crate::drivers::shard::refusal;
use crate::wire;

/// Responses that wait for the client before no more is taken from the shards.
const OUTBOX_MAX: usize = 64;
/// Bytes of an observer's batches that wait for the client before the next is taken.
const OUTBOX_BYTES_MAX: usize = 2 << 20;
/// Bytes of events in one response; one event may exceed it.
const FRAME_BYTES_MAX: usize = 256 << 10;
/// Acks on their way to their shards.
const ACKS_WAITING_MAX: usize = 4096;

/// The state of one subscription.
pub(super) struct Subscription {
    pub(super) topic: TopicId,
    pub(super) deliveries: Deliveries,
    /// Of a consumer; `None`: an observer.
    pub(super) group: Option<GroupId>,
    /// What goes to the client next.
    pub(super) outbox: VecDeque<SubscribeResponse>,
    /// Bytes of the batches in it.
    outbox_bytes: usize,
    /// The client's free credit: events of a group, bytes of an observer (below 0 by the last batch).
    credit: i64,
    split: Split,
    /// Credit that a shard did not take yet.
    owed: BTreeMap<usize, u64>,
    /// Events beyond the client's credit, with the shard they are from.
    held: VecDeque<Delivery>,
    held_packed: VecDeque<(usize, PackedFrame)>,
    epochs: BTreeMap<u32, u64>,
    /// Partitions that have not said their epoch yet, while that is waited for.
    unsettled: BTreeSet<u32>,
    /// With until_end: where each partition that is not there yet ends.
    ends: Option<BTreeMap<u32, u64>>,
    over: bool,
    /// On its way out of the group: what is delivered now is void.
    left: bool,
    acks: BTreeMap<u64, Waiting>,
    acks_sent: u64,
    metrics: Metrics,
}

/// An ack frame of the client, in parts at the shards.
struct Waiting {
    request_id: u64,
    /// What each shard was asked, until it answers.
    parts: BTreeMap<usize, Vec<OffsetRange>>,
    refused: Vec<AckRefusal>,
}

impl Waiting {
    /// A shard has answered. A refusal without a range is one of all that the shard was asked.
    fn answered(&mut self, shard: usize, refused: Vec<AckRefusal>) {
        let Some(asked) = self.parts.remove(&shard) else { return };
        for refusal in refused {
            match (refusal.range, refusal.error) {
                (Some(range), error) => self.refused.push(AckRefusal { range: Some(range), error }),
                (None, error) => {
                    let error = error.unwrap_or_default();
                    self.refused.extend(asked.iter().map(|range| refuse(*range, error.clone())));
                }
            }
        }
    }
}

impl Subscription {
    pub(super) fn new(deliveries: Deliveries, spec: &DeliverySpec, credit: u64, metrics: Metrics) -> Self {
        Subscription {
            topic: spec.topic,
            group: spec.group,
            split: Split::new(deliveries.shards(), spec.credit),
            deliveries,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            credit: i64::try_from(credit).unwrap_or(i64::MAX),
            owed: BTreeMap::new(),
            held: VecDeque::new(),
            held_packed: VecDeque::new(),
            epochs: spec.partitions.keys().map(|index| (*index, 0)).collect(),
            unsettled: BTreeSet::new(),
            ends: None,
            over: false,
            left: false,
            acks: BTreeMap::new(),
            acks_sent: 0,
            metrics,
        }
    }

    /// `settled` is false until every partition has said its epoch.
    pub(super) fn await_epochs(&mut self) {
        self.unsettled = self.epochs.keys().copied().collect();
    }

    pub(super) fn settled(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// Ends when every partition has come this far.
    pub(super) fn end_at(&mut self, ends: BTreeMap<u32, u64>) {
        self.ends = Some(ends);
    }

    /// All has been sent.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Whether more is taken from the shards now.
    pub(super) fn takes(&self) -> bool {
        self.outbox.len() < OUTBOX_MAX && !self.over
    }

    /// What the client gets next, taken out.
    pub(super) fn next_response(&mut self) -> Option<SubscribeResponse> {
        let response = self.outbox.pop_front()?;
        if let Some(subscribe_response::Frame::Packed(frame)) = &response.frame {
            self.outbox_bytes -= frame.packed.len();
        }
        Some(response)
    }

    /// Takes no more from the shards.
    pub(super) fn end(&mut self) {
        self.over = true;
    }

    /// Leaves the group, if this is a consumer of one: what the client has not acked goes to others. The answers to
    /// its acks still come, then the deliveries end.
    pub(super) fn leave(&mut self) -> bool {
        if self.group.is_some() {
            self.left = true;
            self.held.clear();
            self.deliveries.leave();
        }
        self.group.is_some()
    }

    /// Moves what the client's credit allows into the outbox.
    pub(super) fn fill(&mut self) {
        let mut frame = DeliveryFrame::default();
        let mut bytes = 0;
        while self.credit > 0 && !self.held.is_empty() {
            let delivery = self.held.pop_front().expect("it is not empty");
            if bytes + delivery.event.len() > FRAME_BYTES_MAX && !frame.deliveries.is_empty() {
                self.respond(subscribe_response::Frame::Deliveries(std::mem::take(&mut frame)));
                bytes = 0;
            }
            bytes += delivery.event.len();
            self.credit -= 1;
            frame.deliveries.push(delivery);
        }
        if !frame.deliveries.is_empty() {
            self.respond(subscribe_response::Frame::Deliveries(frame));
        }
        while self.credit > 0 && self.outbox.len() < OUTBOX_MAX && self.outbox_bytes < OUTBOX_BYTES_MAX {
            let Some((shard, frame)) = self.held_packed.pop_front() else { break };
            let bytes = frame.packed.len() as u64;
            // What the client does not get it cannot give back.
            if self.wants(&frame) {
                self.credit -= i64::try_from(bytes).unwrap_or(i64::MAX);
                self.outbox_bytes += frame.packed.len();
                self.respond(subscribe_response::Frame::Packed(frame));
            }
            // The shard may send as much again.
            self.grant(shard, bytes);
        }
        if self.ends.as_ref().is_some_and(BTreeMap::is_empty) && !self.over {
            self.over = true;
            self.respond(subscribe_response::Frame::End(true));
        }
    }

    /// Whether a batch is the client's, and notes that its partition is over.
    fn wants(&mut self, frame: &PackedFrame) -> bool {
        let (Some(ends), Ok(header)) = (&mut self.ends, weft_batch::Header::read(&frame.packed)) else { return true };
        // Without an end, and at one, it was stored after the subscription opened.
        let Some(end) = ends.get(&frame.partition).copied().filter(|end| header.base_offset < *end) else {
            return false;
        };
        if header.end_offset() >= end {
            ends.remove(&frame.partition);
        }
        true
    }

    /// A frame of the client.
    pub(super) fn requested(&mut self, request: SubscribeRequest) -> Result<(), Error> {
        let invalid = |message: &str| Err(wire::error(ErrorCode::InvalidArgument, message));
        match request.frame {
            Some(subscribe_request::Frame::Open(_)) => return invalid("`open` comes once"),
            None => return invalid("a frame of the subscription is empty"),
            Some(subscribe_request::Frame::Credit(credit)) => self.credited(credit),
            Some(subscribe_request::Frame::Ack(frame)) => self.ack(frame),
            Some(subscribe_request::Frame::Nack(frame)) => {
                for (shard, ranges) in self.by_shard(frame.ranges).0 {
                    let nack = NackFrame { ranges, delay_ms: frame.delay_ms };
                    // Not taken: the ack deadline gives the events out again.
                    let _ = self.deliveries.request(shard, deliver_request::Frame::Nack(nack));
                }
            }
            Some(subscribe_request::Frame::Extend(frame)) => {
                for (shard, ranges) in self.by_shard(frame.ranges).0 {
                    let extend = ExtendFrame { ranges };
                    let _ = self.deliveries.request(shard, deliver_request::Frame::Extend(extend));
                }
            }
        }
        Ok(())
    }

    fn credited(&mut self, credit: u64) {
        self.credit = self.credit.saturating_add(i64::try_from(credit).unwrap_or(i64::MAX));
        // An observer's shards are given as much as is passed on.
        if self.group.is_some() {
            for (shard, credit) in self.split.give(credit) {
                self.grant(shard, credit);
            }
        }
    }

    /// Lets a shard send as much more.
    fn grant(&mut self, shard: usize, credit: u64) {
        let owed = self.owed.entry(shard).or_default();
        *owed += credit;
        // Full: the rest goes with the next grant.
        if self.deliveries.request(shard, deliver_request::Frame::Credit(*owed)).is_ok() {
            self.split.given(shard, std::mem::take(owed));
        }
    }

    fn ack(&mut self, frame: AckFrame) {
        let (shards, unknown) = self.by_shard(frame.ranges);
        let confirm = frame.request_id != 0;
        let mut waiting = Waiting { request_id: frame.request_id, parts: BTreeMap::new(), refused: unknown };
        self.acks_sent += 1;
        let key = self.acks_sent;
        for (shard, ranges) in shards {
            let request_id = if confirm { key } else { 0 };
            let full = self.acks.len() >= ACKS_WAITING_MAX;
            let part = deliver_request::Frame::Ack(AckFrame { request_id, ranges: ranges.clone() });
            if full || self.deliveries.request(shard, part).is_err() {
                let error = refusal::overloaded("subscription_acks_max", ACKS_WAITING_MAX as u64);
                waiting.refused.extend(ranges.into_iter().map(|range| refuse(range, error.clone())));
            } else {
                waiting.parts.insert(shard, ranges);
            }
        }
        if confirm {
            self.acks.insert(key, waiting);
            self.settle_ack(key);
        }
    }

    /// Answers the client once all parts of its ack are answered.
    fn settle_ack(&mut self, key: u64) {
        if self.acks.get(&key).is_some_and(|waiting| waiting.parts.is_empty())
            && let Some(Waiting { request_id, refused, .. }) = self.acks.remove(&key)
        {
            self.respond(subscribe_response::Frame::Ack(AckAnswer { request_id, refused }));
        }
    }

    /// Ranges by the shard of their partition, and refusals of those that have none, or are none.
    fn by_shard(&self, ranges: Vec<OffsetRange>) -> (BTreeMap<usize, Vec<OffsetRange>>, Vec<AckRefusal>) {
        let (mut shards, mut unknown) = (BTreeMap::<usize, Vec<OffsetRange>>::new(), Vec::new());
        for range in ranges {
            if range.first > range.last {
                let message = format!("a range from {} to {} is empty", range.first, range.last);
                unknown.push(refuse(range, wire::error(ErrorCode::InvalidArgument, message)));
                continue;
            }
            match self.deliveries.shard_of(range.partition) {
                Some(shard) => shards.entry(shard).or_default().push(range),
                None => {
                    let message = format!("there is no partition {}", range.partition);
                    unknown.push(refuse(range, wire::error(ErrorCode::UnknownPartition, message)));
                }
            }
        }
        (shards, unknown)
    }

    /// A frame of a shard.
    pub(super) fn delivered(&mut self, shard: usize, frame: deliver_response::Frame) {
        match frame {
            deliver_response::Frame::Deliveries(frame) => self.hold(shard, frame),
            deliver_response::Frame::Packed(frame) => self.held_packed.push_back((shard, frame)),
            deliver_response::Frame::Ack(AckAnswer { request_id, refused }) => {
                if let Some(waiting) = self.acks.get_mut(&request_id) {
                    waiting.answered(shard, refused);
                    self.settle_ack(request_id);
                }
            }
            deliver_response::Frame::Epoch(frame) => self.began(frame),
            // The relay keeps it to itself and opens the stream again.
            deliver_response::Frame::Gone(_) => {}
        }
    }

    fn hold(&mut self, shard: usize, frame: DeliveryFrame) {
        if self.left {
            return;
        }
        let count = frame.deliveries.len() as u64;
        self.split.used(shard, count);
        let epochs = &self.epochs;
        let current = |delivery: &Delivery| epochs.get(&delivery.partition).is_none_or(|now| *now <= delivery.epoch);
        let before = self.held.len();
        self.held.extend(frame.deliveries.into_iter().filter(current));
        let stale = count - (self.held.len() - before) as u64;
        if stale > 0 {
            self.metrics.stale_deliveries.inc_by(stale);
            self.grant(shard, stale);
        }
    }

    /// An owner begins to act: what an older one sent is void.
    fn began(&mut self, frame: EpochFrame) {
        self.unsettled.remove(&frame.partition);
        let Some(epoch) = self.epochs.get_mut(&frame.partition) else { return };
        if *epoch >= frame.epoch {
            return;
        }
        *epoch = frame.epoch;
        let before = self.held.len();
        self.held.retain(|delivery| delivery.partition != frame.partition || delivery.epoch >= frame.epoch);
        let stale = (before - self.held.len()) as u64;
        if stale > 0 {
            self.metrics.stale_deliveries.inc_by(stale);
            if let Some(shard) = self.deliveries.shard_of(frame.partition) {
                self.grant(shard, stale);
            }
        }
        self.respond(subscribe_response::Frame::Epoch(frame));
    }

    fn respond(&mut self, frame: subscribe_response::Frame) {
        self.outbox.push_back(SubscribeResponse { frame: Some(frame) });
    }
}

fn refuse(range: OffsetRange, error: Error) -> AckRefusal {
    AckRefusal { range: Some(range), error: Some(error) }
}
