//! Certificates: who is a node of this cluster, and which. Ed25519 throughout.
//!
//! Every certificate that the cluster's CA has issued is a node of it, so the CA must serve nothing else.
//! The node's name is the certificate's common name, or its first DNS name if it has none.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use weft_cluster::ids::Millis;

use crate::host::{Disk, Host, Open};

/// How long a CA's certificate is valid.
const CA_VALID: Duration = Duration::from_secs(20 * 365 * 86_400);
/// How long a node's certificate is valid.
const NODE_VALID: Duration = Duration::from_secs(10 * 365 * 86_400);
/// The longest node name, as in DNS.
pub const NAME_BYTES_MAX: usize = 63;
/// The largest PEM file read.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// PKCS#8 v1 of an Ed25519 key, up to the 32 bytes of the key itself (RFC 8410, section 7).
const ED25519_PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

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
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key as PEM.
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS#8). Keep it secret.
    pub key_pem: String,
}

impl Authority {
    /// Makes a new CA, valid for 20 years. The key comes from `host`'s entropy.
    ///
    /// # Errors
    /// An illegal cluster name.
    pub fn create(host: &dyn Host, cluster_name: &str) -> Result<Authority, PkiError> {
        check_name(cluster_name)?;
        let key = new_key(host)?;
        let mut params = params(host, &format!("weft CA {cluster_name}"), CA_VALID);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(refused)?;
        Ok(Authority { cert_pem: cert.pem(), issuer: Issuer::new(params, key) })
    }

    /// The CA's own certificate and key.
    pub fn issued(&self) -> Issued {
        Issued { cert_pem: self.cert_pem.clone(), key_pem: self.issuer.key().serialize_pem() }
    }

    /// Loads a CA's certificate and key.
    ///
    /// # Errors
    /// A file is missing, is no PEM, or the key is not the certificate's.
    pub fn load(disk: &dyn Disk, cert: &Path, key: &Path) -> Result<Authority, PkiError> {
        let cert_pem = read_pem(disk, cert)?;
        let key_pair = KeyPair::from_pem(&read_pem(disk, key)?)
            .map_err(|error| wrong(key, format!("holds no usable private key in PEM: {error}")))?;
        let parsed = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|error| wrong(cert, format!("holds no certificate in PEM: {error}")))?;
        if !is_authority(&parsed) {
            return Err(wrong(cert, "is not a CA's certificate; `weft ca init` makes one".into()));
        }
        if !same_key(&parsed, &key_pair) {
            return Err(wrong(key, format!("is not the key of {}", cert.display())));
        }
        let issuer = Issuer::from_ca_cert_der(&parsed, key_pair)
            .map_err(|error| wrong(cert, format!("is not usable as a CA: {error}")))?;
        Ok(Authority { cert_pem, issuer })
    }

    /// Issues a certificate as [`Authority::issue_for`] does, valid for 10 years.
    ///
    /// # Errors
    /// As of [`Authority::issue_for`].
    pub fn issue(&self, host: &dyn Host, name: &str, dns: &[String], ips: &[IpAddr]) -> Result<Issued, PkiError> {
        self.issue_for(host, name, dns, ips, NODE_VALID)
    }

    /// Issues a certificate for the node `name`, `valid` for so long from now and good for the DNS names and addresses
    /// too. Links do not look at those; tools of others that connect to the port do.
    ///
    /// # Errors
    /// An illegal name: 1 to 63 characters of a-z A-Z 0-9 . _ - and the first a letter or digit.
    pub fn issue_for(
        &self,
        host: &dyn Host,
        name: &str,
        dns: &[String],
        ips: &[IpAddr],
        valid: Duration,
    ) -> Result<Issued, PkiError> {
        check_name(name)?;
        let key = new_key(host)?;
        let mut params = params(host, name, valid);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for dns_name in std::iter::once(name).chain(dns.iter().map(String::as_str)) {
            let san = dns_name
                .try_into()
                .map_err(|_| PkiError::Invalid(format!("`{dns_name}` is not a DNS name: only ASCII is allowed")))?;
            params.subject_alt_names.push(SanType::DnsName(san));
        }
        params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).map_err(refused)?;
        Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

