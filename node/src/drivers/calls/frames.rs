//! Calls as frames on links: written straight from headers, bodies as parts of their own that are not copied.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use weft_cluster::ids::InstanceId;
use weft_proto::internal::v1::{
    CallAnswer, CallFailure, CallFrame, CallHead, CallHeader, CallOpen, call_answer, call_frame, call_open,
};

use super::call::Call;
use super::failure::{Failed, Failure};
use crate::drivers::link::Parts;

/// Field numbers of call.proto.
mod field {
    pub(super) const HEAD_INSTANCE: u32 = 1;
    pub(super) const HEAD_PATH: u32 = 2;
    pub(super) const HEAD_AUTHORITY: u32 = 3;
    pub(super) const HEAD_HEADERS: u32 = 4;
    pub(super) const HEAD_TIMEOUT: u32 = 5;
    pub(super) const HEAD_CALL: u32 = 6;
    pub(super) const HEAD_BODY: u32 = 7;
    pub(super) const HEAD_CALLER: u32 = 8;
    pub(super) const NAME: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const OPEN_HEAD: u32 = 1;
    pub(super) const ANSWER_WHOLE: u32 = 1;
    pub(super) const WHOLE_STATUS: u32 = 1;
    pub(super) const WHOLE_HEADERS: u32 = 2;
    pub(super) const WHOLE_TRAILERS: u32 = 3;
    pub(super) const WHOLE_DATA: u32 = 4;
    pub(super) const FRAME_RESPONSE: u32 = 1;
    pub(super) const FRAME_DATA: u32 = 2;
    pub(super) const FRAME_TRAILERS: u32 = 3;
    pub(super) const RESPONSE_STATUS: u32 = 1;
    pub(super) const RESPONSE_HEADERS: u32 = 2;
    pub(super) const RESPONSE_END: u32 = 3;
    pub(super) const TRAILERS: u32 = 1;
}

/// Bytes of a head without its headers, roughly.
const HEAD_BYTES: usize = 128;
/// Headers of one head or of trailers, at most: HTTP/2 counts 32 bytes for each, and its limits give fewer.
const HEADERS_MAX: usize = 16_384;

/// A whole call as a request of the lane.
pub(super) fn whole_call<'a>(
    instance: InstanceId,
    call: &Call,
    left: Option<Duration>,
    id: u64,
    body: impl Iterator<Item = &'a Bytes> + Clone,
) -> Parts {
    let mut head = head(instance, call, left, id);
    let bytes: usize = body.clone().map(Bytes::len).sum();
    if bytes > 0 {
        key(&mut head, field::HEAD_BODY, bytes);
    }
    let mut parts = Parts::with_capacity(3);
    parts.push(head.freeze());
    parts.extend(body.cloned());
    parts
}

/// The first frame of a call's own stream.
pub(super) fn open(instance: InstanceId, call: &Call, left: Option<Duration>) -> Parts {
    let head = head(instance, call, left, 0);
    let mut open = BytesMut::with_capacity(8);
    key(&mut open, field::OPEN_HEAD, head.len());
    vec![open.freeze(), head.freeze()]
}

fn head(instance: InstanceId, call: &Call, left: Option<Duration>, id: u64) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEAD_BYTES + headers_bytes(call.headers()));
    number(&mut out, field::HEAD_INSTANCE, instance.0);
    bytes(&mut out, field::HEAD_PATH, call.path().as_bytes());
    bytes(&mut out, field::HEAD_AUTHORITY, call.authority().as_bytes());
    headers(&mut out, field::HEAD_HEADERS, call.headers());
    if let Some(left) = left {
        // 0 stands for no deadline.
        number(&mut out, field::HEAD_TIMEOUT, u64::try_from(left.as_micros()).unwrap_or(u64::MAX).max(1));
    }
    if id != 0 {
        encode_key(field::HEAD_CALL, WireType::SixtyFourBit, &mut out);
        out.extend_from_slice(&id.to_le_bytes());
    }
    if let Some(caller) = call.caller.to_wire() {
        prost::encoding::message::encode(field::HEAD_CALLER, &caller, &mut out);
    }
    out
}

/// A whole answer.
pub(super) fn whole_answer(head: &Response<()>, data: &[Bytes], trailers: Option<&HeaderMap>) -> Parts {
    let trailers_bytes = trailers.map_or(0, headers_bytes);
    let mut inner = BytesMut::with_capacity(16 + headers_bytes(head.headers()) + trailers_bytes);
    number(&mut inner, field::WHOLE_STATUS, u64::from(head.status().as_u16()));
    headers(&mut inner, field::WHOLE_HEADERS, head.headers());
    if let Some(trailers) = trailers {
        headers(&mut inner, field::WHOLE_TRAILERS, trailers);
    }
    let data_bytes: usize = data.iter().map(Bytes::len).sum();
    if data_bytes > 0 {
        key(&mut inner, field::WHOLE_DATA, data_bytes);
    }
    let mut outer = BytesMut::with_capacity(8);
    key(&mut outer, field::ANSWER_WHOLE, inner.len() + data_bytes);
    let mut parts = Parts::with_capacity(2 + data.len());
    parts.push(outer.freeze());
    parts.push(inner.freeze());
    parts.extend(data.iter().cloned());
    parts
}

