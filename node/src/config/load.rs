//! Puts the layers together and says, of what is wrong, where it is and what would be right.

use std::path::PathBuf;

use figment::error::{Actual, Kind};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};

use super::check::ConfigError;
use super::{Config, check};

/// Variables that begin with `WEFT_` and are no keys: they belong to the command line.
const OTHER_VARIABLES: [&str; 2] = ["WEFT_SERVER", "WEFT_CONFIG"];

/// Where settings come from; later ones win.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file's path and its text.
    pub file: Option<(PathBuf, String)>,
    /// Environment variables; those that do not begin with `WEFT_` are passed over.
    pub variables: Vec<(String, String)>,
    /// Per flag: its name as typed (`--listen`), the key (`node.listen`), the text given.
    pub flags: Vec<(String, String, String)>,
}

/// Reads all sources into a configuration and checks it.
///
/// # Errors
/// The first thing that is wrong: the file, variable or flag, the key, and what would be right.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let mut figment = Figment::new();
    if let Some((path, text)) = &sources.file {
        let layer = Layer { name: path.display().to_string(), data: parse_toml(path, text)? };
        figment = figment.merge(layer);
    }
    for (variable, text) in &sources.variables {
        if let Some(key) = key_of(variable)? {
            figment = figment.merge(Layer::of(variable, &key, variable_value(&key, text)));
        }
    }
    for (flag, key, text) in &sources.flags {
        figment = figment.merge(Layer::of(flag, key, variable_value(key, text)));
    }
    let config: Config = figment.extract_lossy().map_err(|error| explain(&error))?;
    config.validate()?;
    Ok(config)
}

/// One source, by the name that a person knows it by.
struct Layer {
    name: String,
    data: Map<Profile, Dict>,
}

impl Layer {
    fn of(name: &str, key: &str, value: Value) -> Layer {
        let dict = figment::util::nest(key, value).into_dict().unwrap_or_default();
        Layer { name: name.to_owned(), data: Map::from([(Profile::Default, dict)]) }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(self.data.clone())
    }
}

fn parse_toml(path: &std::path::Path, text: &str) -> Result<Map<Profile, Dict>, ConfigError> {
    Toml::string(text).data().map_err(|error| ConfigError {
        place: path.display().to_string(),
        key: String::new(),
        reason: format!("not TOML: {}", error.to_string().trim().replace('\n', " ")),
    })
}

/// Where the default is a string the text is taken as it is written: a node may be called `7`.
fn variable_value(key: &str, text: &str) -> Value {
    if check::default_of(key).is_some_and(|default| default.starts_with('"')) {
        return Value::from(text);
    }
    text.parse().unwrap_or_else(|_| Value::from(text))
}

/// `WEFT_LINK__MTU` is `link.mtu`. A single underscore between section and key is a slip that is named.
fn key_of(variable: &str) -> Result<Option<String>, ConfigError> {
    let Some(name) = variable.strip_prefix("WEFT_") else { return Ok(None) };
    if OTHER_VARIABLES.contains(&variable) {
        return Ok(None);
    }
    if name.contains("__") {
        return Ok(Some(name.to_lowercase().replace("__", ".")));
    }
    let keys = check::keys();
    let slip = keys.iter().find(|key| key.replace('.', "_") == name.to_lowercase());
    match slip {
        None => Ok(None),
        // A key without a section.
        Some(key) if !key.contains('.') => Ok(Some(key.clone())),
        Some(key) => Err(ConfigError {
            place: variable.to_owned(),
            key: key.clone(),
            reason: format!("write WEFT_{}: two underscores after the section", key.to_uppercase().replace('.', "__")),
        }),
    }
}

/// What figment says, in the words of a person who has to put it right.
fn explain(error: &Error) -> ConfigError {
    let place = error.metadata.as_ref().map(|metadata| metadata.name.to_string()).unwrap_or_default();
    let mut path = error.path.clone();
    let reason = match &error.kind {
        Kind::UnknownField(field, _) => {
            if path.last() != Some(field) {
                path.push(field.clone());
            }
            unknown_key(&path.join("."))
        }
        Kind::UnknownVariant(have, expected) => {
            format!(
                "`{have}` is not one of {}",
                expected.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            )
        }
        Kind::InvalidType(have, expected) => format!("{} is not {expected}{}", actual(have), example(&path)),
        Kind::InvalidValue(have, expected) => {
            format!("{} is not right: expected {expected}{}", actual(have), example(&path))
        }
        other => format!("{other}{}", example(&path)),
    };
    ConfigError { place, key: path.join("."), reason }
}

fn actual(actual: &Actual) -> String {
    match actual {
        Actual::Str(text) => format!("`{text}`"),
        Actual::Unsigned(number) => format!("`{number}`"),
        Actual::Signed(number) => format!("`{number}`"),
        Actual::Float(number) => format!("`{number}`"),
        Actual::Bool(value) => format!("`{value}`"),
        other => other.to_string(),
    }
}

/// The default, as an example of what would be right.
fn example(path: &[String]) -> String {
    let Some(value) = check::default_of(&path.join(".")) else { return String::new() };
    format!("; for example (the default): {value}")
}

fn unknown_key(key: &str) -> String {
    let keys = check::keys();
    let sections = keys.iter().filter_map(|key| key.split_once('.').map(|(section, _)| section));
    let known: Vec<&str> =
        if key.contains('.') { keys.iter().map(String::as_str).collect() } else { sections.collect() };
    let nearest = known.into_iter().min_by_key(|known| strsim::damerau_levenshtein(known, key));
    match nearest {
        Some(nearest) if strsim::damerau_levenshtein(nearest, key) <= 1 + key.len() / 3 => {
            format!("there is no such key; did you mean `{nearest}`?")
        }
        _ => "there is no such key; `weft config show` prints all of them".into(),
    }
}
