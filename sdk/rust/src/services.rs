//! Services: what there is, how it is called, and instances that are kept registered while they run.
//!
//! Calls need no SDK: any gRPC client calls a service through any node, by its own name.

use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use weft_proto::v1::services_client::ServicesClient;
use weft_proto::v1::{
    Balance, ConfigureServiceRequest, DeregisterInstanceRequest, DescribeServiceRequest, ErrorCode, HealthCheck,
    ListServicesRequest, RegisterInstanceRequest, RegisterInstanceResponse, RenewInstanceRequest, Service,
    ServiceDescription,
};

use crate::client::Client;
use crate::error::Error;

/// The lease of an instance whose program names none.
const TTL_DEFAULT: Duration = Duration::from_secs(10);
/// A lease is renewed so many times while it lasts.
const RENEWALS_PER_TTL: u32 = 3;

/// The services of the client's namespace.
#[derive(Clone)]
pub struct Services {
    client: Client,
}

impl Services {
    pub(crate) fn new(client: Client) -> Services {
        Services { client }
    }

    /// An instance of a service, to be registered. `service`: a full gRPC service name ("shop.Cart"), or an alias with
    /// [`InstanceBuilder::grpc_services`]; `address`: host:port as the nodes reach it.
    pub fn instance(&self, service: &str, address: &str) -> InstanceBuilder {
        let request = RegisterInstanceRequest {
            service: service.to_owned(),
            namespace: self.client.namespace().to_owned(),
            address: address.to_owned(),
            ttl_ms: millis(TTL_DEFAULT),
            ..Default::default()
        };
        InstanceBuilder { client: self.client.clone(), request }
    }

    /// All services, by name.
    pub async fn list(&self) -> Result<Vec<Service>, Error> {
        let request = ListServicesRequest { namespace: self.client.namespace().to_owned() };
        let response = self
            .client
            .request("list services", request, |channel, request| async move {
                ServicesClient::new(channel).list_services(request).await
            })
            .await?;
        Ok(response.services)
    }

    /// One service with its instances, by its name or one of its gRPC names. `UnknownService` if there is none.
    pub async fn describe(&self, service: &str) -> Result<ServiceDescription, Error> {
        let (service, namespace) = (service.to_owned(), self.client.namespace().to_owned());
        self.client
            .request(
                "describe a service",
                DescribeServiceRequest { service, namespace },
                |channel, request| async move { ServicesClient::new(channel).describe_service(request).await },
            )
            .await
    }

    /// Deletes a service: its settings, and every instance that it has.
    ///
    /// # Errors
    /// `UnknownService`, and those of any request; then a part of it may be gone, and it can be deleted again.
    pub async fn delete(&self, service: &str) -> Result<(), Error> {
        let ServiceDescription { service: known, instances } = self.describe(service).await?;
        let name = known.map_or_else(|| service.to_owned(), |known| known.name);
        let gone = |error: &Error| matches!(error.code(), ErrorCode::NotFound | ErrorCode::UnknownService);
        // Without settings a service is there only while it has an instance.
        self.configure(&name, Some(Balance::LeastRequest), Some(Vec::new())).await?;
        for instance in instances {
            let request = DeregisterInstanceRequest { instance: instance.id, ..Default::default() };
            match deregister(&self.client, request).await {
                Err(error) if !gone(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets how calls are balanced (`None`: as it is) and which methods may run more than once for one call (`None`: as
    /// they are), as "shop.Cart/Get" or "shop.Cart/*".
    ///
    /// # Errors
    /// `UnknownService`, `InvalidArgument` (a method of no gRPC service that it has), and those of any request.
    pub async fn configure(
        &self,
        service: &str,
        balance: Option<Balance>,
        idempotent_methods: Option<Vec<String>>,
    ) -> Result<Service, Error> {
        let request = ConfigureServiceRequest {
            service: service.to_owned(),
            namespace: self.client.namespace().to_owned(),
            balance: balance.unwrap_or_default().into(),
            set_idempotent_methods: idempotent_methods.is_some(),
            idempotent_methods: idempotent_methods.unwrap_or_default(),
        };
        self.client
            .request("configure a service", request, |channel, request| async move {
                ServicesClient::new(channel).configure_service(request).await
            })
            .await
    }

    /// Takes the instance at an address out of a service: no new call is sent to it. `NotFound` if there is none.
    pub async fn deregister(&self, service: &str, address: &str) -> Result<(), Error> {
        let request = DeregisterInstanceRequest {
            service: service.to_owned(),
            namespace: self.client.namespace().to_owned(),
            address: address.to_owned(),
            ..Default::default()
        };
        deregister(&self.client, request).await
    }
}

/// An instance that is about to be registered.
#[derive(Clone)]
pub struct InstanceBuilder {
    client: Client,
    request: RegisterInstanceRequest,
}

impl InstanceBuilder {
    /// The full gRPC service names that it serves; then the service's own name is an alias.
    pub fn grpc_services<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.request.grpc_services.extend(names.into_iter().map(Into::into));
        self
    }

    /// Its share of the calls, 1 to 10,000. Default 100.
    pub fn weight(mut self, weight: u32) -> Self {
        self.request.weight = weight;
        self
    }

    /// Where it runs. Default: the zone of its home node.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.request.zone = zone.into();
        self
    }

    /// An entry of its metadata.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.metadata.insert(name.into(), value.into());
        self
    }

    /// How its home node finds out whether it lives. Default: a TCP connection, every 2 s.
    pub fn check(mut self, check: HealthCheck) -> Self {
        self.request.check = Some(check);
        self
    }

    /// It speaks TLS. `ca_pem`: who may have signed its certificate (empty: whom the nodes trust by configuration);
    /// `name`: the name in it (empty: the host of its address).
    pub fn tls(mut self, ca_pem: impl Into<String>, name: impl Into<String>) -> Self {
        self.request.tls = true;
        self.request.tls_ca_pem = ca_pem.into();
        self.request.tls_name = name.into();
        self
    }

    /// How long it stays registered after this program has died, 1 s to 1 h. Default 10 s. Zero: until it is
    /// deregistered; only its check says whether it lives.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.request.ttl_ms = millis(ttl);
        self
    }

    /// Registers it, or renews it with these settings, and leaves it so.
    ///
    /// # Errors
    /// `InvalidArgument` and `FailedPrecondition` with what would be right, and those of any request.
    pub async fn register_once(&self) -> Result<RegisterInstanceResponse, Error> {
        self.client
            .request("register an instance", self.request.clone(), |channel, request| async move {
                ServicesClient::new(channel).register_instance(request).await
            })
            .await
    }

    /// Registers it and keeps it registered, through any node, until the registration is closed or dropped.
    ///
    /// # Errors
    /// As of [`InstanceBuilder::register_once`].
    pub async fn register(self) -> Result<Registration, Error> {
        let first = self.register_once().await?;
        let (id, instance) = watch::channel(first.instance);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keep(self, first, id, stopped));
        Ok(Registration { instance, stop: Some(stop), task: Some(task) })
    }
}

