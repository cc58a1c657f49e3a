//! The HTTP/2 connections to one instance: opened when they are needed, shared by many calls, closed when idle.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::ready;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use weft_cluster::ids::InstanceId;
use weft_proto::internal::v1::InstanceRecord;
use weft_proto::v1::ErrorCode;

use super::Shared;
use super::connect;
use super::failure::Failure;
use crate::drivers::endpoint::Endpoint;
use crate::host::Turn;
use crate::wire::{Outbox, Pulse};

/// With fewer calls a connection does at once what it is woken for.
const GATHERED_CALLS_MIN: usize = 4;

/// The connections to one instance.
pub(super) struct Pool {
    id: InstanceId,
    endpoint: Endpoint,
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// A call has ended, or a connection has come or gone.
    freed: Notify,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct State {
    connections: VecDeque<Arc<Connection>>,
    /// A connection is being opened; says how that ended.
    opening: Option<watch::Receiver<Option<Result<(), String>>>>,
}

/// One connection.
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    calls: AtomicUsize,
    calls_max: usize,
    pulse: Arc<Pulse>,
    closed: AtomicBool,
    idle_since: Mutex<Instant>,
}

/// A call's place on a connection.
pub(super) struct Lease {
    pool: Arc<Pool>,
    connection: Arc<Connection>,
    written: u64,
}

/// What a look at the connections says.
enum Look {
    Use(Arc<Connection>),
    Opening(watch::Receiver<Option<Result<(), String>>>),
    Full,
}

