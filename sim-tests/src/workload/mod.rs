//! The clients: publishers, a group of consumers, observers, registry writers and an auditor, all on one host, all
//! writing down what they ask and are told.

mod audit;
pub mod calls;
mod consume;
mod gauges;
mod publish;
mod registry;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use tokio::sync::watch;
use weft_sdk::{Client, Connector, Event, StartAt};

use crate::history::{History, Place, What};
use crate::plan::{Habits, Plan};

/// The topic of the events.
pub const TOPIC: &str = "events";
/// Distinct keys: few, so that events of one key meet.
const KEYS: u64 = 12;
/// Between tries of what must succeed in the end.
const AGAIN: Duration = Duration::from_millis(200);

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The cluster is being founded.
    Found,
    /// Clients work, faults happen.
    Storm,
    /// No more faults and no new events: all that is stored must reach the group.
    Drain,
    /// The final log is read.
    Read,
    /// All is written down.
    Done,
}

/// What all clients share.
#[derive(Clone)]
pub struct Shared {
    /// What happened.
    pub history: History,
    /// Set by the harness and by the clients' conductor.
    pub phase: watch::Sender<Phase>,
    servers: Vec<String>,
    instances: Vec<IpAddr>,
    one_home: bool,
    producers: u64,
    gauges: bool,
    seed: u64,
    habits: Habits,
    next_id: Arc<AtomicU64>,
    /// Publishes and calls that have no outcome yet.
    open: Arc<AtomicU64>,
}

impl Shared {
    /// For a run of `plan` against nodes at `servers`, with instances of the service to call at `instances`.
    pub fn new(plan: &Plan, servers: Vec<String>, instances: Vec<IpAddr>, history: History) -> Shared {
        let phase = watch::Sender::new(Phase::Found);
        let Plan { seed, group: habits, one_home, producers, gauges, .. } = *plan;
        let (next_id, open) = (Arc::default(), Arc::default());
        Shared { history, phase, servers, instances, one_home, producers, gauges, seed, habits, next_id, open }
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Dice of one client.
    fn dice(&self, client: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(1000) + client)
    }

    /// A connection that begins with node `first`, and goes on with others unless `pinned`.
    async fn connect(&self, first: usize, pinned: bool, patience: Duration) -> Result<Client, weft_sdk::Error> {
        let mut servers = self.servers.clone();
        servers.rotate_left(first % self.servers.len());
        servers.truncate(if pinned { 1 } else { servers.len() });
        let connector = Connector::new(|address: String| async move {
            crate::net::connect(None, crate::host::resolve(&address)?).await
        });
        Client::builder()
            .servers(servers)
            .connector(connector)
            .seed(self.seed ^ first as u64)
            .clock(|| turmoil::since_epoch().unwrap_or_default().as_millis() as i64)
            .patience(patience)
            .keep_alive(Duration::from_secs(1))
            .connect()
            .await
    }

    /// A connection that begins with node `first`, and goes on with others; waits for one.
    pub async fn connect_surely(&self, first: usize) -> Client {
        for turn in 0.. {
            if let Ok(client) = self.connect(first + turn, false, Duration::from_secs(2)).await {
                return client;
            }
            tokio::time::sleep(AGAIN).await;
        }
        unreachable!("the loop has no end")
    }
}

/// The event with the number `id`; its data follow from the number.
fn event(id: u64, dice: &mut StdRng) -> Event {
    let key = format!("k{}", dice.random_range(0..KEYS));
    let mut event = weft_sdk::event(key, data(id));
    event.id = id.to_string();
    event
}

fn data(id: u64) -> Vec<u8> {
    let mut dice = StdRng::seed_from_u64(id);
    let count = dice.random_range(8..400);
    (0..count).map(|_| dice.random()).collect()
}

