//! The two ends of a body: where it comes from and where it goes. HTTP/2 streams and links have the same two ends,
//! so that one loop (`pass`) carries any to any, as fast as the receiving end has room.

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::task::Poll;

use bytes::Bytes;
use futures::FutureExt;
use h2::RecvStream;
use http::{HeaderMap, Response};

use super::failure::Failure;
use crate::wire::{Broken, Outflow};

/// Bytes of a request that are kept until its answer begins, so that it can be sent again. A request that is all here
/// and not larger goes to another node as one frame.
pub(super) const KEPT_BYTES_MAX: usize = 64 << 10;

/// A piece of a body.
#[derive(Debug)]
pub enum Part {
    /// Bytes; true: they are the last, and nothing follows.
    Data(Bytes, bool),
    /// The end, with trailers.
    Trailers(HeaderMap),
    /// The end.
    End,
}

/// Where a body comes from.
pub trait Source: Send {
    /// The next part, until the end. Cancel-safe.
    ///
    /// # Errors
    /// It will not come to its end.
    fn next(&mut self) -> impl Future<Output = Result<Part, Failure>> + Send;

    /// So many bytes have been passed on: as many more may come.
    fn release(&mut self, bytes: usize);

    /// Takes in what comes while nobody can take parts. Ends only if there will be no more. Cancel-safe.
    fn read_ahead(&mut self) -> impl Future<Output = Failure> + Send {
        pending()
    }
}

/// Where a body goes.
pub trait Target: Send {
    /// Sends a part; waits for room.
    ///
    /// # Errors
    /// The other end takes no more.
    fn put(&mut self, part: Part) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Resolves when there is something to do for this end: an error if it takes no more, else `attend` is due.
    /// Cancel-safe.
    fn due(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Does what is due. Not cancel-safe.
    fn attend(&mut self) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Ok(()) }
    }
}

/// Who made the call: where the answer goes.
pub trait Client: Target {
    /// Begins the answer; `end`: there is no body.
    fn head(&mut self, head: Response<()>, end: bool) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Whether a part of the answer has gone out.
    fn is_answered(&self) -> bool;
}

/// Which end of a body has failed, and why.
#[derive(Debug)]
pub(super) enum Cut {
    Source(Failure),
    Target,
}

/// Carries a body from one end to the other.
///
/// # Errors
/// What kept it from coming to its end.
pub(super) async fn pass(source: &mut impl Source, target: &mut impl Target) -> Result<(), Cut> {
    loop {
        let part = tokio::select! {
            biased;
            part = source.next() => part.map_err(Cut::Source)?,
            due = target.due() => {
                due.map_err(|_| Cut::Target)?;
                target.attend().await.map_err(|_| Cut::Target)?;
                continue;
            }
        };
        let (bytes, end) = match &part {
            Part::Data(data, end) => (data.len(), *end),
            Part::Trailers(_) | Part::End => (0, true),
        };
        tokio::select! {
            biased;
            done = target.put(part) => done.map_err(|_| Cut::Target)?,
            failure = source.read_ahead() => return Err(Cut::Source(failure)),
        }
        if bytes > 0 {
            source.release(bytes);
        }
        if end {
            return Ok(());
        }
    }
}

/// Carries a request's body, unless it has `ended`; then looks after both ends until it is dropped with the call.
/// Ends only with a failure.
pub(super) async fn pass_and_stay(source: &mut impl Source, target: &mut impl Target, ended: bool) -> Cut {
    if !ended && let Err(broken) = pass(source, target).await {
        return broken;
    }
    loop {
        tokio::select! {
            biased;
            failure = source.read_ahead() => return Cut::Source(failure),
            due = target.due() => {
                if due.is_err() {
                    return Cut::Target;
                }
            }
        }
        if target.attend().await.is_err() {
            return Cut::Target;
        }
    }
}

/// A request's body whose beginning is kept, so that it can be sent again.
pub(super) struct Opening<S> {
    source: S,
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// Parts of `kept` that this attempt has had.
    given: usize,
    /// More than is kept has gone.
    lost: bool,
    /// Bytes passed on by this attempt, and by the best one so far: those are released once.
    passed_bytes: usize,
    released_bytes: usize,
    end: Option<Option<HeaderMap>>,
}

impl<S: Source> Opening<S> {
    pub(super) fn new(source: S) -> Self {
        Opening {
            source,
            kept: VecDeque::new(),
            kept_bytes: 0,
            given: 0,
            lost: false,
            end: None,
            passed_bytes: 0,
            released_bytes: 0,
        }
    }

    /// Takes what has come already, without waiting.
    pub(super) fn gather(&mut self) -> Result<(), Failure> {
        while self.end.is_none() && self.kept_bytes < KEPT_BYTES_MAX {
            let Some(part) = self.source.next().now_or_never() else { return Ok(()) };
            self.keep(part?);
        }
        Ok(())
    }