impl Issued {
    /// Writes both files, the key first. Neither may exist. Who can read them is up to `disk`.
    ///
    /// # Errors
    /// A file exists or cannot be written.
    pub fn store(&self, disk: &dyn Disk, cert: &Path, key: &Path) -> Result<(), PkiError> {
        for file in [key, cert] {
            if disk.exists(file) {
                return Err(wrong(file, "exists already; remove it or name another file".into()));
            }
        }
        write_new(disk, key, &self.key_pem)?;
        write_new(disk, cert, &self.cert_pem)
    }
}

/// Loads a node's credentials from PEM files.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn load(disk: &dyn Disk, ca: &Path, cert: &Path, key: &Path) -> Result<Credentials, PkiError> {
    let (ca_pem, cert_pem, key_pem) = (read_pem(disk, ca)?, read_pem(disk, cert)?, read_pem(disk, key)?);
    build(&ca_pem, &cert_pem, &key_pem).map_err(|(part, reason)| match part {
        Part::Ca => wrong(ca, reason),
        Part::Cert => wrong(cert, reason),
        Part::Key => wrong(key, reason),
    })
}

/// Checks a node's certificate under its CA at the time `now`; returns until when it is good.
///
/// # Errors
/// Names the file (`cert`): it is expired, not valid yet, or of another CA.
pub fn check(credentials: &Credentials, cert: &Path, now: Millis) -> Result<Millis, PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(&credentials.chain[0])
        .map_err(|error| wrong(cert, format!("is not readable: {error}")))?;
    let validity = parsed.validity();
    let time = UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(now.0).unwrap_or(0)));
    let provider = rustls::crypto::ring::default_provider();
    verify(&credentials.chain, &credentials.roots, &provider, Some(time)).map_err(|error| {
        let reason = match error {
            rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                format!("has expired, at {}: make a new one with `weft ca issue`", validity.not_after)
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => format!("is good from {} on only: is this machine's clock right?", validity.not_before),
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                "is not of the CA that tls.ca names".to_owned()
            }
            error => format!("is not good under the CA that tls.ca names: {error}"),
        };
        wrong(cert, reason)
    })?;
    Ok(Millis(validity.not_after.timestamp().saturating_mul(1_000)))
}

/// Until when the first certificate of a chain is good.
pub(super) fn until(chain: &[CertificateDer<'_>]) -> Option<Millis> {
    let (_, parsed) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    Some(Millis(parsed.validity().not_after.timestamp().saturating_mul(1_000)))
}

/// Checks that a chain leads to one of the roots, and is valid at `now`.
pub(super) fn verify(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    now: Option<UnixTime>,
) -> Result<(), rustls::Error> {
    let (leaf, between) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let now = now.ok_or(rustls::Error::FailedToGetCurrentTime)?;
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(leaf)?, roots, between, now, algorithms)
}

/// A node's credentials straight from memory (simulation, `weft dev`).
///
/// # Errors
/// One of the three is no PEM or does not fit the others.
pub fn credentials(ca_pem: &str, issued: &Issued) -> Result<Credentials, PkiError> {
    build(ca_pem, &issued.cert_pem, &issued.key_pem).map_err(|(_, reason)| PkiError::Invalid(reason))
}

/// The node name in a certificate: its common name, or its first DNS name.
pub fn name_of(cert: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
    let common = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    if let Some(name) = common {
        return Some(name.to_owned());
    }
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    })
}

/// Which of three PEM texts is at fault.
enum Part {
    Ca,
    Cert,
    Key,
}

