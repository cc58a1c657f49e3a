//! Services and their instances.

use std::sync::Arc;

use imbl::OrdMap;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{
    ConfigureService, InstanceHealth, InstanceRecord, PutInstance, RehomeInstances, RemoveInstance, ServiceRecord,
};
use weft_proto::v1::health_check::Kind;
use weft_proto::v1::{Balance, Error, ErrorCode, HealthCheck};

use super::apply::{Answer, DONE, full, invalid, not_now};
use super::limits::{
    CHECK_MS_DEFAULT, CHECK_MS_MAX, CHECK_MS_MIN, CHECK_TIMEOUT_MS_DEFAULT, CHECKS_IN_A_ROW_MAX, GRPC_SERVICES_MAX,
    HEALTHY_AFTER_DEFAULT, IDEMPOTENT_METHODS_MAX, INSTANCE_CA_BYTES_MAX, INSTANCE_METADATA_BYTES_MAX,
    INSTANCE_METADATA_MAX, INSTANCES_MAX, INSTANCES_PER_SERVICE_MAX, LEASE_MS_MAX, LEASE_MS_MIN, NODE_TEXT_BYTES_MAX,
    SERVICES_MAX, UNHEALTHY_AFTER_DEFAULT, WEIGHT_DEFAULT, WEIGHT_MAX,
};
use super::{State, names};
use crate::errors::error;
use crate::ids::{InstanceId, NodeId};

/// A service with the ids of its instances.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    record: Arc<ServiceRecord>,
    // By address.
    instances: OrdMap<String, InstanceId>,
}

impl Service {
    /// Its record; `grpc_services` is never empty.
    pub fn record(&self) -> &ServiceRecord {
        &self.record
    }

    /// Its instances, in the order of their addresses.
    pub fn instances(&self) -> impl ExactSizeIterator<Item = InstanceId> {
        self.instances.values().copied()
    }

    /// The instance at an address.
    pub fn instance_at(&self, address: &str) -> Option<InstanceId> {
        self.instances.get(address).copied()
    }

    /// Whether a call of a method ("Get") of a gRPC service may run more than once.
    pub fn is_idempotent(&self, grpc_service: &str, method: &str) -> bool {
        let listed = |entry: &String| {
            let entry = entry.strip_prefix(grpc_service).and_then(|rest| rest.strip_prefix('/'));
            entry.is_some_and(|named| named == "*" || named == method)
        };
        self.record.idempotent_methods.iter().any(listed)
    }

    /// Whether it stays when its last instance goes.
    fn has_settings(&self) -> bool {
        self.record.balance() != Balance::Unspecified || !self.record.idempotent_methods.is_empty()
    }
}

