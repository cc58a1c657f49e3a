//! Calls: brings a call of a user's service to one of its instances, and the answer back.
//!
//! The client's node chooses the instance and makes the call again where that is honest (P8). An instance at home here
//! is reached over a pooled HTTP/2 connection; any other over the link to its home node, which never forwards again.
//! Bodies are opaque and pass as they come, as fast as the receiving end takes them.

mod answer;
mod body;
mod call;
mod carry;
mod config;
mod connect;
mod failure;
mod frames;
mod linked;
mod local;
mod metrics;
mod pool;
mod relay;
mod remote;
mod rotation;
mod serve;
mod whole;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use weft_cluster::ids::{InstanceId, NodeId};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::InstanceRecord;

pub use body::{Client, H2Source, Part, Source, Target};
pub use call::Call;
pub use config::CallsConfig;
pub use failure::{Failed, Failure};
pub use metrics::{Metrics, ServiceLabel};
pub use pool::OnFailed;
pub use whole::Whole;

use crate::drivers::endpoint::Dialer;
use crate::drivers::link::Links;
use crate::host::{Host, Tasks};
use pool::Pool;
use remote::Continuations;
use rotation::Rotations;

/// How often idle connections and what is not registered any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// What calls need of the node.
pub struct Parts {
    /// The world.
    pub host: Arc<dyn Host>,
    /// Where its tasks run.
    pub tasks: Tasks,
    /// The way to other nodes.
    pub links: Links,
    /// The way to instances.
    pub dialer: Dialer,
    /// Who is there, and who serves what.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// Settings.
    pub config: CallsConfig,
    /// Told when an instance whose home is here could not be reached, or a connection to it broke. Must not block.
    pub failed: OnFailed,
}

/// The driver of calls. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    shared: Arc<Shared>,
    links: Links,
    view: watch::Receiver<Arc<ClusterView>>,
    rotations: Rotations,
    pools: Mutex<BTreeMap<InstanceId, Arc<Pool>>>,
    continuations: Continuations,
    dice: AtomicU64,
    started: Instant,
}

/// What connections need.
struct Shared {
    dialer: Dialer,
    tasks: Tasks,
    config: CallsConfig,
    metrics: Metrics,
    failed: OnFailed,
}

impl Calls {
    /// Starts the driver.
    pub fn start(parts: Parts) -> Calls {
        let Parts { host, tasks, links, dialer, view, config, failed } = parts;
        let metrics = Metrics::default();
        let dice = AtomicU64::new(host.random_id());
        let rotations = Rotations::new(config.clone(), metrics.clone());
        let shared = Arc::new(Shared { dialer, tasks: tasks.clone(), config, metrics, failed });
        let inner = Inner {
            me: links.me().id,
            shared,
            links,
            view,
            rotations,
            pools: Mutex::default(),
            continuations: Continuations::default(),
            dice,
            started: Instant::now(),
        };
        let calls = Calls { inner: Arc::new(inner) };
        tasks.spawn("calls sweep", calls.clone().sweep());
        calls
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.shared.metrics
    }

    /// Calls of this node whose answer may still come on a stream of its own.
    #[cfg(test)]
    pub(crate) fn continuing(&self) -> usize {
        self.inner.continuations.count()
    }

    /// Closes what is idle and forgets what is gone, until the node stops.
    async fn sweep(self) {
        let inner = self.inner;
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let view = inner.view.borrow().clone();
            inner.rotations.sweep(&view);
            let mut pools = inner.pools();
            pools.retain(|id, _| view.registry.instance(*id).is_some_and(|it| NodeId(it.home) == view.me));
            pools.values().for_each(|pool| pool.close_idle(Instant::now()));
        }
    }
}

impl Inner {
    /// The connections to an instance whose home is here.
    fn pool(&self, instance: &InstanceRecord) -> Arc<Pool> {
        let id = InstanceId(instance.id);
        let mut pools = self.pools();
        if let Some(pool) = pools.get(&id).filter(|pool| pool.fits(instance)) {
            return pool.clone();
        }
        let pool = Pool::new(instance, self.shared.clone());
        pools.insert(id, pool.clone());
        pool
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// A random number: splitmix64.
    fn roll(&self) -> u64 {
        let mut z = self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
