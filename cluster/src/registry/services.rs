//! Services and their instances.

mod check;

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{
    ConfigureService, InstanceHealth, InstanceRecord, PutInstance, RehomeInstances, RemoveInstance, ServiceRecord,
};
use weft_proto::v1::{Balance, Error, ErrorCode};

pub use check::check_put;

use super::apply::{Answer, DONE, full, invalid, not_now};
use super::limits::{GRPC_SERVICES_MAX, INSTANCES_MAX, INSTANCES_PER_SERVICE_MAX, SERVICES_MAX};
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

    /// Whether it stays when its last instance goes: something is set that a new one would not have.
    fn has_settings(&self) -> bool {
        let usual = matches!(self.record.balance(), Balance::Unspecified | Balance::LeastRequest);
        !usual || !self.record.idempotent_methods.is_empty()
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

    /// Whether an instance was there in this prefix of the log and is no more. False for one that may be too new for it.
    pub fn instance_gone(&self, id: InstanceId) -> bool {
        id.0 > 0 && id.0 < self.next_instance_id && !self.instances.contains_key(&id)
    }

    /// All instances, by id.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<InstanceRecord>> {
        self.instances.values()
    }

    /// What has become of the instances since `older`: each that differs, as it was and as it is. Costs only what it
    /// returns while the two share most of their trees.
    pub fn instances_since<'a>(
        &'a self,
        older: &'a State,
    ) -> impl Iterator<Item = (Option<&'a Arc<InstanceRecord>>, Option<&'a Arc<InstanceRecord>>)> {
        older.instances.diff(&self.instances).map(|item| match item {
            DiffItem::Add(_, new) => (None, Some(new)),
            DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            DiffItem::Remove(_, old) => (Some(old), None),
        })
    }

    /// The instances of a service, in the order of their addresses.
    pub fn instances_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Arc<InstanceRecord>> {
        service.instances().filter_map(|id| self.instance(id))
    }

    pub(super) fn put_instance(&mut self, command: &PutInstance) -> Answer {
        let PutInstance { namespace, service: name, grpc_services, instance } = check_put(command.clone())?;
        let mut instance = instance.expect("a checked command holds an instance");
        if self.node(NodeId(instance.home)).is_none() {
            return Err(not_now(format!("home node {} is not registered", NodeId(instance.home))));
        }
        self.check_free(&namespace, &name, &grpc_services)?;
        let known = self.service(&namespace, &name).cloned();
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
            || ServiceRecord { namespace: namespace.clone(), name: name.clone(), ..Default::default() },
            |service| service.record().clone(),
        );
        for grpc_service in grpc_services {
            if !record.grpc_services.contains(&grpc_service) {
                record.grpc_services.push(grpc_service);
            }
        }
        instance.namespace = namespace;
        instance.service = name;
        instance.registered_ms = self.log_time.0;
        self.put_service(record);
        self.insert_instance(instance.clone());
        Ok(Outcome::Instance(instance))
    }

    pub(super) fn remove_instance(&mut self, command: &RemoveInstance) -> Answer {
        let id = InstanceId(command.id);
        let meant = |instance: &&Arc<InstanceRecord>| {
            let home = command.home == 0 || instance.home == command.home;
            home && (command.registered_ms == 0 || instance.registered_ms == command.registered_ms)
        };
        let known = self.instance(id).filter(meant).cloned();
        let Some(instance) = known else {
            return Err(error(
                ErrorCode::NotFound,
                format!("there is no instance {id}, or it has another home or registration by now"),
            ));
        };
        self.instances.remove(&id);
        let service = self.services.get_mut(&instance.namespace).and_then(|it| it.get_mut(&instance.service));
        let service = service.expect("an instance's service is there while the instance is");
        service.instances.remove(&instance.address);
        self.end_service(&instance.namespace, &instance.service);
        DONE
    }

    pub(super) fn instance_health(&mut self, command: &InstanceHealth) -> Answer {
        for flip in &command.flips {
            if let Some(instance) = self.instances.get_mut(&InstanceId(flip.id)).filter(|it| it.home == command.home) {
                let instance = Arc::make_mut(instance);
                instance.healthy = flip.healthy;
                instance.reason = check::cut(&flip.reason);
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
            check::methods(&record, &command.idempotent_methods)?;
            record.idempotent_methods = command.idempotent_methods.clone();
        }
        self.put_service(record.clone());
        self.end_service(&record.namespace, &record.name);
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

    /// Takes a service out that nothing is left of.
    fn end_service(&mut self, namespace: &str, name: &str) {
        let left = |service: &Service| !service.instances.is_empty() || service.has_settings();
        if !self.service(namespace, name).is_some_and(left) {
            self.take_service(namespace, name);
        }
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

#[cfg(test)]
mod tests;
