//! Connections to instances: name, TCP, and TLS for those that want it. Calls and health checks open theirs here, so that
//! a check finds what a call would.

#[cfg(test)]
pub(crate) mod testing;
mod tls;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use weft_cluster::registry::names;
use weft_proto::internal::v1::InstanceRecord;

use crate::host::{Host, Io};

/// Where an instance is, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// host:port.
    pub address: String,
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// Who may have signed its certificate; empty: those of `calls.tls_ca`.
    pub tls_ca_pem: String,
    /// The name in its certificate; empty: the host of `address`.
    pub tls_name: String,
}

/// What is to be spoken over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http1,
}

/// Opens connections. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    host: Arc<dyn Host>,
    roots: Arc<RootCertStore>,
}

impl Endpoint {
    /// That of an instance.
    pub fn of(instance: &InstanceRecord) -> Endpoint {
        Endpoint {
            address: instance.address.clone(),
            tls: instance.tls,
            tls_ca_pem: instance.tls_ca_pem.clone(),
            tls_name: instance.tls_name.clone(),
        }
    }

    /// Whether it is that of an instance.
    pub fn is_of(&self, instance: &InstanceRecord) -> bool {
        self.address == instance.address
            && self.tls == instance.tls
            && self.tls_ca_pem == instance.tls_ca_pem
            && self.tls_name == instance.tls_name
    }

    fn server_name(&self) -> Result<ServerName<'static>, String> {
        let host = names::host_and_port(&self.address).map_or(&*self.address, |(host, _)| host);
        let name = if self.tls_name.is_empty() { host } else { &self.tls_name };
        ServerName::try_from(name.to_owned()).map_err(|_| format!("`{name}` is no name that a certificate can have"))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance {}{}", self.address, if self.tls { " (TLS)" } else { "" })
    }
}

impl Dialer {
    /// A dialer that believes the certificates in `tls_ca`, a PEM file; none if it is empty.
    ///
    /// # Errors
    /// `calls.tls_ca` is not readable: one sentence that names it.
    pub fn new(host: Arc<dyn Host>, tls_ca: &Path) -> Result<Dialer, String> {
        let roots = Arc::new(tls::roots(&*host.disk(), tls_ca)?);
        Ok(Dialer { host, roots })
    }

    /// Opens a connection over which `speaks` is spoken.
    ///
    /// # Errors
    /// One sentence: what did not work.
    pub async fn open(&self, endpoint: &Endpoint, speaks: Speaks) -> Result<Box<dyn Io>, String> {
        let io = self.connect(&endpoint.address).await?;
        match endpoint.tls {
            true => self.secure(io, endpoint, speaks).await,
            false => Ok(io),
        }
    }

    async fn connect(&self, address: &str) -> Result<Box<dyn Io>, String> {
        let found = self.host.resolve(address).await.map_err(|error| format!("look up {address}: {error}"))?;
        let mut reason = format!("{address} has no address");
        for at in found {
            match self.host.connect(at).await {
                Ok(connection) => return Ok(connection.io),
                Err(error) => reason = format!("connect to {at}: {error}"),
            }
        }
        Err(reason)
    }

    /// TLS over a connection.
    pub(super) async fn secure(
        &self,
        io: Box<dyn Io>,
        endpoint: &Endpoint,
        speaks: Speaks,
    ) -> Result<Box<dyn Io>, String> {
        let config = tls::config(endpoint, &self.roots, speaks)?;
        let connecting = TlsConnector::from(config).connect(endpoint.server_name()?, io);
        Ok(Box::new(connecting.await.map_err(|error| format!("TLS: {error}"))?))
    }
}