/// Any other answer to a whole call.
pub(super) fn answer(answer: call_answer::Answer) -> Parts {
    vec![CallAnswer { answer: Some(answer) }.encode_to_vec().into()]
}

/// The frame that begins an answer; `end`: it is all.
pub(super) fn response(head: &Response<()>, end: bool) -> Parts {
    let mut inner = BytesMut::with_capacity(8 + headers_bytes(head.headers()));
    number(&mut inner, field::RESPONSE_STATUS, u64::from(head.status().as_u16()));
    headers(&mut inner, field::RESPONSE_HEADERS, head.headers());
    number(&mut inner, field::RESPONSE_END, u64::from(end));
    wrapped(field::FRAME_RESPONSE, inner)
}

/// The frame of a piece of a body.
pub(super) fn data(data: Bytes) -> Parts {
    let mut head = BytesMut::with_capacity(8);
    key(&mut head, field::FRAME_DATA, data.len());
    vec![head.freeze(), data]
}

/// The frame of a body's end.
pub(super) fn trailers(trailers: &HeaderMap) -> Parts {
    let mut inner = BytesMut::with_capacity(headers_bytes(trailers));
    headers(&mut inner, field::TRAILERS, trailers);
    wrapped(field::FRAME_TRAILERS, inner)
}

/// Any other frame.
pub(super) fn frame(frame: call_frame::Frame) -> Parts {
    vec![CallFrame { frame: Some(frame) }.encode_to_vec().into()]
}

/// The first frame of a stream that goes on with a call of the lane.
pub(super) fn continued(id: u64) -> Parts {
    vec![CallOpen { open: Some(call_open::Open::Continued(id)) }.encode_to_vec().into()]
}

/// A failure as the peer is told it.
pub(super) fn failure(failed: Failed) -> CallFailure {
    CallFailure { error: Some(failed.error), not_sent: failed.not_sent, homeless: failed.homeless }
}

/// A failure as the peer tells it. It is the home node that knows whether the instance could be reached.
pub(super) fn failed(failure: CallFailure) -> Failure {
    let error = failure.error.unwrap_or_default();
    let unreachable = failure.not_sent && error.code() == weft_proto::v1::ErrorCode::Unreachable;
    Failure::Failed(Failed { error, not_sent: failure.not_sent, unreachable, homeless: failure.homeless })
}

/// The head of an answer.
///
/// # Errors
/// The peer broke the rules: one sentence.
pub(super) fn response_of(status: u32, headers: Vec<CallHeader>) -> Result<Response<()>, String> {
    let code = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let mut response = Response::new(());
    *response.status_mut() = code.ok_or_else(|| format!("{status} is no HTTP status"))?;
    *response.headers_mut() = headers_of(headers)?;
    Ok(response)
}

/// The URI and the headers of a call.
///
/// # Errors
/// The peer broke the rules: one sentence.
pub(super) fn request_of(head: &mut CallHead) -> Result<(Uri, HeaderMap), String> {
    let headers = headers_of(std::mem::take(&mut head.headers))?;
    let mut uri = Uri::builder().path_and_query(std::mem::take(&mut head.path));
    if !head.authority.is_empty() {
        uri = uri.scheme(http::uri::Scheme::HTTP).authority(std::mem::take(&mut head.authority));
    }
    let uri = uri.build().map_err(|error| format!("the path or the authority is not good: {error}"))?;
    Ok((uri, headers))
}

/// Headers as HTTP knows them.
///
/// # Errors
/// The peer broke the rules: one sentence.
pub(super) fn headers_of(headers: Vec<CallHeader>) -> Result<HeaderMap, String> {
    if headers.len() > HEADERS_MAX {
        return Err(format!("{} headers are more than {HEADERS_MAX}", headers.len()));
    }
    let mut map = HeaderMap::with_capacity(headers.len());
    for header in headers {
        let name = HeaderName::from_bytes(&header.name).map_err(|error| format!("a header's name: {error}"))?;
        let value = HeaderValue::from_maybe_shared(header.value).map_err(|error| format!("header {name}: {error}"))?;
        map.append(name, value);
    }
    Ok(map)
}

fn wrapped(number: u32, inner: BytesMut) -> Parts {
    let mut outer = BytesMut::with_capacity(8 + inner.len());
    key(&mut outer, number, inner.len());
    outer.extend_from_slice(&inner);
    vec![outer.freeze()]
}

fn key(out: &mut BytesMut, field: u32, length: usize) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

