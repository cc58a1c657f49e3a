//! Calls that the node itself makes: the request and the answer are in memory.

use std::future::pending;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use weft_proto::v1::ErrorCode;

use super::body::{Client, Part, Source, Target};
use super::{Call, Calls, Failure};

/// The largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// An answer with all of its body.
#[derive(Debug, Default)]
pub struct Whole {
    /// Its head; with an answer that has no body, the trailers are here.
    pub head: Response<()>,
    /// Its body, gRPC's framing included.
    pub data: Bytes,
    /// What came after it.
    pub trailers: HeaderMap,
}

impl Calls {
    /// Makes a call whose request is `body`, gRPC's framing included.
    ///
    /// # Errors
    /// As of `carry`; TOO_LARGE for an answer over 4 MiB.
    pub async fn exchange(&self, call: &Call, body: Bytes) -> Result<Whole, Failure> {
        let mut answer = Answer::default();
        self.carry(call, Body(Some(body)), &mut answer).await?;
        let Answer { head, data, trailers } = answer;
        Ok(Whole { head: head.unwrap_or_default(), data: data.freeze(), trailers })
    }
}

/// A request's body; `None` once it is given.
struct Body(Option<Bytes>);

impl Source for Body {
    async fn next(&mut self) -> Result<Part, Failure> {
        Ok(self.0.take().map_or(Part::End, |body| Part::Data(body, true)))
    }

    fn release(&mut self, _: usize) {}
}

#[derive(Default)]
struct Answer {
    head: Option<Response<()>>,
    data: BytesMut,
    trailers: HeaderMap,
}

impl Target for Answer {
    async fn put(&mut self, part: Part) -> Result<(), Failure> {
        match part {
            Part::Data(data, _) if self.data.len() + data.len() > ANSWER_BYTES_MAX => {
                let message = format!("the answer has more than {ANSWER_BYTES_MAX} bytes");
                return Err(Failure::refused(ErrorCode::TooLarge, message));
            }
            Part::Data(data, _) => self.data.extend_from_slice(&data),
            Part::Trailers(trailers) => self.trailers = trailers,
            Part::End => {}
        }
        Ok(())
    }

    async fn due(&mut self) -> Result<(), Failure> {
        pending().await
    }
}

impl Client for Answer {
    async fn head(&mut self, head: Response<()>, _: bool) -> Result<(), Failure> {
        self.head = Some(head);
        Ok(())
    }

    fn is_answered(&self) -> bool {
        self.head.is_some()
    }
}