impl State {
    /// A service by name. An empty namespace stands for "default".
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(names::namespace_or_default(namespace))?.get(name)
    }

    /// The service that has a gRPC service name. An empty namespace stands for "default".
    pub fn service_of_grpc(&self, namespace: &str, grpc_service: &str) -> Option<&Service> {
        let name = self.grpc_services.get(names::namespace_or_default(namespace))?.get(grpc_service)?;
        self.service(namespace, name)
    }

    /// The services of a namespace, by name. An empty namespace stands for "default".
    pub fn services(&self, namespace: &str) -> impl Iterator<Item = &Service> {
        self.services.get(names::namespace_or_default(namespace)).into_iter().flat_map(OrdMap::values)
    }

    /// The services of all namespaces.
    pub fn services_all(&self) -> impl Iterator<Item = &Service> {
        self.services.values().flat_map(OrdMap::values)
    }

    /// An instance by id.
    pub fn instance(&self, id: InstanceId) -> Option<&Arc<InstanceRecord>> {
        self.instances.get(&id)
    }

    /// All instances, by id.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<InstanceRecord>> {
        self.instances.values()
    }

    /// The instances of a service, in the order of their addresses.
    pub fn instances_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Arc<InstanceRecord>> {
        service.instances().filter_map(|id| self.instance(id))
    }

    pub(super) fn put_instance(&mut self, command: &PutInstance) -> Answer {
        let namespace = names::namespace_or_default(&command.namespace).to_owned();
        names::check("namespace", &namespace).map_err(invalid)?;
        names::check_service("service", &command.service).map_err(invalid)?;
        let grpc_services = grpc_services(command)?;
        let instance = command.instance.as_ref().ok_or_else(|| invalid("the command holds no instance"))?;
        let mut instance = check_instance(instance)?;
        if self.node(NodeId(instance.home)).is_none() {
            return Err(not_now(format!("home node {} is not registered", NodeId(instance.home))));
        }
        self.check_free(&namespace, &command.service, &grpc_services)?;
        let known = self.service(&namespace, &command.service).cloned();
        let known = known.as_ref();
        match known.and_then(|service| service.instance_at(&instance.address)) {
            Some(id) => instance.id = id.0,
            None if self.instances.len() >= INSTANCES_MAX => return Err(full("instances", INSTANCES_MAX)),
            None if known.is_some_and(|it| it.instances.len() >= INSTANCES_PER_SERVICE_MAX) => {
                return Err(full("instances of this service", INSTANCES_PER_SERVICE_MAX));
            }
            None if known.is_none() && self.services_total >= SERVICES_MAX => {
                return Err(full("services", SERVICES_MAX));
            }
            None => {
                instance.id = self.next_instance_id;
                self.next_instance_id += 1;
            }
        }
        let mut record = known.map_or_else(
            || ServiceRecord { namespace: namespace.clone(), name: command.service.clone(), ..Default::default() },
            |service| service.record().clone(),
        );
        for name in grpc_services {
            if !record.grpc_services.contains(&name) {
                record.grpc_services.push(name);
            }
        }
        instance.namespace = namespace;
        instance.service = command.service.clone();
        instance.registered_ms = self.log_time.0;
        self.put_service(record);
        self.insert_instance(instance.clone());
        Ok(Outcome::Instance(instance))
    }

    pub(super) fn remove_instance(&mut self, command: &RemoveInstance) -> Answer {
        let id = InstanceId(command.id);
        let known = self.instance(id).filter(|instance| command.home == 0 || instance.home == command.home).cloned();
        let Some(instance) = known else {
            return Err(error(ErrorCode::NotFound, format!("there is no instance {id}, or it has another home node")));
        };
        self.instances.remove(&id);
        let service = self.services.get_mut(&instance.namespace).and_then(|it| it.get_mut(&instance.service));
        let service = service.expect("an instance's service is there while the instance is");
        service.instances.remove(&instance.address);
        if service.instances.is_empty() && !service.has_settings() {
            self.take_service(&instance.namespace, &instance.service);
        }
        DONE
    }

    pub(super) fn instance_health(&mut self, command: &InstanceHealth) -> Answer {
        for flip in &command.flips {
            if let Some(instance) = self.instances.get_mut(&InstanceId(flip.id)).filter(|it| it.home == command.home) {
                let instance = Arc::make_mut(instance);
                instance.healthy = flip.healthy;
                instance.reason = cut(&flip.reason);
            }
        }
        DONE
    }

    pub(super) fn rehome_instances(&mut self, command: &RehomeInstances) -> Answer {
        for rehomed in &command.rehomed {
            if self.node(NodeId(rehomed.home)).is_none() {
                continue;
            }
            if let Some(instance) = self.instances.get_mut(&InstanceId(rehomed.id)).filter(|it| it.home == command.from)
            {
                Arc::make_mut(instance).home = rehomed.home;
            }
        }
        DONE
    }

    pub(super) fn configure_service(&mut self, command: &ConfigureService) -> Answer {
        let namespace = names::namespace_or_default(&command.namespace).to_owned();
        let Some(service) = self.service(&namespace, &command.service) else {
            let message = format!("there is no service {namespace}/{}", command.service);
            return Err(error(ErrorCode::UnknownService, message));
        };
        let mut record = service.record().clone();
        if Balance::try_from(command.balance).is_err() {
            return Err(invalid(format!("balance {} is unknown to this version", command.balance)));
        }
        if command.balance() != Balance::Unspecified {
            record.balance = command.balance;
        }
        if command.set_idempotent_methods {
            check_methods(&record, &command.idempotent_methods)?;
            record.idempotent_methods = command.idempotent_methods.clone();
        }
        self.put_service(record.clone());
        Ok(Outcome::Service(record))
    }

    /// Adds a service, or changes its record; its instances stay.
    pub(super) fn put_service(&mut self, record: ServiceRecord) {
        let grpc_services = self.grpc_services.entry(record.namespace.clone()).or_default();
        for name in &record.grpc_services {
            grpc_services.insert(name.clone(), record.name.clone());
        }
        let services = self.services.entry(record.namespace.clone()).or_default();
        let name = record.name.clone();
        let record = Arc::new(record);
        match services.get_mut(&name) {
            Some(service) => service.record = record,
            None => {
                services.insert(name, Service { record, instances: OrdMap::new() });
                self.services_total += 1;
            }
        }
    }

    pub(super) fn insert_instance(&mut self, instance: InstanceRecord) {
        let id = InstanceId(instance.id);
        let service = self.services.get_mut(&instance.namespace).and_then(|it| it.get_mut(&instance.service));
        let service = service.expect("the service is put before its instances");
        service.instances.insert(instance.address.clone(), id);
        self.instances.insert(id, Arc::new(instance));
    }

    fn take_service(&mut self, namespace: &str, name: &str) {
        let Some(services) = self.services.get_mut(namespace) else { return };
        let Some(service) = services.remove(name) else { return };
        self.services_total -= 1;
        if services.is_empty() {
            self.services.remove(namespace);
        }
        let Some(grpc_services) = self.grpc_services.get_mut(namespace) else { return };
        for grpc_service in &service.record.grpc_services {
            grpc_services.remove(grpc_service);
        }
        if grpc_services.is_empty() {
            self.grpc_services.remove(namespace);
        }
    }

    /// Whether a service may have these gRPC service names: none is another's.
    fn check_free(&self, namespace: &str, service: &str, grpc_services: &[String]) -> Result<(), Error> {
        for name in grpc_services {
            let holder = self.service_of_grpc(namespace, name).filter(|holder| holder.record.name != service);
            if let Some(holder) = holder {
                let holder = &holder.record.name;
                return Err(not_now(format!(
                    "gRPC service {name:?} belongs to service {holder:?}; deregister that first, or register as {holder:?}"
                )));
            }
        }
        let known = self.service(namespace, service).map_or(&[][..], |known| &known.record.grpc_services);
        let new = grpc_services.iter().filter(|name| !known.contains(name)).count();
        if known.len() + new > GRPC_SERVICES_MAX {
            return Err(full("gRPC service names of this service", GRPC_SERVICES_MAX));
        }
        Ok(())
    }
}

