//! TLS to instances that want it.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use super::{Endpoint, Speaks};
use crate::host::{Disk, Open};

/// The largest PEM file read.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Many servers of users have no newer one than 1.2.
const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// The certificates in `calls.tls_ca`; none if it is empty.
///
/// # Errors
/// One sentence that names the file.
pub(super) fn roots(disk: &dyn Disk, file: &Path) -> Result<RootCertStore, String> {
    if file.as_os_str().is_empty() {
        return Ok(RootCertStore::empty());
    }
    let named = |reason: String| format!("calls.tls_ca: {}: {reason}", file.display());
    let read = || {
        let open = disk.open(file, Open::Read)?;
        let bytes = open.len()?.min(PEM_BYTES_MAX);
        open.read_exact_at(bytes as usize, 0)
    };
    let pem = read().map_err(|error| named(error.to_string()))?;
    trusted(&pem).map_err(named)
}

fn trusted(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("not a certificate in PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("a certificate is not usable: {error}"))?;
    }
    if roots.is_empty() { Err("there is no certificate in it".into()) } else { Ok(roots) }
}

/// How an instance is spoken to over TLS, its certificate signed by its own CA or by one of `roots`.
///
/// # Errors
/// One sentence: what is wrong with its settings.
pub(super) fn config(
    endpoint: &Endpoint,
    roots: &Arc<RootCertStore>,
    speaks: Speaks,
) -> Result<Arc<ClientConfig>, String> {
    let roots = match endpoint.tls_ca_pem.is_empty() {
        true if roots.is_empty() => {
            return Err("nobody is trusted to sign its certificate: register it with tls_ca_pem, or set calls.tls_ca \
                        at its home node"
                .into());
        }
        true => roots.clone(),
        false => Arc::new(trusted(endpoint.tls_ca_pem.as_bytes()).map_err(|reason| format!("tls_ca_pem: {reason}"))?),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![match speaks {
        Speaks::Http2 => b"h2".to_vec(),
        Speaks::Http1 => b"http/1.1".to_vec(),
    }];
    Ok(Arc::new(config))
}
