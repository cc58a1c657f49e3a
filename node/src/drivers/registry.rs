//! The registry on this node: proposes its commands, follows its log, and publishes the one view that
//! gateways read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_cluster::registry::State;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::{RegistryCommand, RegistryOutcome};
use weft_proto::v1;

/// The registry, from any node. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

impl Registry {
    /// Runs a command at the leader, through failover, until it has an outcome or `patience` is over.
    ///
    /// # Errors
    /// The command's own refusal; `NO_OWNER` if no leader took it in time; `OUTCOME_UNKNOWN` if one took it and was lost.
    pub async fn propose(&self, _command: RegistryCommand, _patience: Duration) -> Result<RegistryOutcome, v1::Error> {
        panic!("contract only")
    }

    /// A linearizable read: the state here, at least as new as all that was committed before the call.
    pub async fn read(&self, _patience: Duration) -> Result<Arc<State>, v1::Error> {
        panic!("contract only")
    }

    /// The cluster as this node knows it, published on change.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        panic!("contract only")
    }

    /// Waits until this node has a record in the registry and has its state: it may serve.
    pub async fn ready(&self) {
        panic!("contract only")
    }
}

struct Inner;
