//! A publisher: the batches of one publish stream on their way to their owners and back as answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;
use weft_cluster::caller::Caller;
use weft_cluster::ids::PartitionId;
use weft_cluster::view::ClusterView;
use weft_proto::v1::{Ack, Error, Receipt};

use super::Forward;
use super::window::{Answer, Window};

type Ended = (PartitionId, u64, Result<Receipt, Error>);

/// Publishes batches for one stream, in order per partition, and retries them through failover.
///
/// `T` is what the caller recognises an answer by. It works only while [`Publisher::answers`] is awaited.
pub struct Publisher<T> {
    caller: Caller,
    forward: Forward,
    view: watch::Receiver<Arc<ClusterView>>,
    windows: BTreeMap<PartitionId, Window<T>>,
    attempts: FuturesUnordered<BoxFuture<'static, Ended>>,
    attempts_made: u64,
    answers: Vec<Answer<T>>,
}

impl Forward {
    /// A publisher for one stream of `caller`.
    pub fn publisher<T>(&self, caller: Caller) -> Publisher<T> {
        Publisher {
            caller,
            forward: self.clone(),
            view: self.inner.view.clone(),
            windows: BTreeMap::new(),
            attempts: FuturesUnordered::new(),
            attempts_made: 0,
            answers: Vec::new(),
        }
    }

    /// The deadline of a publish whose client names none.
    pub fn publish_deadline(&self) -> Instant {
        Instant::now() + self.inner.config.publish_patience
    }
}

impl<T> Publisher<T> {
    /// Takes a packed batch. It is tried until `deadline`. How many are taken is up to the caller.
    pub fn push(&mut self, partition: PartitionId, packed: Bytes, ack: Ack, deadline: Instant, tag: T) {
        self.windows.entry(partition).or_default().push(packed, ack, deadline, tag);
    }

    /// Batches of a partition that have no answer yet.
    pub fn waiting(&self, partition: PartitionId) -> usize {
        self.windows.get(&partition).map_or(0, Window::len)
    }

    /// Whether a batch of this partition would be sent at once.
    pub fn open(&self, partition: PartitionId) -> bool {
        self.windows.get(&partition).is_none_or(Window::open)
    }

    /// True when every batch has its answer.
    pub fn is_idle(&self) -> bool {
        self.windows.values().all(|window| window.len() == 0) && self.answers.is_empty()
    }

    /// Sends, retries and waits until there are answers; all that there are. Never resolves while idle.
    /// Cancel-safe.
    pub async fn answers(&mut self) -> Vec<Answer<T>> {
        let mut view_open = true;
        loop {
            self.pump();
            if !self.answers.is_empty() {
                return std::mem::take(&mut self.answers);
            }
            let deadline = self.windows.values().filter_map(Window::next_deadline).min();
            let sleep = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(ended) = self.attempts.next(), if !self.attempts.is_empty() => self.ended(ended),
                changed = self.view.changed(), if view_open => match changed {
                    Ok(()) => self.moved(),
                    Err(_) => view_open = false,
                },
                () = sleep => {}
            }
        }
    }

    /// Takes what has ended and sends what may be sent, without waiting.
    fn pump(&mut self) {
        loop {
            while let Some(Some(ended)) = self.attempts.next().now_or_never() {
                self.ended(ended);
            }
            let now = Instant::now();
            let mut sent = false;
            for (partition, window) in &mut self.windows {
                self.answers.extend(window.expired(now));
                while let Some(slot) = window.send(now, self.attempts_made) {
                    let patience = self.forward.inner.config.attempt_patience;
                    let patience = patience.min(slot.deadline.saturating_duration_since(now));
                    let (packed, ack) = (slot.packed.clone(), slot.ack);
                    let made = self.forward.attempt(&self.caller, *partition, packed, ack, patience, window.redirect);
                    let attempt = self.attempts_made;
                    self.attempts_made += 1;
                    window.sent(attempt, made.node, made.owner);
                    let partition = *partition;
                    self.attempts.push(made.answer.map(move |outcome| (partition, attempt, outcome)).boxed());
                    sent = true;
                }
            }
            if !sent {
                return;
            }
        }
    }

    fn ended(&mut self, (partition, attempt, outcome): Ended) {
        let Some(window) = self.windows.get_mut(&partition) else { return };
        let jitter = if outcome.is_err() { self.forward.jitter() } else { 0.0 };
        if outcome.is_err() {
            self.forward.inner.metrics.retries.inc();
        }
        self.answers.extend(window.ended(Instant::now(), attempt, outcome, jitter));
    }

    fn moved(&mut self) {
        let view = self.view.borrow_and_update().clone();
        let now = Instant::now();
        for (partition, window) in &mut self.windows {
            if let Some(owner) = view.owner_of(*partition) {
                window.moved(now, owner.node);
            }
        }
    }
}
