//! Small requests of a lane: many at a time on one ordered stream per direction, each with a number.
//!
//! Frame: u64 number, big endian; u8 flags; body. What is queued at one wake-up leaves in one write. On the call lane a
//! request that is dropped before its answer is cancelled at the peer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prometheus_client::metrics::gauge::Gauge;
use quinn::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::NodeId;

use super::frame::{Broken, FrameReader};
use super::{Inner, KIND_REQUESTS, Lane, Link, LinkError, Parts};

/// Bytes before a body.
pub(super) const HEAD_BYTES: usize = 9;
/// Frames that leave in one write at most.
const BATCH_FRAMES: usize = 256;
/// Parts up to this size are copied next to each other; larger ones are handed through.
const COPIED_BYTES_MAX: usize = 1_024;
/// Requests of one peer and lane that are being answered at a time; more stay in the peer's queue.
const ANSWERING_MAX: usize = 4_096;
/// Bytes of requests of one peer and lane that are being answered at a time. At least the largest frame.
const ANSWERING_BYTES_MAX: usize = 64 << 20;
/// The answer is the reason of a refusal.
const FLAG_REFUSED: u8 = 1;
/// Nobody waits for the answer to this request any more.
const FLAG_CANCEL: u8 = 2;

const QUEUED: u8 = 0;
const WRITTEN: u8 = 1;
const CANCELLED: u8 = 2;

/// A frame that waits for its write.
pub(super) struct Outgoing {
    number: u64,
    flags: u8,
    parts: Parts,
    bytes: usize,
    // Requests: whether it was written or given up, whichever came first.
    claim: Option<Arc<AtomicU8>>,
    _room: OwnedSemaphorePermit,
    // Requests only: what the limits of the queue hold, in the metric.
    _queued: Option<Queued>,
}

/// Bytes of a request that waits for its write.
struct Queued {
    gauge: Gauge,
    bytes: i64,
}

impl Queued {
    fn new(gauge: &Gauge, bytes: usize) -> Queued {
        let bytes = i64::try_from(bytes).expect("limits of frames are below 4 GiB");
        gauge.inc_by(bytes);
        Queued { gauge: gauge.clone(), bytes }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.gauge.dec_by(self.bytes);
    }
}

type Answer = Result<Bytes, String>;

struct Waiting {
    open: bool,
    next: u64,
    answers: BTreeMap<u64, oneshot::Sender<Answer>>,
}

/// This node's requests on one lane of one link.
pub(super) struct LaneClient {
    to: NodeId,
    queue: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
    queue_bytes: Gauge,
    bytes_max: usize,
    cost_min: usize,
    /// Cancels that wait to be sent; none on lanes whose requests are not cancelled. One too many is left out: the
    /// peer does the work for nothing, until its deadline.
    cancels: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    down: CancellationToken,
}

/// A request that is queued or on its way.
pub(super) struct Pending {
    lane: Arc<LaneClient>,
    number: u64,
    claim: Arc<AtomicU8>,
    answer: oneshot::Receiver<Answer>,
}

impl LaneClient {
    /// Opens the lane's stream in a task.
    pub(super) fn start(inner: &Arc<Inner>, link: &Link, lane: Lane) -> Arc<LaneClient> {
        let cancels_max = if lane == Lane::Call { inner.config.queue_requests_max } else { 0 };
        let (queue, queued) = mpsc::channel(inner.config.queue_requests_max + cancels_max);
        let bytes_max = (inner.config.queue_bytes_max.as_u64() as usize).min(Semaphore::MAX_PERMITS);
        let client = Arc::new(LaneClient {
            to: link.peer.id,
            queue,
            room: Arc::new(Semaphore::new(bytes_max)),
            queue_bytes: inner.metrics.queue_bytes.get_or_create_owned(&link.label()),
            bytes_max,
            cost_min: bytes_max.div_ceil(inner.config.queue_requests_max),
            cancels: Arc::new(Semaphore::new(cancels_max)),
            waiting: Mutex::new(Waiting { open: true, next: 1, answers: BTreeMap::new() }),
            down: CancellationToken::new(),
        });
        let run = run(inner.clone(), client.clone(), link.connection.clone(), lane, queued);
        inner.tasks.spawn("link lane", run);
        client
    }

