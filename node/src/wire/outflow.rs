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
    patience: Duration,
}

impl Outflow {
    /// `patience`: how long the other end may make no room at all.
    pub fn new(stream: SendStream<Bytes>, patience: Duration) -> Outflow {
        Outflow { stream, patience }
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
            self.stream.send_data(part, end && data.is_empty())?;
            if data.is_empty() {
                return Ok(());
            }
        }
        if end {
            self.stream.send_data(Bytes::new(), true)?;
        }
        Ok(())
    }

    /// Sends the trailers, which end the stream.
    ///
    /// # Errors
    /// `Gone`.
    pub fn trailers(mut self, trailers: HeaderMap) -> Result<(), Broken> {
        Ok(self.stream.send_trailers(trailers)?)
    }

    /// Ends the stream with a reset.
    pub fn reset(mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Ready when the other end has reset the stream or left.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        self.stream.poll_reset(cx).map(|_| Broken::Gone)
    }

    async fn room(&mut self) -> Result<usize, Broken> {
        let stream = &mut self.stream;
        let made = std::future::poll_fn(|cx| {
            loop {
                match std::task::ready!(stream.poll_capacity(cx)) {
                    Some(Ok(0)) => {}
                    Some(Ok(room)) => return Poll::Ready(Ok(room)),
                    Some(Err(_)) | None => return Poll::Ready(Err(Broken::Gone)),
                }
            }
        });
        tokio::time::timeout(self.patience, made).await.unwrap_or(Err(Broken::Stalled))
    }
}
