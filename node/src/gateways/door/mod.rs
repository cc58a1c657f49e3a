//! The door for clients: gRPC over HTTP/2 and a page over HTTP/1.1 on one port.
//!
//! Requests to Weft's own services go to their gateways; every other path is a call of a user's service and goes to
//! `Calls`. The door owns the connections: their limits, their memory and their end.

mod body;
mod budget;
mod care;
mod config;
mod connection;
mod health;
mod manners;
mod metrics;
mod own;
mod page;
pub mod reflection;
mod refuse;
mod request;
mod sniff;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use weft_cluster::caller::Caller;

pub use config::ApiConfig;
pub use health::Health;
pub use metrics::Metrics;
pub use own::is_own;
pub use reflection::Reflection;

use crate::host::{AcceptMetrics, Acceptor, Connection, Listener, Promise, Tasks};
use budget::Budget;
use metrics::Refusal;
use sniff::Protocol;

/// Serves one call of a user's service, from the request's head to the end of its answer. Dropping the promise resets
/// the stream.
pub type Calls = Arc<dyn Fn(Request<RecvStream>, SendResponse<Bytes>, Caller) -> Promise<'static, ()> + Send + Sync>;

/// How often it is looked whether all calls have ended.
const FINISHED_POLL: Duration = Duration::from_millis(10);

/// Connections that are told at one time that there is no room for them. More wait in the system's backlog.
pub(crate) const REFUSALS_MAX: u32 = 64;

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    routes: Routes,
    calls: Calls,
    config: ApiConfig,
    metrics: Metrics,
    accept_metrics: AcceptMetrics,
    budget: Budget,
    tasks: Tasks,
    /// Connections that are served.
    open: AtomicU32,
    /// Principal of every caller until one can be proved.
    anonymous: Caller,
}

impl Door {
    /// A door that sends requests of Weft's own services to `routes`, all others to `calls`.
    pub fn new(routes: Routes, calls: Calls, config: ApiConfig, tasks: Tasks) -> Door {
        let metrics = Metrics::default();
        let budget = Budget::new(config.memory_max.as_u64(), metrics.memory_bytes.clone());
        let inner = Inner {
            routes: routes.prepare(),
            calls,
            metrics,
            accept_metrics: AcceptMetrics::default(),
            budget,
            tasks,
            open: AtomicU32::new(0),
            anonymous: Caller::anonymous(),
            config,
        };
        Door { inner: Arc::new(inner) }
    }

    /// Makes what it counts visible under `weft_api_*`.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.inner.accept_metrics.register(registry, "api");
        self.inner.metrics.register(registry);
    }

    /// Serves until `stop`; then connections are told to go elsewhere, and end when their calls have ended. Returns at
    /// once.
    pub fn serve(&self, listener: Box<dyn Listener>, stop: CancellationToken) {
        let door = self.clone();
        let (places, metrics) = (self.inner.config.connections_max + REFUSALS_MAX, self.inner.accept_metrics.clone());
        let mut acceptor = Acceptor::new("api", listener, places, metrics, stop.clone());
        self.inner.tasks.spawn("api accept", async move {
            while let Some((connection, place)) = acceptor.next().await {
                let (door, stop) = (door.clone(), stop.clone());
                door.inner.tasks.clone().spawn("api connection", async move {
                    door.converse(connection, stop).await;
                    drop(place);
                });
            }
        });
    }

    /// Connections that are served now.
    pub fn connections(&self) -> u32 {
        self.inner.open.load(Ordering::Relaxed)
    }

    /// Waits, after the door was told to stop, until all requests and calls have ended, or until `deadline`. Returns how
    /// many have not.
    pub async fn finished(&self, deadline: Instant) -> u32 {
        let open = || u32::try_from(self.inner.metrics.open.get()).unwrap_or(0);
        while open() > 0 && Instant::now() < deadline {
            tokio::time::sleep(FINISHED_POLL).await;
        }
        open()
    }

    async fn converse(&self, mut connection: Connection, stop: CancellationToken) {
        let Some(_open) = Open::take(&self.inner) else {
            let message = format!("this node has {} connections already (api.connections_max)", self.connections());
            self.refuse(connection, Refusal::Connections, &message).await;
            return;
        };
        let Some(share) = self.inner.budget.connection(&self.inner.config) else {
            self.refuse(connection, Refusal::Memory, "this node is out of memory for connections (api.memory_max)")
                .await;
            return;
        };
        let patience = self.inner.config.handshake_timeout;
        let sniffed = tokio::select! {
            biased;
            sniffed = tokio::time::timeout(patience, sniff::sniff(&mut connection.io)) => sniffed,
            () = stop.cancelled() => return,
        };
        match sniffed {
            Ok(Ok((Protocol::Http2, first))) => {
                connection::serve(&self.inner, connection, first, share, stop).await;
            }
            Ok(Ok((Protocol::Http1, first))) => {
                self.inner.metrics.pages.inc();
                page::serve(&self.inner.config, connection, first, stop).await;
            }
            Ok(Ok((Protocol::Unknown, first))) => {
                tracing::debug!(remote = %connection.remote, ?first, "a client speaks neither HTTP/2 nor HTTP/1.1");
                self.inner.metrics.refused(Refusal::Protocol);
            }
            Ok(Err(error)) => tracing::debug!(remote = %connection.remote, %error, "a connection ended at once"),
            Err(_) => self.inner.metrics.refused(Refusal::Handshake),
        }
    }

    async fn refuse(&self, connection: Connection, why: Refusal, message: &str) {
        self.inner.metrics.refused(why);
        tracing::debug!(remote = %connection.remote, message, "a connection is refused");
        refuse::refuse(connection.io, message).await;
    }
}

/// Held while a connection is served.
struct Open(Arc<Inner>);

impl Open {
    fn take(door: &Arc<Inner>) -> Option<Open> {
        let more = |open: u32| (open < door.config.connections_max).then_some(open + 1);
        door.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Open(door.clone()))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
