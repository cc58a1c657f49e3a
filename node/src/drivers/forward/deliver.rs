//! Deliveries: one deliver stream to the owner of each shard that holds partitions of a topic, opened again
//! wherever the owner goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_cluster::caller::Caller;
use weft_cluster::ids::{GroupId, NodeId, PartitionId, ShardId, TopicId};
use weft_cluster::view::{ClusterView, Owner};
use weft_proto::internal::v1::{DeliverOpen, DeliverRequest, DeliverResponse, deliver_request, deliver_response};
use weft_proto::v1::{AckAnswer, AckRefusal, Error};

use super::Forward;
use crate::drivers::link::{Lane, LinkStream};
use crate::drivers::shard::refusal;

/// Frames that wait for the subscriber, over all its shards.
const FRAMES_WAITING_MAX: usize = 64;
/// Requests (credits, acks) that wait for one shard's owner.
const REQUESTS_WAITING_MAX: usize = 1024;
/// Frames between an owner on this node and the relay.
const LOCAL_FRAMES_MAX: usize = 16;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What is to be delivered.
#[derive(Clone, Debug)]
pub struct DeliverySpec {
    /// Who is to get it.
    pub caller: Caller,
    /// The topic.
    pub topic: TopicId,
    /// Its partitions, each with the offset where an observer begins (not looked at for a group).
    pub partitions: BTreeMap<u32, u64>,
    /// `None`: an observer.
    pub group: Option<GroupId>,
    /// Random; names the consumer.
    pub consumer: u64,
    /// Events (group) or bytes (observer) that each shard may send at first.
    pub credit: u64,
}

/// The open deliver streams of one subscriber. Dropping it breaks them off.
pub struct Deliveries {
    // Before the legs: one that is broken off must not see the end of its requests first, which is a leave.
    _stop: DropGuard,
    legs: Vec<LegHandle>,
    frames: mpsc::Receiver<(usize, deliver_response::Frame)>,
}

struct LegHandle {
    partitions: BTreeSet<u32>,
    /// `None` when the subscriber is leaving.
    requests: Option<mpsc::Sender<deliver_request::Frame>>,
}

impl Forward {
    /// Opens deliver streams to the owners of all of `spec`'s partitions. An owner that is not known yet, or
    /// goes away, is waited for.
    ///
    /// Frames of one partition arrive in order. `gone` is never passed on.
    pub fn deliver(&self, spec: &DeliverySpec) -> Deliveries {
        let view = self.view();
        let mut shards = BTreeMap::<ShardId, BTreeMap<u32, u64>>::new();
        for (index, offset) in &spec.partitions {
            let partition = PartitionId { topic: spec.topic, index: *index };
            // Topics exist only in a cluster that is founded: the shard is known.
            if let Some(shard) = view.shard_of(partition) {
                shards.entry(shard).or_default().insert(*index, *offset);
            }
        }
        let stop = CancellationToken::new();
        let (frames_in, frames) = mpsc::channel(FRAMES_WAITING_MAX);
        let mut legs = Vec::with_capacity(shards.len());
        for partitions in shards.into_values() {
            let (requests, requests_out) = mpsc::channel(REQUESTS_WAITING_MAX);
            legs.push(LegHandle { partitions: partitions.keys().copied().collect(), requests: Some(requests) });
            let progress = Progress { next: partitions, credit: spec.credit, acks: BTreeSet::new() };
            let leg = Leg {
                forward: self.clone(),
                view: self.inner.view.clone(),
                index: legs.len() - 1,
                spec: spec.clone(),
                frames: frames_in.clone(),
                progress: Mutex::new(progress),
            };
            let stop = stop.clone();
            self.inner.tasks.spawn("deliver leg", async move {
                stop.run_until_cancelled(leg.run(requests_out)).await;
            });
        }
        Deliveries { _stop: stop.drop_guard(), legs, frames }
    }
}

