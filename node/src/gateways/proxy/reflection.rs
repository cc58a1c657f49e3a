//! Asks an instance of a service about itself, by gRPC reflection.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Uri};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use weft_cluster::caller::Caller;
use weft_proto::v1::{Error, ErrorCode};

use crate::drivers::calls::{Call, Calls, Failure, Whole};
use crate::wire::{error, from_status};

/// Instances serve the one or the other; they are the same on the wire.
const VERSIONS: [&str; 2] = ["v1", "v1alpha"];
/// Bytes of a message's head: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// A question about a service, for one of its instances.
pub struct Question {
    /// Who asks.
    pub caller: Caller,
    /// How often the question has gone through Weft before.
    pub hops: u32,
    /// Of the service; empty: "default".
    pub namespace: String,
    /// The service's full gRPC name.
    pub grpc_service: String,
    /// What is asked, by reflection's own protocol.
    pub request: ServerReflectionRequest,
}

/// Puts one question to an instance.
///
/// # Errors
/// It could not be asked, or answers no reflection (FAILED_PRECONDITION).
pub async fn ask(calls: &Calls, question: Question, patience: Duration) -> Result<ServerReflectionResponse, Error> {
    let Question { caller, hops, namespace, grpc_service, request } = question;
    let body = framed(&request);
    for version in VERSIONS {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (TE, HeaderValue::from_static("trailers")),
        ]);
        let uri = Uri::try_from(path).map_err(|_| internal("a path"))?;
        let mut call = Call::new(uri, headers, caller.clone()).ok_or_else(|| internal("a gRPC path"))?;
        call = call.after(hops);
        call.namespace = namespace.clone();
        call.deadline = Some(Instant::now() + patience);
        // It only reads.
        call.idempotent = true;
        call.of_service = Some(grpc_service.clone());
        let exchange = tokio::time::timeout(patience, Box::pin(calls.exchange(&call, body.clone())));
        let whole = exchange.await.unwrap_or_else(|_| Err(Failure::late())).map_err(|failure| said(failure, &call))?;
        match answer(&whole) {
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status) => return Err(from_status(&status)),
            Ok(answer) => return Ok(answer),
        }
    }
    Err(error(ErrorCode::FailedPrecondition, format!("the instances of {grpc_service} answer no gRPC reflection")))
}

fn internal(what: &str) -> Error {
    error(ErrorCode::Internal, format!("the path of reflection is not {what}"))
}

fn said(failure: Failure, call: &Call) -> Error {
    match failure {
        Failure::Failed(failed) => failed.error,
        Failure::Reset(reason) => {
            error(ErrorCode::OutcomeUnknown, format!("the instance of {} reset it: {reason}", call.grpc_service()))
        }
        Failure::Gone => internal("asked for any more"),
    }
}

fn framed(message: &impl Message) -> Bytes {
    let mut body = BytesMut::with_capacity(HEAD_BYTES + message.encoded_len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    body.extend_from_slice(&message.encode_to_vec());
    body.freeze()
}

fn answer(whole: &Whole) -> Result<ServerReflectionResponse, Status> {
    for headers in [whole.head.headers(), &whole.trailers] {
        if let Some(status) = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok) {
            return Err(status);
        }
    }
    let wrong = || Status::internal("the instance's answer is no whole message");
    let mut data = whole.data.clone();
    if data.len() < HEAD_BYTES || data.get_u8() != 0 {
        return Err(wrong());
    }
    let length = data.get_u32() as usize;
    let message = (length <= data.len()).then(|| data.slice(..length)).ok_or_else(wrong)?;
    ServerReflectionResponse::decode(message).map_err(|_| wrong())
}
