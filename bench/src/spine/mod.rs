//! The spine's figures: R=3, fsync before every receipt, nodes and client on one machine.

mod aims;
mod bulk;
mod consume;
mod idle;
mod kills;
mod latency;
mod single;

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use weft_e2e::cluster::Cluster;
use weft_sdk::{Client, Event};

use crate::figure::Figure;

/// Partitions of every topic.
const PARTITIONS: u32 = 8;
/// Events are spread over so many keys.
const KEYS: u64 = 10_000;
/// The links run over loopback, which carries large datagrams. The default is made for the internet's.
const NODE_VARIABLES: [(&str, &str); 1] = [("WEFT_LINK__MTU", "6000")];
/// Sizes of events, in bytes.
const EVENT_BYTES: [usize; 3] = [128, 1 << 10, 16 << 10];

/// What the command line says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each figure.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Kills.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Only the figures whose name begins so: idle, bulk, single, one, end, consume, kill; or a whole name as the
    /// table has it, for example "bulk 128 B".
    #[arg(long, default_value = "")]
    only: String,
}

/// Runs all figures: a line of JSON for each on stdout, then a table against the aims on stderr.
pub(crate) async fn run(args: Args) -> Result<()> {
    let mut cluster = Cluster::start_with(3, &NODE_VARIABLES).await?;
    let mut bench = Bench { args, figures: Vec::new() };
    let outcome = bench.all(&mut cluster).await;
    aims::print(&bench.figures);
    outcome
}

struct Bench {
    args: Args,
    figures: Vec<Figure>,
}

impl Bench {
    async fn all(&mut self, cluster: &mut Cluster) -> Result<()> {
        let time = Duration::from_secs(self.args.seconds);
        if self.wants("idle") {
            self.print(idle::idle(cluster, time).await?);
        }
        let client = Client::connect(cluster.addresses()).await.context("connect")?;
        for event_bytes in EVENT_BYTES {
            for batch_bytes in [16 << 10, 128 << 10] {
                if self.wants(&bulk::name(event_bytes, batch_bytes)) {
                    self.print(bulk::bulk(cluster, &client, event_bytes, batch_bytes, time).await?);
                }
            }
        }
        for event_bytes in EVENT_BYTES {
            for publishers in [1, 64] {
                if self.wants(&single::name(event_bytes, publishers)) {
                    self.print(single::single(cluster, &client, event_bytes, publishers, time).await?);
                }
            }
        }
        if self.wants(latency::UNARY) {
            self.print(latency::unary(cluster, &client, time).await?);
        }
        if self.wants(latency::STREAM) {
            self.print(latency::stream(cluster, &client, time).await?);
        }
        if self.wants(latency::END_TO_END) {
            self.print(latency::end_to_end(cluster, &client, time).await?);
        }
        if self.wants(consume::BULK) || self.wants(consume::ACKED) {
            let topic = consume::store(&client).await?;
            self.print(consume::bulk(cluster, &client, &topic).await?);
            self.print(consume::acked(cluster, &client, &topic, time).await?);
        }
        if self.wants(kills::NAME) && self.args.kills > 0 {
            self.print(kills::kills(cluster, self.args.kills).await?);
        }
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.args.only)
    }

    fn print(&mut self, figure: Figure) {
        println!("{}", figure.to_json());
        self.figures.push(figure);
    }
}

/// A topic of its own for a figure.
async fn topic(client: &Client, name: &str) -> Result<String> {
    client.topics().create(name, PARTITIONS).await.with_context(|| format!("create {name}"))?;
    Ok(name.to_owned())
}

/// Makes events of one size; what does not change is made once, so that the races measure Weft.
struct Events {
    keys: Vec<Bytes>,
    data: Bytes,
}

impl Events {
    fn of(event_bytes: usize) -> Events {
        let keys = (0..KEYS).map(|key| format!("key-{key}").into()).collect();
        Events { keys, data: vec![b'x'; event_bytes].into() }
    }

    fn make(&self, number: u64) -> Event {
        let key = self.keys[(number % KEYS) as usize].clone();
        Event { key, data: self.data.clone(), ..Event::default() }
    }
}

/// `16 KiB` or `128 B`.
fn size(bytes: usize) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { format!("{} KiB", bytes >> 10) }
}
