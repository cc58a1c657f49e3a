//! Which instances a service's calls go to now, and what was seen of each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use prometheus_client::metrics::counter::Counter;
use weft_cluster::ids::{InstanceId, NodeId};
use weft_cluster::registry::Service;
use weft_cluster::route::{self, Budget, Candidate, Latency};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::InstanceRecord;
use weft_proto::v1::Error;

use super::config::CallsConfig;
use super::metrics::{Metrics, ServiceLabel};

/// What this node has seen of an instance. The parts are read and written one by one: a choice may be a sample behind.
#[derive(Debug, Default)]
pub(super) struct Seen {
    in_flight: AtomicU32,
    latency_us: AtomicU64,
    latency_at_us: AtomicU64,
    /// Left out until then.
    out_until_us: AtomicU64,
}

/// What this node counts for a service.
pub(super) struct Tally {
    /// Calls, retries left out.
    pub(super) calls: AtomicU64,
    budget: Mutex<Budget>,
    pub(super) calls_metric: Counter,
    pub(super) retries_metric: Counter,
}

/// An instance in a rotation.
pub(super) struct Member {
    pub(super) instance: Arc<InstanceRecord>,
    pub(super) home: NodeId,
    pub(super) seen: Arc<Seen>,
}

/// The instances of a service as of one view.
pub(super) struct Rotation {
    view: Arc<ClusterView>,
    pub(super) service: Service,
    pub(super) members: Vec<Member>,
    pub(super) tally: Arc<Tally>,
}

type ByName<T> = BTreeMap<String, BTreeMap<String, Arc<T>>>;

/// The rotations of all services that are called here; made again when the view has changed.
pub(super) struct Rotations {
    metrics: Metrics,
    config: CallsConfig,
    /// By namespace and gRPC service.
    made: RwLock<ByName<Rotation>>,
    /// By namespace and service.
    tallies: Mutex<ByName<Tally>>,
    seen: Mutex<BTreeMap<InstanceId, Arc<Seen>>>,
}

impl Rotations {
    pub(super) fn new(config: CallsConfig, metrics: Metrics) -> Self {
        Rotations { metrics, config, made: RwLock::default(), tallies: Mutex::default(), seen: Mutex::default() }
    }

    /// The rotation of a gRPC service.
    ///
    /// # Errors
    /// `UNKNOWN_SERVICE`.
    pub(super) fn get(
        &self,
        view: &Arc<ClusterView>,
        namespace: &str,
        grpc_service: &str,
    ) -> Result<Arc<Rotation>, Error> {
        {
            let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
            let found = made.get(namespace).and_then(|of| of.get(grpc_service));
            if let Some(rotation) = found.filter(|rotation| Arc::ptr_eq(&rotation.view, view)) {
                return Ok(rotation.clone());
            }
        }
        let rotation = Arc::new(self.make(view, route::service(view, namespace, grpc_service)?));
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        let of = made.entry(namespace.to_owned()).or_default();
        of.insert(grpc_service.to_owned(), rotation.clone());
        Ok(rotation)
    }

    fn make(&self, view: &Arc<ClusterView>, service: &Service) -> Rotation {
        let mut seen = locked(&self.seen);
        let member = |instance: &Arc<InstanceRecord>| Member {
            instance: instance.clone(),
            home: NodeId(instance.home),
            seen: seen.entry(InstanceId(instance.id)).or_default().clone(),
        };
        let members = route::callable(view, service).map(member).collect();
        Rotation { view: view.clone(), service: service.clone(), members, tally: self.tally(service) }
    }

    fn tally(&self, service: &Service) -> Arc<Tally> {
        let record = service.record();
        let mut tallies = locked(&self.tallies);
        let of = tallies.entry(record.namespace.clone()).or_default();
        let tally = of.entry(record.name.clone()).or_insert_with(|| {
            let label = ServiceLabel { namespace: record.namespace.clone(), service: record.name.clone() };
            let config = &self.config;
            Arc::new(Tally {
                calls: AtomicU64::new(0),
                budget: Mutex::new(Budget::new(config.retry_percent, config.retry_per_second_min, 0)),
                calls_metric: self.metrics.calls.get_or_create_owned(&label),
                retries_metric: self.metrics.retries.get_or_create_owned(&label),
            })
        });
        tally.clone()
    }

