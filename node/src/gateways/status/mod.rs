//! The doors `weft.v1.Cluster` and `weft.v1.Topics`: who is in the cluster, where things are, and the topics.

mod cluster;
mod groups;
mod topics;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_cluster::caller::Caller;
use weft_cluster::ids::{Epoch, NodeId, PartitionId, RaftGroup, ShardId};
use weft_cluster::registry::State;
use weft_cluster::registry::limits::FEATURE_LEVEL;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{PartitionStat, RegistryCommand, RegistryOutcome};
use weft_proto::v1;
use weft_proto::v1::cluster_server::ClusterServer;
use weft_proto::v1::topics_server::TopicsServer;

use crate::drivers::forward::Forward;
use crate::drivers::raft::Rafts;
use crate::drivers::registry::Registry;
use crate::host::Promise;

/// How long a change of the registry may take, failover included.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a read waits for the registry's leader, or for the owners of partitions, before it does without.
const READ_PATIENCE: Duration = Duration::from_secs(2);
/// How long a creation waits until the owners have the partitions.
const SETTLE_PATIENCE: Duration = Duration::from_secs(3);
/// The pause between two questions to the owners.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// What these doors need of the drivers.
pub trait Backend: Send + Sync + 'static {
    /// Whether this node knows its cluster well enough, since its start, to speak of it.
    fn settled(&self) -> Result<(), v1::Error>;
    /// Runs a registry command of `caller`; a refusal is an `Err`.
    fn propose<'a>(
        &'a self,
        caller: &'a Caller,
        command: RegistryCommand,
        patience: Duration,
    ) -> Promise<'a, Result<RegistryOutcome, v1::Error>>;
    /// A state of the registry that holds all that was committed before the call.
    fn read(&self, patience: Duration) -> Promise<'_, Result<Arc<State>, v1::Error>>;
    /// What the owners say of partitions; those that do not answer are left out.
    fn stats<'a>(
        &'a self,
        caller: &'a Caller,
        partitions: &'a [PartitionId],
        patience: Duration,
    ) -> Promise<'a, Vec<PartitionStat>>;
    /// Moves a shard's leadership.
    fn transfer<'a>(&'a self, caller: &'a Caller, shard: ShardId, to: NodeId) -> Promise<'a, Result<Epoch, v1::Error>>;
}

/// The drivers of a node.
pub struct Drivers {
    /// Proposes and reads.
    pub registry: Registry,
    /// Moves leaderships.
    pub rafts: Rafts,
    /// Asks owners.
    pub forward: Forward,
}

impl Backend for Drivers {
    fn settled(&self) -> Result<(), v1::Error> {
        self.registry.settled()
    }

    fn propose<'a>(
        &'a self,
        caller: &'a Caller,
        command: RegistryCommand,
        patience: Duration,
    ) -> Promise<'a, Result<RegistryOutcome, v1::Error>> {
        Box::pin(self.registry.propose(caller, command, patience))
    }

    fn read(&self, patience: Duration) -> Promise<'_, Result<Arc<State>, v1::Error>> {
        Box::pin(self.registry.read(patience))
    }

    fn stats<'a>(
        &'a self,
        caller: &'a Caller,
        partitions: &'a [PartitionId],
        patience: Duration,
    ) -> Promise<'a, Vec<PartitionStat>> {
        Box::pin(self.forward.stats(caller, partitions, patience))
    }

    fn transfer<'a>(&'a self, caller: &'a Caller, shard: ShardId, to: NodeId) -> Promise<'a, Result<Epoch, v1::Error>> {
        Box::pin(self.rafts.transfer(caller, RaftGroup::of(shard), to))
    }
}

/// Both doors. Cheap to clone.
#[derive(Clone)]
pub struct Status {
    backend: Arc<dyn Backend>,
    view: watch::Receiver<Arc<ClusterView>>,
    stop: CancellationToken,
}

impl Status {
    /// Doors over a node's drivers. Watches end when `stop` is cancelled.
    pub fn new(backend: Arc<dyn Backend>, view: watch::Receiver<Arc<ClusterView>>, stop: CancellationToken) -> Status {
        Status { backend, view, stop }
    }

    /// The gRPC services.
    pub fn services(&self) -> (ClusterServer<Status>, TopicsServer<Status>) {
        (ClusterServer::new(self.clone()), TopicsServer::new(self.clone()))
    }

    fn view(&self) -> Arc<ClusterView> {
        self.view.borrow().clone()
    }

    /// Refuses what is asked of a node that does not know its cluster yet: its client goes on to another one.
    fn settled(&self) -> Result<(), tonic::Status> {
        self.backend.settled().map_err(crate::wire::status)
    }

    /// Runs a command and waits until this node's own copy has it, so that the next request here sees it.
    async fn change(&self, caller: &Caller, command: Command) -> Result<Outcome, v1::Error> {
        let command = RegistryCommand { level: FEATURE_LEVEL, command: Some(command) };
        let RegistryOutcome { index, outcome } = self.backend.propose(caller, command, CHANGE_PATIENCE).await?;
        let seen = |view: &Arc<ClusterView>| view.registry.applied().is_some_and(|applied| applied.index >= index);
        let mut view = self.view.clone();
        let waited = tokio::time::timeout(CHANGE_PATIENCE, view.wait_for(seen)).await;
        if !matches!(waited, Ok(Ok(_))) {
            tracing::warn!(index, "the registry's change is committed, but this node's copy does not follow");
        }
        match outcome {
            Some(Outcome::Error(error)) => Err(error),
            Some(outcome) => Ok(outcome),
            None => Err(unexpected()),
        }
    }
}

fn unexpected() -> v1::Error {
    crate::wire::error(v1::ErrorCode::Internal, "the registry's answer does not fit its command")
}

#[cfg(test)]
mod tests;