fn build(ca_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Credentials, (Part, String)> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let cert = cert.map_err(|error| (Part::Ca, format!("holds a broken PEM block: {error}")))?;
        if !is_authority(&cert) {
            return Err((Part::Ca, "is not a CA's certificate; give the one that `weft ca init` made".into()));
        }
        roots.add(cert).map_err(|error| (Part::Ca, format!("holds an unusable certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err((Part::Ca, "holds no certificate in PEM".into()));
    }
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| (Part::Cert, format!("holds a broken PEM block: {error}")))?;
    let leaf = chain.first().ok_or((Part::Cert, "holds no certificate in PEM".into()))?;
    let name = name_of(leaf)
        .ok_or((Part::Cert, "names no node: it needs a common name or a DNS name (`weft ca issue NAME`)".into()))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|error| (Part::Key, format!("holds no private key in PEM: {error}")))?;
    CertifiedKey::from_der(chain.clone(), key.clone_key(), &rustls::crypto::ring::default_provider())
        .map_err(|error| (Part::Key, format!("is not the key of the certificate of `{name}`: {error}")))?;
    Ok(Credentials { name, chain, key, roots: Arc::new(roots) })
}

fn params(host: &dyn Host, common_name: &str, valid: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // Clocks are not trusted: a node whose clock is behind must still be able to join.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    let now = Duration::from_millis(u64::try_from(host.wall().0).unwrap_or(0)).min(Duration::from_secs(1 << 36));
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now.max(Duration::from_secs(1_577_836_800)) + valid;
    let mut serial = [0; 16];
    host.entropy(&mut serial);
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn new_key(host: &dyn Host) -> Result<KeyPair, PkiError> {
    let mut pkcs8 = [0; 48];
    pkcs8[..16].copy_from_slice(&ED25519_PKCS8_PREFIX);
    host.entropy(&mut pkcs8[16..]);
    KeyPair::try_from(&pkcs8[..]).map_err(refused)
}

fn check_name(name: &str) -> Result<(), PkiError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if name.len() <= NAME_BYTES_MAX && starts_well && name.chars().all(legal) {
        return Ok(());
    }
    Err(PkiError::Invalid(format!(
        "`{name}` is not a legal name: 1 to {NAME_BYTES_MAX} characters of a-z A-Z 0-9 . _ - and the first a letter or digit"
    )))
}

fn is_authority(cert: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(cert).is_ok_and(|(_, cert)| cert.is_ca())
}

fn same_key(cert: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData;
    x509_parser::parse_x509_certificate(cert)
        .is_ok_and(|(_, cert)| cert.public_key().subject_public_key.data.as_ref() == key.der_bytes())
}

fn read_pem(disk: &dyn Disk, path: &Path) -> Result<String, PkiError> {
    let file = disk.open(path, Open::Read).map_err(|error| {
        wrong(path, format!("cannot be opened: {error}; `weft ca init` and `weft ca issue` make certificates"))
    })?;
    let bytes = file.len().map_err(|error| wrong(path, format!("cannot be read: {error}")))?;
    if bytes > PEM_BYTES_MAX {
        return Err(wrong(path, format!("has {bytes} bytes; a PEM file has at most {PEM_BYTES_MAX}")));
    }
    let bytes =
        file.read_exact_at(bytes as usize, 0).map_err(|error| wrong(path, format!("cannot be read: {error}")))?;
    String::from_utf8(bytes.into()).map_err(|_| wrong(path, "is not text; PEM is expected".into()))
}

fn write_new(disk: &dyn Disk, path: &Path, text: &str) -> Result<(), PkiError> {
    let write = || {
        let file = disk.open(path, Open::Create)?;
        file.write_at(text.as_bytes(), 0)?;
        file.sync_data()
    };
    write().map_err(|error| wrong(path, format!("cannot be written: {error}")))
}

fn wrong(file: &Path, reason: String) -> PkiError {
    PkiError::File { file: file.into(), reason }
}

