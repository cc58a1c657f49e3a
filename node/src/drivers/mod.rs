//! Code that does I/O. Drivers take decisions from `weft-cluster` and never import gateways.

pub mod calls;
pub mod endpoint;
pub mod forward;
pub mod gossip;
pub mod instances;
pub mod link;
pub mod pki;
pub mod raft;
pub mod registry;
pub mod shard;
pub mod storage;

mod bootstrap;
mod failover;
mod owners;
mod reconcile;