/// An instance that is registered. Closed or dropped, it is deregistered; should the program die, its lease runs out.
pub struct Registration {
    instance: watch::Receiver<u64>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Result<(), Error>>>,
}

impl Registration {
    /// Its id. Another one after its lease had run out and it was registered again.
    pub fn instance(&self) -> u64 {
        *self.instance.borrow()
    }

    /// Deregisters it: from then on no new call is sent to it. Calls that run are the server's to finish.
    ///
    /// # Errors
    /// No node could be told; then its lease runs out.
    pub async fn close(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        match self.task.take() {
            Some(task) => task.await.unwrap_or(Err(Error::Closed)),
            None => Ok(()),
        }
    }
}

/// Renews the lease until `stopped`, then deregisters.
async fn keep(
    instance: InstanceBuilder,
    first: RegisterInstanceResponse,
    id: watch::Sender<u64>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<(), Error> {
    let every = Duration::from_millis(first.ttl_ms.into()) / RENEWALS_PER_TTL;
    loop {
        let pause =
            async { if every.is_zero() { std::future::pending().await } else { tokio::time::sleep(every).await } };
        tokio::select! {
            biased;
            // Nothing is ever sent: it resolves when the registration is closed or dropped.
            _ = &mut stopped => break,
            () = pause => {}
        }
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            () = renew(&instance, &id) => {}
        }
    }
    let request = DeregisterInstanceRequest { instance: *id.borrow(), ..Default::default() };
    deregister(&instance.client, request).await
}

/// Renews it, or registers it again if its lease has run out.
async fn renew(instance: &InstanceBuilder, id: &watch::Sender<u64>) {
    let request = RenewInstanceRequest { instance: *id.borrow() };
    let renewed = instance
        .client
        .request("renew an instance", request, |channel, request| async move {
            ServicesClient::new(channel).renew_instance(request).await
        })
        .await;
    match renewed {
        Ok(_) => {}
        Err(error) if error.code() == ErrorCode::NotFound => match instance.register_once().await {
            Ok(again) => drop(id.send_replace(again.instance)),
            Err(error) => tracing::warn!(service = instance.request.service, %error, "register an instance again"),
        },
        Err(error) => tracing::warn!(service = instance.request.service, %error, "renew an instance"),
    }
}

async fn deregister(client: &Client, request: DeregisterInstanceRequest) -> Result<(), Error> {
    client
        .request("deregister an instance", request, |channel, request| async move {
            ServicesClient::new(channel).deregister_instance(request).await
        })
        .await?;
    Ok(())
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