    /// Queues a request, in the order of first polls. `Err`: the lane is gone, nothing was queued.
    pub(super) async fn push(self: &Arc<Self>, parts: &Parts, bytes: usize) -> Result<Pending, ()> {
        let cost = bytes.clamp(self.cost_min, self.bytes_max) as u32;
        let room = self.room.clone().acquire_many_owned(cost).await.map_err(drop)?;
        let (answered, answer) = oneshot::channel();
        let claim = Arc::new(AtomicU8::new(QUEUED));
        let number = {
            let mut waiting = self.waiting();
            if !waiting.open {
                return Err(());
            }
            let number = waiting.next;
            waiting.next += 1;
            waiting.answers.insert(number, answered);
            number
        };
        let pending = Pending { lane: self.clone(), number, claim: claim.clone(), answer };
        let (parts, claim, queued) = (parts.clone(), Some(claim), Some(Queued::new(&self.queue_bytes, bytes)));
        let out = Outgoing { number, flags: 0, parts, bytes, claim, _room: room, _queued: queued };
        // Each permit is at least `cost_min`, so there is a place for whoever holds one.
        self.queue.try_send(out).map_err(drop)?;
        Ok(pending)
    }

    /// Tells the peer that nobody waits for an answer any more.
    fn cancel(&self, number: u64) {
        let Ok(room) = self.cancels.clone().try_acquire_owned() else { return };
        let parts = Parts::new();
        let out = Outgoing { number, flags: FLAG_CANCEL, parts, bytes: 0, claim: None, _room: room, _queued: None };
        // There is a place for whoever holds a permit, unless the lane has ended.
        let _ = self.queue.try_send(out);
    }

    /// All that waits fails: written ones as lost, the others as not sent.
    fn fail(&self) {
        let answers = {
            let mut waiting = self.waiting();
            waiting.open = false;
            std::mem::take(&mut waiting.answers)
        };
        drop(answers);
        self.room.close();
        self.down.cancel();
    }

    /// Whether requests can still be queued.
    pub(super) fn is_open(&self) -> bool {
        !self.down.is_cancelled()
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Waits for the answer, until the deadline if there is one. The error is honest about what left this node.
    pub(super) async fn answer(mut self, deadline: Option<Instant>) -> Result<Bytes, LinkError> {
        let to = self.lane.to;
        let answered = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, &mut self.answer).await,
            None => Ok((&mut self.answer).await),
        };
        match answered {
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(reason))) => Err(LinkError::Refused(to, reason)),
            Ok(Err(_)) if self.give_up() => Err(LinkError::NotSent(to)),
            Ok(Err(_)) => Err(LinkError::Lost(to)),
            Err(_) if self.give_up() => Err(LinkError::NotSent(to)),
            Err(_) => Err(LinkError::Deadline(to)),
        }
    }

    /// True if not a byte has left and none will.
    fn give_up(&self) -> bool {
        self.claim.compare_exchange(QUEUED, CANCELLED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let written = !self.give_up() && self.claim.load(Ordering::Acquire) == WRITTEN;
        let unanswered = self.lane.waiting().answers.remove(&self.number).is_some();
        if written && unanswered {
            self.lane.cancel(self.number);
        }
    }
}

async fn run(
    inner: Arc<Inner>,
    client: Arc<LaneClient>,
    connection: Connection,
    lane: Lane,
    queued: mpsc::Receiver<Outgoing>,
) {
    let opened = tokio::select! {
        opened = super::open_stream(&connection, KIND_REQUESTS, lane) => opened,
        _ = connection.closed() => None,
    };
    if let Some((send, receive)) = opened {
        inner.tasks.spawn("link answers", read_answers(inner.clone(), client.clone(), receive, lane));
        tokio::select! {
            () = pump(send, queued) => {}
            () = client.down.cancelled() => {}
            _ = connection.closed() => {}
        }
    }
    client.fail();
}

async fn read_answers(inner: Arc<Inner>, client: Arc<LaneClient>, receive: quinn::RecvStream, lane: Lane) {
    let mut reader = FrameReader::new(receive, lane.frame_bytes_max() + HEAD_BYTES);
    let reason = loop {
        let mut frame = match reader.next().await {
            Ok(Some(frame)) if frame.len() >= HEAD_BYTES => frame,
            Ok(Some(_)) => break Some("an answer is shorter than its head".to_owned()),
            Ok(None) | Err(Broken::Lost) => break None,
            Err(Broken::Rules(reason)) => break Some(reason),
        };
        let (number, flags) = (frame.get_u64(), frame.get_u8());
        let answered = client.waiting().answers.remove(&number);
        if let Some(answered) = answered {
            let refused = flags & FLAG_REFUSED != 0;
            // Nobody may be waiting any more: the deadline has passed.
            let _ = answered.send(if refused { Err(String::from_utf8_lossy(&frame).into_owned()) } else { Ok(frame) });
        }
    };
    if let Some(reason) = reason {
        inner.broken_stream(client.to, lane, &reason);
    }
    client.fail();
}

/// Writes frames as they are queued, all that wait in one write, so one flush per wake-up.
async fn pump(mut stream: quinn::SendStream, mut queue: mpsc::Receiver<Outgoing>) {
    let mut batch = Vec::with_capacity(BATCH_FRAMES);
    let mut chunks = Vec::new();
    while queue.recv_many(&mut batch, BATCH_FRAMES).await > 0 {
        join(&batch, &mut chunks);
        if stream.write_all_chunks(&mut chunks).await.is_err() {
            return;
        }
        // Only now is there room for more.
        batch.clear();
        chunks.clear();
    }
    let _ = stream.finish();
}

