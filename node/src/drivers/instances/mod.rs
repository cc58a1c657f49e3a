//! Instances of users' services: registered with this node as their home, leased, checked, and given a new home when
//! theirs dies.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use weft_cluster::errors::error;
use weft_cluster::ids::{InstanceId, NodeId};
use weft_cluster::registry::limits::FEATURE_LEVEL;
use weft_proto::internal::v1::control_request::Request;
use weft_proto::internal::v1::control_response::Response;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{
    ControlRequest, ControlResponse, InstanceRecord, PutInstance, RegistryCommand, RemoveInstance, RenewLease,
};
use weft_proto::v1::{self, ErrorCode};

use super::link::{Lane, Links};
use super::registry::Registry;

/// How long a registration or its end may take, failovers of the registry included.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long an instance's home may take to answer a renewal.
const RENEW_PATIENCE: Duration = Duration::from_secs(2);

/// The instances of this cluster, as this node serves them. Cheap to clone.
#[derive(Clone)]
pub struct Instances {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    links: Links,
    me: NodeId,
}

impl Instances {
    /// The handle of a node.
    pub fn new(registry: Registry, links: Links) -> Instances {
        let me = links.me().id;
        Instances { inner: Arc::new(Inner { registry, links, me }) }
    }

    /// Registers an instance, or registers it anew with other settings; this node becomes its home. `put`: as
    /// `registry::check_put` returns it, home and health left open.
    ///
    /// # Errors
    /// The registry's refusal; `NO_OWNER` or `OUTCOME_UNKNOWN` if it did not answer in time: registering again is safe.
    pub async fn register(&self, mut put: PutInstance) -> Result<InstanceRecord, v1::Error> {
        let inner = &self.inner;
        let instance = put.instance.get_or_insert_default();
        instance.home = inner.me.0;
        instance.healthy = true;
        if instance.zone.is_empty() {
            instance.zone = inner.links.me().zone.clone();
        }
        match self.change(Command::PutInstance(put), CHANGE_PATIENCE).await? {
            Outcome::Instance(instance) => Ok(instance),
            _ => Err(unexpected()),
        }
    }

    /// Keeps an instance's lease, at its home; returns the lease's time in milliseconds, 0 if it has none.
    ///
    /// # Errors
    /// `NOT_FOUND`: there is no such instance (any more). `NO_OWNER`: its home does not answer; it will get a new one.
    pub async fn renew(&self, id: InstanceId) -> Result<u32, v1::Error> {
        let inner = &self.inner;
        let known = inner.registry.state().instance(id).cloned();
        let known = match known {
            Some(known) => Some(known),
            // It may be newer than this node's copy.
            None => inner.registry.read(RENEW_PATIENCE).await?.instance(id).cloned(),
        };
        let instance = known.ok_or_else(|| gone(id))?;
        if instance.home == inner.me.0 {
            self.renew_here(id)?;
            return Ok(instance.ttl_ms);
        }
        let request = ControlRequest { request: Some(Request::RenewLease(RenewLease { instance: id.0 })) };
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
    /// `NOT_FOUND`: it has none here. `NO_OWNER`: its home is another node now.
    pub fn renew_here(&self, id: InstanceId) -> Result<(), v1::Error> {
        let state = self.inner.registry.state();
        let instance = state.instance(id).ok_or_else(|| gone(id))?;
        if instance.home != self.inner.me.0 {
            return Err(error(ErrorCode::NoOwner, format!("instance {id} has another home node now")));
        }
        Ok(())
    }

    /// Takes an instance out of the registry.
    ///
    /// # Errors
    /// `NOT_FOUND`: there is no such instance. `NO_OWNER` or `OUTCOME_UNKNOWN`: the registry did not answer in time.
    pub async fn deregister(&self, id: InstanceId) -> Result<(), v1::Error> {
        let deadline = Instant::now() + CHANGE_PATIENCE;
        let mut unknown = false;
        loop {
            let remove = RemoveInstance { id: id.0, reason: "deregistered".into(), ..Default::default() };
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.change(Command::RemoveInstance(remove), patience).await {
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

    /// Runs a command and waits until this node's own copy has it, so that the next request here sees it.
    async fn change(&self, command: Command, patience: Duration) -> Result<Outcome, v1::Error> {
        let registry = &self.inner.registry;
        let command = RegistryCommand { level: FEATURE_LEVEL, command: Some(command) };
        let outcome = registry.propose(command, patience).await?;
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
