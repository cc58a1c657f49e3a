//! Instances of users' services: registered with this node as their home, leased, checked, and given a new home when
//! theirs dies.

mod check;
mod config;
mod configured;
mod metrics;
mod watch;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use weft_cluster::caller::Caller;
use weft_cluster::errors::error;
use weft_cluster::home;
use weft_cluster::ids::{InstanceId, NodeId};
use weft_cluster::registry::limits::FEATURE_LEVEL;
use weft_proto::internal::v1::control_request::Request;
use weft_proto::internal::v1::control_response::Response;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{
    ControlRequest, ControlResponse, InstanceRecord, PutInstance, RegistryCommand, RehomeInstances, RemoveInstance,
    RenewLease,
};
use weft_proto::v1::{self, ErrorCode};

pub use config::InstancesConfig;
pub use metrics::Metrics;

use watch::{Message, Watch};

use super::endpoint::Dialer;
use super::link::{Lane, Links};
use super::registry::Registry;
use crate::host::{Host, Tasks};

/// How long a registration or its end may take, failovers of the registry included.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the name in an instance's address may take to be looked up when it is registered.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(1);
/// How long an instance's home may take to answer a renewal.
const RENEW_PATIENCE: Duration = Duration::from_secs(2);
/// How long the instances of one home may take to get another.
const REHOME_PATIENCE: Duration = Duration::from_secs(3);
/// The pause after a re-homing that the registry did not take.
const REHOME_PAUSE: Duration = Duration::from_millis(500);
/// Instances of one command that gives new homes.
const REHOMED_MAX: usize = 1_000;
/// Renewals, and results of checks, that wait for the task that decides.
const MESSAGES_MAX: usize = 1_024;
/// Instances that calls have found fault with and that are not looked at yet; more are left to their checks.
const DOUBTS_MAX: usize = 10_000;

/// The instances of this cluster, as this node serves them. Cheap to clone.
#[derive(Clone)]
pub struct Instances {
    inner: Arc<Inner>,
}

struct Inner {
    host: Arc<dyn Host>,
    tasks: Tasks,
    registry: Registry,
    links: Links,
    dialer: Dialer,
    me: NodeId,
    doors: Vec<SocketAddr>,
    config: InstancesConfig,
    metrics: Metrics,
    messages: mpsc::Sender<Message>,
    registrations: Semaphore,
    doubts: Mutex<BTreeSet<InstanceId>>,
    doubted: Notify,
    leaving: AtomicBool,
}

