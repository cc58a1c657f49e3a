//! Where a request goes: Weft's own services, or a user's.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, Request};
use prometheus_client::metrics::gauge::Gauge;
use weft_cluster::caller::{Caller, Trace};
use weft_proto::v1::ErrorCode;

use super::budget::Grant;
use super::{Inner, manners, own};
use crate::wire::{self, headers::request_bytes};

/// Runs a request as a task of its own.
pub(super) fn dispatch(
    door: &Arc<Inner>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    remote: SocketAddr,
) {
    let headers_bytes = request_bytes(request.uri(), request.headers());
    if headers_bytes as u64 > door.config.header_bytes_max.as_u64() {
        door.metrics.headers_refused.inc();
        return too_large(headers_bytes, door.config.header_bytes_max.as_u64(), &mut respond);
    }
    if let Some(refusal) = manners::refusal(&request) {
        // The client may have gone: then nobody reads it.
        let _ = respond.send_response(refusal, true);
        return;
    }
    let Some(grant) = door.budget.request(headers_bytes, &door.config) else {
        door.metrics.requests_refused.inc();
        // Says that nothing was looked at: the client may send it again, here or elsewhere.
        return respond.send_reset(Reason::REFUSED_STREAM);
    };
    let open = Open::new(&door.metrics.open, grant);
    let caller = caller(&door.anonymous, request.headers());
    if own::is_own(request.uri().path()) {
        door.metrics.requests.inc();
        let serving = own::serve(door.clone(), request, respond, caller, remote);
        door.tasks.spawn("api request", open.during(serving));
    } else {
        door.metrics.calls.inc();
        door.tasks.spawn("api call", open.during((door.calls)(request, respond, caller)));
    }
}

/// Held while a request is open.
struct Open {
    gauge: Gauge,
    _grant: Grant,
}

impl Open {
    fn new(gauge: &Gauge, grant: Grant) -> Open {
        gauge.inc();
        Open { gauge: gauge.clone(), _grant: grant }
    }

    async fn during(self, work: impl Future<Output = ()>) {
        work.await;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Says so at once: nothing more is kept of the request.
fn too_large(bytes: usize, bytes_max: u64, respond: &mut SendResponse<Bytes>) {
    const LIMIT: &str = "api.header_bytes_max";
    let message = format!("the request's metadata has {bytes} bytes, more than {LIMIT} ({bytes_max})");
    let status = wire::status(wire::over(ErrorCode::TooLarge, LIMIT, bytes_max, message));
    // The client may have gone: then nobody reads it.
    let _ = respond.send_response(status.into_http::<()>(), true);
}

fn caller(anonymous: &Caller, headers: &HeaderMap) -> Caller {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text(HeaderName::from_static("traceparent")) {
        None => anonymous.clone(),
        Some(parent) => {
            let state = text(HeaderName::from_static("tracestate")).unwrap_or("");
            anonymous.traced(Trace::received(parent, state))
        }
    }
}
