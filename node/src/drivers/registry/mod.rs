//! The registry on this node: proposes its commands, follows its log, and publishes the one view that
//! gateways read.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use weft_cluster::caller::Caller;
use weft_cluster::errors::error;
use weft_cluster::ids::{Generation, NodeId};
use weft_cluster::registry::State;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::{RegistryCommand, RegistryOutcome, WatchEntry};
use weft_proto::v1;
use weft_proto::v1::ErrorCode;

mod follow;
mod machine;
mod propose;
mod view;

pub(super) use follow::{follow, serve_watch};
pub(super) use machine::Replica;
pub(super) use propose::{read_index_here, serve as serve_propose};
pub(super) use view::compose;

use super::link::Links;
use super::raft::Group;

/// Recent entries kept for followers that resume.
const TAIL_ENTRIES_MAX: usize = 1024;

/// The registry, from any node. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    links: Links,
    me: NodeId,
    generation: Generation,
    /// The newest state that this node has: a prefix of the log.
    state: watch::Sender<Arc<State>>,
    tail: Mutex<VecDeque<WatchEntry>>,
    /// This node's replica, if it has one.
    group: watch::Sender<Option<Group>>,
    leader: watch::Sender<Option<NodeId>>,
    view: watch::Sender<Arc<ClusterView>>,
    /// What this node still waits for since its start; `None` once it has come to know its cluster, for good.
    awaited: watch::Sender<Option<String>>,
    turn: AtomicUsize,
}

impl Registry {
    pub(super) fn new(links: Links, me: NodeId, generation: Generation) -> Registry {
        let view = ClusterView {
            me,
            registry: Arc::default(),
            registry_leader: None,
            members: Default::default(),
            owners: Default::default(),
            cut_off: Default::default(),
        };
        Registry {
            inner: Arc::new(Inner {
                links,
                me,
                generation,
                state: watch::Sender::default(),
                tail: Mutex::default(),
                group: watch::Sender::default(),
                leader: watch::Sender::default(),
                view: watch::Sender::new(Arc::new(view)),
                awaited: watch::Sender::new(Some("this node has just started".into())),
                turn: AtomicUsize::new(0),
            }),
        }
    }

    /// Runs a command of `caller` at the leader, through failover, until it has an outcome or `patience` is over.
    ///
    /// # Errors
    /// The command's own refusal; `NO_OWNER` if no leader took it in time; `OUTCOME_UNKNOWN` if one took it
    /// and was lost, and running it twice would not be the same as once.
    pub async fn propose(
        &self,
        caller: &Caller,
        command: RegistryCommand,
        patience: Duration,
    ) -> Result<RegistryOutcome, v1::Error> {
        propose::propose(self, caller, command, Instant::now() + patience).await
    }

    /// This node as the one that asks.
    pub(in crate::drivers) fn own(&self) -> Caller {
        Caller::node(&self.inner.links.me().name)
    }

    /// A linearizable read: the state here, at least as new as all that was committed before the call.
    ///
    /// # Errors
    /// `NO_OWNER` if no leader with a majority answered in time.
    pub async fn read(&self, patience: Duration) -> Result<Arc<State>, v1::Error> {
        let deadline = Instant::now() + patience;
        let index = propose::read_index(self, deadline).await?;
        let mut state = self.inner.state.subscribe();
        let caught_up = state.wait_for(|state| state.applied().is_some_and(|at| at.index >= index));
        match timeout_at(deadline, caught_up).await {
            Ok(Ok(state)) => Ok(state.clone()),
            _ => Err(error(ErrorCode::NoOwner, "this node's copy of the registry is too far behind")),
        }
    }

