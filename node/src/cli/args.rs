//! Every command and flag, with its help.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use weft_sdk::health_check::Kind;

use crate::wire::checks::check_kind;

/// A service mesh and an event bus in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    after_help = "The exit code is 0, or 1 with one line on stderr that says why. A question to the cluster is tried for 10 s, at the next node where one cannot answer; after 2 s stderr says what it waits for.\n\nTry it: `weft dev` starts a cluster of three nodes on this machine."
)]
pub struct Cli {
    /// Nodes to connect to, as host:port; the first that answers is used.
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        env = "WEFT_SERVER",
        value_delimiter = ',',
        value_parser = parse_server,
        default_value = "127.0.0.1:7400"
    )]
    pub(crate) server: Vec<String>,
    /// The namespace of the topics, groups and services that are named.
    #[arg(long, global = true, value_name = "NAME", default_value = "default")]
    pub(crate) namespace: String,
    /// Print JSON for machines; a failure is an object {"code", "message", "retry"} on stderr.
    // `weft call` has a flag of this name that takes a value; both are one to clap, so both have one type.
    #[arg(long, global = true, num_args = 0, default_missing_value = "")]
    pub(crate) json: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a whole cluster in this process, to try things.
    Dev(Dev),
    /// Start a node.
    Start(Box<Start>),
    /// Create, list, look at and delete topics.
    #[command(subcommand)]
    Topic(Topic),
    /// List, look at and delete consumer groups.
    #[command(subcommand)]
    Group(Group),
    /// Publish events to a topic.
    Publish(Box<Publish>),
    /// Print the events of a topic as they come.
    Subscribe(Subscribe),
    /// Register, list, look at and configure services and their instances.
    #[command(subcommand)]
    Service(Service),
    /// Call a method of a service, with JSON.
    Call(Call),
    /// Look at the cluster and move its shards.
    #[command(subcommand)]
    Cluster(Cluster),
    /// Make the certificates that nodes need.
    #[command(subcommand)]
    Ca(Ca),
    /// Check a configuration, or print it in full.
    #[command(subcommand)]
    Config(Config),
    /// Look into the data folder of a node that is stopped.
    #[command(subcommand)]
    Shard(Shard),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  weft completion bash > /etc/bash_completion.d/weft")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version of this binary.
    Version,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  weft dev\n  weft dev --nodes 1 --dir ./data --port 9000")]
pub(crate) struct Dev {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub(crate) nodes: u16,
    /// The folder for data and certificates, kept after the exit; a temporary one if not given.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Node i (from 0) listens for clients on BASE + 10 i, for links on the next port, for operators on BASE + 10 i + 3.
    #[arg(long, value_name = "BASE", default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub(crate) port: u16,
    /// Log more: levels as `info` or `weft_node=debug`.
    #[arg(long, default_value = "error")]
    pub(crate) log: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Flags win over WEFT_* variables, these over the file. Example:\n  weft start --config /etc/weft/weft.toml --name n1 --seed 10.0.0.2:7401 --bootstrap-expect 3"
)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) source: ConfigSource,
    /// This node's name: the one in its certificate.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The data folder.
    #[arg(long)]
    pub(crate) dir: Option<String>,
    /// The zone that the node is in.
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Where clients connect.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Where other nodes connect.
    #[arg(long, value_name = "ADDR")]
    pub(crate) peer_listen: Option<String>,
    /// Where operators connect.
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin_listen: Option<String>,
    /// The links of nodes to join through.
    #[arg(long = "seed", value_name = "ADDR", num_args = 1.., value_delimiter = ',')]
    pub(crate) seeds: Vec<String>,
    /// Found a new cluster when this many empty nodes have met.
    #[arg(long, value_name = "N")]
    pub(crate) bootstrap_expect: Option<u32>,
    /// The CA's certificate.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_cert: Option<String>,
    /// This node's certificate.
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: Option<String>,
    /// This node's private key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<String>,
}

