//! The client of a command.

use std::time::Duration;

use tokio::time::Instant;
use weft_sdk::Client;

use super::failure::Failure;

/// How long the first connection, or one question, is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// A question is tried for so long in any case.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// A person is told what a command waits for after this.
const TELL_AFTER: Duration = Duration::from_secs(2);
/// Between two looks at what it waits for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Who is asked, and about which namespace.
pub(crate) struct Target {
    /// Nodes, as host:port.
    pub(crate) servers: Vec<String>,
    /// The namespace of the names on the command line.
    pub(crate) namespace: String,
}

impl Target {
    /// Connects to the first of the nodes that answers.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        self.connect_within(PATIENCE).await
    }

    /// The same for a command that waits at most so long, for this and for each answer.
    pub(crate) async fn connect_within(&self, patience: Duration) -> Result<Client, Failure> {
        connect_as(&self.namespace, patience, &self.servers).await
    }
}

/// Connects to the first of the given nodes that answers.
pub(crate) async fn connect(servers: &[String]) -> Result<Client, Failure> {
    connect_as("default", PATIENCE, servers).await
}

/// A client of nodes that may not listen yet: its questions wait for them, each at most so long.
pub(crate) fn patient(servers: &[String], patience: Duration) -> Result<Client, Failure> {
    let patience = patience.clamp(PATIENCE_MIN, PATIENCE);
    Ok(Client::builder().servers(servers.iter().cloned()).patience(patience).start()?)
}

async fn connect_as(namespace: &str, patience: Duration, servers: &[String]) -> Result<Client, Failure> {
    let patience = patience.min(PATIENCE);
    let client = Client::builder().servers(servers.iter().cloned()).namespace(namespace).patience(patience);
    let client = client.refused_at_once().start()?;
    if !super::wants_json() {
        tokio::spawn(tell_waits(client.clone()));
    }
    client.connected().await?;
    Ok(client)
}

/// Tells a person on stderr what a question waits for, once it has waited a while, and when that changes. Never ends.
async fn tell_waits(client: Client) {
    let mut since: Option<Instant> = None;
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(why) = client.waits_for() else {
            since = None;
            continue;
        };
        if since.get_or_insert_with(Instant::now).elapsed() >= TELL_AFTER && why != told {
            eprintln!("weft: waits: {why}");
            told = why;
        }
    }
}