    /// Forgets what is not registered any more.
    pub(super) fn sweep(&self, view: &ClusterView) {
        let keep = |namespace: &String, grpc_service: &String| {
            view.registry.service_of_grpc(namespace, grpc_service).is_some()
        };
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        retain(&mut made, keep);
        drop(made);
        let gone = |namespace: &String, service: &String| {
            let known = view.registry.service(namespace, service).is_some();
            if !known {
                let label = ServiceLabel { namespace: namespace.clone(), service: service.clone() };
                self.metrics.calls.remove(&label);
                self.metrics.retries.remove(&label);
            }
            known
        };
        retain(&mut locked(&self.tallies), gone);
        locked(&self.seen).retain(|id, _| view.registry.instance(*id).is_some());
    }
}

fn retain<T>(by_name: &mut ByName<T>, keep: impl Fn(&String, &String) -> bool) {
    by_name.retain(|namespace, of| {
        of.retain(|name, _| keep(namespace, name));
        !of.is_empty()
    });
}

impl Rotation {
    /// Chooses an instance that is not among `tried`, if there is one: its place among the members.
    ///
    /// # Errors
    /// `NO_INSTANCE`.
    pub(super) fn choose(&self, tried: &[InstanceId], dice: u64, now_us: u64) -> Result<usize, Error> {
        let look = |index: usize| {
            let member = &self.members[index];
            let fresh = !tried.contains(&member.id());
            Candidate { open: fresh && !member.seen.is_out(now_us), ..member.seen.look(&member.instance, now_us) }
        };
        let turn = self.tally.calls.load(Ordering::Relaxed);
        let chosen = route::choose(self.service.record().balance(), self.members.len(), look, turn, dice);
        chosen.ok_or_else(|| route::no_instance(&self.view, &self.service))
    }

    /// Whether all of its instances are among `tried`.
    pub(super) fn is_tried(&self, tried: &[InstanceId]) -> bool {
        self.members.iter().all(|member| tried.contains(&member.id()))
    }
}

impl Member {
    pub(super) fn id(&self) -> InstanceId {
        InstanceId(self.instance.id)
    }
}

impl Tally {
    /// Takes one retry from the budget, if one is left.
    pub(super) fn may_retry(&self, now_us: u64) -> bool {
        locked(&self.budget).take(now_us / 1_000, self.calls.load(Ordering::Relaxed))
    }
}

impl Seen {
    fn look(&self, instance: &InstanceRecord, now_us: u64) -> Candidate {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        Candidate { open: true, weight: instance.weight, in_flight, latency_us: self.latency().at(now_us) }
    }

    fn latency(&self) -> Latency {
        let (average, at) = (self.latency_us.load(Ordering::Relaxed), self.latency_at_us.load(Ordering::Relaxed));
        Latency { average_us: average, at_us: at }
    }

    fn is_out(&self, now_us: u64) -> bool {
        now_us < self.out_until_us.load(Ordering::Relaxed)
    }

    /// Its answer has begun after so long.
    pub(super) fn answered(&self, now_us: u64, took_us: u64) {
        let latency = self.latency().with(now_us, took_us);
        self.latency_us.store(latency.average_us, Ordering::Relaxed);
        self.latency_at_us.store(latency.at_us, Ordering::Relaxed);
        self.out_until_us.store(0, Ordering::Relaxed);
    }

    /// It could not be reached.
    pub(super) fn leave_out(&self, until_us: u64) {
        self.out_until_us.store(until_us, Ordering::Relaxed);
    }

    /// Counts a call on its way.
    pub(super) fn enter(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self)
    }
}

/// A call on its way to an instance.
pub(super) struct InFlight<'a>(&'a Seen);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