/// Where a configuration comes from.
#[derive(Debug, Args)]
pub(crate) struct ConfigSource {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "WEFT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Any key of the configuration, as link.mtu=1400.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Topic {
    /// Create a topic.
    #[command(after_help = "Example:\n  weft topic create orders --partitions 8")]
    Create {
        /// 1 to 128 characters of a-z A-Z 0-9 . _ - ; the first is a letter or digit.
        name: String,
        /// Partitions, 1 to 1,024, fixed for the topic's life.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
        partitions: u32,
        /// The largest event accepted, with its key and headers: bytes, or a size as 64KiB; 8 MiB at most.
        #[arg(long, default_value = "1MiB", value_name = "SIZE", value_parser = parse_size)]
        event_bytes_max: u32,
        /// Leave a topic of this name as it is; that it has other partitions or sizes is said.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List all topics.
    List,
    /// Show a topic, where its partitions are, and its groups.
    Describe {
        /// The topic.
        name: String,
    },
    /// Print every event that a topic holds now, with a SHA-256 of its data, partition by partition.
    #[command(
        after_help = "With --json, one line per event:\n  {\"partition\":0,\"offset\":0,\"epoch\":1,\"key\":\"N14228\",\"sha256\":\"…\"}\nA key that is not UTF-8 is given as \"key_base64\"."
    )]
    Dump {
        /// The topic.
        name: String,
        /// This partition alone.
        #[arg(long)]
        partition: Option<u32>,
    },
    /// Delete a topic and its events. On a terminal it is asked first.
    Delete {
        /// The topic.
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// List the groups of a topic, or of all.
    List {
        /// The topic; all if not given.
        topic: Option<String>,
    },
    /// Show a group and how many events wait for it on each partition.
    Describe {
        /// The topic.
        topic: String,
        /// The group.
        group: String,
    },
    /// Delete a group: where it was is forgotten, and its consumers are told to go.
    Delete {
        /// The topic.
        topic: String,
        /// The group.
        group: String,
    },
}

/// When a publish is answered.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AckLevel {
    /// The owner has it in memory; it can be lost.
    Accepted,
    /// It is on the disks of a majority of its replicas.
    Committed,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  weft publish orders --key customer-7 --data 'one espresso'
  weft publish flights --csv flights.csv --key-column tailnum
  tail -f log.json | weft publish logs --json-lines -
  seq 100 | weft publish numbers --lines -

--csv: each row becomes one event of type csv.row, whose data is a JSON object of strings under the names of the header.
--json-lines: each line is {\"key\": \"…\", \"data\": …, \"type\": \"…\", \"headers\": {…}}; all but data may be left out. Data that
  is a string is published as it is, all else as the bytes that stand there; key_base64 and data_base64 stand for bytes. Also taken: id, source,
  subject, datacontenttype, and time_ms (milliseconds since 1970). partition, offset, epoch and attempt are passed over:
  lines of `weft subscribe --json` may be published as they are.

With --json, one line per event, in the order of the input:
  {\"row\":1,\"key\":\"…\",\"partition\":0,\"offset\":0,\"epoch\":1,\"ack\":\"committed\",\"duplicate\":false,\"fsynced_nodes\":[…],\"fsynced_zones\":[…]}
or, if it failed, {\"row\":1,\"key\":\"…\",\"error\":{\"code\":\"…\",\"message\":\"…\",\"retry\":\"…\"}}.")]
#[command(group = clap::ArgGroup::new("input").required(true).args(["data", "file", "csv", "json_lines", "lines"]))]
pub(crate) struct Publish {
    /// The topic.
    pub(crate) topic: String,
    /// The key: events of one key are delivered in order.
    #[arg(long, conflicts_with_all = ["csv", "json_lines"])]
    pub(crate) key: Option<String>,
    /// The data of one event.
    #[arg(long)]
    pub(crate) data: Option<String>,
    /// A file whose bytes are the data of one event; - is stdin.
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// A CSV file with a header; - is stdin.
    #[arg(long)]
    pub(crate) csv: Option<PathBuf>,
    /// The column that holds the key of each row.
    #[arg(long, value_name = "COLUMN")]
    pub(crate) key_column: Option<String>,
    /// A file of JSON lines; - is stdin.
    #[arg(long, value_name = "FILE")]
    pub(crate) json_lines: Option<PathBuf>,
    /// A file each of whose lines is the data of one event; - is stdin.
    #[arg(long, value_name = "FILE")]
    pub(crate) lines: Option<PathBuf>,
    /// The events' type.
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) event_type: Option<String>,
    /// A header of every event.
    #[arg(long = "header", value_name = "NAME=VALUE")]
    pub(crate) headers: Vec<String>,
    /// When a publish is answered.
    #[arg(long, value_enum, default_value = "committed")]
    pub(crate) ack: AckLevel,
    /// Bytes at which a batch is sent without waiting for more.
    #[arg(long, default_value_t = 128 << 10, value_name = "BYTES")]
    pub(crate) batch_bytes: usize,
    /// How long an event is tried before it fails.
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = parse_time)]
    pub(crate) patience: Duration,
    /// Begin at this row of --csv (the one after the header is 1) or this line of --json-lines. To go on after a failure:
    /// one in the input names its row; for others --json says what became of each row.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["data", "file"])]
    pub(crate) from_row: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  weft subscribe orders --from earliest
  weft subscribe orders --group billing --count 100 --json

Without --group nothing is acked and every subscriber sees every event. With --group the members share the events, and
each is acked after it is printed.

