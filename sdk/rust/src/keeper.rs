//! Keeps one connection up: tries the nodes in turn, follows the membership, and moves on when one fails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tonic::Streaming;
use tonic::transport::Channel;
use weft_proto::v1::cluster_client::ClusterClient;
use weft_proto::v1::{Member, MemberState, WatchMembersRequest, WatchMembersResponse};

use crate::client::jittered;
use crate::connect::{self, Connector, Patience};
use crate::error::Error;

/// First and longest pause after all known nodes were tried without success.
const ROUND_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// At most this many learned addresses are kept.
const LEARNED_MAX: usize = 256;

/// A connection that is up.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Counts connections of this client.
    pub(crate) id: u64,
    /// `host:port`.
    pub(crate) address: Arc<str>,
    pub(crate) channel: Channel,
}

/// What the keeper publishes.
#[derive(Clone)]
pub(crate) enum Link {
    /// Looking for a node; the last failure.
    Down(Option<Error>),
    /// The same, and nothing listens at any address that is known.
    Refused(Error),
    Up(Connection),
}

/// Starts the keeper's task; it ends when the last sender of the returned channel drops. Send a connection's
/// id there when it is of no more use.
pub(crate) fn spawn(
    servers: Vec<String>,
    connector: Connector,
    patience: Patience,
    dice: StdRng,
) -> (watch::Receiver<Link>, mpsc::Sender<u64>) {
    let (publish, link) = watch::channel(Link::Down(None));
    let (failed_send, failed) = mpsc::channel(4);
    let nodes = Nodes::new(servers);
    let keeper = Keeper { nodes, connector, patience, dice, publish, failed, connections: 0, tries: 0, refused: true };
    tokio::spawn(keeper.run());
    (link, failed_send)
}

struct Keeper {
    nodes: Nodes,
    connector: Connector,
    patience: Patience,
    dice: StdRng,
    publish: watch::Sender<Link>,
    failed: mpsc::Receiver<u64>,
    connections: u64,
    tries: u32,
    /// Nothing has listened at any address of this round so far.
    refused: bool,
}

type Watch = Option<Streaming<WatchMembersResponse>>;

impl Keeper {
    async fn run(mut self) {
        while !self.failed.is_closed() {
            let address = self.nodes.next();
            let error = match self.connect(&address).await {
                Ok((channel, watch)) => self.hold(address, channel, watch).await,
                Err(error) => error,
            };
            tracing::debug!(%error, "looking for another node");
            let refusal = connect::is_refusal(&error).then(|| error.clone());
            self.refused = refusal.is_some() && self.refused;
            self.publish.send_replace(Link::Down(Some(error)));
            if self.nodes.round_over() {
                if let Some(error) = refusal.filter(|_| self.refused) {
                    self.publish.send_replace(Link::Refused(error));
                }
                self.refused = true;
                let pause = jittered(&mut self.dice, ROUND_PAUSE, self.tries);
                self.tries += 1;
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Connects, and has the node answer one request: a process that hangs accepts connections too.
    async fn connect(&self, address: &str) -> Result<(Channel, Watch), Error> {
        let channel = connect::open(&self.connector, address, self.patience).await?;
        let mut cluster = ClusterClient::new(channel.clone());
        match tokio::time::timeout(self.patience.connect, cluster.watch_members(WatchMembersRequest {})).await {
            Ok(Ok(watch)) => Ok((channel, Some(watch.into_inner()))),
            // A door that does not tell the membership is good enough for all else.
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => Ok((channel, None)),
            // No status of a node, but of the connection: its cause says more.
            Ok(Err(status)) if std::error::Error::source(&status).is_some() => {
                Err(Error::Unreachable(connect::explain(address, &status).into()))
            }
            Ok(Err(status)) => Err(Error::Unreachable(format!("{address}: {}", Error::from(status)).into())),
            Err(_) => Err(Error::Unreachable(format!("{address}: no answer in time").into())),
        }
    }

    /// Publishes a connection until it fails or the client is dropped.
    async fn hold(&mut self, address: String, channel: Channel, mut watch: Watch) -> Error {
        self.connections += 1;
        self.tries = 0;
        self.nodes.reset_round();
        let id = self.connections;
        tracing::debug!(address, id, "connected");
        self.publish.send_replace(Link::Up(Connection { id, address: address.as_str().into(), channel }));
        loop {
            tokio::select! {
                biased;
                failed = self.failed.recv() => match failed {
                    Some(failed) if failed == id => return Error::Lost(format!("{address}: given up").into()),
                    Some(_) => {}
                    None => return Error::Closed,
                },
                members = next(&mut watch) => match members {
                    Ok(Some(update)) => self.nodes.learn(&update.members),
                    Ok(None) => return Error::Lost(format!("{address}: the node ends the connection").into()),
                    Err(status) => return Error::Lost(format!("{address}: {}", Error::from(status)).into()),
                },
            }
        }
    }
}

/// The next news of the membership; never, if the node does not tell.
async fn next(watch: &mut Watch) -> Result<Option<WatchMembersResponse>, tonic::Status> {
    match watch {
        Some(watch) => watch.message().await,
        None => std::future::pending().await,
    }
}

/// The addresses to try, in turn: those given, then those learned.
struct Nodes {
    given: Vec<String>,
    learned: Vec<String>,
    /// The place of the next one to try.
    next: usize,
    /// How many were tried since the last success.
    tried: usize,
}

impl Nodes {
    fn new(given: Vec<String>) -> Nodes {
        Nodes { given, learned: Vec::new(), next: 0, tried: 0 }
    }

    fn next(&mut self) -> String {
        let count = self.given.len() + self.learned.len();
        let place = self.next % count;
        self.next = place + 1;
        self.tried += 1;
        let learned = place.checked_sub(self.given.len());
        learned.map_or_else(|| self.given[place].clone(), |place| self.learned[place].clone())
    }

    /// True when every address was tried since the last success or round.
    fn round_over(&mut self) -> bool {
        let over = self.tried >= self.given.len() + self.learned.len();
        if over {
            self.tried = 0;
        }
        over
    }

    fn reset_round(&mut self) {
        self.tried = 0;
    }

    /// Takes the client addresses of live members; those given stay, first.
    fn learn(&mut self, members: &[Member]) {
        let given: BTreeSet<&String> = self.given.iter().collect();
        let alive = |member: &&Member| member.state() == MemberState::Alive && !member.client_address.is_empty();
        let learned = members.iter().filter(alive).map(|member| &member.client_address);
        let learned = learned.filter(|address| !given.contains(address)).take(LEARNED_MAX).cloned().collect();
        self.learned = learned;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_tried_in_turn_and_learned_ones_after_those_given() {
        let mut nodes = Nodes::new(vec!["a:1".into(), "b:1".into()]);
        assert_eq!(nodes.next(), "a:1");
        assert!(!nodes.round_over());
        assert_eq!(nodes.next(), "b:1");
        assert!(nodes.round_over());
        let member = |address: &str, state: MemberState| Member {
            client_address: address.into(),
            state: state.into(),
            ..Member::default()
        };
        nodes.learn(&[
            member("b:1", MemberState::Alive),
            member("c:1", MemberState::Alive),
            member("d:1", MemberState::Down),
        ]);
        let tried: Vec<String> = (0..4).map(|_| nodes.next()).collect();
        assert_eq!(tried, ["c:1", "a:1", "b:1", "c:1"]);
    }
}
