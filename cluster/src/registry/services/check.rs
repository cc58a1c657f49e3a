//! What a registration and a service's settings may hold. The same rules at every door and in `apply`.

use weft_proto::internal::v1::{InstanceRecord, PutInstance, ServiceRecord};
use weft_proto::v1::health_check::Kind;
use weft_proto::v1::{Error, HealthCheck};

use crate::registry::apply::invalid;
use crate::registry::limits::{
    CHECK_MS_DEFAULT, CHECK_MS_MAX, CHECK_MS_MIN, CHECK_TIMEOUT_MS_DEFAULT, CHECKS_IN_A_ROW_MAX, GRPC_SERVICES_MAX,
    HEALTHY_AFTER_DEFAULT, IDEMPOTENT_METHODS_MAX, INSTANCE_CA_BYTES_MAX, INSTANCE_METADATA_BYTES_MAX,
    INSTANCE_METADATA_MAX, LEASE_MS_MAX, LEASE_MS_MIN, NODE_TEXT_BYTES_MAX, UNHEALTHY_AFTER_DEFAULT, WEIGHT_DEFAULT,
    WEIGHT_MAX,
};
use crate::registry::names;

/// Checks a registration and fills in the defaults: the namespace, the gRPC service names (without any, the service's
/// own name), the weight and the health check. The same at every door and in `apply`.
///
/// # Errors
/// INVALID_ARGUMENT: one sentence that says what is wrong and what would be right.
pub fn check_put(mut put: PutInstance) -> Result<PutInstance, Error> {
    put.namespace = names::namespace_or_default(&put.namespace).to_owned();
    names::check("namespace", &put.namespace).map_err(invalid)?;
    names::check_service("service", &put.service).map_err(invalid)?;
    if put.grpc_services.is_empty() {
        put.grpc_services.push(put.service.clone());
    }
    if put.grpc_services.len() > GRPC_SERVICES_MAX {
        return Err(invalid(format!("grpc_services has at most {GRPC_SERVICES_MAX} names")));
    }
    for name in &put.grpc_services {
        names::check_service("gRPC service", name).map_err(invalid)?;
    }
    let instance = put.instance.as_ref().ok_or_else(|| invalid("the registration holds no instance"))?;
    put.instance = Some(instance_of(instance)?);
    Ok(put)
}

fn instance_of(instance: &InstanceRecord) -> Result<InstanceRecord, Error> {
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
    let check = health_check(instance.check.clone().unwrap_or_default())?;
    Ok(InstanceRecord {
        weight: if instance.weight == 0 { WEIGHT_DEFAULT } else { instance.weight },
        check: Some(check),
        reason: cut(&instance.reason),
        ..instance.clone()
    })
}

fn health_check(mut check: HealthCheck) -> Result<HealthCheck, Error> {
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
pub(super) fn methods(service: &ServiceRecord, methods: &[String]) -> Result<(), Error> {
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
pub(super) fn cut(reason: &str) -> String {
    reason.chars().take(NODE_TEXT_BYTES_MAX / 4).collect()
}
