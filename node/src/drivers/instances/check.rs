//! One health check: a new connection, and what the instance's settings ask over it.

use std::time::Duration;

use bytes::Bytes;
use http::uri::InvalidUri;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weft_cluster::registry::limits::CHECK_TIMEOUT_MS_DEFAULT;
use weft_proto::internal::v1::InstanceRecord;
use weft_proto::v1::health_check::Kind;

use crate::drivers::endpoint::{Dialer, Endpoint, Speaks};
use crate::host::Io;

/// Checks an instance as its record says, within its own timeout.
///
/// # Errors
/// One sentence: why it may not be called.
pub(super) async fn check(dialer: &Dialer, record: &InstanceRecord) -> Result<(), String> {
    over(dialer.open(&Endpoint::of(record), speaks(record)), record).await
}

fn speaks(record: &InstanceRecord) -> Speaks {
    match kind(record) {
        Some(Kind::HttpPath(_)) => Speaks::Http1,
        Some(Kind::GrpcService(_) | Kind::Tcp(_)) | None => Speaks::Http2,
    }
}

fn kind(record: &InstanceRecord) -> Option<&Kind> {
    record.check.as_ref().and_then(|check| check.kind.as_ref())
}

async fn over(
    connecting: impl Future<Output = Result<Box<dyn Io>, String>>,
    record: &InstanceRecord,
) -> Result<(), String> {
    let timeout_ms = record.check.as_ref().map_or(CHECK_TIMEOUT_MS_DEFAULT, |check| check.timeout_ms);
    let patience = Duration::from_millis(timeout_ms.into());
    let late = |_| Err(format!("no answer within {timeout_ms} ms"));
    tokio::time::timeout(patience, attempt(connecting, record)).await.unwrap_or_else(late)
}

async fn attempt(
    connecting: impl Future<Output = Result<Box<dyn Io>, String>>,
    record: &InstanceRecord,
) -> Result<(), String> {
    let io = connecting.await?;
    match kind(record) {
        Some(Kind::GrpcService(service)) => grpc(io, record, service).await,
        Some(Kind::HttpPath(path)) => http(io, record, path).await,
        Some(Kind::Tcp(_)) | None => Ok(()),
    }
}

/// grpc.health.v1.Health/Check.
async fn grpc(io: Box<dyn Io>, record: &InstanceRecord, service: &str) -> Result<(), String> {
    let said = |scheme: &str| format!("{scheme}://{}", record.address);
    let mut endpoint = Channel::from_shared(said("http")).map_err(|error| error.to_string())?;
    if record.tls {
        // What is spoken over the connection is HTTP/2 either way; this is what requests say of themselves.
        endpoint = endpoint.origin(said("https").parse().map_err(|error: InvalidUri| error.to_string())?);
    }
    let mut io = Some(TokioIo::new(io));
    let once = tower::service_fn(move |_| {
        let io = io.take().ok_or_else(|| std::io::Error::other("the connection was lost"));
        std::future::ready(io)
    });
    let channel = endpoint.connect_with_connector(once).await.map_err(|error| format!("HTTP/2: {error}"))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    let answer =
        answer.map_err(|refusal| format!("grpc.health.v1.Health says {:?}: {}", refusal.code(), refusal.message()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("grpc.health.v1.Health says {}", other.as_str_name())),
    }
}

/// GET of a path over HTTP/1.1.
async fn http(io: Box<dyn Io>, record: &InstanceRecord, path: &str) -> Result<(), String> {
    let request = http::Request::get(path)
        .header(http::header::HOST, &record.address)
        .header(http::header::USER_AGENT, "weft-health")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let broken = |error: hyper::Error| format!("HTTP/1.1: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The answer may have come with the end.
        _ = connection => answer.await,
    };
    let status = answer.map_err(broken)?.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("GET {path} answered {status}")) }
}

#[cfg(test)]
mod tests;
