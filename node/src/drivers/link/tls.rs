//! The QUIC and TLS settings of a link: TLS 1.3 only, certificates both ways, nothing resumed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ring::{hkdf, hmac};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{LinkConfig, Me};
use crate::drivers::pki::{self, Credentials};
use crate::host::Host;

/// The protocol's name in the handshake.
const ALPN: &[u8] = b"weft-link/1";
/// Own streams a peer may have open at a time; more wait at the peer.
const STREAMS_MAX: u32 = 4_096;
/// SWIM packets that are too large for a datagram, on their way at a time.
const GOSSIP_STREAMS_MAX: u32 = 64;
/// Datagrams (pings, SWIM) that wait to be sent or read; older ones are dropped.
const DATAGRAM_BUFFER_BYTES: usize = 256 * 1024;

/// What `Host::quic` and dialling need.
pub(super) struct Settings {
    pub(super) endpoint: EndpointConfig,
    pub(super) server: quinn::ServerConfig,
    pub(super) client: quinn::ClientConfig,
}

/// Builds all settings of the endpoint.
///
/// # Errors
/// One sentence: a setting out of range, or a certificate that does not fit.
pub(super) fn settings(
    host: &Arc<dyn Host>,
    config: &LinkConfig,
    me: &Me,
    credentials: Credentials,
) -> io::Result<Settings> {
    let time = Arc::new(Wall(host.clone()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Credentials { name, chain, key, roots } = credentials;
    if name != me.name {
        return Err(bad(format!("the certificate names the node `{name}`, but this node's name is `{}`", me.name)));
    }
    pki::verify(&chain, &roots, &provider, time.current_time())
        .map_err(|error| bad(format!("the certificate of `{name}` is not good under the CA's: {error}")))?;
    let transport = Arc::new(transport(config)?);

    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().map_err(bad)?;
    let mut server = rustls::ServerConfig::builder_with_details(provider.clone(), time.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(bad)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;

    let mut client = rustls::ClientConfig::builder_with_details(provider.clone(), time.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyNode { roots, provider }))
        .with_client_auth_cert(chain, key)
        .map_err(bad)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the certificate.
    client.resumption = Resumption::disabled();

    let server_crypto = QuicServerConfig::try_from(server).map_err(bad)?;
    let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"weft link tokens").extract(&random::<32>(host));
    let mut server = quinn::ServerConfig::new(Arc::new(server_crypto), Arc::new(token_key));
    server.transport_config(transport.clone());
    server.time_source(time);
    server.max_incoming(config.handshakes_max);
    // Nodes do not wander between addresses; a packet that claims so is not followed.
    server.migration(false);

    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).map_err(bad)?));
    client.transport_config(transport);
    let dice = host.clone();
    client.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&random::<20>(&dice))));

    Ok(Settings { endpoint: endpoint(host, config, me)?, server, client })
}

/// The reset key comes from the folder's secret: after a restart this node can tell its peers at once that
/// their old connections are gone (20 ms instead of the idle timeout).
fn endpoint(host: &Arc<dyn Host>, config: &LinkConfig, me: &Me) -> io::Result<EndpointConfig> {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &me.secret);
    let reset = hmac::sign(&secret, b"weft link reset key");
    let mut endpoint = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset.as_ref())));
    let ids = random::<32>(host);
    endpoint.cid_generator(move || Box::new(Ids(StdRng::from_seed(ids))));
    endpoint.max_udp_payload_size(config.mtu).map_err(bad)?;
    endpoint.rng_seed(Some(random(host)));
    Ok(endpoint)
}

/// Connection ids from the host's dice.
struct Ids(StdRng);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; 8];
        self.0.fill_bytes(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn transport(config: &LinkConfig) -> io::Result<TransportConfig> {
    let window = |bytes: bytesize::ByteSize| VarInt::try_from(bytes.as_u64()).map_err(bad);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(config.idle_timeout).map_err(bad)?))
        .initial_rtt(config.initial_rtt)
        // Pinned: discovery sees black holes where there are none, and fails silently above GSO's limit.
        .initial_mtu(config.mtu)
        .min_mtu(config.mtu)
        .mtu_discovery_config(None)
        .enable_segmentation_offload(true)
        .stream_receive_window(window(config.stream_window)?)
        .receive_window(window(config.connection_window)?)
        .send_window(config.connection_window.as_u64())
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(GOSSIP_STREAMS_MAX.into())
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .allow_spin(false);
    Ok(transport)
}

/// Believes every certificate of the cluster's CA. Who the peer is, its Hello says, and that must be the name
/// in its certificate: addresses of nodes change, names do not.
#[derive(Debug)]
struct AnyNode {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The host's wall clock, for the validity of certificates.
struct Wall(Arc<dyn Host>);

impl std::fmt::Debug for Wall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wall")
    }
}

impl Wall {
    fn since_epoch(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.wall().0).unwrap_or(0))
    }
}

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.since_epoch()))
    }
}

impl quinn::TimeSource for Wall {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.since_epoch()
    }
}

fn random<const N: usize>(host: &Arc<dyn Host>) -> [u8; N] {
    let mut bytes = [0; N];
    host.entropy(&mut bytes);
    bytes
}

fn bad(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
}
