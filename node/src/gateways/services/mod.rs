//! The door `weft.v1.Services`: instances of users' services come and go, and what there is.

mod describe;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Request, Response};
use weft_cluster::caller::Caller;
use weft_cluster::ids::InstanceId;
use weft_cluster::registry::limits::FEATURE_LEVEL;
use weft_cluster::registry::{State, names};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{ConfigureService, InstanceRecord, PutInstance, RegistryCommand, RegistryOutcome};
use weft_proto::v1::services_server::{self, ServicesServer};
use weft_proto::v1::{self, ErrorCode};

use crate::drivers::instances::Instances;
use crate::drivers::registry::Registry;
use crate::host::Promise;
use crate::wire::{caller, checks, error, status};

/// How long a change of a service's settings may take, failover included.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a read waits for the registry's leader before it does without.
const READ_PATIENCE: Duration = Duration::from_secs(2);

type Answer<T> = Result<Response<T>, tonic::Status>;

/// What this door needs of the drivers.
pub trait Backend: Send + Sync + 'static {
    /// Whether this node knows its cluster well enough, since its start, to speak of it.
    fn settled(&self) -> Result<(), v1::Error>;
    /// Registers an instance; this node becomes its home.
    fn register<'a>(&'a self, caller: &'a Caller, put: PutInstance) -> Promise<'a, Result<InstanceRecord, v1::Error>>;
    /// Keeps a lease; its time in milliseconds.
    fn renew<'a>(&'a self, caller: &'a Caller, id: InstanceId) -> Promise<'a, Result<u32, v1::Error>>;
    /// Takes an instance out.
    fn deregister<'a>(&'a self, caller: &'a Caller, id: InstanceId) -> Promise<'a, Result<(), v1::Error>>;
    /// Runs a registry command; a refusal is an `Err`.
    fn propose<'a>(
        &'a self,
        caller: &'a Caller,
        command: RegistryCommand,
        patience: Duration,
    ) -> Promise<'a, Result<RegistryOutcome, v1::Error>>;
    /// A state of the registry that holds all that was committed before the call.
    fn read(&self, patience: Duration) -> Promise<'_, Result<Arc<State>, v1::Error>>;
}

/// The drivers of a node.
pub struct Drivers {
    /// Leases and checks.
    pub instances: Instances,
    /// Proposes and reads.
    pub registry: Registry,
}

impl Backend for Drivers {
    fn settled(&self) -> Result<(), v1::Error> {
        self.registry.settled()
    }

    fn register<'a>(&'a self, caller: &'a Caller, put: PutInstance) -> Promise<'a, Result<InstanceRecord, v1::Error>> {
        Box::pin(self.instances.register(caller, put))
    }

    fn renew<'a>(&'a self, caller: &'a Caller, id: InstanceId) -> Promise<'a, Result<u32, v1::Error>> {
        Box::pin(self.instances.renew(caller, id))
    }

    fn deregister<'a>(&'a self, caller: &'a Caller, id: InstanceId) -> Promise<'a, Result<(), v1::Error>> {
        Box::pin(self.instances.deregister(caller, id))
    }

    fn propose<'a>(
        &'a self,
        caller: &'a Caller,
        command: RegistryCommand,
        patience: Duration,
    ) -> Promise<'a, Result<RegistryOutcome, v1::Error>> {
        Box::pin(self.registry.propose(caller, command, patience))
    }

    fn read(&self, patience: Duration) -> Promise<'_, Result<Arc<State>, v1::Error>> {
        Box::pin(self.registry.read(patience))
    }
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    backend: Arc<dyn Backend>,
    view: watch::Receiver<Arc<ClusterView>>,
}

impl Services {
    /// A door over a node's drivers.
    pub fn new(backend: Arc<dyn Backend>, view: watch::Receiver<Arc<ClusterView>>) -> Services {
        Services { backend, view }
    }

    /// The gRPC service.
    pub fn service(&self) -> ServicesServer<Services> {
        ServicesServer::new(self.clone())
    }

    /// Refuses what is asked of a node that does not know its cluster yet: its client goes on to another one.
    fn settled(&self) -> Result<(), tonic::Status> {
        self.backend.settled().map_err(status)
    }

    async fn register(
        &self,
        caller: &Caller,
        request: v1::RegisterInstanceRequest,
    ) -> Result<v1::RegisterInstanceResponse, v1::Error> {
        let record = self.backend.register(caller, checks::register_instance(request)?).await?;
        let home = self.view.borrow().name_of(weft_cluster::ids::NodeId(record.home));
        let InstanceRecord { id, ttl_ms, healthy, reason, .. } = record;
        Ok(v1::RegisterInstanceResponse { instance: id, home, ttl_ms, healthy, reason })
    }

