//! Routing of calls: which instance a call goes to, and whether a failed call may be made again.
//!
//! Pure functions of the view, of what was counted, of the time and of dice.

mod balance;
mod budget;
mod latency;
mod retry;

use std::sync::Arc;

use weft_proto::internal::v1::InstanceRecord;
use weft_proto::v1::{Error, ErrorCode};

pub use balance::{Candidate, choose};
pub use budget::Budget;
pub use latency::Latency;
pub use retry::{Failed, may_retry};

use crate::errors::error;
use crate::ids::NodeId;
use crate::registry::{Service, names};
use crate::view::ClusterView;

/// The service that calls of a gRPC service go to. An empty namespace stands for "default".
///
/// # Errors
/// `UNKNOWN_SERVICE`.
pub fn service<'a>(view: &'a ClusterView, namespace: &str, grpc_service: &str) -> Result<&'a Service, Error> {
    view.registry.service_of_grpc(namespace, grpc_service).ok_or_else(|| {
        let namespace = names::namespace_or_default(namespace);
        let (service, namespace) = (names::shown(grpc_service), names::shown(namespace));
        let message = format!("nobody has registered gRPC service {service} in namespace {namespace}");
        error(ErrorCode::UnknownService, message)
    })
}

/// The instances that new calls may go to: healthy, and their home node answers. In the order of their addresses.
pub fn callable<'a>(view: &'a ClusterView, service: &'a Service) -> impl Iterator<Item = &'a Arc<InstanceRecord>> {
    view.registry.instances_of(service).filter(|instance| instance.healthy && view.usable(NodeId(instance.home)))
}

/// `NO_INSTANCE`, with the reason why none may be called.
pub fn no_instance(view: &ClusterView, service: &Service) -> Error {
    let record = service.record();
    let reason = view.registry.instances_of(service).map(|instance| match instance.healthy {
        false if instance.reason.is_empty() => format!("{} is not healthy", instance.address),
        false => format!("{} is not healthy: {}", instance.address, instance.reason),
        true => format!("{}'s home node {} does not answer", instance.address, view.name_of(NodeId(instance.home))),
    });
    let reason = reason.into_iter().next().unwrap_or_else(|| "none is registered".into());
    let message = format!("service {}/{} has no instance to call: {reason}", record.namespace, record.name);
    error(ErrorCode::NoInstance, message)
}

/// Whether a service that has no instance to call, or is not known, may have one soon: an instance passes its checks, but
/// its home node does not answer (yet, or any more: then it will have another); or this node does not know yet who leads
/// the registry, and its copy may be old.
pub fn is_settling(view: &ClusterView, namespace: &str, grpc_service: &str) -> bool {
    let service = view.registry.service_of_grpc(namespace, grpc_service);
    let healthy = service.is_some_and(|service| view.registry.instances_of(service).any(|instance| instance.healthy));
    healthy || view.registry_leader.is_none()
}

/// The gRPC service and the method in a path: "/shop.Cart/Get" is ("shop.Cart", "Get").
pub fn method_of(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
    (!service.is_empty() && !method.is_empty() && !service.contains('/')).then_some((service, method))
}

#[cfg(test)]
mod tests;
