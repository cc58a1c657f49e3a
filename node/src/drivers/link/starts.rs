//! Which start of each node was met last: a node whose data folder is an older copy of itself is let in nowhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use weft_cluster::ids::{NodeId, Start};

use super::peers::{Refusal, code, lock};
use super::{Inner, Peer};
use crate::host::Promise;

/// The newest start that was met of each node.
pub type Starts = BTreeMap<NodeId, Start>;

/// Writes what is known to this node's own disk; resolves when it is there, or cannot be.
pub type KeepStarts = Arc<dyn Fn(Starts) -> Promise<'static, ()> + Send + Sync>;

/// What this node knows of starts: from links, from the registry, and from its disk.
pub(super) struct Ledger {
    known: Mutex<Starts>,
    keep: Mutex<Option<KeepStarts>>,
    /// What a peer says that has met a newer start of this node.
    over: watch::Sender<Option<String>>,
}

impl Ledger {
    pub(super) fn new() -> Ledger {
        Ledger { known: Mutex::default(), keep: Mutex::default(), over: watch::Sender::new(None) }
    }

    /// A peer says that this node's start is over.
    pub(super) fn over(&self, reason: &str) {
        self.over.send_replace(Some(reason.to_owned()));
    }

    /// Resolves when a peer has said so, with its words.
    pub(super) async fn is_over(&self) -> String {
        let mut over = self.over.subscribe();
        let said = over.wait_for(Option::is_some).await.expect("the sender is borrowed").clone();
        said.unwrap_or_default()
    }

    fn keeper(&self) -> Option<KeepStarts> {
        lock(&self.keep).clone()
    }
}

impl Inner {
    /// Lets a peer in unless a newer start of it is known. What is new is on the disk before the peer is answered: it may
    /// be that only this node can tell later.
    pub(super) async fn admit(&self, peer: &Peer) -> Result<(), Refusal> {
        let start = peer.begun();
        let news = {
            let mut known = lock(&self.ledger.known);
            match known.get(&peer.id) {
                Some(met) if start.is_old(*met) => return Err(old(start, *met)),
                Some(met) if *met == start => None,
                _ => {
                    known.insert(peer.id, start);
                    Some(known.clone())
                }
            }
        };
        if let (Some(starts), Some(keep)) = (news, self.ledger.keeper()) {
            keep(starts).await;
        }
        Ok(())
    }

    /// Takes what the disk remembers, and from now on writes there what is new.
    pub(super) fn remember(self: &Arc<Self>, starts: Starts, keep: KeepStarts) {
        *lock(&self.ledger.keep) = Some(keep);
        self.met(starts);
    }

    /// Takes what others have met. Links to peers whose start is over end.
    pub(super) fn met(self: &Arc<Self>, starts: impl IntoIterator<Item = (NodeId, Start)>) {
        let (newer, all) = {
            let mut known = lock(&self.ledger.known);
            let mut newer = Vec::new();
            for (node, start) in starts {
                // Of one generation the start that was met first is the one.
                if known.get(&node).is_none_or(|met| met.generation < start.generation) {
                    known.insert(node, start);
                    newer.push((node, start));
                }
            }
            if newer.is_empty() {
                return;
            }
            (newer, known.clone())
        };
        for (node, start) in newer {
            let link = self.slot(node).and_then(|slot| slot.current());
            if let Some(link) = link.filter(|link| link.peer.begun().is_old(start)) {
                link.connection.close(code::OLD, old(link.peer.begun(), start).reason().as_bytes());
            }
        }
        if let Some(keep) = self.ledger.keeper() {
            self.tasks.spawn("link starts", async move { keep(all).await });
        }
    }

    /// A node that has left for good is not remembered.
    pub(super) fn forget_start(&self, node: NodeId) {
        lock(&self.ledger.known).remove(&node);
    }
}

fn old(start: Start, met: Start) -> Refusal {
    let (mine, known) = (start.generation, met.generation);
    Refusal::Old(match mine == known {
        true => format!("another start {mine} of it was here before"),
        false => format!("its start {known} was here before, this is start {mine}"),
    })
}
