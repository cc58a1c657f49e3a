//! Forward: brings packed batches to the owner of their partition, wherever it is, and deliveries back from it;
//! follows the owner through failover.

mod attempt;
mod config;
mod deliver;
mod metrics;
mod publish;
mod window;

use std::sync::Arc;

use tokio::sync::watch;
use weft_cluster::view::ClusterView;

pub use config::ForwardConfig;
pub use deliver::{Deliveries, DeliverySpec};
pub use metrics::Metrics;
pub use publish::Publisher;

use crate::drivers::link::Links;
use crate::drivers::shard::Shards;
use crate::host::{Host, Tasks};

/// Routes to owners. Cheap to clone.
#[derive(Clone)]
pub struct Forward {
    inner: Arc<Inner>,
}

struct Inner {
    shards: Shards,
    links: Links,
    view: watch::Receiver<Arc<ClusterView>>,
    config: ForwardConfig,
    metrics: Metrics,
    host: Arc<dyn Host>,
    tasks: Tasks,
}

impl Forward {
    /// `view` says who owns what.
    pub fn new(
        shards: Shards,
        links: Links,
        view: watch::Receiver<Arc<ClusterView>>,
        config: ForwardConfig,
        host: Arc<dyn Host>,
        tasks: Tasks,
    ) -> Forward {
        let metrics = Metrics::default();
        Forward { inner: Arc::new(Inner { shards, links, view, config, metrics, host, tasks }) }
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// What this node knows of the cluster now.
    pub fn view(&self) -> Arc<ClusterView> {
        self.inner.view.borrow().clone()
    }

    /// 0.0 to 1.0, for spreading retries.
    fn jitter(&self) -> f64 {
        let mut byte = [0; 1];
        self.inner.host.entropy(&mut byte);
        f64::from(byte[0]) / 255.0
    }
}

#[cfg(test)]
mod tests;