/// The gRPC service names of a registration: those it lists, or else the service's own name.
fn grpc_services(command: &PutInstance) -> Result<Vec<String>, Error> {
    let mut listed = command.grpc_services.clone();
    if listed.is_empty() {
        listed.push(command.service.clone());
    }
    for name in &listed {
        names::check_service("gRPC service", name).map_err(invalid)?;
    }
    Ok(listed)
}

/// Checks a registration and fills in the defaults.
fn check_instance(instance: &InstanceRecord) -> Result<InstanceRecord, Error> {
    names::check_address(&instance.address).map_err(invalid)?;
    if instance.weight > WEIGHT_MAX {
        return Err(invalid(format!("weight is {}: use 1 to {WEIGHT_MAX}", instance.weight)));
    }
    if instance.zone.len() > NODE_TEXT_BYTES_MAX || instance.tls_name.len() > NODE_TEXT_BYTES_MAX {
        return Err(invalid(format!("zone and tls_name have at most {NODE_TEXT_BYTES_MAX} bytes each")));
    }
    if instance.tls_ca_pem.len() > INSTANCE_CA_BYTES_MAX {
        return Err(invalid(format!("tls_ca_pem has at most {INSTANCE_CA_BYTES_MAX} bytes")));
    }
    let bytes: usize = instance.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if instance.metadata.len() > INSTANCE_METADATA_MAX || bytes > INSTANCE_METADATA_BYTES_MAX {
        return Err(invalid(format!(
            "metadata has at most {INSTANCE_METADATA_MAX} entries and {INSTANCE_METADATA_BYTES_MAX} bytes"
        )));
    }
    if instance.ttl_ms != 0 && !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(&instance.ttl_ms) {
        return Err(invalid(format!("ttl_ms is {}: use {LEASE_MS_MIN} to {LEASE_MS_MAX}, or 0", instance.ttl_ms)));
    }
    let check = check_check(instance.check.clone().unwrap_or_default())?;
    Ok(InstanceRecord {
        weight: if instance.weight == 0 { WEIGHT_DEFAULT } else { instance.weight },
        check: Some(check),
        reason: cut(&instance.reason),
        ..instance.clone()
    })
}