fn join(batch: &[Outgoing], chunks: &mut Vec<Bytes>) {
    let mut joined = BytesMut::with_capacity(batch.len() * (4 + HEAD_BYTES));
    for out in batch {
        let taken = |claim: &Arc<AtomicU8>| {
            claim.compare_exchange(QUEUED, WRITTEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        if !out.claim.as_ref().is_none_or(taken) {
            continue;
        }
        let length = u32::try_from(HEAD_BYTES + out.bytes).expect("limits of frames are below 4 GiB");
        joined.put_u32(length);
        joined.put_u64(out.number);
        joined.put_u8(out.flags);
        for part in &out.parts {
            if part.len() <= COPIED_BYTES_MAX {
                joined.extend_from_slice(part);
            } else {
                chunks.push(joined.split().freeze());
                chunks.push(part.clone());
            }
        }
    }
    if !joined.is_empty() {
        chunks.push(joined.freeze());
    }
}

/// Answers a peer's requests on one lane. The door is called in the order of arrival, on this task; only
/// what it promises runs elsewhere.
pub(super) async fn serve(
    inner: Arc<Inner>,
    link: Arc<Link>,
    lane: Lane,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
) {
    let Some(door) = inner.door().await else { return };
    let (answers, queue) = mpsc::channel(ANSWERING_MAX);
    inner.tasks.spawn("link answering", pump(send, queue));
    let from = link.peer.id;
    let room = Arc::new(Semaphore::new(ANSWERING_BYTES_MAX));
    let running = Running::default();
    let mut reader = FrameReader::new(receive, lane.frame_bytes_max() + HEAD_BYTES);
    let reason = loop {
        let mut frame = match reader.next().await {
            Ok(Some(frame)) if frame.len() >= HEAD_BYTES => frame,
            Ok(Some(_)) => break "a request is shorter than its head".to_owned(),
            Ok(None) | Err(Broken::Lost) => return,
            Err(Broken::Rules(reason)) => break reason,
        };
        let cost = frame.len().clamp(ANSWERING_BYTES_MAX / ANSWERING_MAX, ANSWERING_BYTES_MAX) as u32;
        let (number, flags) = (frame.get_u64(), frame.get_u8());
        if flags & FLAG_CANCEL != 0 {
            running.cancel(number);
            continue;
        }
        let Ok(room) = room.clone().acquire_many_owned(cost).await else { return };
        let promise = door.request(from, lane, frame);
        let (answers, activity) = (answers.clone(), link.activity.clone());
        let place = (lane == Lane::Call).then(|| running.enter(number));
        inner.tasks.spawn("link request", async move {
            let answered = match place {
                Some(mut place) => tokio::select! {
                    biased;
                    () = place.cancelled() => return,
                    answered = promise => answered,
                },
                None => promise.await,
            };
            let (flags, parts) = match answered {
                Ok(parts) => (0, parts),
                Err(reason) => (FLAG_REFUSED, vec![reason.into()]),
            };
            let out = outgoing(number, flags, parts, lane, room);
            // The link may be gone: then nobody waits for this answer.
            let _ = answers.send(out).await;
            drop(activity);
        });
    };
    inner.broken_stream(from, lane, &reason);
}

/// Requests that are being answered and may be cancelled, by number.
#[derive(Clone, Default)]
struct Running {
    cancels: Arc<Mutex<BTreeMap<u64, oneshot::Sender<()>>>>,
}

/// A request's place among those that run.
struct Place {
    running: Running,
    number: u64,
    cancelled: oneshot::Receiver<()>,
}

impl Running {
    fn enter(&self, number: u64) -> Place {
        let (cancel, cancelled) = oneshot::channel();
        self.lock().insert(number, cancel);
        Place { running: self.clone(), number, cancelled }
    }

    /// An answer may be on its way already: then there is nothing to cancel.
    fn cancel(&self, number: u64) {
        self.lock().remove(&number);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, oneshot::Sender<()>>> {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    async fn cancelled(&mut self) {
        let _ = (&mut self.cancelled).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.lock().remove(&self.number);
    }
}

fn outgoing(number: u64, flags: u8, parts: Parts, lane: Lane, room: OwnedSemaphorePermit) -> Outgoing {
    let bytes = parts.iter().map(Bytes::len).sum();
    if bytes > lane.frame_bytes_max() {
        let reason = format!("the answer of {bytes} bytes is over the limit of {}", lane.frame_bytes_max());
        return outgoing(number, FLAG_REFUSED, vec![reason.into()], lane, room);
    }
    Outgoing { number, flags, parts, bytes, claim: None, _room: room, _queued: None }
}
