//! Where a request goes: Weft's own services, or a user's.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, Request};
use prometheus_client::metrics::gauge::Gauge;
use weft_cluster::caller::{Caller, Trace};

use super::budget::Grant;
use super::{Inner, own};

/// Runs a request as a task of its own.
pub(super) fn dispatch(
    door: &Arc<Inner>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    remote: SocketAddr,
) {
    let Some(grant) = door.budget.request(bytes(request.headers()), &door.config) else {
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

fn bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
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
