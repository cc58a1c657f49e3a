//! `[[services]]`: instances that this node registers when it starts, as their home.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_cluster::registry::check_put;
use weft_proto::internal::v1::{InstanceRecord, PutInstance};
use weft_proto::v1::HealthCheck;

use crate::wire::checks;

/// An instance of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// A full gRPC service name, or an alias when `grpc_services` names some.
    pub name: String,
    /// Empty: "default".
    pub namespace: String,
    /// With an alias: the full gRPC service names that the instance serves.
    pub grpc_services: Vec<String>,
    /// host:port, as the nodes reach it.
    pub address: String,
    /// Calls go over TLS.
    pub tls: bool,
    /// With TLS: PEM file of the certificates that may sign its own; empty: as for all instances.
    pub tls_ca: PathBuf,
    /// With TLS: the name in its certificate; empty: the host of `address`.
    pub tls_name: String,
    /// Relative share of calls; 0: 100.
    pub weight: u32,
    /// Where it runs; empty: this node's zone.
    pub zone: String,
    /// Shown, not interpreted.
    pub metadata: BTreeMap<String, String>,
    /// tcp, grpc, grpc:NAME or http:/PATH; empty: tcp.
    pub check: String,
    /// Between two checks; 0: 2 s.
    #[serde(with = "humantime_serde")]
    pub check_interval: Duration,
}

impl ServiceConfig {
    /// The registration. The file of `tls_ca` is left to the caller: it goes into the instance's `tls_ca_pem`.
    ///
    /// # Errors
    /// One sentence: what is wrong, and what would be right.
    pub fn registration(&self) -> Result<PutInstance, String> {
        let needs_tls = !self.tls_ca.as_os_str().is_empty() || !self.tls_name.is_empty();
        if needs_tls && !self.tls {
            return Err("tls_ca or tls_name is set, but tls is not: set tls too, or leave them out".into());
        }
        let how = if self.check.is_empty() { "tcp" } else { &self.check };
        let interval_ms = u32::try_from(self.check_interval.as_millis()).unwrap_or(u32::MAX);
        let check = HealthCheck { kind: Some(checks::check_kind(how)?), interval_ms, ..Default::default() };
        let put = PutInstance {
            namespace: self.namespace.clone(),
            service: self.name.clone(),
            grpc_services: self.grpc_services.clone(),
            instance: Some(InstanceRecord {
                address: self.address.clone(),
                tls: self.tls,
                tls_name: self.tls_name.clone(),
                weight: self.weight,
                zone: self.zone.clone(),
                metadata: self.metadata.clone().into_iter().collect(),
                check: Some(check),
                ..Default::default()
            }),
        };
        check_put(put).map_err(|error| error.message)
    }
}
