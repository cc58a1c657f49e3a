//! Reads the head of a client's request.

use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};
use tokio::time::Instant;
use weft_cluster::caller::Caller;
use weft_cluster::registry::names;
use weft_proto::v1::{Error, ErrorCode};

use crate::drivers::calls::Call;
use crate::wire::{error, hops, timeout};

/// The namespace in which the service is looked up.
const NAMESPACE: HeaderName = HeaderName::from_static("weft-namespace");
/// "true": the call may run more than once.
const IDEMPOTENT: HeaderName = HeaderName::from_static("weft-idempotent");
/// What the content type of a gRPC request begins with.
const GRPC: &[u8] = b"application/grpc";

/// The call that a request asks for.
///
/// # Errors
/// It is no gRPC request: what is wrong, and what would be right.
pub(super) fn call(head: Parts, caller: Caller, now: Instant) -> Result<Call, Error> {
    let Parts { method, uri, mut headers, .. } = head;
    if method != Method::POST {
        return Err(invalid(format!("the method is {method}: gRPC requests are POST")));
    }
    let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    if !content_type.starts_with(GRPC) || content_type.starts_with(b"application/grpc-web") {
        let content_type = names::shown(&String::from_utf8_lossy(content_type));
        return Err(invalid(format!("the content type is {content_type}: gRPC requests have application/grpc")));
    }
    let left = headers.remove(timeout::NAME).map(|value| timeout::read(&value)).transpose().map_err(invalid)?;
    let hops = hops::read(&headers).map_err(invalid)?;
    let namespace = text(&headers, &NAMESPACE)?;
    let idempotent = match &*text(&headers, &IDEMPOTENT)? {
        "" | "false" => false,
        "true" => true,
        other => return Err(invalid(format!("{IDEMPOTENT} is {}: use true or false", names::shown(other)))),
    };
    if uri.authority().is_some() {
        // RFC 9113 §8.3.1: `:authority` is what counts, and servers take it ill if `host` says another.
        headers.remove(HOST);
    }
    let path = uri.path().to_owned();
    let call = Call::new(uri, headers, caller);
    let mut call = call.map(|call| call.after(hops)).ok_or_else(|| {
        // As every gRPC server says it: there is no such method.
        let message = format!("the path is {}: gRPC paths are /package.Service/Method", names::shown(&path));
        error(ErrorCode::UnknownService, message)
    })?;
    // Hours in 8 digits may be more than a clock holds: then there is no deadline to speak of.
    call.deadline = left.and_then(|left| now.checked_add(left));
    call.namespace = namespace;
    call.idempotent = idempotent;
    Ok(call)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Result<String, Error> {
    let Some(value) = headers.get(name) else { return Ok(String::new()) };
    value.to_str().map(str::to_owned).map_err(|_| invalid(format!("{name} is not plain text")))
}

fn invalid(message: impl Into<String>) -> Error {
    error(ErrorCode::InvalidArgument, message)
}
