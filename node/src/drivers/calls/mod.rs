//! Calls: brings a call of a user's service to one of its instances, and the answer back.
//!
//! The client's node chooses the instance and makes the call again where that is honest (P8). An instance at home here
//! is reached over a pooled HTTP/2 connection; any other over the link to its home node, which never forwards again.
//! Bodies are opaque and pass as they come, as fast as the receiving end takes them.

mod body;
mod call;
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
use weft_cluster::route::{Failed as Try, may_retry};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::InstanceRecord;
use weft_proto::v1::ErrorCode;

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
use body::Opening;
use pool::Pool;
use remote::Continuations;
use rotation::{Member, Rotation, Rotations};

/// How often idle connections and what is not registered any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// What calls need of the node.
pub struct Parts {
    /// The world.
    pub host: Arc<dyn Host>,
    /// Where its tasks run.
    pub tasks: Tasks,
    /// The way to other nodes.
    /// The way to instances.
    pub dialer: Dialer,
    pub links: Links,
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

    /// Brings a call to an instance of its service, and the answer to `client`. Dropped, it cancels the call.
    ///
    /// # Errors
    /// Why there is no answer, or no whole one; `client` may have had a part of it.
    pub async fn carry(&self, call: &Call, source: impl Source, client: &mut impl Client) -> Result<(), Failure> {
        let inner = &self.inner;
        let _open = metrics::Open::new(&inner.shared.metrics.open);
        inner.check_hops(call)?;
        let mut source = Opening::new(source);
        source.gather()?;
        let (mut attempts, mut tried) = (0, Vec::new());
        loop {
            let view = inner.view.borrow().clone();
            let rotation = inner.rotations.get(&view, &call.namespace, call.grpc_service())?;
            if attempts == 0 {
                rotation.tally.calls.fetch_add(1, Ordering::Relaxed);
                rotation.tally.calls_metric.inc();
            }
            let member = rotation.choose(&tried, inner.roll(), inner.now_us())?;
            attempts += 1;
            let failed = match self.attempt(member, call, &mut source, client).await {
                Err(Failure::Failed(failed)) => failed,
                other => return other,
            };
            let replayable = source.is_replayable();
            if !inner.may_retry(&failed, attempts, call, &rotation, replayable, client.is_answered()) {
                return Err(Failure::Failed(failed));
            }
            rotation.tally.retries_metric.inc();
            tried.push(InstanceId(member.instance.id));
            source.rewind();
        }
    }

    /// Makes a call once.
    async fn attempt(
        &self,
        member: &Member,
        call: &Call,
        source: &mut Opening<impl Source>,
        client: &mut impl Client,
    ) -> Result<(), Failure> {
        let inner = &self.inner;
        let _in_flight = member.seen.enter();
        let began = Instant::now();
        let on_head = || {
            let took = began.elapsed();
            inner.shared.metrics.head_seconds.observe(took.as_secs_f64());
            member.seen.answered(inner.now_us(), took.as_micros() as u64);
        };
        let ended = match member.home == inner.me {
            true => self.local(&member.instance, call, source, client, on_head).await,
            // A box of its own, so that it takes no room in calls that stay here.
            false => Box::pin(self.remote(member, call, source, client, on_head)).await,
        };
        if let Err(Failure::Failed(failed)) = &ended
            && failed.unreachable
        {
            let backoff = inner.shared.config.instance_backoff.as_micros() as u64;
            member.seen.leave_out(inner.now_us() + backoff);
        }
        ended
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

    fn check_hops(&self, call: &Call) -> Result<(), Failure> {
        let hops_max = self.shared.config.hops_max;
        if call.hops() < hops_max {
            return Ok(());
        }
        let message = format!(
            "the call has gone through Weft {} times (calls.hops_max is {hops_max}): an instance of {} is a node, or calls \
             itself",
            call.hops(),
            call.grpc_service(),
        );
        Err(Failure::refused(ErrorCode::Loop, message))
    }

    fn may_retry(
        &self,
        failed: &Failed,
        attempts: u32,
        call: &Call,
        rotation: &Rotation,
        replayable: bool,
        answered: bool,
    ) -> bool {
        let idempotent = call.idempotent || rotation.service.is_idempotent(call.grpc_service(), call.method());
        // What was refused for good will be refused again, and what is late is late.
        let hopeless = !matches!(
            failed.error.code(),
            ErrorCode::Unreachable | ErrorCode::Overloaded | ErrorCode::NotReady | ErrorCode::OutcomeUnknown
        );
        let failed = Try { attempts, not_sent: failed.not_sent, idempotent, replayable, answered };
        let budget = || rotation.tally.may_retry(self.now_us());
        !hopeless && may_retry(failed, self.shared.config.attempts_max, budget)
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
