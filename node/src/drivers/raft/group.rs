//! One replica of one group: proposals, leadership, membership, purging.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{ChangeMembers, ReadPolicy, ServerState};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use weft_cluster::ids::{Epoch, LogPosition, NodeId, RaftGroup, ReplicaId};

use super::config::openraft_config;
use super::convert::position;
use super::log::Log;
use super::machine::Machine;
use super::metrics::Fenced;
use super::network::{Acked, Network};
use super::rafts::Context;
use super::types::{Command, LogId, Place, Raft, TypeConfig};
use super::{Committed, Leadership, Metrics, ProposeError, StateMachine};
use crate::drivers::storage::GroupLog;

/// How long a transfer may take; then the leader stands for election itself, because it proposes nothing meanwhile.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(2);
/// How long a leader that may not propose now takes to say so: callers that try again at once do not spin.
const REFUSAL_PAUSE: Duration = Duration::from_millis(10);
/// How long a commit waits for the replication's figures to name the majority that has it.
const FIGURES_PATIENCE: Duration = Duration::from_millis(50);
/// How long a purge waits for openraft to note that a checkpoint covers more.
const MARK_PATIENCE: Duration = Duration::from_secs(2);
/// How long a replica that stops waits for the requests that it is serving.
const SERVED_PATIENCE: Duration = Duration::from_secs(1);
/// A learner this many entries behind counts as caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;

/// One replica of a group on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    id: RaftGroup,
    replica: ReplicaId,
    me: NodeId,
    pub(super) raft: Raft,
    pub(super) machine: Machine,
    leadership: watch::Sender<Leadership>,
    /// Index of the newest durable checkpoint.
    checkpointed: watch::Sender<Option<u64>>,
    entries_kept: u64,
    /// A snapshot is on its way: another one is refused.
    pub(super) receiving: AtomicBool,
    /// The term whose leadership this replica is giving away, in which it may propose nothing more, and until when
    /// the heir may take.
    handing: watch::Sender<Option<(u64, Instant)>>,
    /// The newest term whose leader this process has heard of. What the disk remembers of a leader may be over.
    heard: watch::Sender<u64>,
    metrics: Metrics,
    fenced: Fenced,
    /// The term whose leader is known to be dead: its lease binds this voter no longer. 0: none.
    waived: AtomicU64,
    stopped: CancellationToken,
    /// Requests of peers that are being answered.
    serving: TaskTracker,
    /// Bumped on every change of a leadership on this node.
    leaderships: watch::Sender<u64>,
}

/// The last entry of a replica's log, as candidates are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::drivers) struct End {
    /// Term and index; `None` for an empty log.
    pub(in crate::drivers) last: Option<LogPosition>,
    /// Breaks ties.
    pub(in crate::drivers) replica: u64,
}

impl Group {
    /// Starts the replica whose log and state machine are given.
    pub(super) async fn start(
        context: &Context,
        id: RaftGroup,
        log: GroupLog,
        machine: Box<dyn StateMachine>,
    ) -> io::Result<Group> {
        let replica = ReplicaId(log.replica());
        let config = Arc::new(openraft_config(&context.config, id).map_err(io::Error::other)?);
        let metrics = context.metrics.clone();
        let stopped = CancellationToken::new();
        let (host, tasks) = (context.host.clone(), context.tasks.clone());
        let machine = Machine::new(host, tasks, metrics.clone(), machine, stopped.clone());
        let network = Network {
            links: context.links.clone(),
            metrics: metrics.clone(),
            group: id.0,
            from: replica.0,
            acked: Acked::default(),
        };
        let append_bytes = usize::try_from(context.config.append_bytes.as_u64()).unwrap_or(usize::MAX);
        let log = Log::new(log, append_bytes);
        let raft = Raft::build(replica.0, config, network, log, machine.clone()).await.map_err(io::Error::other)?;
        machine.started();
        let group = Group {
            inner: Arc::new(Inner {
                id,
                replica,
                me: context.me,
                raft,
                machine,
                leadership: watch::Sender::default(),
                checkpointed: watch::Sender::default(),
                entries_kept: context.config.entries_kept,
                receiving: AtomicBool::new(false),
                handing: watch::Sender::default(),
                heard: watch::Sender::default(),
                metrics,
                fenced: context.fenced.clone(),
                waived: AtomicU64::new(0),
                stopped,
                serving: TaskTracker::new(),
                leaderships: context.leaderships.clone(),
            }),
        };
        group.inner.raft.run();
        context.tasks.spawn("raft leadership", group.clone().follow(context.host.clone()));
        context.tasks.spawn("raft purge", group.clone().purge());
        Ok(group)
    }

