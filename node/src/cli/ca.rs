//! `weft ca`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::args::Ca as Command;
use super::failure::Failure;
use super::output::Output;
use crate::drivers::pki::Authority;
use crate::host::Host;
use crate::host::disk::OsDisk;
use crate::host::production::Production;

pub(crate) fn run(command: Command, output: &mut Output) -> Result<(), Failure> {
    let host = Production::new(Arc::new(OsDisk));
    match command {
        Command::Init { dir, cluster } => {
            init(&host, &dir, &cluster)?;
            let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
            let object = json!({"cert": cert, "key": key});
            let sentence =
                format!("wrote {} (give it to every node) and {} (keep it secret)", cert.display(), key.display());
            output.say(&object, sentence)
        }
        Command::Issue { name, dir, ips, dns, days } => {
            let disk = host.disk();
            let authority = Authority::load(&*disk, &dir.join("ca.pem"), &dir.join("ca.key"))?;
            let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
            let valid = Duration::from_secs(u64::from(days) * 86_400);
            authority.issue_for(&host, &name, &dns, &ips, valid)?.store(&*disk, &cert, &key)?;
            let object = json!({"name": name, "cert": cert, "key": key});
            output.say(&object, format_args!("wrote {} and {}", cert.display(), key.display()))
        }
    }
}

/// Makes a CA in a folder, which is made if it is missing.
pub(crate) fn init(host: &dyn Host, dir: &Path, cluster: &str) -> Result<Authority, Failure> {
    let disk = host.disk();
    disk.create_dir_all(dir)?;
    let authority = Authority::create(host, cluster)?;
    authority.issued().store(&*disk, &dir.join("ca.pem"), &dir.join("ca.key"))?;
    Ok(authority)
}