fn number(out: &mut BytesMut, field: u32, number: u64) {
    encode_key(field, WireType::Varint, out);
    encode_varint(number, out);
}

fn bytes(out: &mut BytesMut, field: u32, bytes: &[u8]) {
    key(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

fn headers(out: &mut BytesMut, field: u32, headers: &HeaderMap) {
    for (name, value) in headers {
        key(out, field, header_bytes(name, value));
        bytes(out, field::NAME, name.as_str().as_bytes());
        bytes(out, field::VALUE, value.as_bytes());
    }
}

/// Bytes of a `CallHeader`: two fields, each with a key of one byte.
fn header_bytes(name: &HeaderName, value: &HeaderValue) -> usize {
    let part = |bytes: usize| 1 + encoded_len_varint(bytes as u64) + bytes;
    part(name.as_str().len()) + part(value.len())
}

/// Enough room for headers.
fn headers_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| 4 + header_bytes(name, value)).sum()
}

#[cfg(test)]
mod tests {
    use weft_cluster::caller::Caller;
    use weft_proto::internal::v1::{CallResponseHead, CallTrailers, CallWhole};

    use super::*;

    fn header(name: &str, value: &[u8]) -> CallHeader {
        CallHeader { name: name.to_owned().into(), value: value.to_vec().into() }
    }

    fn map(pairs: &[(&str, &[u8])]) -> HeaderMap {
        headers_of(pairs.iter().map(|(name, value)| header(name, value)).collect()).expect("good headers")
    }

    fn joined(parts: &Parts) -> Bytes {
        Bytes::from(parts.concat())
    }

    #[test]
    fn what_is_written_is_what_prost_reads() {
        let long = vec![b'x'; 300];
        let headers = map(&[("a", b"1"), ("b-bin", &long), ("a", b"2")]);
        let uri: Uri = "http://shop.example/t.Echo/Unary".parse().expect("a good URI");
        let call = Call::new(uri, headers.clone(), Caller::node("n1")).expect("a good path");
        let body = [Bytes::from(vec![7; 2_000]), Bytes::from_static(b"end")];
        let parts = whole_call(InstanceId(300), &call, Some(Duration::from_millis(2)), 9, body.iter());
        assert_eq!(parts[1].as_ptr(), body[0].as_ptr(), "the body is not copied");
        let mut head = CallHead::decode(joined(&parts)).expect("readable");
        assert_eq!((head.instance, head.timeout_us, head.call), (300, 2_000, 9));
        assert_eq!(head.body, body.concat());
        assert_eq!(Caller::from_wire(head.caller.take()), call.caller);
        let (uri, read) = request_of(&mut head).expect("good");
        assert_eq!((uri.to_string(), read), ("http://shop.example/t.Echo/Unary".to_owned(), headers.clone()));

        let open = CallOpen::decode(joined(&open(InstanceId(1), &call, None))).expect("readable");
        let Some(call_open::Open::Head(head)) = open.open else { panic!("{open:?}") };
        assert_eq!((head.timeout_us, head.headers.len()), (0, 3));

        let mut answer = Response::new(());
        *answer.headers_mut() = headers.clone();
        let trailers_map = map(&[("grpc-status", b"0")]);
        let answered =
            CallAnswer::decode(joined(&whole_answer(&answer, &body, Some(&trailers_map)))).expect("readable");
        let Some(call_answer::Answer::Whole(CallWhole { status, headers: heads, trailers: trails, data: whole })) =
            answered.answer
        else {
            panic!("it is whole")
        };
        assert_eq!((status, headers_of(heads), headers_of(trails)), (200, Ok(headers), Ok(trailers_map.clone())));
        assert_eq!(whole, body.concat());

        let read = |parts: Parts| CallFrame::decode(joined(&parts)).expect("readable").frame.expect("there");
        let call_frame::Frame::Response(CallResponseHead { status, headers, end }) = read(response(&answer, true))
        else {
            panic!("a response")
        };
        assert_eq!((status, headers.len(), end), (200, 3, true));
        assert_eq!(read(data(body[0].clone())), call_frame::Frame::Data(body[0].clone()));
        let wanted = CallTrailers { trailers: vec![header("grpc-status", b"0")] };
        assert_eq!(read(trailers(&trailers_map)), call_frame::Frame::Trailers(wanted));
        assert_eq!(read(trailers(&HeaderMap::new())), call_frame::Frame::Trailers(CallTrailers::default()));
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert!(headers_of(vec![header("No Name", b"1")]).is_err());
        assert!(headers_of(vec![header("a", b"1\n2")]).is_err());
        assert!(headers_of(vec![header("a", b"1"); HEADERS_MAX + 1]).is_err());
        assert!(response_of(99, vec![]).is_err());
        assert!(response_of(70_000, vec![]).is_err());
        let mut head = CallHead { path: "/a b".into(), ..Default::default() };
        assert!(request_of(&mut head).is_err());
    }
}
