//! This node's certificate while it runs: read again when its files change, and its end told in time.

use std::path::PathBuf;
use std::time::Duration;

use weft_cluster::ids::Millis;

use super::peers::lock;
use super::{Links, tls};
use crate::drivers::pki::{self, Credentials};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// From so long before its end on, each day a warning says so.
const WARN_BEFORE: Duration = Duration::from_secs(30 * DAY_S);
const DAY_S: u64 = 86_400;

/// Where the certificate is from.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The cluster's CA.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What of the credentials is compared.
pub(super) struct Held {
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    roots: std::sync::Arc<rustls::RootCertStore>,
    /// Until when it is good.
    pub(super) until: Millis,
}

impl Held {
    pub(super) fn new(credentials: &Credentials) -> Held {
        let until = pki::until(&credentials.chain).unwrap_or(Millis(0));
        Held { chain: credentials.chain.clone(), roots: credentials.roots.clone(), until }
    }

    fn is(&self, credentials: &Credentials) -> bool {
        self.chain == credentials.chain && self.roots.roots == credentials.roots.roots
    }
}

impl Links {
    /// Looks at the certificate's files again and again, and takes what is new and good for the links that come. Never
    /// ends.
    pub async fn watch_certificate(self, files: CertificateFiles) {
        let (mut warned, mut failed) = (None::<Millis>, String::new());
        loop {
            let now = self.inner.host.wall();
            let until = self.tell_certificate(now);
            let left = Duration::from_millis(u64::try_from(until.0.saturating_sub(now.0)).unwrap_or(0));
            let due = warned.is_none_or(|at| now.0.saturating_sub(at.0) >= (DAY_S * 1000) as i64);
            if left < WARN_BEFORE && due {
                warned = Some(now);
                let (cert, days) = (files.cert.display(), left.as_secs() / DAY_S);
                if left.is_zero() {
                    tracing::error!(%cert, "this node's certificate has expired: no new link comes up; `weft ca issue` makes another, which is read while the node runs");
                } else {
                    tracing::warn!(%cert, days, "this node's certificate expires soon; `weft ca issue` makes another, which is read while the node runs");
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let (disk, from) = (self.inner.host.disk(), files.clone());
            let host = self.inner.host.clone();
            let loaded = host.run_blocking(move || pki::load(&*disk, &from.ca, &from.cert, &from.key)).await;
            let renewed = loaded.map_err(|error| error.to_string()).and_then(|new| self.renew(new));
            match renewed {
                Ok(true) => {
                    (warned, failed) = (None, String::new());
                    tracing::info!(cert = %files.cert.display(), "a new certificate is used for the links that come");
                }
                Ok(false) => failed.clear(),
                // Files that are written one after another do not fit each other for a moment.
                Err(reason) if reason != failed => {
                    tracing::warn!(reason, "the certificate's files are not taken: the one in use stays");
                    failed = reason;
                }
                Err(_) => {}
            }
        }
    }

    /// Takes other credentials for the links that come; those that are up stay. False if they are those in use.
    ///
    /// # Errors
    /// They are not this node's, or not good.
    pub(super) fn renew(&self, credentials: Credentials) -> Result<bool, String> {
        let inner = &self.inner;
        if lock(&inner.certificate).is(&credentials) {
            return Ok(false);
        }
        let held = Held::new(&credentials);
        let settings =
            tls::settings(&inner.host, &inner.config, &inner.me, credentials).map_err(|error| error.to_string())?;
        inner.endpoint.set_server_config(Some(settings.server));
        *lock(&inner.client) = settings.client;
        *lock(&inner.certificate) = held;
        Ok(true)
    }

    /// Sets the metric; until when the certificate is good.
    fn tell_certificate(&self, now: Millis) -> Millis {
        let until = lock(&self.inner.certificate).until;
        let days = until.0.saturating_sub(now.0) as f64 / (DAY_S * 1000) as f64;
        self.inner.metrics.certificate_days.set(days);
        until
    }

    /// Why no link can come up, if this node's certificate has expired.
    pub fn certificate_expired(&self) -> Option<String> {
        let until = lock(&self.inner.certificate).until;
        (self.inner.host.wall() > until).then(|| {
            "this node's certificate has expired, and no new link comes up: make another with `weft ca issue`"
                .to_owned()
        })
    }
}
