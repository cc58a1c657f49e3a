//! Sends on an HTTP/2 stream, as fast as the other end takes it and no faster.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;

/// Why no more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The other end has reset the stream, or the connection is over.
    Gone,
    /// The other end made no room for longer than the patience.
    Stalled,
}

impl From<h2::Error> for Broken {
    fn from(_: h2::Error) -> Broken {
        Broken::Gone
    }
}

/// The sending half of a stream. Dropped before its end was sent, it resets the stream.
pub struct Outflow {
    stream: SendStream<Bytes>,
    patience: Option<Duration>,
    ended: bool,
}

impl Outflow {
    /// `patience`: how long the other end may make no room at all; without one it may take its time.
    pub fn new(stream: SendStream<Bytes>, patience: Option<Duration>) -> Outflow {
        Outflow { stream, patience, ended: false }
    }

    /// One whose end was sent with its head.
    pub fn ended(stream: SendStream<Bytes>) -> Outflow {
        Outflow { stream, patience: None, ended: true }
    }

    /// Whether its end has been sent.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Sends `data`, in parts as the other end makes room. Nothing of it is copied. `end`: nothing follows.
    ///
    /// # Errors
    /// `Gone` or `Stalled`; how much went out is not known then.
    pub async fn data(&mut self, mut data: Bytes, end: bool) -> Result<(), Broken> {
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            let room = match self.stream.capacity() {
                0 => self.room().await?,
                room => room,
            };
            let part = data.split_to(room.min(data.len()));
            self.send(part, end && data.is_empty())?;
            if data.is_empty() {
                return Ok(());
            }
        }
        if end { self.send(Bytes::new(), true) } else { Ok(()) }
    }

    /// Sends the trailers, which end the stream. One that has ended stays as it is.
    ///
    /// # Errors
    /// `Gone`.
    pub fn trailers(&mut self, trailers: HeaderMap) -> Result<(), Broken> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        Ok(self.stream.send_trailers(trailers)?)
    }

    /// Ends the stream with a reset. One that has ended stays as it is.
    pub fn reset(&mut self, reason: Reason) {
        if !std::mem::replace(&mut self.ended, true) {
            self.stream.send_reset(reason);
        }
    }

    /// Ready when the other end has reset the stream or left.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        self.stream.poll_reset(cx).map(|_| Broken::Gone)
    }

    fn send(&mut self, data: Bytes, end: bool) -> Result<(), Broken> {
        self.stream.send_data(data, end)?;
        self.ended = end;
        Ok(())
    }

    async fn room(&mut self) -> Result<usize, Broken> {
        let (stream, patience) = (&mut self.stream, self.patience);
        let made = std::future::poll_fn(|cx| {
            loop {
                match std::task::ready!(stream.poll_capacity(cx)) {
                    Some(Ok(0)) => {}
                    Some(Ok(room)) => return Poll::Ready(Ok(room)),
                    Some(Err(_)) | None => return Poll::Ready(Err(Broken::Gone)),
                }
            }
        });
        match patience {
            Some(patience) => tokio::time::timeout(patience, made).await.unwrap_or(Err(Broken::Stalled)),
            None => made.await,
        }
    }
}