    /// The cluster as this node knows it, published on change.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.inner.view.subscribe()
    }

    /// Waits until this node has a record of its present start in the registry, and has the registry: it may serve.
    pub async fn ready(&self) {
        let (me, generation) = (self.inner.me, self.inner.generation);
        let known = |state: &Arc<State>| state.node(me).is_some_and(|node| node.generation >= generation.0);
        let mut view = self.view();
        // The sender lives as long as this handle.
        let _ = view.wait_for(|view| known(&view.registry)).await;
    }

    /// Whether this node has come to know its cluster since its start. Until then it answers no questions about it:
    /// what it has on its disk may be old, and whom it has met may not be all.
    ///
    /// # Errors
    /// `NOT_READY`, with what it waits for.
    pub fn settled(&self) -> Result<(), v1::Error> {
        match &*self.inner.awaited.borrow() {
            None => Ok(()),
            Some(awaited) => Err(error(ErrorCode::NotReady, awaited.clone())),
        }
    }

    /// Notes what this node waits for, if it still does.
    pub(super) fn waits_for(&self, what: impl Into<String>) {
        self.inner.awaited.send_if_modified(|awaited| {
            awaited.as_mut().is_some_and(|awaited| {
                *awaited = what.into();
                true
            })
        });
    }

    /// The newest state that this node has.
    pub(super) fn state(&self) -> Arc<State> {
        self.inner.state.borrow().clone()
    }

    /// The same, published on change.
    pub(super) fn states(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.subscribe()
    }

    /// This node's replica of group 0.
    pub(super) fn group(&self) -> Option<Group> {
        self.inner.group.borrow().clone()
    }

    /// Sets or removes this node's replica.
    pub(super) fn attach(&self, group: Option<Group>) {
        self.inner.group.send_replace(group);
    }

    /// Whether this node leads the registry and may act.
    pub(super) fn acting(&self) -> bool {
        self.inner.group.borrow().as_ref().is_some_and(|group| group.leadership().borrow().acting)
    }

    /// Who leads, if known.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let group = self.inner.group.borrow().clone();
        let led = group.and_then(|group| group.leadership().borrow().leader);
        led.or(*self.inner.leader.borrow())
    }

    /// Notes who is said to lead.
    pub(super) fn hint(&self, leader: Option<NodeId>) {
        self.inner.leader.send_if_modified(|known| std::mem::replace(known, leader) != leader);
    }

    /// Publishes a state if it is newer than what is known. `entries`: those since the last, if none is left out.
    pub(super) fn publish(&self, state: &State, entries: Vec<WatchEntry>) {
        self.inner.state.send_if_modified(|known| {
            if state.applied() <= known.applied() {
                return false;
            }
            let mut tail = self.inner.tail.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in entries {
                let follows = tail.back().is_some_and(|last| last.index + 1 == entry.index);
                let seen = tail.back().is_some_and(|last| last.index >= entry.index);
                if seen {
                    continue;
                }
                if !follows {
                    tail.clear();
                }
                tail.push_back(entry);
            }
            if tail.back().map(|last| last.index) != state.applied().map(|at| at.index) {
                tail.clear();
            }
            while tail.len() > TAIL_ENTRIES_MAX {
                tail.pop_front();
            }
            *known = Arc::new(state.clone());
            true
        });
    }

    /// Entries from `from` on, or `None` if the tail does not reach back that far.
    fn entries_from(&self, from: u64) -> Option<Vec<WatchEntry>> {
        let tail = self.inner.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let first = tail.front()?.index;
        (first <= from).then(|| tail.iter().filter(|entry| entry.index >= from).cloned().collect())
    }

    /// The node to try when no leader is known: each in turn.
    fn next_peer(&self) -> Option<NodeId> {
        let state = self.state();
        let mut peers: Vec<NodeId> =
            state.registry_seats().map(|(node, _)| node).filter(|node| *node != self.inner.me).collect();
        if peers.is_empty() {
            peers = self.inner.links.peers().iter().map(|peer| peer.id).collect();
            peers.sort_unstable();
        }
        let turn = self.inner.turn.fetch_add(1, Ordering::Relaxed);
        (!peers.is_empty()).then(|| peers[turn % peers.len()])
    }
}
