//! The sections that belong to no driver.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::drivers::raft::RAFT_LOG_FILTER;

/// `[node]`: who this node is and where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// This node's name in the cluster; empty: the name in its certificate. It must be that name.
    pub name: String,
    /// The data folder. One process at a time holds it.
    pub dir: PathBuf,
    /// Where the node is: replicas are spread over zones.
    pub zone: String,
    /// Relative capacity for placement.
    pub weight: u32,
    /// Where clients connect: gRPC.
    pub listen: SocketAddr,
    /// Where links connect: QUIC over UDP, and the tripwire over TCP, on one port number.
    pub peer_listen: SocketAddr,
    /// Where operators connect: /livez, /readyz, /metrics, /debug/view, without TLS and for everybody who can connect; so
    /// only this machine unless told otherwise.
    pub admin_listen: SocketAddr,
    /// The `host:port` told to clients; empty: `listen`.
    pub advertise: String,
    /// The `host:port` told to other nodes; empty: `peer_listen`.
    pub peer_advertise: String,
    /// `host:port` of the links of nodes to join through. A list, or one string with commas.
    #[serde(deserialize_with = "list_or_commas")]
    pub seeds: Vec<String>,
    /// Descriptors (of `ulimit -n`) that connections of clients leave to the journal, the links and the connections to
    /// instances; at most a quarter of all.
    pub descriptors_reserved: u32,
    /// How long a stop may take: hand over leadership, finish what is in flight, take a last checkpoint.
    #[serde(with = "humantime_serde")]
    pub stop_patience: Duration,
}

impl Default for NodeConfig {
    fn default() -> Self {
        let all = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        NodeConfig {
            name: String::new(),
            dir: "/var/lib/weft".into(),
            zone: "default".into(),
            weight: 100,
            listen: all(7400),
            peer_listen: all(7401),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7403)),
            advertise: String::new(),
            peer_advertise: String::new(),
            seeds: Vec::new(),
            descriptors_reserved: 256,
            stop_patience: Duration::from_secs(20),
        }
    }
}

impl NodeConfig {
    /// The `host:port` told to clients.
    pub fn client_address(&self) -> String {
        if self.advertise.is_empty() { self.listen.to_string() } else { self.advertise.clone() }
    }

    /// The `host:port` told to other nodes.
    pub fn peer_address(&self) -> String {
        if self.peer_advertise.is_empty() { self.peer_listen.to_string() } else { self.peer_advertise.clone() }
    }
}

/// `[tls]`: PEM files made by `weft ca`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The cluster's CA. Every certificate it has issued is a node of this cluster.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for TlsConfig {
    fn default() -> Self {
        TlsConfig { ca: "/etc/weft/ca.pem".into(), cert: "/etc/weft/node.pem".into(), key: "/etc/weft/node.key".into() }
    }
}

/// `[log]`: what is logged to stderr.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Levels, as `info` or `info,weft_node::drivers::raft=debug`.
    pub filter: String,
    /// `text` for people, `json` for machines.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { filter: format!("info,{RAFT_LOG_FILTER},quinn=warn"), format: LogFormat::Text }
    }
}

/// A list of strings, or one string with commas, as variables have it.
fn list_or_commas<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct List;
    impl<'de> serde::de::Visitor<'de> for List {
        type Value = Vec<String>;
        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("a list of strings, or one string with commas")
        }
        fn visit_str<E>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_any(List)
}
