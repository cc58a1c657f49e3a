//! The loop that every door has: accepts connections while there is room, backs off when the system refuses, and
//! ends when the node stops.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Connection, Listener};

/// Wait before accepting again after the system refused (too many open files).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// What a door counts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AcceptMetrics {
    accepted: Counter,
    refused: Counter,
    open: Gauge,
}

impl AcceptMetrics {
    /// Registers the metrics as `weft_<door>_connections` and so on.
    pub fn register(&self, registry: &mut Registry, door: &str) {
        registry.register(format!("weft_{door}_connections"), "Connections accepted", self.accepted.clone());
        registry.register(
            format!("weft_{door}_accept_errors"),
            "Accepts that the system refused",
            self.refused.clone(),
        );
        registry.register(format!("weft_{door}_connections_open"), "Connections open now", self.open.clone());
    }
}

/// Accepts a listener's connections, at most `connections_max` open at once; one more waits in the system's backlog.
pub struct Acceptor {
    door: &'static str,
    listener: Box<dyn Listener>,
    room: Arc<Semaphore>,
    metrics: AcceptMetrics,
    stop: CancellationToken,
}

/// Held for as long as a connection is open: its place, and its count in the gauge.
pub struct Place {
    open: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Acceptor {
    /// `door` names it in the log.
    pub fn new(
        door: &'static str,
        listener: Box<dyn Listener>,
        connections_max: u32,
        metrics: AcceptMetrics,
        stop: CancellationToken,
    ) -> Acceptor {
        Acceptor { door, listener, room: Arc::new(Semaphore::new(connections_max as usize)), metrics, stop }
    }

    /// The next connection, once there is room for it; `None` when the node stops.
    pub async fn next(&mut self) -> Option<(Connection, Place)> {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            accepted = self.accept() => Some(accepted),
        }
    }

    async fn accept(&mut self) -> (Connection, Place) {
        let permit = self.room.clone().acquire_owned().await.expect("nobody closes this semaphore");
        let mut refused = 0u32;
        loop {
            match self.listener.accept().await {
                Ok(connection) => {
                    self.metrics.accepted.inc();
                    self.metrics.open.inc();
                    return (connection, Place { open: self.metrics.open.clone(), _permit: permit });
                }
                Err(error) => {
                    self.metrics.refused.inc();
                    if refused == 0 {
                        tracing::warn!(door = self.door, %error, "no connection can be accepted; it is tried again");
                    }
                    refused += 1;
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;
    use std::net::SocketAddr;

    use futures::FutureExt;

    use super::*;
    use crate::host::Promise;

    /// Answers as it is told, then waits for ever.
    struct Script(VecDeque<io::Result<()>>);

    impl Listener for Script {
        fn local_addr(&self) -> SocketAddr {
            SocketAddr::from(([127, 0, 0, 1], 1))
        }

        fn accept(&mut self) -> Promise<'_, io::Result<Connection>> {
            Box::pin(async {
                match self.0.pop_front() {
                    Some(Ok(())) => Ok(Connection { io: Box::new(tokio::io::empty()), remote: self.local_addr() }),
                    Some(Err(error)) => Err(error),
                    None => std::future::pending().await,
                }
            })
        }
    }

    #[tokio::test]
    async fn a_full_door_waits_and_a_refusal_is_tried_again() {
        let refused = || Err(io::Error::other("too many open files"));
        let script = Script([refused(), Ok(()), Ok(()), Ok(())].into());
        let (metrics, stop) = (AcceptMetrics::default(), CancellationToken::new());
        let mut door = Acceptor::new("test", Box::new(script), 2, metrics.clone(), stop.clone());
        let (_, first) = door.next().await.expect("one after the refusal");
        let (_, _second) = door.next().await.expect("another");
        assert_eq!((metrics.refused.get(), metrics.accepted.get(), metrics.open.get()), (1, 2, 2));
        assert!(door.next().now_or_never().is_none(), "the door is full");
        drop(first);
        let (_, _third) = door.next().now_or_never().expect("there is room").expect("not stopped");
        assert_eq!(metrics.open.get(), 2);
        // A full door stops, too.
        stop.cancel();
        assert!(door.next().now_or_never().expect("at once").is_none());
    }
}