    /// Which.
    pub fn id(&self) -> RaftGroup {
        self.inner.id
    }

    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        self.inner.replica
    }

    /// Who leads, published on change.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Proposes a command and waits until it is applied here.
    ///
    /// # Errors
    /// `NotLeader`: it was not proposed. `Unknown`: it was, and may or may not be committed.
    pub async fn propose(&self, command: Bytes) -> Result<Committed, ProposeError> {
        if self.inner.stopped.is_cancelled() {
            return Err(ProposeError::Stopped("the replica has stopped".into()));
        }
        let begun = Instant::now();
        let written = self.inner.raft.client_write(Command::wrap(&command)).await;
        self.inner.metrics.proposals.inc();
        self.inner.metrics.propose_seconds.observe(begun.elapsed().as_secs_f64());
        match written {
            Ok(response) => {
                let at = position(&response.log_id);
                let fsynced = self.fsynced(&response.log_id).await;
                Ok(Committed { at, applied: response.data.take(), fsynced })
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(self.not_leader(forward).await),
            Err(RaftError::APIError(_)) => Err(ProposeError::Unknown),
            // Whether it was taken before the core stopped cannot be told.
            Err(RaftError::Fatal(_)) => Err(ProposeError::Unknown),
        }
    }

    /// A read point: when it returns, all that was committed before the call is applied here. Never a lease.
    pub async fn read_index(&self) -> Result<LogPosition, ProposeError> {
        if self.inner.stopped.is_cancelled() {
            return Err(ProposeError::Stopped("the replica has stopped".into()));
        }
        match self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(read) => Ok(position(read.log_id())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(self.not_leader(forward).await)
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ProposeError::NotLeader(None)),
            Err(RaftError::Fatal(error)) => Err(stopped(error)),
        }
    }

    /// A checkpoint that covers `at` is durable: the log before it may be purged, save a tail for replicas
    /// that lag. Called from the replica's `Checkpointed::checkpointed`; never blocks.
    pub fn checkpointed(&self, at: LogPosition) {
        self.inner.checkpointed.send_if_modified(|index| {
            let newer = Some(at.index) > *index;
            if newer {
                *index = Some(at.index);
            }
            newer
        });
    }

    /// Hands leadership to a node that holds a voter and waits (at most 2 s) until it acts. From now on this replica
    /// does not act; if the heir does not take over, it stands for election itself, also if nobody waits here any more.
    ///
    /// # Errors
    /// `NotLeader`: this node does not lead, or `to` holds no voter. `Unknown`: it did not take over in time.
    pub async fn transfer(&self, to: NodeId) -> Result<Epoch, ProposeError> {
        let mut leadership = self.leadership();
        let before = leadership.borrow_and_update().clone();
        if before.leader != Some(self.inner.me) {
            return Err(ProposeError::NotLeader(before.leader));
        }
        if to == self.inner.me {
            return Ok(before.epoch);
        }
        let target = self.voters().into_iter().find(|(_, node)| *node == to).map(|(id, _)| id);
        let target = target.ok_or(ProposeError::NotLeader(before.leader))?;
        self.inner.handing.send_replace(Some((before.epoch.0, Instant::now() + TRANSFER_PATIENCE)));
        self.inner.raft.trigger().transfer_leader(target).await.map_err(stopped)?;
        let taken = async {
            let now = leadership.wait_for(|now| now.epoch > before.epoch && now.leader.is_some()).await;
            now.map(|now| now.clone())
        };
        match timeout(TRANSFER_PATIENCE, taken).await {
            Ok(Ok(now)) if now.leader == Some(to) => Ok(now.epoch),
            Ok(Ok(now)) => Err(ProposeError::NotLeader(now.leader)),
            Ok(Err(_)) => Err(ProposeError::Stopped("the replica has stopped".into())),
            Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// This replica's last entry.
    pub(in crate::drivers) fn end(&self) -> End {
        let last = self.inner.raft.data_metrics().borrow_watched().last_log.as_ref().map(position);
        End { last, replica: self.inner.replica.0 }
    }

    /// The last position that is applied here.
    pub(super) fn applied(&self) -> Option<LogPosition> {
        self.inner.raft.data_metrics().borrow_watched().last_applied.as_ref().map(position)
    }

    /// Whether this replica votes.
    pub(in crate::drivers) fn votes(&self) -> bool {
        !self.inner.stopped.is_cancelled() && self.voters().contains_key(&self.inner.replica.0)
    }

    /// Whether nothing has come to this replica yet, not even the membership: the first leader of its group is to send it.
    pub(in crate::drivers) fn is_blank(&self) -> bool {
        !self.inner.stopped.is_cancelled() && self.voters().is_empty()
    }

    /// Voters of the present membership (of both halves of a joint one) and their nodes.
    pub(in crate::drivers) fn voters(&self) -> BTreeMap<u64, NodeId> {
        let membership = self.inner.raft.server_metrics().borrow_watched().membership_config.clone();
        let place = |id: u64| membership.get_node(&id).map(|place| (id, place.node));
        membership.voter_ids().filter_map(place).collect()
    }

    /// All replicas of the present membership and their nodes.
    pub(in crate::drivers) fn replicas(&self) -> BTreeMap<u64, NodeId> {
        let membership = self.inner.raft.server_metrics().borrow_watched().membership_config.clone();
        membership.nodes().map(|(id, place)| (*id, place.node)).collect()
    }

    /// Whether the present membership is committed and not joint: the next change may begin.
    pub(in crate::drivers) fn settled(&self) -> bool {
        let metrics = self.inner.raft.server_metrics().borrow_watched().clone();
        metrics.membership_config == metrics.committed_membership_config
            && metrics.membership_config.get_joint_config().len() == 1
    }

    /// At the leader: whether a replica has nearly all of the log.
    pub(in crate::drivers) fn caught_up(&self, replica: u64) -> bool {
        let data = self.inner.raft.data_metrics().borrow_watched().clone();
        let last = data.last_log.as_ref().map_or(0, |id| id.index);
        let matched = data.replication.as_ref().and_then(|map| map.get(&replica).cloned()).flatten();
        matched.is_some_and(|id| id.index + CAUGHT_UP_ENTRIES >= last)
    }

    /// Whether what is committed waits for room on this node's disk.
    pub(in crate::drivers) fn paused(&self) -> bool {
        self.inner.machine.paused()
    }

    /// Whether the group has a membership here.
    pub(in crate::drivers) async fn initialized(&self) -> bool {
        self.inner.raft.is_initialized().await.unwrap_or(true)
    }

    /// Gives a new group its first membership. Safe on several replicas, if it is the same.
    pub(in crate::drivers) async fn initialize(&self, voters: &BTreeMap<u64, NodeId>) -> io::Result<()> {
        let voters: BTreeMap<u64, Place> = voters.iter().map(|(id, node)| (*id, Place { node: *node })).collect();
        match self.inner.raft.initialize(voters).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// At the leader: adds a replica that receives the log and does not vote.
    pub(in crate::drivers) async fn add_learner(&self, replica: u64, node: NodeId) -> io::Result<()> {
        self.inner.raft.add_learner(replica, Place { node }, false).await.map(drop).map_err(io::Error::other)
    }

    /// At the leader: makes these replicas, all known and caught up, the voters, through a joint membership.
    pub(in crate::drivers) async fn change_voters(&self, voters: BTreeSet<u64>) -> io::Result<()> {
        let change = ChangeMembers::ReplaceAllVoters(voters);
        self.inner.raft.change_membership(change, false).await.map(drop).map_err(io::Error::other)
    }

    /// At the leader: forgets learners.
    pub(in crate::drivers) async fn drop_learners(&self, replicas: BTreeSet<u64>) -> io::Result<()> {
        let change = ChangeMembers::RemoveNodes(replicas);
        self.inner.raft.change_membership(change, true).await.map(drop).map_err(io::Error::other)
    }

    /// Stands for election at once, without a pre-vote.
    pub(in crate::drivers) async fn elect(&self) {
        if let Err(error) = self.inner.raft.trigger().elect(false).await {
            tracing::debug!(group = %self.inner.id, %error, "cannot stand for election");
        }
    }

    /// The leader of the term that this voter is in is dead: its lease does not bind this voter any more.
    pub(in crate::drivers) fn waive(&self) {
        let vote = self.inner.raft.server_metrics().borrow_watched().vote;
        if vote.committed {
            self.inner.waived.store(vote.leader_id.term, Ordering::Release);
        }
    }

    /// The leader was not dead after all.
    pub(in crate::drivers) fn unwaive(&self) {
        self.inner.waived.store(0, Ordering::Release);
    }

    /// Whether no leader has been heard of in this process, or the one that was is known to be dead.
    pub(in crate::drivers) fn is_leaderless(&self) -> bool {
        self.inner.leadership.borrow().leader.is_none() || self.waived()
    }

    /// The leader of this term has spoken.
    pub(super) fn hear(&self, term: u64) {
        self.inner.heard.send_if_modified(|heard| {
            let newer = term > *heard;
            *heard = term.max(*heard);
            newer
        });
    }

    /// Whether the lease of this voter's present leader is waived.
    pub(in crate::drivers) fn waived(&self) -> bool {
        let vote = self.inner.raft.server_metrics().borrow_watched().vote;
        vote.committed && vote.leader_id.term == self.inner.waived.load(Ordering::Acquire)
    }

    /// To be held while a peer's request is served; none once the replica stops.
    pub(super) fn serves(&self) -> Option<TaskTrackerToken> {
        // Counted before the question: a stop that comes between the two waits for it.
        let served = self.inner.serving.token();
        (!self.inner.stopped.is_cancelled()).then_some(served)
    }

    /// Stops the replica; its data stays. Peers are refused from now on, and what they have under way is answered
    /// first (at most 1 s): a core that is gone answers nobody.
    pub(in crate::drivers) async fn stop(&self) {
        self.inner.stopped.cancel();
        self.inner.serving.close();
        if timeout(SERVED_PATIENCE, self.inner.serving.wait()).await.is_err() {
            tracing::info!(group = %self.inner.id, "stops while requests of peers are served");
        }
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(group = %self.inner.id, %error, "the replica did not stop in order");
        }
        self.withdraw();
    }

    async fn not_leader(&self, forward: ForwardToLeader<TypeConfig>) -> ProposeError {
        match forward.reason {
            ForwardReason::NotLeader => {}
            ForwardReason::LeaseExpired => {
                // Wakes a leader that has heard of no majority for a while; the caller tries again.
                let _ = self.inner.raft.trigger().heartbeat().await;
                sleep(REFUSAL_PAUSE).await;
            }
            // The refusal comes at once, and would again.
            ForwardReason::LeadershipTransfer => sleep(REFUSAL_PAUSE).await,
        }
        ProposeError::NotLeader(forward.leader_node.map(|place| place.node))
    }

    /// Nodes known to have `id` fsynced. The figures may lag behind the commit by a turn of openraft's loop.
    async fn fsynced(&self, id: &LogId) -> Vec<NodeId> {
        let replicas = self.voters();
        let mut figures = self.inner.raft.data_metrics();
        let deadline = Instant::now() + FIGURES_PATIENCE;
        loop {
            let nodes: Vec<NodeId> = {
                let data = figures.borrow_watched();
                let has = |replica: &u64| {
                    let matched = data.replication.as_ref().and_then(|map| map.get(replica));
                    matched.is_some_and(|matched| matched.as_ref() >= Some(id))
                };
                replicas.iter().filter(|(replica, _)| has(replica)).map(|(_, node)| *node).collect()
            };
            if nodes.len() * 2 > replicas.len() {
                return nodes;
            }
            match timeout_at(deadline, figures.changed()).await {
                Ok(Ok(())) => {}
                _ => return nodes,
            }
        }
    }

    /// Publishes the leadership until the replica stops or fails.
    async fn follow(self, host: Arc<dyn crate::host::Host>) {
        let mut metrics = self.inner.raft.server_metrics();
        let mut term = self.inner.machine.term();
        let mut handing = self.inner.handing.subscribe();
        let mut heard = self.inner.heard.subscribe();
        let mut stood = 0;
        loop {
            heard.borrow_and_update();
            let now = self.present(*term.borrow_and_update());
            let overdue = handing.borrow_and_update().filter(|(term, _)| *term == now.epoch.0).map(|(_, until)| until);
            self.count_election(&mut stood);
            self.publish(now);
            tokio::select! {
                biased;
                () = self.inner.stopped.cancelled() => return,
                changed = metrics.changed() => if changed.is_err() { break },
                changed = term.changed() => if changed.is_err() { break },
                _ = heard.changed() => {}
                _ = handing.changed() => {}
                () = wait_until(overdue) => {
                    let again = Instant::now() + TRANSFER_PATIENCE;
                    self.inner.handing.send_modify(|handing| {
                        if let Some((_, until)) = handing {
                            *until = again;
                        }
                    });
                    self.elect().await;
                }
            }
        }
        self.withdraw();
        if self.inner.stopped.is_cancelled() {
            return;
        }
        let state = self.inner.raft.metrics().borrow_watched().running_state.clone();
        self.inner.stopped.cancel();
        match state {
            Err(Fatal::Panicked) => {
                host.abort(&format!("the replica {} of {} failed a check", self.inner.replica, self.inner.id))
            }
            Err(error) => self.fence(&error.to_string()),
            Ok(()) => self.fence("its core ended"),
        }
    }

    /// The replica has failed while it ran, and stays so until the node starts anew.
    fn fence(&self, reason: &str) {
        tracing::error!(group = %self.inner.id, replica = %self.inner.replica, reason, "the replica has failed");
        self.inner.fenced.insert(self.inner.id, format!("the replica failed: {reason}"));
    }

    /// Counts each term in which this replica voted for itself once.
    fn count_election(&self, stood: &mut u64) {
        let vote = self.inner.raft.server_metrics().borrow_watched().vote;
        if vote.leader_id.voted_for == self.inner.replica.0 && vote.leader_id.term > *stood {
            // What it began with is an election before its start.
            if *stood > 0 || self.inner.leadership.borrow().epoch.0 > 0 {
                self.inner.metrics.elections.inc();
            }
        }
        *stood = (*stood).max(vote.leader_id.term);
    }

    /// Nobody is known to lead, and this node does not act.
    fn withdraw(&self) {
        let epoch = self.inner.leadership.borrow().epoch;
        self.publish(Leadership { epoch, leader: None, acting: false });
    }

    fn publish(&self, now: Leadership) {
        let changed = self.inner.leadership.send_if_modified(|last| {
            let changed = *last != now;
            if now.leader.is_some() && (now.leader, now.epoch) != (last.leader, last.epoch) {
                self.inner.metrics.leader_changes.inc();
            }
            self.inner.metrics.groups_led.inc_by(i64::from(now.acting) - i64::from(last.acting));
            *last = now;
            changed
        });
        if changed {
            self.inner.leaderships.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn present(&self, applied_term: u64) -> Leadership {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let place = |id: u64| metrics.membership_config.get_node(&id).map(|place| place.node);
        let term = metrics.vote.leader_id.term;
        let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(self.inner.replica.0);
        let handing = self.inner.handing.borrow().is_some_and(|(handed, _)| handed == term);
        let known = metrics.current_leader.filter(|_| leads || *self.inner.heard.borrow() == term);
        Leadership {
            epoch: Epoch(term),
            leader: known.and_then(place),
            acting: leads && metrics.vote.committed && applied_term == term && !handing,
        }
    }

    /// Purges the log behind checkpoints.
    async fn purge(self) {
        let mut checkpointed = self.inner.checkpointed.subscribe();
        let raft = &self.inner.raft;
        loop {
            tokio::select! {
                biased;
                () = self.inner.stopped.cancelled() => return,
                changed = checkpointed.changed() => if changed.is_err() { return },
            }
            let Some(covered) = *checkpointed.borrow_and_update() else { continue };
            let purged = raft.data_metrics().borrow_watched().purged.as_ref().map_or(0, |id| id.index);
            let upto = covered.min(self.slowest(covered)).saturating_sub(self.inner.entries_kept);
            if upto <= purged {
                continue;
            }
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            let mut data = raft.data_metrics();
            let deadline = Instant::now() + MARK_PATIENCE;
            while data.borrow_watched().snapshot.as_ref().is_none_or(|id| id.index < upto) {
                if !matches!(timeout_at(deadline, data.changed()).await, Ok(Ok(()))) {
                    break;
                }
            }
            let marked = data.borrow_watched().snapshot.as_ref().is_some_and(|id| id.index >= upto);
            if marked && raft.trigger().purge_log(upto).await.is_err() {
                return;
            }
        }
    }

    /// At the leader, what the slowest replica that still follows has: it is spared a snapshot, if the log
    /// it needs is not too long.
    fn slowest(&self, covered: u64) -> u64 {
        let data = self.inner.raft.data_metrics();
        let data = data.borrow_watched();
        let matched = data.replication.iter().flat_map(|map| map.values()).flatten().map(|id| id.index);
        let near = covered.saturating_sub(self.inner.entries_kept.saturating_mul(16));
        matched.filter(|index| *index >= near).min().unwrap_or(covered)
    }
}

/// The time, if there is one; never else.
async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn stopped(error: Fatal<TypeConfig>) -> ProposeError {
    ProposeError::Stopped(error.to_string())
}
