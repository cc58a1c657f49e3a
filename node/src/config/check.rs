//! Checks across fields, and the list of all keys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use weft_cluster::registry::names;

use super::Config;

/// The most shards of a cluster.
const SHARDS_MAX: u32 = 4_096;
/// The longest node name or zone.
const NAME_LENGTH_MAX: usize = 64;
/// The most seeds.
const SEEDS_MAX: usize = 256;

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, variable or flag; empty when it is a matter of several.
    pub place: String,
    /// The key, as `link.mtu`; empty if the file cannot be read at all.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for part in [&self.place, &self.key].into_iter().filter(|part| !part.is_empty()) {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Checks ranges and what several keys must agree on.
    ///
    /// # Errors
    /// The first thing that is wrong, with its key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_node()?;
        self.check_ports()?;
        self.check_founding()?;
        self.link.check().map_err(told)?;
        self.gossip.check().map_err(told)?;
        self.shards.check().map_err(told)?;
        self.forward.check().map_err(told)?;
        self.instances.check().map_err(told)?;
        self.calls.check().map_err(told)?;
        self.events.check().map_err(told)?;
        self.admin.check().map_err(told)?;
        self.raft.check().map_err(told)?;
        self.api.check().map_err(told)?;
        crate::telemetry::check_filter(&self.log.filter).map_err(told)?;
        self.check_storage()?;
        self.check_services()
    }

    fn check_node(&self) -> Result<(), ConfigError> {
        let node = &self.node;
        for (key, value) in [("node.name", &node.name), ("node.zone", &node.zone)] {
            let plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
            if !plain || value.len() > NAME_LENGTH_MAX {
                let rule = format!("must be at most {NAME_LENGTH_MAX} of a-z A-Z 0-9 . _ -");
                return wrong(key, format!("`{value}` {rule}"));
            }
        }
        if node.zone.is_empty() {
            return wrong("node.zone", "must not be empty; one zone for all is `default`");
        }
        if node.dir.as_os_str().is_empty() {
            return wrong("node.dir", "must name the data folder");
        }
        if !(1..=10_000).contains(&node.weight) {
            return wrong("node.weight", format!("is {}, but must be 1 to 10,000; 100 is the default", node.weight));
        }
        if node.seeds.len() > SEEDS_MAX {
            return wrong("node.seeds", format!("has {} entries, but must have at most {SEEDS_MAX}", node.seeds.len()));
        }
        for seed in &node.seeds {
            check_address("node.seeds", seed)?;
        }
        for (key, address) in [("node.advertise", &node.advertise), ("node.peer_advertise", &node.peer_advertise)] {
            if !address.is_empty() {
                check_address(key, address)?;
            }
        }
        Ok(())
    }

    /// Doors that would take each other's port. Port 0 lets the system choose.
    fn check_ports(&self) -> Result<(), ConfigError> {
        let doors = [
            ("node.listen", self.node.listen),
            ("node.peer_listen", self.node.peer_listen),
            ("node.admin_listen", self.node.admin_listen),
        ];
        for (place, (key, address)) in doors.iter().enumerate() {
            let taken = doors[..place].iter().find(|(_, other)| overlap(*address, *other));
            if let Some((other, _)) = taken {
                return wrong(key, format!("{address} is taken by {other}: give each door a port of its own"));
            }
        }
        Ok(())
    }

    fn check_founding(&self) -> Result<(), ConfigError> {
        let raft = &self.raft;
        if !raft.shards.is_power_of_two() || raft.shards > SHARDS_MAX {
            let near = raft.shards.clamp(1, SHARDS_MAX).next_power_of_two();
            let rule = format!("must be a power of two from 1 to {SHARDS_MAX}, for example {near}");
            return wrong("raft.shards", format!("is {}, but {rule}", raft.shards));
        }
        if !matches!(raft.replication, 1 | 3 | 5 | 7) {
            return wrong("raft.replication", format!("is {}, but must be 1, 3, 5 or 7", raft.replication));
        }
        Ok(())
    }

    fn check_services(&self) -> Result<(), ConfigError> {
        let mut places = BTreeSet::new();
        for (number, service) in self.services.iter().enumerate() {
            let key = format!("services[{number}]");
            let put = service.registration().or_else(|reason| wrong(&key, reason))?;
            if !places.insert((put.namespace, put.service, service.address.clone())) {
                return wrong(&key, format!("{} at {} is there twice", service.name, service.address));
            }
        }
        Ok(())
    }

    fn check_storage(&self) -> Result<(), ConfigError> {
        let storage = &self.storage;
        let size = 64 << 10..=1u64 << 40;
        for (key, value) in [
            ("storage.journal_slot_bytes", storage.journal_slot_bytes),
            ("storage.checkpoint_bytes", storage.checkpoint_bytes),
            ("storage.segment_bytes", storage.segment_bytes),
        ] {
            if !size.contains(&value.as_u64()) {
                return wrong(key, format!("is {value}, but must be 64 KiB to 1 TiB"));
            }
        }
        if !(16..=1_000_000).contains(&storage.files_open_max) {
            let value = storage.files_open_max;
            return wrong("storage.files_open_max", format!("is {value}, but must be 16 to 1,000,000"));
        }
        if !(1..=65_536).contains(&storage.journal_slots) {
            return wrong("storage.journal_slots", format!("is {}, but must be 1 to 65,536", storage.journal_slots));
        }
        for (key, value) in [
            ("storage.checkpoint_interval", storage.checkpoint_interval),
            ("storage.hang_after", storage.hang_after),
            ("storage.scrub_interval", storage.scrub_interval),
        ] {
            if value.is_zero() {
                return wrong(key, "is 0, but must be longer");
            }
        }
        Ok(())
    }
}

fn wrong<T>(key: &str, reason: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError { place: String::new(), key: key.into(), reason: reason.into() })
}

/// A driver's own check names its key in the sentence.
fn told(reason: String) -> ConfigError {
    ConfigError { place: String::new(), key: String::new(), reason }
}

/// Two doors of one node collide if they have one port on one address, or on all.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_ip
}

fn check_address(key: &str, address: &str) -> Result<(), ConfigError> {
    match names::host_and_port(address) {
        Some(_) => Ok(()),
        None => wrong(key, format!("`{address}` is not host:port, for example 10.0.0.1:7401 or [fd00::1]:7401")),
    }
}

/// All keys with their defaults as TOML text.
fn defaults() -> BTreeMap<String, String> {
    let defaults = toml::Value::try_from(Config::default()).expect("every section serializes to TOML");
    let mut keys = BTreeMap::new();
    collect("", &defaults, &mut keys);
    keys
}

/// All keys, as `link.mtu`, sorted.
pub(crate) fn keys() -> Vec<String> {
    defaults().into_keys().collect()
}

/// The default of a key as TOML text.
pub(crate) fn default_of(key: &str) -> Option<String> {
    defaults().remove(key)
}

/// The leaves of a TOML table.
pub(crate) fn collect(prefix: &str, value: &toml::Value, keys: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                collect(&key, value, keys);
            }
        }
        leaf => drop(keys.insert(prefix.to_owned(), leaf.to_string())),
    }
}
