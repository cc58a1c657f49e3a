//! Puts the layers together and says, of what is wrong, where it is and what would be right.

use std::collections::BTreeSet;
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
    let (layers, faults) = layers(sources);
    match faults.into_iter().next() {
        Some(fault) => Err(fault),
        None => compose(&layers),
    }
}

/// As [`load`], for a person who wants to know all that is wrong at once.
///
/// # Errors
/// All faults that do not hang on others.
pub fn load_or_faults(sources: &Sources) -> Result<Config, Vec<ConfigError>> {
    let (mut layers, mut faults) = layers(sources);
    let mut blamed = BTreeSet::new();
    loop {
        match compose(&layers) {
            Ok(config) if faults.is_empty() => return Ok(config),
            Ok(_) => return Err(faults),
            // With the default in its place, the next fault shows. A fault that this has brought about is none.
            Err(fault) => {
                let key = about(&fault).to_owned();
                let from = |layer: &Layer| fault.place.is_empty() || fault.place == layer.name;
                let theirs = layers.iter_mut().filter(|layer| from(layer));
                let found = theirs.map(|layer| layer.forget(&key)).filter(|found| *found).count() > 0;
                if !blamed.iter().any(|blamed: &String| *blamed == key || fault.reason.contains(blamed)) {
                    faults.push(fault);
                }
                blamed.insert(key);
                if !found {
                    return Err(faults);
                }
            }
        }
    }
}

/// The sources that can be read, the first first, and what is wrong with the others.
fn layers(sources: &Sources) -> (Vec<Layer>, Vec<ConfigError>) {
    let file = sources
        .file
        .iter()
        .map(|(path, text)| parse_toml(path, text).map(|data| Some(Layer { name: path.display().to_string(), data })));
    let variables = sources.variables.iter().map(|(variable, text)| {
        let Some(key) = key_of(variable)? else { return Ok(None) };
        Layer::of(variable, &key, text).map(Some)
    });
    let flags = sources.flags.iter().map(|(flag, key, text)| Layer::of(flag, key, text).map(Some));
    let (mut layers, mut faults) = (Vec::new(), Vec::new());
    for layer in file.chain(variables).chain(flags) {
        match layer {
            Ok(layer) => layers.extend(layer),
            Err(fault) => faults.push(fault),
        }
    }
    (layers, faults)
}

fn compose(layers: &[Layer]) -> Result<Config, ConfigError> {
    let figment = layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer));
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
    /// A variable or a flag.
    fn of(name: &str, key: &str, text: &str) -> Result<Layer, ConfigError> {
        if !check::keys().iter().any(|known| known == key) {
            return Err(ConfigError { place: name.to_owned(), key: key.to_owned(), reason: unknown_key(key) });
        }
        let dict = figment::util::nest(key, variable_value(key, text)).into_dict().unwrap_or_default();
        Ok(Layer { name: name.to_owned(), data: Map::from([(Profile::Default, dict)]) })
    }

    /// Takes a key out. False if it is not there.
    fn forget(&mut self, key: &str) -> bool {
        self.data.values_mut().map(|dict| take(dict, key)).filter(|found| *found).count() > 0
    }
}

/// The key that a fault is about; of what is in a list, the list's. A check of several keys names the first of them in
/// its sentence.
fn about(fault: &ConfigError) -> &str {
    let text = if fault.key.is_empty() { &fault.reason } else { &fault.key };
    text.split(['[', ' ', ':', ',']).next().unwrap_or_default()
}

/// Removes a key, as `link.mtu`, from a table; a key below one that is no table goes with it.
fn take(dict: &mut Dict, key: &str) -> bool {
    let (head, rest) = key.split_once('.').map_or((key, None), |(head, rest)| (head, Some(rest)));
    match (dict.get_mut(head), rest) {
        (Some(Value::Dict(_, inner)), Some(rest)) => take(inner, rest),
        _ => dict.remove(head).is_some(),
    }
}

impl Provider for &Layer {
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
    let inside = format!("{key}.");
    if let Some(example) = keys.iter().find(|known| known.starts_with(&inside)) {
        return format!("is a section: name a key of it, for example `{example}`");
    }
    let sections = keys.iter().filter_map(|key| key.split_once('.').map(|(section, _)| section));
    let known: Vec<&str> =
        if key.contains('.') { keys.iter().map(String::as_str).collect() } else { sections.collect() };
    let nearest = known.into_iter().min_by_key(|known| strsim::damerau_levenshtein(known, key));
    match nearest {
        Some(nearest) if strsim::damerau_levenshtein(nearest, key) <= (key.len() / 4).max(1) => {
            format!("there is no such key; did you mean `{nearest}`?")
        }
        _ => "there is no such key; `weft config show` prints all of them".into(),
    }
}
