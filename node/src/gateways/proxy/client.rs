//! The client's end of a call: an HTTP/2 stream that is answered once.

use std::future::poll_fn;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use weft_proto::v1::Error;

use crate::drivers::calls::{Client, Failure, Part, Target};
use crate::wire::{self, Outflow};

/// The client of a call.
pub(super) enum H2Client {
    /// Nothing has gone out.
    Waiting(SendResponse<Bytes>),
    /// The head has.
    Answering(Outflow),
}

impl H2Client {
    pub(super) fn new(respond: SendResponse<Bytes>) -> Self {
        H2Client::Waiting(respond)
    }

    /// Ends the call with a status of Weft's own: as an answer without a body, or as the trailers of one that has begun.
    pub(super) fn fail(&mut self, error: Error) {
        let mut headers = HeaderMap::new();
        // Refused only if the message is no header value, and it is percent-encoded.
        let _ = wire::status(error).add_header(&mut headers);
        match self {
            H2Client::Waiting(respond) => {
                let mut response = Response::new(());
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                *response.headers_mut() = headers;
                // The client may have gone: then nobody reads it.
                let _ = respond.send_response(response, true);
            }
            // The client may have gone here, too.
            H2Client::Answering(out) => drop(out.trailers(headers)),
        }
    }

    /// Passes the instance's reset on.
    pub(super) fn reset(&mut self, reason: Reason) {
        match self {
            H2Client::Waiting(respond) => respond.send_reset(reason),
            H2Client::Answering(out) => out.reset(reason),
        }
    }
}

impl Target for H2Client {
    async fn put(&mut self, part: Part) -> Result<(), Failure> {
        match self {
            H2Client::Waiting(_) => unreachable!("an answer begins with its head"),
            H2Client::Answering(out) => out.put(part).await,
        }
    }

    async fn due(&mut self) -> Result<(), Failure> {
        match self {
            H2Client::Waiting(respond) => {
                let _ = poll_fn(|context| respond.poll_reset(context)).await;
                Err(Failure::Gone)
            }
            H2Client::Answering(out) => out.due().await,
        }
    }
}

impl Client for H2Client {
    async fn head(&mut self, head: Response<()>, end: bool) -> Result<(), Failure> {
        let H2Client::Waiting(respond) = self else { unreachable!("an answer has one head") };
        let stream = respond.send_response(head, end).map_err(|_| Failure::Gone)?;
        *self = H2Client::Answering(if end { Outflow::ended(stream) } else { Outflow::new(stream, None) });
        Ok(())
    }

    fn is_answered(&self) -> bool {
        matches!(self, H2Client::Answering(_))
    }
}
