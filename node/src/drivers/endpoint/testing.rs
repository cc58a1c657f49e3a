//! An instance's side of TLS.

use std::sync::Arc;

use tokio_rustls::TlsAcceptor;

use crate::drivers::pki::{Authority, credentials};
use crate::host::Host;

/// Takes TLS as an instance of `names` whose certificate `ca` has signed; speaks what it is asked for.
pub(crate) fn acceptor(ca: &Authority, host: &dyn Host, name: &str) -> TlsAcceptor {
    acceptor_of(&rustls::version::TLS13, ca, host, name)
}

/// The same with one version of TLS.
pub(crate) fn acceptor_of(
    version: &'static rustls::SupportedProtocolVersion,
    ca: &Authority,
    host: &dyn Host,
    name: &str,
) -> TlsAcceptor {
    let issued = ca.issue(host, "instance", &[name.to_owned()], &[]).expect("a certificate");
    let its = credentials(&ca.issued().cert_pem, &issued).expect("credentials");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(its.chain, its.key)
        .expect("a good certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
