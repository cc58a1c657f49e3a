//! Instances that the node's configuration names: registered when it starts, with this node as their home.

use std::path::PathBuf;
use std::time::Duration;

use weft_proto::internal::v1::PutInstance;
use weft_proto::v1::Retry;

use super::Instances;
use crate::host::{Disk, Open};

/// Between two tries.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The largest file of certificates.
const CA_BYTES_MAX: u64 = 64 << 10;

/// Registers an instance as soon as the registry takes it. `tls_ca`: a PEM file for it, or empty.
pub(super) async fn register(instances: Instances, mut put: PutInstance, tls_ca: PathBuf) {
    let inner = &instances.inner;
    inner.registry.ready().await;
    let service = put.service.clone();
    if !tls_ca.as_os_str().is_empty() {
        match pem(&*inner.host.disk(), &tls_ca) {
            Ok(pem) => put.instance.get_or_insert_default().tls_ca_pem = pem,
            Err(error) => {
                let file = tls_ca.display();
                return tracing::error!(service, %file, %error, "an instance of the configuration is not registered");
            }
        }
    }
    loop {
        match instances.register(&inner.registry.own(), put.clone()).await {
            Ok(instance) => {
                let (id, address) = (instance.id, instance.address);
                return tracing::info!(service, id, address, "registered an instance of the configuration");
            }
            Err(refusal) if refusal.retry() == Retry::Never => {
                let error = refusal.message;
                return tracing::error!(service, error, "an instance of the configuration is not registered");
            }
            Err(refusal) => tracing::debug!(service, error = refusal.message, "registers an instance again"),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

fn pem(disk: &dyn Disk, path: &std::path::Path) -> std::io::Result<String> {
    let file = disk.open(path, Open::Read)?;
    let bytes = file.len()?;
    if bytes > CA_BYTES_MAX {
        return Err(std::io::Error::other(format!("it has {bytes} bytes, but may have {CA_BYTES_MAX}")));
    }
    let pem = file.read_exact_at(usize::try_from(bytes).unwrap_or(0), 0)?;
    String::from_utf8(pem.to_vec()).map_err(|_| std::io::Error::other("it is not a PEM file"))
}
