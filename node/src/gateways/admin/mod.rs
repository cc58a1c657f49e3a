//! The door for operators: HTTP/1.1 with /livez, /readyz, /metrics and /debug/view.

mod config;
mod pages;
mod ready;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::{NodeId, RaftGroup, ShardId};
use weft_cluster::view::ClusterView;

pub use config::AdminConfig;

use crate::drivers::raft::Rafts;
use crate::host::{AcceptMetrics, Acceptor, Connection, Host, Listener, Tasks};
use crate::telemetry::{self, Metrics, Process};

/// The replicas that run on this node.
pub trait Replicas: Send + Sync + 'static {
    /// Who leads a shard as this node's replica of it knows: `None` if no replica runs here, `Some(None)` if it
    /// knows no leader.
    fn leader(&self, shard: ShardId) -> Option<Option<NodeId>>;

    /// Why this node can have no new link, if it is known.
    fn cut_off(&self) -> Option<String> {
        None
    }
}

impl Replicas for Rafts {
    fn leader(&self, shard: ShardId) -> Option<Option<NodeId>> {
        self.group(RaftGroup::of(shard)).map(|group| group.leadership().borrow().leader)
    }

    fn cut_off(&self) -> Option<String> {
        self.certificate_expired()
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
    config: AdminConfig,
    accept_metrics: AcceptMetrics,
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
        config: AdminConfig,
    ) -> Admin {
        let (process, accept_metrics) = (Process::default(), AcceptMetrics::default());
        metrics.register(|registry| {
            process.register(registry);
            accept_metrics.register(registry, "admin");
        });
        Admin { host, metrics, process, view, replicas, draining, config, accept_metrics }
    }

    /// Serves until `stop`. Returns at once; connections are tasks of their own.
    pub fn serve(&self, listener: Box<dyn Listener>, tasks: &Tasks, stop: CancellationToken) {
        let (connections_max, metrics) = (self.config.connections_max, self.accept_metrics.clone());
        let acceptor = Acceptor::new("admin", listener, connections_max, metrics, stop.clone());
        tasks.spawn("admin accept", self.clone().accept(acceptor, tasks.clone(), stop));
    }

    async fn accept(self, mut acceptor: Acceptor, tasks: Tasks, stop: CancellationToken) {
        while let Some((connection, place)) = acceptor.next().await {
            let (admin, stop) = (self.clone(), stop.clone());
            tasks.spawn("admin connection", async move {
                admin.converse(connection, stop).await;
                drop(place);
            });
        }
    }

    async fn converse(self, connection: Connection, stop: CancellationToken) {
        let (remote, config) = (connection.remote, self.config.clone());
        let headers_bytes_max = usize::try_from(config.headers_bytes_max.as_u64()).unwrap_or(usize::MAX);
        let service = service_fn(move |request| {
            let admin = self.clone();
            async move { Ok::<_, Infallible>(admin.answer(&request).await) }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(config.headers_patience)
            .max_buf_size(headers_bytes_max)
            .serve_connection(TokioIo::new(connection.io), service);
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => Some(ended),
            () = tokio::time::sleep(config.connection_lifetime) => None,
            () = stop.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                serving.as_mut().graceful_shutdown();
                tokio::time::timeout(config.close_patience, serving).await.unwrap_or(Ok(()))
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