With --json, one line per event:
  {\"partition\":0,\"offset\":0,\"epoch\":1,\"attempt\":1,\"key\":\"…\",\"type\":\"…\",\"time_ms\":0,\"headers\":{…},\"data\":\"…\"}
Data of the content type application/json is given as JSON where it is an object, a list, a number, true, false or null on
one line. Bytes that are not UTF-8 are given as key_base64 and data_base64. attempt is there for groups only.")]
pub(crate) struct Subscribe {
    /// The topic.
    pub(crate) topic: String,
    /// Join this group; it is created if it is new.
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Where to begin: earliest, now, or an offset (with --partition, if the topic has several). Default: now; for a new
    /// group earliest. Groups that exist go on where they are.
    #[arg(long, value_name = "earliest|now|OFFSET", value_parser = parse_start)]
    pub(crate) from: Option<weft_sdk::StartAt>,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// This partition alone.
    #[arg(long, conflicts_with = "group")]
    pub(crate) partition: Option<u32>,
    /// End when all that is stored now has been printed.
    #[arg(long, conflicts_with = "group")]
    pub(crate) until_end: bool,
    /// Print each event's data alone, byte for byte, and a newline after it.
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Register an instance, or change its settings; the node that is asked becomes its home.
    Register(Box<RegisterService>),
    /// Take an instance out: no new call is sent to it.
    Deregister {
        /// The service.
        name: String,
        /// The instance's address.
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
    },
    /// List all services.
    List,
    /// Show a service and its instances.
    Describe {
        /// The service, or one of its gRPC service names.
        name: String,
    },
    /// Set how calls are balanced, and which methods may run more than once for one call.
    #[command(
        after_help = "Example:\n  weft service configure shop.Cart --balance round-robin --idempotent shop.Cart/Get --idempotent shop.Cart/List"
    )]
    Configure {
        /// The service.
        name: String,
        /// How an instance is chosen; as it is if not given.
        #[arg(long, value_enum)]
        balance: Option<BalanceBy>,
        /// A method that may be retried after it has reached an instance, as SERVICE/METHOD or SERVICE/*. What is given
        /// replaces the list.
        #[arg(long, value_name = "METHOD", conflicts_with_all = ["add_idempotent", "remove_idempotent"])]
        idempotent: Vec<String>,
        /// A method to add to the list.
        #[arg(long, value_name = "METHOD")]
        add_idempotent: Vec<String>,
        /// A method to take out of the list.
        #[arg(long, value_name = "METHOD")]
        remove_idempotent: Vec<String>,
        /// No method may.
        #[arg(long, conflicts_with_all = ["idempotent", "add_idempotent", "remove_idempotent"])]
        none_idempotent: bool,
        /// Take methods that the service does not know of, or cannot be asked about.
        #[arg(long)]
        force: bool,
    },
    /// Delete a service with its settings. One that has instances is kept, unless they are to go too.
    Delete {
        /// The service.
        name: String,
        /// Take its instances out too: no new call is sent to them.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  weft service register shop.Cart --address 10.0.0.7:8080
  weft service register shop --grpc-service shop.Cart --grpc-service shop.Orders --address 10.0.0.7:8080 --check grpc
  weft service register shop.Cart --address 10.0.0.7:8443 --tls --tls-ca ca.pem --check http:/healthz --weight 50

Without --ttl the instance stays registered until it is deregistered, and its check says whether it is called. A program
that registers itself, and renews, uses the SDK or weft.v1.Services.")]
pub(crate) struct RegisterService {
    /// The full gRPC service name, or an alias with --grpc-service.
    pub(crate) name: String,
    /// Where it listens, as the nodes reach it.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: String,
    /// A full gRPC service name that it serves.
    #[arg(long = "grpc-service", value_name = "NAME")]
    pub(crate) grpc_services: Vec<String>,
    /// Its share of the calls, relative to the others'; exact with `--balance weighted`, under load with
    /// least-request; round-robin and random do not mind it.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) weight: u32,
    /// Where it runs; the zone of its home node if not given.
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// An entry of its metadata.
    #[arg(long = "metadata", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub(crate) metadata: Vec<(String, String)>,
    /// How its home node checks it: tcp, grpc, grpc:NAME or http:/PATH.
    #[arg(long, default_value = "tcp", value_parser = check_kind)]
    pub(crate) check: Kind,
    /// Between two checks; 2 s if not given.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) check_interval: Option<Duration>,
    /// Take it out when it is not renewed for so long; 0s: never.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time)]
    pub(crate) ttl: Duration,
    /// It speaks TLS.
    #[arg(long)]
    pub(crate) tls: bool,
    /// Who has signed its certificate; the nodes' `calls.tls_ca` if not given.
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The name in its certificate; the host of its address if not given.
    #[arg(long, value_name = "NAME", requires = "tls")]
    pub(crate) tls_name: Option<String>,
}

/// How an instance is chosen for a call.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BalanceBy {
    /// Of two at random, the one with the smaller latency times calls in flight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// At random.
    Random,
    /// At random, in proportion to the weights.
    Weighted,
}