impl Inner {
    fn take_doubts(&self) -> BTreeSet<InstanceId> {
        std::mem::take(&mut *self.doubts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Instances {
    /// Starts checking the instances whose home this node is, and, while it leads the registry, gives those of dead
    /// homes new ones. `doors`: where this node listens; no instance can be there.
    pub fn start(
        host: Arc<dyn Host>,
        tasks: Tasks,
        registry: Registry,
        links: Links,
        dialer: Dialer,
        doors: Vec<SocketAddr>,
        config: InstancesConfig,
    ) -> Instances {
        let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
        let inner = Inner {
            host,
            tasks: tasks.clone(),
            registry,
            me: links.me().id,
            links,
            dialer,
            doors,
            registrations: Semaphore::new(config.registrations_max as usize),
            config,
            metrics: Metrics::default(),
            messages,
            doubts: Mutex::default(),
            doubted: Notify::new(),
            leaving: AtomicBool::new(false),
        };
        let instances = Instances { inner: Arc::new(inner) };
        tasks.spawn_vital("instances", Watch::new(instances.clone()).run(inbox));
        instances
    }

    /// Registers an instance of the node's configuration once the registry is there, with this node as its home.
    /// `tls_ca`: a PEM file for it, or empty.
    pub fn register_at_start(&self, put: PutInstance, tls_ca: PathBuf) {
        self.inner.tasks.spawn("configured instance", configured::register(self.clone(), put, tls_ca));
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// A call could not reach an instance whose home is here: it is checked at once, and one failed check takes it out
    /// of the rotation. Never blocks.
    pub fn failed(&self, id: InstanceId, reason: &str) {
        let inner = &self.inner;
        let mut doubts = inner.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.len() < DOUBTS_MAX && doubts.insert(id) {
            tracing::debug!(instance = %id, reason, "a call could not reach an instance");
            inner.metrics.doubts.inc();
            inner.doubted.notify_one();
        }
    }

    /// Registers an instance for `caller`, or registers it anew with other settings; this node becomes its home. `put`: as
    /// `registry::check_put` returns it, home and health left open. It is checked first: an instance that cannot be
    /// reached is registered, too, unhealthy and with the reason.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if a node answers at its address; the registry's refusal; `NOT_READY` if this node stops; `NO_OWNER` or `OUTCOME_UNKNOWN` if it did not answer in time: registering again is safe.
    pub async fn register(&self, caller: &Caller, mut put: PutInstance) -> Result<InstanceRecord, v1::Error> {
        let inner = &self.inner;
        let _turn = inner.registrations.acquire().await.expect("nobody closes this semaphore");
        let instance = put.instance.get_or_insert_default();
        self.check_address(&instance.address).await?;
        let checked = check::check(&inner.dialer, instance).await;
        if inner.leaving.load(Ordering::Acquire) {
            return Err(error(ErrorCode::NotReady, "this node is stopping: register at another one"));
        }
        instance.home = inner.me.0;
        instance.healthy = checked.is_ok();
        instance.reason = checked.err().unwrap_or_default();
        if instance.zone.is_empty() {
            instance.zone = inner.links.me().zone.clone();
        }
        match self.change(caller, Command::PutInstance(put), CHANGE_PATIENCE).await? {
            Outcome::Instance(instance) => Ok(instance),
            _ => Err(unexpected()),
        }
    }

    /// Refuses an address at which a node is known to answer. One that cannot be looked up says so by its health.
    async fn check_address(&self, address: &str) -> Result<(), v1::Error> {
        let inner = &self.inner;
        let found = tokio::time::timeout(LOOKUP_PATIENCE, inner.host.resolve(address)).await;
        let found = found.ok().and_then(Result::ok).unwrap_or_default();
        let view = inner.registry.view().borrow().clone();
        match home::door_at(&view, &inner.doors, address, &found) {
            None => Ok(()),
            Some(door) => Err(error(
                ErrorCode::InvalidArgument,
                format!("{address} is {door}: register the address that the program itself listens on"),
            )),
        }
    }

    /// Keeps an instance's lease for `caller`, at its home; returns the lease's time in milliseconds, 0 if it has none.
    ///
    /// # Errors
    /// `NOT_FOUND`: there is no such instance (any more). `NO_OWNER`: its home does not answer; it will get a new one.
    pub async fn renew(&self, caller: &Caller, id: InstanceId) -> Result<u32, v1::Error> {
        let inner = &self.inner;
        let known = inner.registry.state().instance(id).cloned();
        let known = match known {
            Some(known) => Some(known),
            // It may be newer than this node's copy.
            None => inner.registry.read(RENEW_PATIENCE).await?.instance(id).cloned(),
        };
        let instance = known.ok_or_else(|| gone(id))?;
        if instance.home == inner.me.0 {
            self.renew_here(caller, id).await?;
            return Ok(instance.ttl_ms);
        }
        let renew = RenewLease { instance: id.0, caller: caller.to_wire() };
        let request = ControlRequest { request: Some(Request::RenewLease(renew)) };
        let home = NodeId(instance.home);
        let answer = inner.links.request(home, Lane::Control, vec![request.encode_to_vec().into()], RENEW_PATIENCE);
        let silent = |why: String| error(ErrorCode::NoOwner, format!("the home node of instance {id}: {why}"));
        let answer = answer.await.map_err(|lost| silent(lost.to_string()))?;
        match ControlResponse::decode(answer).ok().and_then(|answer| answer.response) {
            Some(Response::Done(_)) => Ok(instance.ttl_ms),
            Some(Response::Error(refusal)) => Err(refusal),
            _ => Err(silent("its answer cannot be read".into())),
        }
    }

    /// Keeps a lease of an instance whose home is this node: what a peer asks for.
    ///
    /// # Errors
    /// `NOT_FOUND`: it has none here, or it has run out. `NO_OWNER`: its home is another node now.
    pub async fn renew_here(&self, caller: &Caller, id: InstanceId) -> Result<(), v1::Error> {
        let inner = &self.inner;
        tracing::trace!(%caller, instance = %id, "a lease is renewed");
        let moved = || error(ErrorCode::NoOwner, format!("instance {id} has another home node now"));
        match inner.registry.state().instance(id) {
            None => return Err(gone(id)),
            Some(instance) if instance.home != inner.me.0 => return Err(moved()),
            Some(_) => {}
        }
        let (answer, kept) = oneshot::channel();
        // If the task has ended the node stops, and the instance moves on.
        inner.messages.send(Message::Renew(id, answer)).await.map_err(|_| moved())?;
        if kept.await.map_err(|_| moved())? { Ok(()) } else { Err(gone(id)) }
    }

    /// Takes an instance out of the registry for `caller`.
    ///
    /// # Errors
    /// `NOT_FOUND`: there is no such instance. `NO_OWNER` or `OUTCOME_UNKNOWN`: the registry did not answer in time.
    pub async fn deregister(&self, caller: &Caller, id: InstanceId) -> Result<(), v1::Error> {
        let deadline = Instant::now() + CHANGE_PATIENCE;
        let mut unknown = false;
        loop {
            let remove = RemoveInstance { id: id.0, reason: "deregistered".into(), ..Default::default() };
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.change(caller, Command::RemoveInstance(remove), patience).await {
                Ok(_) => return Ok(()),
                // Ids are never given twice, so the first try has done it.
                Err(refusal) if unknown && refusal.code() == ErrorCode::NotFound => return Ok(()),
                Err(refusal) if refusal.code() == ErrorCode::OutcomeUnknown && Instant::now() < deadline => {
                    unknown = true;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Gives the instances whose home this node is to other nodes, before it stops; from now on it takes no registrations.
    /// Ends when all are gone, when there is no other node, or after a few seconds.
    pub async fn leave(&self) {
        let inner = &self.inner;
        inner.leaving.store(true, Ordering::Release);
        let deadline = Instant::now() + REHOME_PATIENCE;
        loop {
            let state = inner.registry.state();
            let here = state.instances().filter(|instance| instance.home == inner.me.0);
            let here: Vec<InstanceId> = here.map(|instance| InstanceId(instance.id)).take(REHOMED_MAX).collect();
            if here.is_empty() {
                return;
            }
            if Instant::now() >= deadline || !self.rehome(inner.me, &here).await {
                tracing::warn!(
                    left = here.len(),
                    "instances stay without a home until another node sees that this one is gone"
                );
                return;
            }
        }
    }

    /// Gives instances of `from` new homes; false if that was not possible now.
    async fn rehome(&self, from: NodeId, instances: &[InstanceId]) -> bool {
        let inner = &self.inner;
        let view = inner.registry.view().borrow().clone();
        let state = inner.registry.state();
        let theirs = instances.iter().filter_map(|id| state.instance(*id)).filter(|instance| instance.home == from.0);
        let rehomed = home::rehome(&view, from, theirs.map(AsRef::as_ref));
        let count = rehomed.len();
        if count > 0 {
            let command = Command::RehomeInstances(RehomeInstances { from: from.0, rehomed });
            match self.change(&inner.registry.own(), command, REHOME_PATIENCE).await {
                Ok(_) => {
                    tracing::info!(%from, count, "instances have a new home");
                    inner.metrics.rehomed.inc_by(count as u64);
                    return true;
                }
                Err(refusal) => tracing::warn!(%from, error = refusal.message, "instances have no new home yet"),
            }
        }
        tokio::time::sleep(REHOME_PAUSE).await;
        false
    }

    /// Runs a command and waits until this node's own copy has it, so that the next request here sees it.
    async fn change(&self, caller: &Caller, command: Command, patience: Duration) -> Result<Outcome, v1::Error> {
        let registry = &self.inner.registry;
        let command = RegistryCommand { level: FEATURE_LEVEL, command: Some(command) };
        let outcome = registry.propose(caller, command, patience).await?;
        let seen = |at: &Arc<_>| weft_cluster::registry::State::applied(at).is_some_and(|at| at.index >= outcome.index);
        let mut states = registry.states();
        if tokio::time::timeout(patience, states.wait_for(seen)).await.is_err() {
            tracing::warn!(index = outcome.index, "the change is committed, but this node's copy does not follow");
        }
        outcome.outcome.ok_or_else(unexpected)
    }
}

fn gone(id: InstanceId) -> v1::Error {
    error(ErrorCode::NotFound, format!("there is no instance {id}: its lease has run out, or it was deregistered"))
}

fn unexpected() -> v1::Error {
    error(ErrorCode::Internal, "the registry's answer does not fit its command")
}
