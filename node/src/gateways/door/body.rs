//! Bodies between h2's streams and tonic.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Response;
use http_body::{Body as _, Frame};
use tonic::body::Body;

use crate::wire::{Broken, Outflow};

/// A request's body. What is read of it makes room for more.
pub(super) struct Received {
    stream: RecvStream,
    data_ended: bool,
}

impl Received {
    pub(super) fn new(stream: RecvStream) -> Received {
        Received { data_ended: stream.is_end_stream(), stream }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let body = &mut *self;
        while !body.data_ended {
            match ready!(body.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails only when the stream is over, and then nobody waits for room.
                    let _ = body.stream.flow_control().release_capacity(data.len());
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => {
                    body.data_ended = true;
                    return match error.reason() {
                        // The client says that it needs no more of the answer: its request has ended in order.
                        Some(h2::Reason::NO_ERROR) => Poll::Ready(None),
                        _ => Poll::Ready(Some(Err(error))),
                    };
                }
                None => body.data_ended = true,
            }
        }
        match ready!(body.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// Sends an answer as fast as the client takes it.
///
/// # Errors
/// `Gone` when the client has reset the stream or left, `Stalled` when it made no room for `patience`.
pub(super) async fn send(
    answer: Response<Body>,
    respond: &mut SendResponse<Bytes>,
    patience: Duration,
) -> Result<(), Broken> {
    let (head, body) = answer.into_parts();
    let end = body.is_end_stream();
    let stream = respond.send_response(Response::from_parts(head, ()), end)?;
    if end {
        return Ok(());
    }
    let mut out = Outflow::new(stream, Some(patience));
    let mut body = pin!(body);
    loop {
        let frame = std::future::poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => out.poll_gone(cx).map(Err),
        });
        match frame.await? {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => out.data(data, false).await?,
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => return out.trailers(trailers),
                    Err(_) => continue,
                },
            },
            // tonic puts its failures into trailers; a body that fails without them has no status to tell.
            Some(Err(_)) => {
                out.reset(h2::Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => return out.data(Bytes::new(), true).await,
        }
    }
}