fn parse_server(text: &str) -> Result<String, String> {
    weft_sdk::server_address(text).map_err(|error| error.to_string())
}

/// A time as 5s, 500ms or 1m 30s; a bare number is seconds.
fn parse_time(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let parsed = humantime_serde::re::humantime::parse_duration(text);
    parsed.map_err(|_| "write a number and a unit, for example 5s, 500ms or 1m".to_owned())
}

/// A size as 64KiB or 1MB; a bare number is bytes.
fn parse_size(text: &str) -> Result<u32, String> {
    let size = text.parse::<bytesize::ByteSize>().ok().and_then(|size| u32::try_from(size.as_u64()).ok());
    size.ok_or_else(|| "write a number of bytes below 4 GiB, or one with a unit, for example 65536 or 64KiB".to_owned())
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "write NAME=VALUE".to_owned())
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  weft call shop.Cart                                  lists its methods
  weft call shop.Cart/Get --json '{\"id\": \"c7\"}'
  cat lines.json | weft call shop.Cart/Import --json - --header tenant=blue

The service is asked for its descriptors by gRPC reflection. Each message of the answer is printed as one line of JSON. A
failure is an object {\"code\", \"message\", \"retry\"} on stderr if --json was given: Weft's own code, or the name of the gRPC
status that the service answered with.")]
pub(crate) struct Call {
    /// SERVICE/METHOD, with the full gRPC service name; a SERVICE alone lists its methods.
    #[arg(value_name = "SERVICE/METHOD")]
    pub(crate) method: String,
    /// The message as JSON, several for a method that takes a stream; - reads one from each line of stdin. Default {}.
    #[arg(long, value_name = "JSON", num_args = 0..=1, default_missing_value = "")]
    pub(crate) json: Option<String>,
    /// Metadata of the call; the value of a name that ends with -bin is base64.
    #[arg(long = "header", value_name = "NAME=VALUE")]
    pub(crate) headers: Vec<String>,
    /// The deadline of the call.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// List the members as the answering node sees them.
    Members,
    /// Show whether all is well, what is wrong, and how many more failures the cluster bears.
    #[command(after_help = "Example:\n  weft cluster status --check --wait 60s")]
    Status {
        /// Exit with code 1 unless all is well.
        #[arg(long)]
        check: bool,
        /// Wait for so long until all is well; implies --check.
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        wait: Option<Duration>,
    },
    /// Take a node that was stopped out of the cluster for good; its replicas move to others at once. Refused while it is
    /// alive, and where it may have the last copy of a shard.
    Remove {
        /// The node's name.
        node: String,
    },
    /// List the shards with their owners and replicas.
    Shards,
    /// Hand a shard's leadership to a node that has a replica. It stays there, also after a restart of that node, until
    /// the cluster places replicas anew because nodes join or are gone for good.
    Transfer {
        /// The shard's number.
        shard: u32,
        /// The node's name.
        node: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Make a new CA: DIR/ca.pem and DIR/ca.key.
    Init {
        /// The folder.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// The cluster's name, for people.
        #[arg(long, default_value = "weft")]
        cluster: String,
    },
    /// Make a node's certificate: DIR/NAME.pem and DIR/NAME.key.
    #[command(after_help = "Example:\n  weft ca issue n1 --dir ./ca --ip 10.0.0.1")]
    Issue {
        /// The node's name.
        name: String,
        /// The folder with the CA.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// An address of the node.
        #[arg(long = "ip")]
        ips: Vec<IpAddr>,
        /// A DNS name of the node.
        #[arg(long = "dns")]
        dns: Vec<String>,
        /// For how many days from now it is good.
        #[arg(long, default_value_t = 3_650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check file, variables, flags and the files they name as `weft start` would, and tell all that is wrong.
    Check(Box<Start>),
    /// Print every key with the value that `weft start` would use.
    Show(ConfigSource),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Shard {
    /// Print what a data folder holds: groups, logs, segments.
    Dump {
        /// The data folder.
        #[arg(long)]
        dir: PathBuf,
    },
}

fn parse_start(text: &str) -> Result<weft_sdk::StartAt, String> {
    match text {
        "earliest" => Ok(weft_sdk::StartAt::Earliest),
        "now" => Ok(weft_sdk::StartAt::Now),
        offset => offset
            .parse()
            .map(weft_sdk::StartAt::Offset)
            .map_err(|_| "write `earliest`, `now` or an offset, for example 0".to_owned()),
    }
}

/// The address of a `weft dev` node's door.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port))
}
