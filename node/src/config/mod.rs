//! The configuration: one section per driver, composed here. TOML file < `WEFT_*` variables < flags.
//!
//! `deploy/weft.toml` holds every key with its default and a sentence; a test keeps it so.

mod check;
mod descriptors;
mod load;
mod sections;
mod services;

use serde::{Deserialize, Serialize};

pub use check::ConfigError;
pub use descriptors::Shares;
pub use load::{Sources, load, load_or_faults};
pub use sections::{LogConfig, LogFormat, NodeConfig, TlsConfig};
pub use services::ServiceConfig;

use crate::drivers::calls::CallsConfig;
use crate::drivers::forward::ForwardConfig;
use crate::drivers::gossip::GossipConfig;
use crate::drivers::instances::InstancesConfig;
use crate::drivers::link::LinkConfig;
use crate::drivers::raft::RaftConfig;
use crate::drivers::shard::ShardConfig;
use crate::drivers::storage::StorageConfig;
use crate::gateways::admin::AdminConfig;
use crate::gateways::door::ApiConfig;
use crate::gateways::events::EventsConfig;

/// All settings of a node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Instances that this node registers when it starts.
    pub services: Vec<ServiceConfig>,
    /// Who this node is and where it listens.
    pub node: NodeConfig,
    /// Its certificates: links use mTLS always.
    pub tls: TlsConfig,
    /// The door for clients.
    pub api: ApiConfig,
    /// The door for operators.
    pub admin: AdminConfig,
    /// The links between nodes.
    pub link: LinkConfig,
    /// The gossip of the membership.
    pub gossip: GossipConfig,
    /// The Raft groups: registry and shards.
    pub raft: RaftConfig,
    /// The journal, the segments and their checkpoints.
    pub storage: StorageConfig,
    /// The owner's side of partitions.
    pub shards: ShardConfig,
    /// The way of publishes and deliveries to owners.
    pub forward: ForwardConfig,
    /// The instances whose home this node is.
    pub instances: InstancesConfig,
    /// Calls of users' services.
    pub calls: CallsConfig,
    /// The gateway of publishes and subscriptions.
    pub events: EventsConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

#[cfg(test)]
mod tests;