impl Pool {
    pub(super) fn new(instance: &InstanceRecord, shared: Arc<Shared>) -> Arc<Pool> {
        Arc::new(Pool {
            id: InstanceId(instance.id),
            endpoint: Endpoint::of(instance),
            shared,
            state: Mutex::default(),
            freed: Notify::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Whether its connections go where the record says.
    pub(super) fn fits(&self, instance: &InstanceRecord) -> bool {
        self.endpoint.is_of(instance)
    }

    /// A place on the connection with the fewest calls; opens one if there is none, or if all are busy.
    ///
    /// # Errors
    /// `UNREACHABLE` if none can be opened, `OVERLOADED` if too many calls wait. Not a byte was sent.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease, Failure> {
        loop {
            // Made before the look, so that no connection is freed unheard in between.
            let freed = self.freed.notified();
            match self.look() {
                Look::Use(connection) => {
                    let written = connection.pulse.written_bytes();
                    return Ok(Lease { pool: self.clone(), connection, written });
                }
                Look::Opening(mut opening) => {
                    let _waiting = self.wait()?;
                    match opening.wait_for(Option::is_some).await.as_deref() {
                        Ok(Some(Err(reason))) => return Err(Failure::unreachable(reason.clone())),
                        Ok(_) => {}
                        // Its task was cancelled.
                        Err(_) => return Err(Failure::refused(ErrorCode::NotReady, "the node is stopping")),
                    }
                }
                Look::Full => {
                    let _waiting = self.wait()?;
                    freed.await;
                }
            }
        }
    }

    fn look(self: &Arc<Self>) -> Look {
        let config = &self.shared.config;
        let mut state = self.state();
        state.connections.retain(|connection| !connection.closed.load(Ordering::Acquire));
        let least = state.connections.iter().min_by_key(|connection| connection.calls.load(Ordering::Relaxed));
        let least = least.map(|least| (least.clone(), least.calls.load(Ordering::Relaxed)));
        let busy = least.as_ref().is_none_or(|(least, calls)| *calls >= config.connection_calls.min(least.calls_max));
        if busy && state.opening.is_none() && state.connections.len() < config.connections_max {
            state.opening = Some(self.open());
        }
        match (least, &state.opening) {
            (Some((least, calls)), _) if calls < least.calls_max => {
                // Under the lock, so that two calls do not take one place.
                least.calls.fetch_add(1, Ordering::Relaxed);
                Look::Use(least)
            }
            (_, Some(opening)) => Look::Opening(opening.clone()),
            _ => Look::Full,
        }
    }

    fn wait(&self) -> Result<Waiting<'_>, Failure> {
        let waiting = Waiting(self);
        let (before, most) = (self.waiting.fetch_add(1, Ordering::Relaxed), self.shared.config.waiting_max);
        if before >= most {
            self.shared.metrics.overloaded.inc();
            let message = format!("{most} calls wait for {} already: calls.waiting_max", self.endpoint);
            return Err(Failure::refused(ErrorCode::Overloaded, message));
        }
        Ok(waiting)
    }

    /// Opens a connection in a task of its own: calls that wait for it may come and go.
    fn open(self: &Arc<Self>) -> watch::Receiver<Option<Result<(), String>>> {
        let (done, opening) = watch::channel(None);
        let pool = self.clone();
        self.shared.tasks.spawn("call connection", async move {
            let opened = connect::open(&pool.endpoint, &pool.shared).await;
            match opened {
                Ok(opened) => pool.run(opened, done).await,
                Err(reason) => {
                    pool.shared.metrics.connect_failures.inc();
                    pool.state().opening = None;
                    let reason = format!("{}: {reason}", pool.endpoint);
                    tracing::debug!(instance = %pool.id, reason, "an instance cannot be reached");
                    (pool.shared.failed)(pool.id, &reason);
                    done.send_replace(Some(Err(reason)));
                    pool.freed.notify_waiters();
                }
            }
        });
        opening
    }

    async fn run(self: Arc<Self>, opened: connect::Opened, done: watch::Sender<Option<Result<(), String>>>) {
        let connection = Arc::new(Connection {
            calls_max: opened.sender.current_max_send_streams().max(1),
            sender: opened.sender,
            calls: AtomicUsize::new(0),
            pulse: opened.pulse,
            closed: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
        });
        let metrics = self.shared.metrics.clone();
        metrics.connects.inc();
        let _open = super::metrics::Open::new(&metrics.connections_open);
        {
            let mut state = self.state();
            state.opening = None;
            state.connections.push_back(connection.clone());
        }
        done.send_replace(Some(Ok(())));
        self.freed.notify_waiters();
        // The pool may go while the connection's last calls end.
        let (pool, id) = (Arc::downgrade(&self), self.id);
        drop(self);
        let closing = connection_closing(&pool, &connection);
        let ended = gathered(opened.connection, opened.outbox, Arc::downgrade(&connection));
        drop(connection);
        let ended = ended.await;
        closing.closed();
        match &ended {
            Ok(()) => tracing::debug!(instance = %id, "a connection to an instance ended"),
            Err(error) => {
                tracing::debug!(instance = %id, %error, "a connection to an instance broke");
                if let Some(pool) = pool.upgrade() {
                    (pool.shared.failed)(id, &format!("{}: the connection broke: {error}", pool.endpoint));
                }
            }
        }
    }

    /// Closes connections that had no call for too long.
    pub(super) fn close_idle(&self, now: Instant) {
        let idle_timeout = self.shared.config.idle_timeout;
        self.state().connections.retain(|connection| {
            let idle_since = *locked(&connection.idle_since);
            connection.calls.load(Ordering::Relaxed) > 0 || now.saturating_duration_since(idle_since) < idle_timeout
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// Runs a connection. What its calls send and take at one time goes over it together, if there are several.
async fn gathered(
    running: h2::client::Connection<impl AsyncRead + AsyncWrite + Unpin, Bytes>,
    outbox: Outbox,
    connection: Weak<Connection>,
) -> Result<(), h2::Error> {
    let (mut running, mut turn) = (pin!(running), Turn::default());
    poll_fn(|cx| {
        let busy = || connection.upgrade().is_some_and(|it| it.calls.load(Ordering::Relaxed) >= GATHERED_CALLS_MIN);
        ready!(turn.poll(cx, busy()));
        outbox.gather();
        let polled = running.as_mut().poll(cx);
        outbox.send(cx);
        if polled.is_pending() {
            turn.sleeps();
        }
        polled
    })
    .await
}

/// Marks a connection as closed when its task ends, without keeping it open.
struct Closing {
    pool: Weak<Pool>,
    connection: Weak<Connection>,
}

fn connection_closing(pool: &Weak<Pool>, connection: &Arc<Connection>) -> Closing {
    Closing { pool: pool.clone(), connection: Arc::downgrade(connection) }
}

impl Closing {
    fn closed(&self) {
        if let Some(connection) = self.connection.upgrade() {
            connection.closed.store(true, Ordering::Release);
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.freed.notify_waiters();
        }
    }
}

/// Counted among those that wait.
struct Waiting<'a>(&'a Pool);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// The connection's sender, for one request.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.connection.sender.clone()
    }

    /// Bytes that the head of an answer may have, and its trailers.
    pub(super) fn header_bytes_max(&self) -> u64 {
        self.pool.shared.config.header_bytes_max.as_u64()
    }

    /// No new call goes over this connection.
    pub(super) fn close(&self) {
        self.connection.closed.store(true, Ordering::Release);
    }

    /// Whether not a byte was written to the connection since the lease was taken.
    pub(super) fn is_unwritten(&self) -> bool {
        self.connection.pulse.written_bytes() == self.written
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.connection.calls.fetch_sub(1, Ordering::Relaxed) == 1 {
            *locked(&self.connection.idle_since) = Instant::now();
        }
        if self.pool.waiting.load(Ordering::Relaxed) > 0 {
            self.pool.freed.notify_one();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the instances' driver is told that one could not be reached.
pub type OnFailed = Arc<dyn Fn(InstanceId, &str) + Send + Sync>;
