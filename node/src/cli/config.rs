//! `weft config`, and the sources of a configuration.

use std::sync::Arc;

use serde_json::json;

use super::args::{Config as Command, ConfigSource};
use super::failure::Failure;
use super::output::Output;
use crate::config::{Config, ConfigError, Sources};
use crate::drivers::pki;
use crate::host::Host;
use crate::host::disk::OsDisk;
use crate::host::production::Production;

const DAY_MS: i64 = 86_400_000;

pub(crate) fn run(command: Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Check(source) => {
            let config = crate::config::load_or_faults(&sources(&source, Vec::new())?).map_err(all)?;
            let credentials = pki::load(&OsDisk, &config.tls.ca, &config.tls.cert, &config.tls.key)?;
            let host = Production::new(Arc::new(OsDisk));
            let until = pki::check(&credentials, &config.tls.cert, host.wall())?;
            let name =
                crate::node_name(&config, &credentials.name).map_err(|error| Failure::invalid(error.to_string()))?;
            let object = json!({"ok": true, "name": name, "certificate_until_ms": until.0});
            let days = (until.0 - host.wall().0) / DAY_MS;
            output.say(
                &object,
                format_args!("the configuration of {name} is right; its certificate is good for {days} days"),
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

/// All faults on one line.
fn all(faults: Vec<ConfigError>) -> Failure {
    match &faults[..] {
        [only] => only.clone().into(),
        _ => {
            let numbered = faults.iter().enumerate().map(|(index, fault)| format!("({}) {fault}", index + 1));
            let numbered: Vec<String> = numbered.collect();
            Failure::invalid(format!("{} faults: {}", faults.len(), numbered.join("; ")))
        }
    }
}

/// Reads file, variables and flags. `flags`: name as typed, key, text.
pub(crate) fn load(source: &ConfigSource, flags: Vec<(String, String, String)>) -> Result<Config, Failure> {
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
