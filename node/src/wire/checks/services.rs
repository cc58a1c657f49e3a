//! The checks of what is said about services and their instances.

use weft_cluster::registry::{check_put, limits, names};
use weft_proto::internal::v1::{InstanceRecord, PutInstance};
use weft_proto::v1::{
    Balance, ConfigureServiceRequest, DeregisterInstanceRequest, Error, RegisterInstanceRequest, health_check::Kind,
};

use super::invalid;

/// A service reference of a request: both names. An empty namespace stands for "default".
pub fn service(namespace: &str, service: &str) -> Result<(), Error> {
    names::check_service("service", service).map_err(invalid)?;
    super::name("namespace", names::namespace_or_default(namespace))
}

/// A registration as a registry command, with the defaults filled in; its home is left open.
pub fn register_instance(request: RegisterInstanceRequest) -> Result<PutInstance, Error> {
    let needs_tls = !request.tls_ca_pem.is_empty() || !request.tls_name.is_empty();
    if needs_tls && !request.tls {
        return Err(invalid("tls_ca_pem and tls_name are set, but tls is not: set tls too, or leave them out"));
    }
    if let Some(Kind::Tcp(false)) = request.check.as_ref().and_then(|check| check.kind.as_ref()) {
        return Err(invalid("check.tcp is false: use true, or another kind; every instance is checked"));
    }
    check_put(PutInstance {
        namespace: request.namespace,
        service: request.service,
        grpc_services: request.grpc_services,
        instance: Some(InstanceRecord {
            address: request.address,
            tls: request.tls,
            tls_ca_pem: request.tls_ca_pem,
            tls_name: request.tls_name,
            weight: request.weight,
            zone: request.zone,
            metadata: request.metadata,
            check: request.check,
            ttl_ms: request.ttl_ms,
            ..Default::default()
        }),
    })
}

/// How an instance is checked, as people write it: `tcp`, `grpc`, `grpc:NAME` or `http:/PATH`.
///
/// # Errors
/// One sentence that says what would be right.
pub fn check_kind(text: &str) -> Result<Kind, String> {
    match text.split_once(':') {
        None if text == "tcp" => Ok(Kind::Tcp(true)),
        None if text == "grpc" => Ok(Kind::GrpcService(String::new())),
        Some(("grpc", name)) => Ok(Kind::GrpcService(name.to_owned())),
        Some(("http", path)) if path.starts_with('/') => Ok(Kind::HttpPath(path.to_owned())),
        _ => Err(format!("the check {text:?} is not known: write tcp, grpc, grpc:NAME or http:/PATH")),
    }
}

/// What names an instance: its id, or its service and address.
pub fn deregister_instance(request: &DeregisterInstanceRequest) -> Result<(), Error> {
    let named = !request.service.is_empty() || !request.address.is_empty();
    match (request.instance != 0, named) {
        (true, true) => Err(invalid("both an instance and a service or an address are named: use one of the two ways")),
        (true, false) => Ok(()),
        (false, _) => {
            service(&request.namespace, &request.service)?;
            names::check_address(&request.address).map_err(invalid)
        }
    }
}

/// A change of a service's settings.
pub fn configure_service(request: ConfigureServiceRequest) -> Result<ConfigureServiceRequest, Error> {
    service(&request.namespace, &request.service)?;
    if Balance::try_from(request.balance).is_err() {
        return Err(invalid(format!("balance is {}: use 1 to 4, or 0 to leave it as it is", request.balance)));
    }
    if !request.set_idempotent_methods && !request.idempotent_methods.is_empty() {
        return Err(invalid("idempotent_methods is given, but set_idempotent_methods is not: set it too"));
    }
    let count = request.idempotent_methods.len();
    if count > limits::IDEMPOTENT_METHODS_MAX {
        let most = limits::IDEMPOTENT_METHODS_MAX;
        return Err(invalid(format!("idempotent_methods has {count} entries: use at most {most}")));
    }
    Ok(request)
}
