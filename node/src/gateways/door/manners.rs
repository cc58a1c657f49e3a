//! What is no gRPC request at all is refused before anybody serves it, by HTTP's own status: a client that speaks
//! something else does not look for gRPC's.
//!
//! Source: the gRPC over HTTP/2 specification, "Requests"; RFC 9110 §9.1 and §15.5.6.

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use weft_cluster::registry::names;
use weft_proto::v1::ErrorCode;

use crate::wire;

/// What the content type of every gRPC request begins with.
const GRPC: &[u8] = b"application/grpc";

/// The answer to a request that no gRPC server serves; none if it may be one. Its gRPC status says the same in words.
pub(super) fn refusal<T>(request: &Request<T>) -> Option<Response<()>> {
    let (code, message) = wrong(request)?;
    let mut refusal = wire::status(wire::error(ErrorCode::InvalidArgument, message)).into_http::<()>();
    *refusal.status_mut() = code;
    if code == StatusCode::METHOD_NOT_ALLOWED {
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    Some(refusal)
}

fn wrong<T>(request: &Request<T>) -> Option<(StatusCode, String)> {
    let method = request.method();
    if method == Method::CONNECT {
        return Some((StatusCode::NOT_IMPLEMENTED, "the method is CONNECT: a node is no tunnel".into()));
    }
    if method != Method::POST {
        let method = names::shown(method.as_str());
        return Some((StatusCode::METHOD_NOT_ALLOWED, format!("the method is {method}: gRPC requests are POST")));
    }
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    if is_grpc(content_type) {
        return None;
    }
    let content_type = names::shown(&String::from_utf8_lossy(content_type));
    let message = format!("the content type is {content_type}: gRPC requests have application/grpc");
    Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

/// "application/grpc", alone, with the form of its messages ("+proto") or with parameters (";").
fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.get(GRPC.len()..).filter(|_| content_type[..GRPC.len()].eq_ignore_ascii_case(GRPC));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}
