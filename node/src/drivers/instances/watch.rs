//! The task that owns the decisions: it feeds the core and does what the core says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use weft_cluster::home::{Effect, Home, Homes, Input};
use weft_cluster::ids::{InstanceId, Millis, NodeId};
use weft_cluster::registry::State;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::{InstanceFlip, InstanceHealth, RemoveInstance};
use weft_proto::v1::ErrorCode;

use super::{Instances, check};

/// How often dead homes are looked for, beside every change of the view.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the registry may take for a flip, or for the end of a lease.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// What the task is told.
pub(super) enum Message {
    Input(Input),
    /// Answered with whether the lease is kept.
    Renew(InstanceId, oneshot::Sender<bool>),
    /// The instances of a dead home have new ones, or it is to be tried again.
    Rehomed(NodeId),
}

pub(super) struct Watch {
    instances: Instances,
    home: Home,
    homes: Homes,
    /// The state that `home` and `homes` have seen.
    seen: Arc<State>,
    view: watch::Receiver<Arc<ClusterView>>,
    rehoming: BTreeSet<NodeId>,
    effects: Vec<Effect>,
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Watch {
    pub(super) fn new(instances: Instances) -> Watch {
        let view = instances.inner.registry.view();
        Watch {
            home: Home::new(now(), instances.inner.config.checks_max as usize),
            instances,
            homes: Homes::default(),
            seen: Arc::default(),
            view,
            rehoming: BTreeSet::new(),
            effects: Vec::new(),
        }
    }

    /// Runs for as long as the node does.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let inner = self.instances.inner.clone();
        let mut states = inner.registry.states();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.home.next_deadline();
            let due = async {
                match due {
                    Some(at) => sleep_until(Instant::from_std(at)).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                biased;
                changed = states.changed() => if changed.is_err() { return } else { None },
                changed = self.view.changed() => if changed.is_err() { return } else { None },
                () = inner.doubted.notified() => None,
                message = messages.recv() => if message.is_none() { return } else { message },
                _ = look.tick() => None,
                () = due => None,
            };
            // What the registry says comes first: an answer to a write is never older than what it wrote.
            let state = states.borrow_and_update().clone();
            self.follow(state);
            match message {
                Some(Message::Input(input)) => self.tell(input),
                Some(Message::Renew(id, answer)) => drop(answer.send(self.home.renew(now(), id))),
                Some(Message::Rehomed(home)) => drop(self.rehoming.remove(&home)),
                None => {}
            }
            for id in inner.take_doubts() {
                self.tell(Input::Doubt(id));
            }
            self.tell(Input::Tick);
            self.rehome();
            self.act();
            inner.metrics.show(self.home.counts());
        }
    }

    fn tell(&mut self, input: Input) {
        self.home.handle(now(), input, &mut self.effects);
    }

    /// Takes in what the registry says of instances.
    fn follow(&mut self, state: Arc<State>) {
        let seen = std::mem::replace(&mut self.seen, state.clone());
        let me = self.instances.inner.me;
        for (was, is) in state.instances_since(&seen) {
            let Some(id) = was.or(is).map(|record| InstanceId(record.id)) else { continue };
            let home = |record: Option<&Arc<_>>| {
                record.map(|record: &Arc<weft_proto::internal::v1::InstanceRecord>| NodeId(record.home))
            };
            self.homes.moved(id, home(was), home(is));
            match is.filter(|_| home(is) == Some(me)) {
                Some(record) => self.tell(Input::Put(record.clone())),
                None if home(was) == Some(me) => self.tell(Input::Gone(id)),
                None => {}
            }
        }
    }

    /// Where this node leads the registry: gives instances of dead homes new ones.
    fn rehome(&mut self) {
        let inner = &self.instances.inner;
        if !inner.registry.acting() {
            return;
        }
        let view = self.view.borrow_and_update().clone();
        for dead in self.homes.dead(now(), &view) {
            if self.rehoming.contains(&dead) {
                continue;
            }
            let left: Vec<InstanceId> = self.homes.of(dead).take(super::REHOMED_MAX).collect();
            self.rehoming.insert(dead);
            let (instances, messages) = (self.instances.clone(), inner.messages.clone());
            inner.tasks.spawn("rehome instances", async move {
                instances.rehome(dead, &left).await;
                let _ = messages.send(Message::Rehomed(dead)).await;
            });
        }
    }

    fn act(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Check { id, number } => self.check(id, number),
                Effect::Write(flips) => self.write(flips),
                Effect::Remove(id, registered) => self.remove(id, registered),
            }
        }
    }

    fn check(&self, id: InstanceId, number: u64) {
        let inner = self.instances.inner.clone();
        let record = self.home.record(id).cloned();
        inner.tasks.clone().spawn("instance check", async move {
            let result = match &record {
                Some(record) => check::check(&inner.dialer, record).await,
                // It went in the same turn; its check counts all the same.
                None => Ok(()),
            };
            inner.metrics.checks.inc();
            if let Err(reason) = &result {
                inner.metrics.checks_failed.inc();
                tracing::debug!(instance = %id, reason, "a health check failed");
            }
            let _ = inner.messages.send(Message::Input(Input::Checked { id, number, result })).await;
        });
    }

    fn write(&self, flips: Vec<InstanceFlip>) {
        let (instances, inner) = (self.instances.clone(), self.instances.inner.clone());
        for flip in &flips {
            let address = self.home.record(InstanceId(flip.id)).map(|record| record.address.clone());
            let (healthy, reason) = (flip.healthy, &flip.reason);
            tracing::info!(instance = flip.id, address, healthy, reason, "an instance's health has changed");
        }
        inner.tasks.clone().spawn("instance flips", async move {
            let count = flips.len() as u64;
            let command = Command::InstanceHealth(InstanceHealth { home: inner.me.0, flips });
            let taken = match instances.change(&inner.registry.own(), command, WRITE_PATIENCE).await {
                Ok(_) => true,
                Err(refusal) => {
                    tracing::warn!(error = refusal.message, "flips of health are not in the registry yet");
                    false
                }
            };
            inner.metrics.flips.inc_by(if taken { count } else { 0 });
            let _ = inner.messages.send(Message::Input(Input::Written(taken))).await;
        });
    }

    fn remove(&self, id: InstanceId, registered: Millis) {
        let (instances, inner) = (self.instances.clone(), self.instances.inner.clone());
        inner.tasks.clone().spawn("instance lease", async move {
            let remove = RemoveInstance {
                id: id.0,
                home: inner.me.0,
                reason: "its lease ran out".into(),
                registered_ms: registered.0,
            };
            let answered =
                match instances.change(&inner.registry.own(), Command::RemoveInstance(remove), WRITE_PATIENCE).await {
                    Ok(_) => {
                        inner.metrics.leases_ended.inc();
                        tracing::info!(instance = %id, "an instance's lease ran out");
                        true
                    }
                    Err(refusal) => refusal.code() == ErrorCode::NotFound,
                };
            let _ = inner.messages.send(Message::Input(Input::Removed(id, answered))).await;
        });
    }
}