impl Deliveries {
    /// How many shards take part.
    pub fn shards(&self) -> usize {
        self.legs.len()
    }

    /// Which of them holds a partition.
    pub fn shard_of(&self, partition: u32) -> Option<usize> {
        self.legs.iter().position(|leg| leg.partitions.contains(&partition))
    }

    /// Sends a request to the owner of a shard; gives it back if too many wait there, or after `leave`.
    #[expect(clippy::result_large_err, reason = "the frame itself comes back, by move as from the channel")]
    pub fn request(&self, shard: usize, frame: deliver_request::Frame) -> Result<(), deliver_request::Frame> {
        match &self.legs[shard].requests {
            Some(requests) => requests.try_send(frame).map_err(mpsc::error::TrySendError::into_inner),
            None => Err(frame),
        }
    }

    /// Leaves the group in order: what is in flight goes to other consumers. The requests made before are served and
    /// answered; then the frames end.
    pub fn leave(&mut self) {
        self.legs.iter_mut().for_each(|leg| drop(leg.requests.take()));
    }

    /// The next frame and the shard that it is from. `None` when the subscriber has left or the node stops. Cancel-safe.
    pub async fn next(&mut self) -> Option<(usize, deliver_response::Frame)> {
        self.frames.recv().await
    }

    /// A frame that is there already.
    pub fn try_next(&mut self) -> Option<(usize, deliver_response::Frame)> {
        self.frames.try_recv().ok()
    }
}

/// What survives a change of the owner.
struct Progress {
    /// Observers: the next offset of each partition.
    next: BTreeMap<u32, u64>,
    /// What the owner may still send.
    credit: u64,
    /// Acks that wait for their answer.
    acks: BTreeSet<u64>,
}

/// The stream to the owner of one shard.
struct Leg {
    forward: Forward,
    view: watch::Receiver<Arc<ClusterView>>,
    index: usize,
    spec: DeliverySpec,
    frames: mpsc::Sender<(usize, deliver_response::Frame)>,
    progress: Mutex<Progress>,
}

