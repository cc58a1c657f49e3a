//! The two ends of a call's own stream on a link.
//!
//! Who sends data keeps within the credit that the receiver gives, so that a receiver always takes in what comes:
//! a client that does not read holds up its own call, never the link.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response};
use prost::Message;
use tokio::sync::{Notify, Semaphore};
use weft_proto::internal::v1::{CallFrame, call_frame};

use super::body::{Client, Part, Source, Target};
use super::failure::Failure;
use super::frames;
use crate::drivers::link::{FrameReceiver, FrameSender, LinkStream, Parts};

/// Bytes of data that may be sent before the receiver has passed them on: the first credit of each side.
const WINDOW_BYTES: usize = 256 << 10;
/// Credit is given when so much is owed.
const CREDIT_BYTES: usize = WINDOW_BYTES / 4;
/// The largest piece of data in a frame.
const DATA_BYTES_MAX: usize = CREDIT_BYTES;

/// What the two ends of a stream share.
struct Credit {
    /// Bytes that this node may send.
    granted: Semaphore,
    /// Bytes that the peer may be given.
    owed: AtomicU32,
    due: Notify,
}

/// What comes in on a call's stream.
pub(super) struct LinkSource {
    receive: FrameReceiver,
    items: VecDeque<Item>,
    /// Bytes that the peer may still send.
    window: usize,
    /// The end of the body has come.
    ended: bool,
    /// No frame will come.
    closed: bool,
    /// The peer is the client's node: when it goes, so does the call.
    from_client: bool,
    credit: Arc<Credit>,
}

enum Item {
    Head(Response<()>, bool),
    Part(Part),
    Failure(Failure),
}

/// What goes out on a call's stream.
pub(super) struct LinkTarget {
    send: FrameSender,
    credit: Arc<Credit>,
}

/// The two ends of a stream. `from_client`: the peer is the client's node.
pub(super) fn ends(stream: LinkStream, from_client: bool) -> (LinkSource, LinkTarget) {
    let credit =
        Arc::new(Credit { granted: Semaphore::new(WINDOW_BYTES), owed: AtomicU32::new(0), due: Notify::new() });
    let source = LinkSource {
        receive: stream.receive,
        items: VecDeque::new(),
        window: WINDOW_BYTES,
        ended: false,
        closed: false,
        from_client,
        credit: credit.clone(),
    };
    (source, LinkTarget { send: stream.send, credit })
}

impl LinkSource {
    /// The head of the answer, and whether it is all. Cancel-safe.
    async fn head(&mut self) -> Result<(Response<()>, bool), Failure> {
        match self.item().await? {
            Item::Head(head, end) => Ok((head, end)),
            Item::Failure(failure) => Err(failure),
            Item::Part(_) => Err(broken("the answer began without its head")),
        }
    }

    /// The answer: its head, its body, and whether that is empty.
    pub(super) async fn begin(mut self) -> Result<(Response<()>, LinkSource, bool), Failure> {
        let (head, end) = self.head().await?;
        Ok((head, self, end))
    }

    async fn item(&mut self) -> Result<Item, Failure> {
        loop {
            if let Some(item) = self.items.pop_front() {
                return Ok(item);
            }
            if self.closed {
                return Err(self.lost());
            }
            self.read().await;
        }
    }

    /// Reads one frame. Cancel-safe.
    async fn read(&mut self) {
        match self.receive.next().await {
            Ok(Some(frame)) => {
                if let Err(reason) = self.take(frame) {
                    tracing::warn!(reason, "a peer broke the rules of calls");
                    self.items.push_back(Item::Failure(broken(&reason)));
                    self.closed = true;
                }
            }
            Ok(None) | Err(_) => self.closed = true,
        }
    }

    fn take(&mut self, frame: Bytes) -> Result<(), String> {
        let frame = CallFrame::decode(frame).map_err(|error| format!("a call's frame is not readable: {error}"))?;
        let frame = frame.frame.ok_or("a call's frame is empty")?;
        if let call_frame::Frame::Credit(bytes) = frame {
            let bytes = bytes as usize;
            if self.credit.granted.available_permits() + bytes > WINDOW_BYTES {
                return Err("more credit than the window".into());
            }
            self.credit.granted.add_permits(bytes);
            return Ok(());
        }
        if self.ended {
            return Err("a frame after the end".into());
        }
        let item = match frame {
            call_frame::Frame::Data(data) if data.is_empty() => return Ok(()),
            call_frame::Frame::Data(data) => {
                self.window = self.window.checked_sub(data.len()).ok_or("more data than its credit")?;
                Item::Part(Part::Data(data, false))
            }
            call_frame::Frame::Trailers(trailers) => {
                self.ended = true;
                match trailers.trailers.is_empty() {
                    true => Item::Part(Part::End),
                    false => Item::Part(Part::Trailers(frames::headers_of(trailers.trailers)?)),
                }
            }
            call_frame::Frame::Response(head) => {
                self.ended = head.end;
                Item::Head(frames::response_of(head.status, head.headers)?, head.end)
            }
            call_frame::Frame::Failure(failure) => {
                self.ended = true;
                Item::Failure(frames::failed(failure))
            }
            call_frame::Frame::Reset(code) => {
                self.ended = true;
                Item::Failure(Failure::Reset(Reason::from(code)))
            }
            call_frame::Frame::Credit(_) => unreachable!("it is handled above"),
        };
        self.items.push_back(item);
        Ok(())
    }

