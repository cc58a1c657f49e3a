//! Records of the registry as clients see them.

use weft_cluster::ids::NodeId;
use weft_cluster::registry::Service;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::{InstanceRecord, ServiceRecord};
use weft_proto::v1;

/// A service; `known`: where its instances are counted.
pub(super) fn service(view: &ClusterView, record: &ServiceRecord, known: Option<&Service>) -> v1::Service {
    let instances = || known.into_iter().flat_map(|known| view.registry.instances_of(known));
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let balance = match record.balance() {
        v1::Balance::Unspecified => v1::Balance::LeastRequest,
        set => set,
    };
    v1::Service {
        name: record.name.clone(),
        namespace: record.namespace.clone(),
        grpc_services: record.grpc_services.clone(),
        balance: balance.into(),
        idempotent_methods: record.idempotent_methods.clone(),
        instances: count(instances().count()),
        instances_healthy: count(instances().filter(|instance| callable(view, instance)).count()),
    }
}

/// A service with its instances, in the order of their addresses.
pub(super) fn description(view: &ClusterView, known: &Service) -> v1::ServiceDescription {
    let instances = view.registry.instances_of(known).map(|record| instance(view, record)).collect();
    v1::ServiceDescription { service: Some(service(view, known.record(), Some(known))), instances }
}

/// Its check passes, and its home node answers.
fn callable(view: &ClusterView, record: &InstanceRecord) -> bool {
    record.healthy && view.usable(NodeId(record.home))
}

fn instance(view: &ClusterView, record: &InstanceRecord) -> v1::Instance {
    let home = view.name_of(NodeId(record.home));
    let reason = match record.healthy {
        true if callable(view, record) => String::new(),
        true => format!("its home node {home} does not answer"),
        false => record.reason.clone(),
    };
    v1::Instance {
        id: record.id,
        address: record.address.clone(),
        tls: record.tls,
        weight: record.weight,
        zone: record.zone.clone(),
        metadata: record.metadata.clone(),
        home,
        healthy: callable(view, record),
        reason,
        registered_ms: record.registered_ms,
        check: record.check.clone(),
        ttl_ms: record.ttl_ms,
    }
}