/// Number and key of an event that came back, and whether it is what was published.
fn identify(event: &Event) -> (u64, String, bool) {
    let id: Option<u64> = event.id.parse().ok();
    let intact = id.is_some_and(|id| data(id) == event.data);
    (id.unwrap_or(u64::MAX), String::from_utf8_lossy(&event.key).into_owned(), intact)
}

/// Runs all clients through all phases; the harness moves on from `Storm` to `Drain`.
pub async fn conduct(shared: Shared, partitions: u32) -> Result<()> {
    let client = shared.connect_surely(0).await;
    while let Err(error) = client.topics().create(TOPIC, partitions).await {
        if error.code() == weft_sdk::ErrorCode::TopicExists {
            break;
        }
        tokio::time::sleep(AGAIN).await;
    }
    shared.phase.send_replace(Phase::Storm);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..shared.producers {
        tasks.spawn(publish::idempotent(shared.clone(), number as usize));
    }
    tasks.spawn(publish::plain(shared.clone(), 2));
    for number in 0..3 {
        tasks.spawn(consume::consumer(shared.clone(), number));
    }
    tasks.spawn(consume::observer(shared.clone(), 0));
    for number in 0..2 {
        tasks.spawn(registry::writer(shared.clone(), number));
    }
    tasks.spawn(calls::register(shared.clone(), shared.instances.clone()));
    for number in 0..2 {
        tasks.spawn(calls::caller(shared.clone(), number));
    }
    for node in 0..shared.servers.len() {
        tasks.spawn(audit::auditor(shared.clone(), node));
        if shared.gauges {
            tasks.spawn(gauges::watcher(shared.clone(), node));
        }
    }
    let mut phase = shared.phase.subscribe();
    phase.wait_for(|phase| *phase >= Phase::Read).await.context("the harness goes on")?;
    tasks.shutdown().await;
    drop(client);
    read_final(&shared).await?;
    shared.phase.send_replace(Phase::Done);
    Ok(())
}

/// Waits, in `Drain`, until every publish has its outcome and the group has acked all that is stored; then the log
/// may be read. The owners' cursors decide, since an ack may be committed although its consumer was told otherwise.
pub async fn drained(shared: Shared) {
    while shared.open.load(Ordering::Relaxed) > 0 || !matches!(group_is_done(&shared).await, Ok(true)) {
        tokio::time::sleep(AGAIN * 5).await;
    }
    shared.phase.send_replace(Phase::Read);
}

async fn group_is_done(shared: &Shared) -> Result<bool, weft_sdk::Error> {
    let client = shared.connect(1, false, Duration::from_secs(5)).await?;
    let topic = client.topics().describe(TOPIC).await?;
    let cursors = topic.groups.iter().find(|group| group.name == consume::GROUP).map(|group| &group.cursors);
    Ok(cursors
        .is_some_and(|cursors| cursors.len() == topic.partitions.len() && cursors.iter().all(|cursor| cursor.lag == 0)))
}

type Stored = Vec<(Place, (u64, Event))>;

/// The whole log, from the owners.
async fn stored(shared: &Shared) -> Result<Stored, weft_sdk::Error> {
    let client = shared.connect(1, false, Duration::from_secs(5)).await?;
    let mut observer = client.subscriber(TOPIC).start(StartAt::Earliest).until_end().observe().await?;
    let mut stored = Stored::new();
    while let Some(observed) = observer.next().await? {
        stored.push(((observed.partition, observed.offset), (observed.epoch, observed.event()?)));
    }
    stored.sort_by_key(|(place, _)| *place);
    Ok(stored)
}

async fn read_final(shared: &Shared) -> Result<()> {
    let stored = loop {
        match stored(shared).await {
            Ok(stored) => break stored,
            Err(error) => tracing::warn!(%error, "read the final log again"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    for ((partition, offset), (epoch, event)) in stored {
        let (id, key, intact) = identify(&event);
        shared.history.add("reader", What::Final { partition, offset, epoch, id, key, intact });
    }
    Ok(())
}
