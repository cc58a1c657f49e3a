//! The door for operators: HTTP/1.1 with /livez, /readyz, /metrics and /debug/view.

mod pages;
mod ready;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::{NodeId, RaftGroup, ShardId};
use weft_cluster::view::ClusterView;

use crate::drivers::raft::Rafts;
use crate::host::{Connection, Host, Listener, Tasks};
use crate::telemetry::{self, Metrics, Process};

/// Connections open at once; one more waits in the system's backlog.
const CONNECTIONS_MAX: usize = 64;
/// A client that has not sent its request's headers after this is cut off.
const HEADERS_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a request's headers.
const HEADERS_BYTES_MAX: usize = 16 << 10;
/// A connection is closed in order after this, so that none is held for ever.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// And cut off when it does not end within this: a client that never reads.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// Wait before accepting again after the system refused (too many open files).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// The replicas that run on this node.
pub trait Replicas: Send + Sync + 'static {
    /// Who leads a shard as this node's replica of it knows: `None` if no replica runs here, `Some(None)` if it
    /// knows no leader.
    fn leader(&self, shard: ShardId) -> Option<Option<NodeId>>;
}

impl Replicas for Rafts {
    fn leader(&self, shard: ShardId) -> Option<Option<NodeId>> {
        self.group(RaftGroup::of(shard)).map(|group| group.leadership().borrow().leader)
    }
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    host: Arc<dyn Host>,
    metrics: Metrics,
    process: Process,
    view: watch::Receiver<Arc<ClusterView>>,
    replicas: Arc<dyn Replicas>,
    draining: CancellationToken,
    headers_patience: Duration,
}

impl Admin {
    /// A door over a node's handles; registers the process's metrics. Once `draining` is cancelled, the node is
    /// not ready.
    pub fn new(
        host: Arc<dyn Host>,
        metrics: Metrics,
        view: watch::Receiver<Arc<ClusterView>>,
        replicas: Arc<dyn Replicas>,
        draining: CancellationToken,
    ) -> Admin {
        let process = Process::default();
        metrics.register(|registry| process.register(registry));
        Admin { host, metrics, process, view, replicas, draining, headers_patience: HEADERS_PATIENCE }
    }

    /// Serves until `stop`. Returns at once; connections are tasks of their own.
    pub fn serve(&self, listener: Box<dyn Listener>, tasks: &Tasks, stop: CancellationToken) {
        tasks.spawn("admin accept", self.clone().accept(listener, tasks.clone(), stop));
    }

    async fn accept(self, mut listener: Box<dyn Listener>, tasks: Tasks, stop: CancellationToken) {
        let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = limit.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(connection) => {
                    let (admin, stop) = (self.clone(), stop.clone());
                    tasks.spawn("admin connection", async move {
                        admin.converse(connection, stop).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept an operator's connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    async fn converse(self, connection: Connection, stop: CancellationToken) {
        let (remote, headers_patience) = (connection.remote, self.headers_patience);
        let service = service_fn(move |request| {
            let admin = self.clone();
            async move { Ok::<_, Infallible>(admin.answer(&request).await) }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(headers_patience)
            .max_buf_size(HEADERS_BYTES_MAX)
            .serve_connection(TokioIo::new(connection.io), service);
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => Some(ended),
            () = tokio::time::sleep(CONNECTION_LIFETIME) => None,
            () = stop.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                serving.as_mut().graceful_shutdown();
                tokio::time::timeout(CLOSE_PATIENCE, serving).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%remote, %error, "an operator's connection ended");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.readyz(),
            "/metrics" => {
                self.process.sample(&*self.host).await;
                page(StatusCode::OK, telemetry::CONTENT_TYPE, self.metrics.encode())
            }
            "/debug/view" => {
                let view = self.view.borrow().clone();
                page(StatusCode::OK, "application/json", pages::view(&view).to_string())
            }
            _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz, /metrics and /debug/view\n"),
        }
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        let view = self.view.borrow().clone();
        let ready = match self.draining.is_cancelled() {
            true => Err("the node is stopping".to_string()),
            false => ready::check(&view, &*self.replicas),
        };
        match ready {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", body)
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