    fn keep(&mut self, part: Part) {
        match part {
            Part::Data(data, end) => {
                self.kept_bytes += data.len();
                self.kept.push_back(data);
                self.end = end.then_some(None);
            }
            Part::Trailers(trailers) => self.end = Some(Some(trailers)),
            Part::End => self.end = Some(None),
        }
    }

    /// Gives the whole body at once, if it is all here, small and without trailers.
    pub(super) fn take_whole(&mut self) -> Option<Vec<Bytes>> {
        let whole = !self.lost && self.end == Some(None) && self.kept_bytes <= KEPT_BYTES_MAX;
        if !whole {
            return None;
        }
        self.given = self.kept.len();
        // It has left HTTP/2's window: others may use that while this call takes its time.
        self.release(self.kept_bytes);
        Some(self.kept.iter().cloned().collect())
    }

    /// Nothing follows: no data, no trailers.
    pub(super) fn is_empty(&self) -> bool {
        self.given == self.kept.len() && self.end == Some(None)
    }

    /// Whether all that was given can be given again.
    pub(super) fn is_replayable(&self) -> bool {
        !self.lost
    }

    /// Gives all of it again.
    pub(super) fn rewind(&mut self) {
        assert!(!self.lost, "a body that is not kept is not sent again");
        (self.given, self.passed_bytes) = (0, 0);
    }

    /// The next part that is kept, or the end if it is known.
    fn next_kept(&mut self) -> Option<Part> {
        if self.given < self.kept.len() {
            let data = self.kept[self.given].clone();
            self.given += 1;
            let last = self.given == self.kept.len() && self.end == Some(None);
            return Some(Part::Data(data, last));
        }
        match &self.end {
            Some(Some(trailers)) => Some(Part::Trailers(trailers.clone())),
            Some(None) => Some(Part::End),
            None => None,
        }
    }
}

impl<S: Source> Source for Opening<S> {
    async fn next(&mut self) -> Result<Part, Failure> {
        if let Some(part) = self.next_kept() {
            return Ok(part);
        }
        let part = self.source.next().await?;
        if self.lost {
            return Ok(part);
        }
        if let Part::Data(data, _) = &part
            && self.kept_bytes + data.len() > KEPT_BYTES_MAX
        {
            self.lost = true;
            self.kept.clear();
            self.given = 0;
            return Ok(part);
        }
        self.keep(part);
        Ok(self.next_kept().expect("a part was just kept"))
    }

    fn release(&mut self, bytes: usize) {
        self.passed_bytes += bytes;
        if self.passed_bytes > self.released_bytes {
            self.source.release(self.passed_bytes - self.released_bytes);
            self.released_bytes = self.passed_bytes;
        }
    }

    fn read_ahead(&mut self) -> impl Future<Output = Failure> + Send {
        self.source.read_ahead()
    }
}

/// The body of an HTTP/2 message that comes in.
pub struct H2Source {
    stream: RecvStream,
    /// Data has ended, trailers have not.
    trailers: bool,
    failure: fn(h2::Error) -> Failure,
}

impl H2Source {
    /// `failure` says what it means when the stream breaks.
    pub fn new(stream: RecvStream, failure: fn(h2::Error) -> Failure) -> Self {
        H2Source { stream, trailers: false, failure }
    }

    /// Nothing follows.
    pub fn is_ended(&self) -> bool {
        self.stream.is_end_stream()
    }
}

impl Source for H2Source {
    fn next(&mut self) -> impl Future<Output = Result<Part, Failure>> + Send {
        poll_fn(|context| {
            while !self.trailers {
                match self.stream.poll_data(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Ok(data))) => {
                        let end = self.stream.is_end_stream();
                        if !data.is_empty() || end {
                            return Poll::Ready(Ok(Part::Data(data, end)));
                        }
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err((self.failure)(error))),
                    Poll::Ready(None) => self.trailers = true,
                }
            }
            self.stream.poll_trailers(context).map(|trailers| match trailers {
                Ok(Some(trailers)) => Ok(Part::Trailers(trailers)),
                Ok(None) => Ok(Part::End),
                Err(error) => Err((self.failure)(error)),
            })
        })
    }

    fn release(&mut self, bytes: usize) {
        // Refused only for bytes released before.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }
}

impl From<Broken> for Failure {
    /// Whatever the reason, nobody takes more.
    fn from(_: Broken) -> Failure {
        Failure::Gone
    }
}

/// An HTTP/2 message that goes out.
impl Target for Outflow {
    async fn put(&mut self, part: Part) -> Result<(), Failure> {
        match part {
            Part::Data(data, end) => Ok(self.data(data, end).await?),
            Part::Trailers(trailers) => Ok(self.trailers(trailers)?),
            Part::End => Ok(self.data(Bytes::new(), true).await?),
        }
    }

    async fn due(&mut self) -> Result<(), Failure> {
        if self.is_ended() {
            return pending().await;
        }
        Err(poll_fn(|context| self.poll_gone(context)).await.into())
    }
}
