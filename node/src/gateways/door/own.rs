//! Requests of Weft's own services: from h2 to tonic's routes and back.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;
use weft_cluster::caller::Caller;
use weft_cluster::registry::names;
use weft_proto::v1::ErrorCode;

use super::Inner;
use super::body::{self, Received};
use crate::wire::{self, Broken};

/// The services that this port serves itself.
const SERVICES: [&str; 7] = [
    "weft.v1.Events",
    "weft.v1.Topics",
    "weft.v1.Cluster",
    "weft.v1.Services",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];
/// Weft's own package, with the dot after it: nobody else's services are in it.
const OWN_PACKAGE: &str = "weft.v1.";

/// Whether a path (`/package.Service/Method`) is one of Weft's own API.
pub fn is_own(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service);
    service.starts_with(OWN_PACKAGE) || is_service(service)
}

/// Whether this port serves a service (its full name) itself.
pub(super) fn is_service(name: &str) -> bool {
    SERVICES.contains(&name)
}

/// Serves one request until its answer is out, its client has gone or its deadline is over.
pub(super) async fn serve(
    door: Arc<Inner>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    caller: Caller,
    remote: SocketAddr,
) {
    let timeout = wire::grpc_timeout(request.headers());
    let path = request.uri().path().to_owned();
    let mut request = request.map(Received::new);
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(remote);
    let mut routes = door.routes.clone();
    let answering = async {
        let answer = {
            let mut answer = pin!(routes.call(request));
            std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(Ok(answer)) => Poll::Ready(Some(answer)),
                // A client that has gone ends the work for it.
                Poll::Pending => respond.poll_reset(cx).map(|_| None),
            })
            .await
        };
        match answer {
            Some(answer) => body::send(explained(answer, &path), &mut respond, door.config.stream_write_timeout).await,
            None => Ok(()),
        }
    };
    let outcome = match timeout {
        None => answering.await,
        Some(timeout) => match tokio::time::timeout(timeout, answering).await {
            Ok(outcome) => outcome,
            Err(_) => return late(&mut respond),
        },
    };
    if outcome == Err(Broken::Stalled) {
        door.metrics.stalled.inc();
        respond.send_reset(h2::Reason::CANCEL);
    }
}

/// The deadline's status if nothing has been said yet; else the stream is reset.
fn late(respond: &mut SendResponse<Bytes>) {
    let status = wire::status(wire::error(ErrorCode::Deadline, "the request's deadline (grpc-timeout) is over"));
    if respond.send_response(status.into_http::<()>(), true).is_err() {
        respond.send_reset(h2::Reason::CANCEL);
    }
}

/// tonic says of a method that is not there only that it is not there, and of a request that it cannot read that this is
/// a fault of the server's.
fn explained(mut answer: Response<Body>, path: &str) -> Response<Body> {
    /// What prost says of such a request.
    const UNREADABLE: &str = "failed to decode Protobuf message: ";
    let headers = answer.headers_mut();
    if !headers.contains_key("grpc-status") {
        return answer;
    }
    let Some(status) = Status::from_header_map(headers) else { return answer };
    let path = names::shown(path);
    let said = match (status.code(), status.message().strip_prefix(UNREADABLE)) {
        (Code::Unimplemented, None) if status.message().is_empty() => {
            Status::unimplemented(format!("this node's API has no method {path}"))
        }
        (Code::Internal, Some(reason)) => {
            let message = format!("the request is no message that {path} takes: {reason}");
            wire::status(wire::error(ErrorCode::InvalidArgument, message))
        }
        _ => return answer,
    };
    // Refused only for a message that is no header's value, and it is percent-encoded.
    let _ = said.add_header(headers);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_paths_are_told_from_calls() {
        let own = [
            "/weft.v1.Events/Publish",
            "/grpc.reflection.v1alpha.ServerReflection/X",
            "/weft.v1.Nothing/X",
            "/grpc.health.v1.Health/Check",
        ];
        let calls =
            ["/shop.Cart/Get", "/weft.v1.Events", "/weft.v1x.Events/Get", "", "*", "//", "/grpc.health.v1/Check"];
        assert!(own.iter().all(|path| is_own(path)));
        assert!(!calls.iter().any(|path| is_own(path)));
    }
}
