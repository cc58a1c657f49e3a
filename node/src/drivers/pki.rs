//! Certificates: who is a node of this cluster, and which.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

use crate::host::{Disk, Host};

/// A node's certificate chain and key, and the CA whose certificates it believes.
pub struct Credentials {
    /// The node's name in its certificate.
    pub name: String,
    /// Its certificate, then any between it and the CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// The cluster's CA. Every certificate it has issued is a node of this cluster.
    pub roots: Arc<RootCertStore>,
}

/// Why certificates could not be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file and what is wrong with it.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Something else, one sentence.
    #[error("{0}")]
    Invalid(String),
}

/// A certificate authority: makes the certificates of a cluster's nodes.
pub struct Authority(());

/// A certificate and its key as PEM.
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS#8). Keep it secret.
    pub key_pem: String,
}

impl Authority {
    /// Makes a new CA (Ed25519, key from `host`'s entropy, valid for 20 years from 2020 or now).
    pub fn create(_host: &dyn Host, _cluster_name: &str) -> Result<Authority, PkiError> {
        panic!("contract only")
    }
    /// The CA's own certificate and key.
    pub fn issued(&self) -> Issued {
        panic!("contract only")
    }
    /// Loads a CA's certificate and key.
    pub fn load(_disk: &dyn Disk, _cert: &Path, _key: &Path) -> Result<Authority, PkiError> {
        panic!("contract only")
    }
    /// Issues a certificate for the node `name`, good for the DNS names and addresses too.
    pub fn issue(&self, _host: &dyn Host, _name: &str, _dns: &[String], _ips: &[IpAddr]) -> Result<Issued, PkiError> {
        panic!("contract only")
    }
}

impl Issued {
    /// Writes both files, the key readable by its owner only. Neither may exist.
    pub fn store(&self, _disk: &dyn Disk, _cert: &Path, _key: &Path) -> Result<(), PkiError> {
        panic!("contract only")
    }
}

/// Loads a node's credentials from PEM files.
pub fn load(_disk: &dyn Disk, _ca: &Path, _cert: &Path, _key: &Path) -> Result<Credentials, PkiError> {
    panic!("contract only")
}

/// A node's credentials straight from memory (simulation, `weft dev`).
pub fn credentials(_ca_pem: &str, _issued: &Issued) -> Result<Credentials, PkiError> {
    panic!("contract only")
}
