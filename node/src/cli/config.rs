//! `weft config`, and the sources of a configuration.

use std::sync::Arc;

use serde_json::json;

use super::args::{Config as Command, ConfigSource, Start};
use super::failure::Failure;
use super::output::Output;
use crate::config::{Config, Shares, Sources};
use crate::drivers::endpoint::Dialer;
use crate::drivers::pki;
use crate::host::Host;
use crate::host::descriptors::raise_limit;
use crate::host::disk::OsDisk;
use crate::host::production::Production;

const DAY_MS: i64 = 86_400_000;

pub(crate) fn run(command: Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Check(start) => {
            let Examined { config, shares, name, until_ms } = examine(&start)?;
            let object = json!({
                "ok": true, "name": name, "certificate_until_ms": until_ms, "descriptors": shares.limit,
                "api_connections_max": shares.api,
            });
            let days = (until_ms - Production::new(Arc::new(OsDisk)).wall().0) / DAY_MS;
            let cut = shares.cut(&config).map_or_else(String::new, |cut| format!("; {cut}"));
            output.say(
                &object,
                format_args!("the configuration of {name} is right; its certificate is good for {days} days{cut}"),
            )
        }
        Command::Show(source) => {
            let config = load(&source, Vec::new())?;
            let unprintable =
                |error: &dyn std::error::Error| Failure::failed(format!("print the configuration: {error}"));
            if output.json {
                return output.line(serde_json::to_value(&config).map_err(|error| unprintable(&error))?);
            }
            let text = toml::to_string(&config).map_err(|error| unprintable(&error))?;
            output.line(text.trim_end())
        }
    }
}

/// What `weft start` begins with.
pub(super) struct Examined {
    pub(super) config: Config,
    /// What it gets of the process's descriptors.
    pub(super) shares: Shares,
    name: String,
    /// When its certificate ends.
    until_ms: i64,
}

/// Reads the configuration and all that it names, for `weft start` and `weft config check` alike: what one refuses the
/// other does. What only the moment decides, a port or a folder in use, is left to the start.
pub(super) fn examine(start: &Start) -> Result<Examined, Failure> {
    let sources = sources(&start.source, super::start::flags(start))?;
    let config = crate::config::load_or_faults(&sources).map_err(|faults| all(&faults))?;
    let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(OsDisk)));
    let mut faults = Vec::new();
    let shares = Shares::of(&config, raise_limit()).map_err(|fault| faults.push(fault.to_string())).ok();
    let certified = certified(&config, &*host).map_err(|fault| faults.push(fault)).ok();
    if let Err(fault) = Dialer::new(host.clone(), &config.calls.tls_ca) {
        faults.push(fault);
    }
    match (certified, shares) {
        (Some((name, until_ms)), Some(shares)) if faults.is_empty() => Ok(Examined { config, shares, name, until_ms }),
        _ => Err(all(&faults)),
    }
}

/// The node's name and when its certificate ends.
fn certified(config: &Config, host: &dyn Host) -> Result<(String, i64), String> {
    let tls = &config.tls;
    let credentials = pki::load(&*host.disk(), &tls.ca, &tls.cert, &tls.key).map_err(|error| error.to_string())?;
    let until = pki::check(&credentials, &tls.cert, host.wall()).map_err(|error| error.to_string())?;
    let name = crate::node_name(config, &credentials.name).map_err(|error| error.to_string())?;
    Ok((name, until.0))
}

/// All faults on one line.
fn all(faults: &[impl std::fmt::Display]) -> Failure {
    match faults {
        [only] => Failure::invalid(only.to_string()),
        _ => {
            let numbered = faults.iter().enumerate().map(|(index, fault)| format!("({}) {fault}", index + 1));
            let numbered: Vec<String> = numbered.collect();
            Failure::invalid(format!("{} faults: {}", faults.len(), numbered.join("; ")))
        }
    }
}

/// Reads file, variables and flags. `flags`: name as typed, key, text.
fn load(source: &ConfigSource, flags: Vec<(String, String, String)>) -> Result<Config, Failure> {
    Ok(crate::config::load(&sources(source, flags)?)?)
}

fn sources(source: &ConfigSource, mut flags: Vec<(String, String, String)>) -> Result<Sources, Failure> {
    for pair in &source.set {
        let (key, text) = pair
            .split_once('=')
            .ok_or_else(|| Failure::invalid(format!("--set {pair}: write KEY=VALUE, for example link.mtu=1400")))?;
        flags.push(("--set".into(), key.trim().into(), text.trim().into()));
    }
    let file = match &source.config {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|error| Failure::invalid(format!("{}: {error}", path.display())))?;
            Some((path.clone(), text))
        }
    };
    let variables =
        std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
    Ok(Sources { file, variables: variables.collect(), flags })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, args};

    #[test]
    fn start_and_check_tell_all_faults_alike() {
        let line = "--config none.toml --listen [::1]:7400 --set log.filter=a=loud";
        let faults = |command: &str| {
            let line = format!("weft {command} {line} --set calls.tls_ca=none.pem");
            let start = match Cli::try_parse_from(line.split_whitespace()).expect("it parses").command {
                args::Command::Start(start) | args::Command::Config(Command::Check(start)) => start,
                other => panic!("another command: {other:?}"),
            };
            let start = Start { source: ConfigSource { config: None, ..start.source }, ..*start };
            let filter = examine(&start).map(|_| ()).expect_err("a wrong filter").message;
            assert!(filter.contains("log.filter"), "{filter}");
            let set = start.source.set.into_iter().filter(|set| !set.starts_with("log")).collect();
            let start = Start { source: ConfigSource { config: None, set }, ..start };
            examine(&start).map(|_| ()).expect_err("files are missing").message
        };
        let told = faults("start");
        assert!(told.starts_with("2 faults: (1) ") && told.contains("none.pem") && told.contains("ca.pem"), "{told}");
        assert_eq!(told, faults("config check"));
    }
}
