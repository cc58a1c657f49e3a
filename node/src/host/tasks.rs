//! Tracked tasks: every long-lived task has a name and ends when the node stops.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::Host;

/// Spawns tasks and knows when all have ended. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    host: Arc<dyn Host>,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Says the same without a lock.
    stops: Arc<AtomicBool>,
    failed: CancellationToken,
    /// Why, as the first who gave up has said.
    reason: Arc<OnceLock<String>>,
}

impl Tasks {
    /// An empty set of tasks on `host`.
    pub fn new(host: Arc<dyn Host>) -> Self {
        let (stop, stops, failed) = (CancellationToken::new(), Arc::default(), CancellationToken::new());
        Tasks { host, tracker: TaskTracker::new(), stop, stops, failed, reason: Arc::default() }
    }

    /// Spawns a task that is cancelled at `stop`.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (stop, stops) = (self.stop.clone(), self.stops.clone());
        let span = tracing::debug_span!("task", name);
        let task = async move {
            let (mut stopped, mut task) = (pin!(stop.cancelled()), pin!(task));
            let mut waits = false;
            // The waker of a task is always the same: once it waits for the stop, it need not say so with every poll, which
            // would take a lock that all tasks share.
            poll_fn(|cx| {
                let is_due = !std::mem::replace(&mut waits, true) || stops.load(Ordering::Acquire);
                if is_due && stopped.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                task.as_mut().poll(cx)
            })
            .await
        };
        self.host.spawn(Box::pin(self.tracker.track_future(task.instrument(span))));
    }

    /// Spawns a task without which the node cannot go on: if it ends before `stop`, the node stops.
    pub fn spawn_vital(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (stop, failed) = (self.stop.clone(), self.failed.clone());
        self.spawn(name, async move {
            let guard = failed.drop_guard();
            task.await;
            if stop.is_cancelled() {
                guard.disarm();
            } else {
                tracing::error!(task = name, "a vital task has ended; the node stops");
            }
        });
    }

    /// Ends the node: it cannot go on, for a reason that a person has to deal with.
    pub fn give_up(&self, reason: String) {
        let _ = self.reason.set(reason);
        self.failed.cancel();
    }

    /// Resolves when the node cannot go on, and says why: a task gave up, or a vital one ended by itself or by a panic.
    pub async fn failed(&self) -> String {
        self.failed.cancelled().await;
        self.reason.get().cloned().unwrap_or_else(|| "a vital task ended; its error is in the log above".to_owned())
    }

    /// Cancelled when the tasks are told to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Tasks that have not ended.
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Cancels all tasks and waits up to `patience` for them to end.
    pub async fn stop(&self, patience: Duration) {
        self.stops.store(true, Ordering::Release);
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "tasks did not end in time");
        }
    }
}