fn refused(error: rcgen::Error) -> PkiError {
    PkiError::Invalid(format!("no certificate could be made: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::disk::OsDisk;
    use crate::host::production::Production;

    fn host() -> Production {
        Production::new(Arc::new(OsDisk))
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let ca = Authority::create(&host(), "c1").unwrap();
        ca.issued().store(&OsDisk, &at("ca.pem"), &at("ca.key")).unwrap();
        let again = ca.issued().store(&OsDisk, &at("ca.pem"), &at("ca.key")).unwrap_err();
        assert!(again.to_string().contains("exists already"), "{again}");

        let ca = Authority::load(&OsDisk, &at("ca.pem"), &at("ca.key")).unwrap();
        let issued = ca.issue(&host(), "n1", &["localhost".into()], &["127.0.0.1".parse().unwrap()]).unwrap();
        issued.store(&OsDisk, &at("n1.pem"), &at("n1.key")).unwrap();
        let loaded = load(&OsDisk, &at("ca.pem"), &at("n1.pem"), &at("n1.key")).unwrap();
        assert_eq!((loaded.name.as_str(), loaded.chain.len()), ("n1", 1));
    }

    #[test]
    fn errors_name_the_file_and_the_fault() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let ca = Authority::create(&host(), "c1").unwrap();
        ca.issued().store(&OsDisk, &at("ca.pem"), &at("ca.key")).unwrap();
        for name in ["n1", "n2"] {
            let issued = ca.issue(&host(), name, &[], &[]).unwrap();
            issued.store(&OsDisk, &at(&format!("{name}.pem")), &at(&format!("{name}.key"))).unwrap();
        }
        write_new(&OsDisk, &at("junk"), "junk").unwrap();
        let cases = [
            ("none", "n1.pem", "n1.key", "none: cannot be opened"),
            ("junk", "n1.pem", "n1.key", "junk: holds no certificate"),
            ("n2.pem", "n1.pem", "n1.key", "n2.pem: is not a CA's certificate"),
            ("ca.pem", "junk", "n1.key", "junk: holds no certificate"),
            ("ca.pem", "n1.pem", "n2.key", "n2.key: is not the key of the certificate of `n1`"),
            ("ca.pem", "n1.pem", "n1.pem", "n1.pem: holds no private key"),
        ];
        for (ca, cert, key, expected) in cases {
            let error = load(&OsDisk, &at(ca), &at(cert), &at(key)).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = Authority::load(&OsDisk, &at("ca.pem"), &at("n1.key")).err().unwrap().to_string();
        assert!(error.contains("n1.key: is not the key of"), "{error}");
    }

    #[test]
    fn a_certificate_is_checked_under_its_ca_and_at_a_time() {
        let (ours, theirs) = (Authority::create(&host(), "c1").unwrap(), Authority::create(&host(), "c2").unwrap());
        let issued = ours.issue(&host(), "n1", &[], &[]).unwrap();
        let cert = Path::new("n1.pem");
        let now = host().wall();
        let good = credentials(&ours.issued().cert_pem, &issued).unwrap();
        let until = check(&good, cert, now).unwrap();
        assert!(until.0 > now.0 + 9 * 365 * 86_400_000, "{until:?}");
        let late = check(&good, cert, Millis(until.0 + 1_000)).unwrap_err().to_string();
        assert!(late.contains("n1.pem: has expired"), "{late}");
        let early = check(&good, cert, Millis(0)).unwrap_err().to_string();
        assert!(early.contains("n1.pem: is good from"), "{early}");
        let foreign = credentials(&theirs.issued().cert_pem, &issued).unwrap();
        let refused = check(&foreign, cert, now).unwrap_err().to_string();
        assert!(refused.contains("n1.pem: is not of the CA"), "{refused}");
    }

    #[test]
    fn illegal_names_are_refused() {
        let ca = Authority::create(&host(), "c1").unwrap();
        for name in ["", "-a", "a b", "ä", &"x".repeat(64)] {
            assert!(matches!(ca.issue(&host(), name, &[], &[]), Err(PkiError::Invalid(_))), "{name}");
        }
        assert!(ca.issue(&host(), "n1", &["ä".into()], &[]).is_err());
    }
}