    async fn deregister(&self, caller: &Caller, request: v1::DeregisterInstanceRequest) -> Result<(), v1::Error> {
        checks::deregister_instance(&request)?;
        let v1::DeregisterInstanceRequest { instance, service, namespace, address } = request;
        if instance != 0 {
            return self.backend.deregister(caller, InstanceId(instance)).await;
        }
        let registry = self.backend.read(READ_PATIENCE).await?;
        let known = registry.service(&namespace, &service).ok_or_else(|| unknown_service(&namespace, &service))?;
        let missing = || error(ErrorCode::NotFound, format!("service {service:?} has no instance at {address}"));
        self.backend.deregister(caller, known.instance_at(&address).ok_or_else(missing)?).await
    }

    async fn configure(&self, caller: &Caller, request: v1::ConfigureServiceRequest) -> Result<v1::Service, v1::Error> {
        let v1::ConfigureServiceRequest { service, namespace, balance, idempotent_methods, set_idempotent_methods } =
            checks::configure_service(request)?;
        let command = ConfigureService { namespace, service, balance, idempotent_methods, set_idempotent_methods };
        let command = RegistryCommand { level: FEATURE_LEVEL, command: Some(Command::ConfigureService(command)) };
        let outcome = self.backend.propose(caller, command, CHANGE_PATIENCE).await?;
        let Some(Outcome::Service(record)) = outcome.outcome else {
            return Err(error(ErrorCode::Internal, "the registry's answer does not fit its command"));
        };
        let registry = self.at(outcome.index).await;
        let known = registry.registry.service(&record.namespace, &record.name);
        Ok(describe::service(&registry, &record, known))
    }

    /// This node's view once it has the registry's entry `index`, or as it is if that does not come.
    async fn at(&self, index: u64) -> Arc<ClusterView> {
        let mut view = self.view.clone();
        let seen = |view: &Arc<ClusterView>| view.registry.applied().is_some_and(|applied| applied.index >= index);
        // Not held over the end of the wait: the borrow would block the view's writer.
        let _ = tokio::time::timeout(READ_PATIENCE, view.wait_for(seen)).await.map(|seen| seen.map(drop));
        self.view.borrow().clone()
    }

    /// The newest registry if its leader answers, else the one that is here, with this node's view of the members.
    async fn newest(&self) -> ClusterView {
        let read = self.backend.read(READ_PATIENCE).await;
        let view = ClusterView::clone(&self.view.borrow());
        match read {
            Ok(registry) => ClusterView { registry, ..view },
            Err(_) => view,
        }
    }
}

#[tonic::async_trait]
impl services_server::Services for Services {
    async fn register_instance(
        &self,
        request: Request<v1::RegisterInstanceRequest>,
    ) -> Answer<v1::RegisterInstanceResponse> {
        self.settled()?;
        self.register(&caller(&request), request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn renew_instance(&self, request: Request<v1::RenewInstanceRequest>) -> Answer<v1::RenewInstanceResponse> {
        self.settled()?;
        let caller = caller(&request);
        let id = InstanceId(request.into_inner().instance);
        let renewed = self.backend.renew(&caller, id).await.map_err(status)?;
        Ok(Response::new(v1::RenewInstanceResponse { ttl_ms: renewed }))
    }

    async fn deregister_instance(
        &self,
        request: Request<v1::DeregisterInstanceRequest>,
    ) -> Answer<v1::DeregisterInstanceResponse> {
        self.settled()?;
        self.deregister(&caller(&request), request.into_inner()).await.map_err(status)?;
        Ok(Response::new(v1::DeregisterInstanceResponse {}))
    }

    async fn configure_service(&self, request: Request<v1::ConfigureServiceRequest>) -> Answer<v1::Service> {
        self.settled()?;
        self.configure(&caller(&request), request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn list_services(&self, request: Request<v1::ListServicesRequest>) -> Answer<v1::ListServicesResponse> {
        self.settled()?;
        let namespace = request.into_inner().namespace;
        checks::name("namespace", names::namespace_or_default(&namespace)).map_err(status)?;
        let view = self.newest().await;
        let services = view.registry.services(&namespace);
        let services = services.map(|service| describe::service(&view, service.record(), Some(service))).collect();
        Ok(Response::new(v1::ListServicesResponse { services }))
    }

    async fn describe_service(&self, request: Request<v1::DescribeServiceRequest>) -> Answer<v1::ServiceDescription> {
        self.settled()?;
        let v1::DescribeServiceRequest { service, namespace } = request.into_inner();
        checks::service(&namespace, &service).map_err(status)?;
        let view = self.newest().await;
        let registry = &view.registry;
        let known = registry.service(&namespace, &service).or_else(|| registry.service_of_grpc(&namespace, &service));
        let known = known.ok_or_else(|| status(unknown_service(&namespace, &service)))?;
        Ok(Response::new(describe::description(&view, known)))
    }
}

fn unknown_service(namespace: &str, service: &str) -> v1::Error {
    let namespace = names::namespace_or_default(namespace);
    error(ErrorCode::UnknownService, format!("there is no service {namespace}/{service}"))
}

#[cfg(test)]
mod tests;
