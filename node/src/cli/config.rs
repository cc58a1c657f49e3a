//! `weft config`, and the sources of a configuration.

use serde_json::json;

use super::args::{Config as Command, ConfigSource};
use super::failure::Failure;
use super::output::Output;
use crate::config::{Config, Sources};

pub(crate) fn run(command: Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Check(source) => {
            load(&source, Vec::new())?;
            output.say(&json!({"ok": true}), "the configuration is right")
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

/// Reads file, variables and flags. `flags`: name as typed, key, text.
pub(crate) fn load(source: &ConfigSource, mut flags: Vec<(String, String, String)>) -> Result<Config, Failure> {
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
    Ok(crate::config::load(&Sources { file, variables: variables.collect(), flags })?)
}