fn check_check(mut check: HealthCheck) -> Result<HealthCheck, Error> {
    let or = |value: u32, default| if value == 0 { default } else { value };
    check.interval_ms = or(check.interval_ms, CHECK_MS_DEFAULT);
    if !(CHECK_MS_MIN..=CHECK_MS_MAX).contains(&check.interval_ms) {
        return Err(invalid(format!("interval_ms is {}: use {CHECK_MS_MIN} to {CHECK_MS_MAX}", check.interval_ms)));
    }
    check.timeout_ms = or(check.timeout_ms, CHECK_TIMEOUT_MS_DEFAULT.min(check.interval_ms));
    if check.timeout_ms > check.interval_ms {
        return Err(invalid(format!(
            "timeout_ms is {}: use at most interval_ms, {}",
            check.timeout_ms, check.interval_ms
        )));
    }
    check.unhealthy_after = or(check.unhealthy_after, UNHEALTHY_AFTER_DEFAULT);
    check.healthy_after = or(check.healthy_after, HEALTHY_AFTER_DEFAULT);
    if check.unhealthy_after.max(check.healthy_after) > CHECKS_IN_A_ROW_MAX {
        return Err(invalid(format!("unhealthy_after and healthy_after are at most {CHECKS_IN_A_ROW_MAX}")));
    }
    match check.kind.get_or_insert(Kind::Tcp(true)) {
        Kind::HttpPath(path) if !path.starts_with('/') || path.len() > NODE_TEXT_BYTES_MAX => {
            Err(invalid(format!("http_path is {path:?}: begin with / and use at most {NODE_TEXT_BYTES_MAX} bytes")))
        }
        Kind::GrpcService(name) if name.len() > NODE_TEXT_BYTES_MAX => {
            Err(invalid(format!("grpc_service of the check has at most {NODE_TEXT_BYTES_MAX} bytes")))
        }
        _ => Ok(check),
    }
}

/// Every entry names a gRPC service that the service has, and a method or *.
fn check_methods(service: &ServiceRecord, methods: &[String]) -> Result<(), Error> {
    if methods.len() > IDEMPOTENT_METHODS_MAX {
        return Err(invalid(format!("idempotent_methods has at most {IDEMPOTENT_METHODS_MAX} entries")));
    }
    for entry in methods {
        let named = entry.split_once('/').filter(|(_, method)| !method.is_empty() && entry.len() <= 512);
        if named.is_none_or(|(name, _)| !service.grpc_services.iter().any(|known| known == name)) {
            return Err(invalid(format!(
                "{entry:?} names no method of service {:?}: use SERVICE/METHOD or SERVICE/*, with a service of {:?}",
                service.name, service.grpc_services
            )));
        }
    }
    Ok(())
}

/// A reason short enough for the registry.
fn cut(reason: &str) -> String {
    reason.chars().take(NODE_TEXT_BYTES_MAX / 4).collect()
}

#[cfg(test)]
mod tests;