    /// What it means that the stream ended before the body did.
    fn lost(&self) -> Failure {
        match self.from_client {
            true => Failure::Gone,
            false => Failure::unknown("the link to the instance's home node was lost before the answer was whole"),
        }
    }
}

fn broken(reason: &str) -> Failure {
    Failure::unknown(format!("the instance's home node broke the rules of calls: {reason}"))
}

impl Source for LinkSource {
    async fn next(&mut self) -> Result<Part, Failure> {
        match self.item().await? {
            Item::Part(part) => Ok(part),
            Item::Failure(failure) => Err(failure),
            Item::Head(..) => Err(broken("the answer has two heads")),
        }
    }

    fn release(&mut self, bytes: usize) {
        self.window += bytes;
        let before = self.credit.owed.fetch_add(bytes as u32, Ordering::AcqRel) as usize;
        if before + bytes >= CREDIT_BYTES {
            self.credit.due.notify_one();
        }
    }

    async fn read_ahead(&mut self) -> Failure {
        while !self.closed {
            self.read().await;
        }
        match self.from_client {
            true => Failure::Gone,
            // What has come is still to be passed on.
            false => pending().await,
        }
    }
}

impl LinkTarget {
    /// Sends the first frame, or one that is no part of a body.
    pub(super) async fn say(&mut self, frame: Parts) -> Result<(), Failure> {
        self.send.send(frame).await.map_err(|_| Failure::Gone)
    }

    /// Ends the stream in order.
    pub(super) fn finish(&mut self) {
        self.send.finish();
    }

    /// Waits for credit for some of `wanted` bytes, and takes it.
    async fn take(&mut self, wanted: usize) -> Result<usize, Failure> {
        let bytes = wanted.min(DATA_BYTES_MAX);
        loop {
            tokio::select! {
                biased;
                taken = self.credit.granted.acquire_many(bytes as u32) => {
                    taken.map_err(|_| Failure::Gone)?.forget();
                    return Ok(bytes);
                }
                () = self.credit.due.notified() => {}
            }
            self.attend().await?;
        }
    }
}

impl Target for LinkTarget {
    async fn put(&mut self, part: Part) -> Result<(), Failure> {
        match part {
            Part::Data(mut data, end) => {
                while !data.is_empty() {
                    let bytes = self.take(data.len()).await?;
                    let frame = frames::data(data.split_to(bytes));
                    self.say(frame).await?;
                }
                if end { self.say(frames::trailers(&HeaderMap::new())).await } else { Ok(()) }
            }
            Part::Trailers(trailers) => self.say(frames::trailers(&trailers)).await,
            Part::End => self.say(frames::trailers(&HeaderMap::new())).await,
        }
    }

    async fn due(&mut self) -> Result<(), Failure> {
        self.credit.due.notified().await;
        Ok(())
    }

    async fn attend(&mut self) -> Result<(), Failure> {
        match self.credit.owed.swap(0, Ordering::AcqRel) {
            0 => Ok(()),
            bytes => self.say(frames::frame(call_frame::Frame::Credit(bytes))).await,
        }
    }
}

/// The client's node as the home node sees it: where the answer goes.
pub(super) struct LinkClient {
    target: LinkTarget,
    answered: bool,
}

impl LinkClient {
    pub(super) fn new(target: LinkTarget) -> Self {
        LinkClient { target, answered: false }
    }

    /// Ends the stream as the call has ended. A client's node that is gone is told nothing.
    pub(super) async fn end(mut self, ended: Result<(), Failure>) {
        let last = match ended {
            Ok(()) => None,
            Err(Failure::Failed(failed)) => Some(call_frame::Frame::Failure(frames::failure(failed))),
            Err(Failure::Reset(reason)) => Some(call_frame::Frame::Reset(reason.into())),
            Err(Failure::Gone) => return,
        };
        let said = match last {
            Some(frame) => self.target.say(frames::frame(frame)).await,
            None => Ok(()),
        };
        if said.is_ok() {
            self.target.finish();
        }
    }
}

impl Target for LinkClient {
    fn put(&mut self, part: Part) -> impl Future<Output = Result<(), Failure>> + Send {
        self.target.put(part)
    }
    fn due(&mut self) -> impl Future<Output = Result<(), Failure>> + Send {
        self.target.due()
    }
    fn attend(&mut self) -> impl Future<Output = Result<(), Failure>> + Send {
        self.target.attend()
    }
}

impl Client for LinkClient {
    async fn head(&mut self, head: Response<()>, end: bool) -> Result<(), Failure> {
        self.answered = true;
        self.target.say(frames::response(&head, end)).await
    }

    fn is_answered(&self) -> bool {
        self.answered
    }
}