impl Leg {
    async fn run(mut self, mut requests: mpsc::Receiver<deliver_request::Frame>) {
        let mut pause = PAUSE_MIN;
        let mut hint = None;
        // With no more requests to come, the subscriber has left.
        while !(requests.is_closed() && requests.is_empty()) {
            let node = hint.take().or_else(|| self.owner());
            if let Some(node) = node {
                let began = tokio::time::Instant::now();
                hint = self.serve(node, &mut requests).await;
                if began.elapsed() > PAUSE_MAX {
                    pause = PAUSE_MIN;
                }
                if !self.fail_acks().await {
                    return;
                }
            }
            if !self.wait(pause, node, &mut requests).await {
                return;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn owner(&self) -> Option<NodeId> {
        let index = *self.lock().next.keys().next()?;
        let partition = PartitionId { topic: self.spec.topic, index };
        self.view.borrow().owner_of(partition).map(|owner| owner.node)
    }

    /// Relays until the stream ends; returns the owner that it names at the end.
    async fn serve(&self, node: NodeId, requests: &mut mpsc::Receiver<deliver_request::Frame>) -> Option<NodeId> {
        self.forward.inner.metrics.deliver_opens.inc();
        let open = self.open();
        let view = self.forward.view();
        let gone = if node == view.me {
            let (to_owner, from_here) = mpsc::channel(LOCAL_FRAMES_MAX);
            let (to_here, mut from_owner) = mpsc::channel(LOCAL_FRAMES_MAX);
            tokio::select! {
                biased;
                gone = self.relay_local(&mut from_owner) => gone,
                () = async {
                    self.forward.inner.shards.deliver(&self.spec.caller, open, from_here, to_here).await;
                    // What it said at last is still to be read.
                    std::future::pending().await
                } => None,
                () = self.request_local(requests, to_owner) => None,
            }
        } else {
            let Ok(LinkStream { mut send, mut receive }) = self.forward.inner.links.open(node, Lane::Deliver).await
            else {
                return None;
            };
            let open = DeliverOpen { caller: self.spec.caller.to_wire(), ..open };
            let open = DeliverRequest { frame: Some(deliver_request::Frame::Open(open)) }.encode_to_vec();
            if send.send(vec![open.into()]).await.is_err() {
                return None;
            }
            let relay = async {
                while let Ok(Some(frame)) = receive.next().await {
                    match DeliverResponse::decode(frame).ok().and_then(|response| response.frame) {
                        Some(deliver_response::Frame::Gone(error)) => return Some(error),
                        Some(frame) => self.pass(frame).await,
                        None => return None,
                    }
                }
                None
            };
            let request = async {
                loop {
                    let (frame, last) = self.request(requests).await;
                    let body = Bytes::from(DeliverRequest { frame: Some(frame) }.encode_to_vec());
                    if send.send(vec![body]).await.is_err() {
                        return;
                    }
                    if last {
                        // The owner ends the stream.
                        std::future::pending::<()>().await;
                    }
                }
            };
            tokio::select! { biased; gone = relay => gone, () = request => None, () = self.lost(node) => None }
        };
        let owner = gone.map_or(0, |error: Error| error.owner);
        (owner != 0).then_some(NodeId(owner)).filter(|owner| *owner != node && view.usable(*owner))
    }

    /// Resolves when the stream's owner is held for dead, or another one is known. Nothing else may end a stream into a
    /// black hole for long.
    async fn lost(&self, node: NodeId) {
        let announced = |view: &ClusterView| {
            let index = *self.lock().next.keys().next()?;
            let shard = view.shard_of(PartitionId { topic: self.spec.topic, index })?;
            view.owners.get(&shard).copied()
        };
        let mut view = self.view.clone();
        let began = announced(&view.borrow_and_update());
        let newer = |now: Owner| now.node != node && began.is_none_or(|began| now.epoch > began.epoch);
        if view.wait_for(|view| view.down(node) || announced(view).is_some_and(newer)).await.is_err() {
            // This node is stopping, and its tasks with it.
            std::future::pending::<()>().await;
        }
    }

    async fn relay_local(&self, from_owner: &mut mpsc::Receiver<DeliverResponse>) -> Option<Error> {
        while let Some(response) = from_owner.recv().await {
            match response.frame {
                Some(deliver_response::Frame::Gone(error)) => return Some(error),
                Some(frame) => self.pass(frame).await,
                None => return None,
            }
        }
        None
    }

    async fn request_local(
        &self,
        requests: &mut mpsc::Receiver<deliver_request::Frame>,
        to_owner: mpsc::Sender<DeliverRequest>,
    ) {
        loop {
            let (frame, last) = self.request(requests).await;
            if to_owner.send(DeliverRequest { frame: Some(frame) }).await.is_err() {
                return;
            }
            if last {
                // The owner ends the stream.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next request for the owner, and whether it is the last: after all others, a leave.
    async fn request(&self, requests: &mut mpsc::Receiver<deliver_request::Frame>) -> (deliver_request::Frame, bool) {
        match requests.recv().await {
            Some(frame) => {
                self.note(&frame);
                (frame, false)
            }
            None => (deliver_request::Frame::Leave(true), true),
        }
    }

    fn open(&self) -> DeliverOpen {
        let progress = self.lock();
        DeliverOpen {
            topic: self.spec.topic.0,
            partitions: progress.next.keys().copied().collect(),
            group: self.spec.group.map_or(0, |group| group.0),
            consumer: self.spec.consumer,
            credit: progress.credit,
            offsets: if self.spec.group.is_none() { progress.next.values().copied().collect() } else { Vec::new() },
            caller: None,
        }
    }

    /// Notes what a request to the owner will change.
    fn note(&self, frame: &deliver_request::Frame) {
        match frame {
            deliver_request::Frame::Credit(credit) => {
                let mut progress = self.lock();
                progress.credit = progress.credit.saturating_add(*credit);
            }
            deliver_request::Frame::Ack(ack) if ack.request_id != 0 => drop(self.lock().acks.insert(ack.request_id)),
            _ => {}
        }
    }

    /// Passes a frame on to the subscriber, once there is room, and notes the progress.
    /// Both or neither: the stream may end while this waits, and a frame that was noted and not passed on would be
    /// skipped for ever.
    async fn pass(&self, frame: deliver_response::Frame) {
        // Without a reader the leg is about to be cancelled.
        let Ok(room) = self.frames.reserve().await else { return };
        {
            let mut progress = self.lock();
            match &frame {
                deliver_response::Frame::Deliveries(frame) => {
                    progress.credit = progress.credit.saturating_sub(frame.deliveries.len() as u64);
                }
                deliver_response::Frame::Packed(frame) => {
                    progress.credit = progress.credit.saturating_sub(frame.packed.len() as u64);
                    if let Ok(header) = weft_batch::Header::read(&frame.packed) {
                        progress.next.insert(frame.partition, header.end_offset());
                    }
                }
                deliver_response::Frame::Ack(answer) => drop(progress.acks.remove(&answer.request_id)),
                _ => {}
            }
        }
        room.send((self.index, frame));
    }

    /// Answers the acks that the stream's end left open. False when nobody reads.
    async fn fail_acks(&self) -> bool {
        let acks = std::mem::take(&mut self.lock().acks);
        for request_id in acks {
            let error = refusal::refusal(
                weft_proto::v1::ErrorCode::OutcomeUnknown,
                weft_proto::v1::Retry::IfIdempotent,
                "the owner was lost before the ack was known to be committed",
            );
            if !self.refuse(request_id, error).await {
                return false;
            }
        }
        true
    }

    async fn refuse(&self, request_id: u64, error: Error) -> bool {
        let refused = vec![AckRefusal { range: None, error: Some(error) }];
        let frame = deliver_response::Frame::Ack(AckAnswer { request_id, refused });
        self.frames.send((self.index, frame)).await.is_ok()
    }

    /// Waits before the next try: for a while, or until the view shows another owner than the one tried.
    /// False when nobody reads.
    async fn wait(
        &mut self,
        pause: Duration,
        tried: Option<NodeId>,
        requests: &mut mpsc::Receiver<deliver_request::Frame>,
    ) -> bool {
        self.forward.inner.metrics.deliver_waiting.inc();
        let pause = pause.mul_f64(0.75 + self.forward.jitter() / 2.0);
        let mut sleep = std::pin::pin!(tokio::time::sleep(pause));
        let reads = loop {
            tokio::select! {
                biased;
                () = &mut sleep => break true,
                changed = self.view.changed() => {
                    if changed.is_err() {
                        break false;
                    }
                    if self.owner().is_some_and(|owner| Some(owner) != tried) {
                        break true;
                    }
                }
                request = requests.recv() => match request {
                    None => break false,
                    Some(frame) => {
                        if !self.request_unserved(frame).await {
                            break false;
                        }
                    }
                }
            }
        };
        self.forward.inner.metrics.deliver_waiting.dec();
        reads
    }

    /// A request while there is no owner: credit counts, an ack is refused, the rest has no one to go to.
    async fn request_unserved(&self, frame: deliver_request::Frame) -> bool {
        match frame {
            deliver_request::Frame::Ack(ack) if ack.request_id != 0 => {
                let partition = ack.ranges.first().map_or(0, |range| range.partition);
                let partition = PartitionId { topic: self.spec.topic, index: partition };
                self.refuse(ack.request_id, refusal::no_owner(partition)).await
            }
            frame => {
                self.note(&frame);
                true
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no code panics while it holds the progress")
    }
}
