//! Makes this node's replicas what the shard table says, moves replicas where this node leads, plans the table
//! where it leads the registry, and hands shards to the nodes that should lead them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use weft_cluster::ids::{NodeId, RaftGroup, ShardId};
use weft_cluster::placement::{Candidate, Sitter, next_seats, plan};
use weft_cluster::registry::State;
use weft_cluster::registry::limits::FEATURE_LEVEL;
use weft_cluster::view::{ClusterView, MemberState};
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::{
    NodeRecord, PlanSeats, PlanShards, RegistryCommand, ReplaceReplica, ReplicaRecord, ShardMoved, ShardRecord,
};

use super::raft::{Context, Group};

/// How often all is compared, beside every change of the table.
const ROUND_EVERY: Duration = Duration::from_millis(500);
/// A new group's first membership is written by the preferred node; by the others after this.
const FIRST_MEMBERSHIP_AFTER: Duration = Duration::from_secs(5);
/// How long a change of the registry may take.
const PROPOSE_PATIENCE: Duration = Duration::from_secs(5);
/// Groups handed to other nodes per round, by this node.
const HANDED_PER_ROUND: usize = 4;
/// How long a leader that is to go looks for an heir before it tries again in the next round.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);
/// A group that would not be handed over is left alone for this long.
const HAND_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// A new replica in place of one that failed is asked for again after this.
const REPLACE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Stands for a plan of the registry's seats among the groups that are busy.
const SEATS: RaftGroup = RaftGroup(u64::MAX - 1);

/// What the rounds remember.
#[derive(Default)]
struct Memory {
    /// When a new group was first seen without a membership.
    waiting: BTreeMap<RaftGroup, Instant>,
    /// When a node was first seen down.
    down: BTreeMap<NodeId, Instant>,
    /// When a group may be handed to another node again.
    handed: BTreeMap<RaftGroup, Instant>,
    /// Replicas that failed for which this process has asked for another: their ids, and when it may ask again.
    replaced: BTreeMap<RaftGroup, (u64, Instant)>,
    /// Replica ids up to this one may have been in use before the journal lost frames. Asked for once per process.
    doubtful: Option<u64>,
    /// Groups that are being changed by a task of their own.
    busy: Arc<Mutex<BTreeSet<RaftGroup>>>,
}

/// Runs for as long as the node does.
pub(super) async fn run(context: Arc<Context>) {
    let mut memory = Memory::default();
    let mut states = context.registry.states();
    let mut leaderships = context.leaderships.subscribe();
    let mut every = interval(ROUND_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            changed = states.changed() => if changed.is_err() { return },
            changed = leaderships.changed() => if changed.is_err() { return },
            _ = every.tick() => {}
        }
        let state = states.borrow_and_update().clone();
        leaderships.borrow_and_update();
        if state.cluster_id() == 0 {
            continue;
        }
        if let Err(error) = round(&context, &state, &mut memory).await {
            tracing::warn!(%error, "this node's replicas are not yet what the table says");
        }
    }
}

async fn round(context: &Arc<Context>, state: &Arc<State>, memory: &mut Memory) -> io::Result<()> {
    let view = context.registry.view().borrow().clone();
    let draining = *context.draining.borrow();
    context.tell_starts(state);
    context.fence_forgetful().await;
    fence(context, &view).await;
    heal(context, state, &view, memory).await?;
    create(context, state, memory).await?;
    initialize(context, state, memory).await;
    change(context, state, memory);
    if !draining {
        balance(context, state, &view, memory);
    }
    if context.registry.acting() {
        replan(context, state, &view, memory);
    }
    delete(context, state).await
}

/// The replica that a row gives a node: in `target`, where a failed one has its successor, or else in `replicas`.
fn replica_of(row: &ShardRecord, node: NodeId) -> Option<u64> {
    row.target.iter().chain(&row.replicas).find(|replica| replica.node == node.0).map(|replica| replica.replica_id)
}

/// The replica of a group that the registry gives this node.
fn replica_here(context: &Context, state: &State, id: RaftGroup) -> Option<u64> {
    match id.shard() {
        None => state.registry_seats().find(|(node, _)| *node == context.me).map(|(_, replica)| replica),
        Some(shard) => state.shard(shard).and_then(|row| replica_of(row, context.me)),
    }
}

/// Takes replicas out of use whose segments were found damaged, their leadership first: but only where the others can
/// go on without this one and fill its successor. Until then what is damaged is an error for its readers.
async fn fence(context: &Arc<Context>, view: &ClusterView) {
    for group in context.groups() {
        let Some(reason) = context.storage.damage(group.id()) else { continue };
        let voters = group.voters();
        let others = voters.values().filter(|node| **node != context.me && view.usable(**node)).count();
        if others * 2 <= voters.len() {
            continue;
        }
        hand_over(context, group.clone(), Instant::now() + LEAVE_PATIENCE).await;
        context.fence_group(group.id(), reason).await;
    }
}

/// Replicas here that failed a check come back under a new id, empty, and are filled by the others: a replica that may
/// have forgotten its votes must not vote again under its old id.
async fn heal(context: &Arc<Context>, state: &State, view: &ClusterView, memory: &mut Memory) -> io::Result<()> {
    for id in context.fenced_groups() {
        let Some(given) = replica_here(context, state, id) else { continue };
        // 0: of a damaged journal it is not known which replica it was.
        let had = context.storage.log(id).map(|log| log.replica()).filter(|replica| *replica != 0);
        let known = had.or(memory.replaced.get(&id).map(|(replica, _)| *replica));
        // Ids are given in order. A copy of the registry that is behind may still name one that was replaced before.
        if known.is_some_and(|known| given > known) {
            tracing::info!(group = %id, replica = given, "a new replica takes the place of the one that failed");
            context.delete_group(id).await?;
            memory.replaced.remove(&id);
        } else if known.is_none_or(|known| given == known) {
            replace(context, view, id, given, memory);
        }
    }
    Ok(())
}

/// Asks for a new replica in place of one that failed, once another node is known to lead the group without it.
fn replace(context: &Arc<Context>, view: &ClusterView, id: RaftGroup, failed: u64, memory: &mut Memory) {
    let leader = match id.shard() {
        None => context.registry.leader(),
        Some(shard) => view.owners.get(&shard).map(|owner| owner.node),
    };
    let led = leader.is_some_and(|leader| leader != context.me && view.usable(leader));
    let now = Instant::now();
    if !led || memory.replaced.get(&id).is_some_and(|(replica, again)| *replica == failed && *again > now) {
        return;
    }
    memory.replaced.insert(id, (failed, now + REPLACE_AGAIN_AFTER));
    let context = context.clone();
    context.tasks.clone().spawn("replica replacement", async move {
        propose(&context, Command::ReplaceReplica(ReplaceReplica { group: id.0, replica_id: failed })).await;
    });
}

/// Makes the replicas that this node should have. One that is fenced must not vote: `heal` sees to it.
async fn create(context: &Arc<Context>, state: &State, memory: &mut Memory) -> io::Result<()> {
    let shards = state.shards().map(|row| RaftGroup::of(ShardId(row.shard)));
    for id in std::iter::once(RaftGroup::REGISTRY).chain(shards) {
        let Some(replica) = replica_here(context, state, id) else { continue };
        if context.group(id).is_some() || context.fenced(id).is_some() {
            continue;
        }
        if context.storage.lost() && replica <= doubtful(context, memory).await? {
            let reason = "it may have been created, and have voted, in a part of the journal that is damaged";
            context.fence_group(id, reason.to_owned()).await;
            continue;
        }
        context.create_group(id, replica).await?;
    }
    Ok(())
}

/// The newest replica id that this node may have had before it lost a part of its journal: all that are given out up to
/// now, as the registry's leader knows them.
async fn doubtful(context: &Arc<Context>, memory: &mut Memory) -> io::Result<u64> {
    if let Some(newest) = memory.doubtful {
        return Ok(newest);
    }
    let state = context.registry.read(PROPOSE_PATIENCE).await.map_err(|error| io::Error::other(error.message))?;
    Ok(*memory.doubtful.insert(state.replica_id_max()))
}

/// Gives new groups their first membership.
async fn initialize(context: &Arc<Context>, state: &State, memory: &mut Memory) {
    for row in state.shards() {
        let id = RaftGroup::of(ShardId(row.shard));
        let Some(group) = context.group(id) else { continue };
        // Only the first replicas: one that comes later is given the membership by the leader.
        if !row.replicas.iter().any(|replica| replica.replica_id == group.replica().0) {
            continue;
        }
        if !group.replicas().is_empty() || group.initialized().await {
            memory.waiting.remove(&id);
            continue;
        }
        let since = *memory.waiting.entry(id).or_insert_with(Instant::now);
        if row.preferred != context.me.0 && since.elapsed() < FIRST_MEMBERSHIP_AFTER {
            continue;
        }
        let voters = nodes_of(&row.replicas);
        if let Err(error) = group.initialize(&voters).await {
            tracing::warn!(group = %id, %error, "the group's first membership was not taken");
        }
    }
}

fn nodes_of(replicas: &[ReplicaRecord]) -> BTreeMap<u64, NodeId> {
    replicas.iter().map(|replica| (replica.replica_id, NodeId(replica.node))).collect()
}

/// Moves the memberships of the groups that this node leads towards the table, a step at a time.
fn change(context: &Arc<Context>, state: &Arc<State>, memory: &Memory) {
    for group in context.groups() {
        if !group.leadership().borrow().acting {
            continue;
        }
        let wanted = match group.id().shard() {
            None => state.registry_seats().map(|(node, replica)| (replica, node)).collect(),
            Some(shard) => match state.shard(shard) {
                Some(row) if !row.target.is_empty() => nodes_of(&row.target),
                Some(row) => nodes_of(&row.replicas),
                None => continue,
            },
        };
        let moved = group.id().shard().filter(|shard| state.shard(*shard).is_some_and(|row| !row.target.is_empty()));
        let present: BTreeMap<u64, NodeId> = group.replicas();
        if wanted.is_empty() || (present == wanted && group.voters() == wanted && moved.is_none()) {
            continue;
        }
        let id = group.id();
        if !memory.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            continue;
        }
        let (context, busy) = (context.clone(), memory.busy.clone());
        context.tasks.clone().spawn("replica move", async move {
            if let Err(error) = step(&context, &group, &wanted, moved).await {
                tracing::warn!(group = %id, %error, "a step of a replica move failed; it is tried again");
            }
            busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
    }
}

/// One step: learners in, then the voters changed once they have caught up, then the table told.
async fn step(
    context: &Arc<Context>,
    group: &Group,
    wanted: &BTreeMap<u64, NodeId>,
    moved: Option<ShardId>,
) -> io::Result<()> {
    if !group.settled() {
        return Ok(());
    }
    let mine = group.replica().0;
    if wanted.iter().any(|(replica, node)| *node == context.me && *replica != mine) {
        // This replica's successor is to be on this node, which has room for one of them: another leads from here on.
        hand_over(context, group.clone(), Instant::now() + LEAVE_PATIENCE).await;
        return Ok(());
    }
    let present = group.replicas();
    if let Some((replica, node)) = wanted.iter().find(|(replica, _)| !present.contains_key(replica)) {
        tracing::info!(group = %group.id(), replica, %node, "adds a replica");
        return group.add_learner(*replica, *node).await;
    }
    let voters: BTreeSet<u64> = group.voters().into_keys().collect();
    let target: BTreeSet<u64> = wanted.keys().copied().collect();
    if voters != target {
        if !target.difference(&voters).all(|replica| group.caught_up(*replica)) {
            return Ok(());
        }
        let with_mine: BTreeSet<u64> = target.iter().copied().chain([mine]).collect();
        if !target.contains(&mine) && voters == with_mine {
            // The heir takes this replica out. A leader that took itself out would leave the group to Raft's timeout.
            hand_over(context, group.clone(), Instant::now() + LEAVE_PATIENCE).await;
            return Ok(());
        }
        tracing::info!(group = %group.id(), from = ?voters, to = ?with_mine, "changes the voters");
        return group.change_voters(with_mine).await;
    }
    let idle: BTreeSet<u64> = present.into_keys().filter(|replica| !target.contains(replica)).collect();
    if !idle.is_empty() {
        return group.drop_learners(idle).await;
    }
    if let Some(shard) = moved {
        let moved = ShardMoved { shard: shard.0, replica_ids: target.into_iter().collect() };
        propose(context, Command::ShardMoved(moved)).await;
    }
    Ok(())
}

async fn propose(context: &Context, command: Command) {
    let command = RegistryCommand { level: FEATURE_LEVEL, command: Some(command) };
    if let Err(refused) = context.registry.propose(&context.registry.own(), command, PROPOSE_PATIENCE).await {
        tracing::info!(reason = refused.message, "the registry did not take a change of the shard table");
    }
}

/// Hands groups to the nodes that should lead them, a few at a time.
fn balance(context: &Arc<Context>, state: &State, view: &ClusterView, memory: &mut Memory) {
    let now = Instant::now();
    let mut handed = 0;
    for group in context.groups().into_iter().filter(|group| group.leadership().borrow().acting) {
        let id = group.id();
        if handed >= HANDED_PER_ROUND || memory.handed.get(&id).is_some_and(|again| *again > now) {
            continue;
        }
        let Some(heir) = heir(context, state, view, &group) else { continue };
        handed += 1;
        memory.handed.insert(id, now + HAND_AGAIN_AFTER);
        context.tasks.spawn("hand-over", async move {
            if let Err(error) = group.transfer(heir).await {
                tracing::info!(group = %id, to = %heir, %error, "the group was not handed over");
            }
        });
    }
}

/// Who should lead a group in this node's stead: the preferred node, or any that has room while this node's disk is
/// full. Whoever has no room itself is given nothing.
fn heir(context: &Context, state: &State, view: &ClusterView, group: &Group) -> Option<NodeId> {
    let row = group.id().shard().and_then(|shard| state.shard(shard));
    let preferred = row.filter(|row| row.target.is_empty()).map(|row| NodeId(row.preferred));
    let full = context.storage.full();
    if preferred == Some(context.me) && !full {
        return None;
    }
    let ready = |(replica, node): &(u64, NodeId)| {
        *node != context.me && context.may_lead(view, *node) && view.has_room(*node) && group.caught_up(*replica)
    };
    let mut heirs = group.voters().into_iter().filter(ready).map(|(_, node)| node);
    if full { heirs.max_by_key(|node| Some(*node) == preferred) } else { heirs.find(|node| Some(*node) == preferred) }
}

/// For a planned stop: gives a leadership to a peer that is up and has the log, the preferred one first. One that did
/// not take it is asked again after the others.
pub(super) async fn hand_over(context: &Arc<Context>, group: Group, deadline: Instant) {
    let mut asked: BTreeMap<NodeId, u32> = BTreeMap::new();
    while group.leadership().borrow().leader == Some(context.me) && Instant::now() < deadline {
        let view = context.registry.view().borrow().clone();
        let preferred = group.id().shard().and_then(|shard| view.registry.shard(shard).map(|row| row.preferred));
        let mut heirs: Vec<NodeId> = group
            .voters()
            .into_iter()
            .filter(|(replica, node)| {
                *node != context.me && context.may_lead(&view, *node) && group.caught_up(*replica)
            })
            .map(|(_, node)| node)
            .collect();
        heirs.sort_by_key(|node| (asked.get(node).copied(), !view.has_room(*node), Some(node.0) != preferred, *node));
        let Some(heir) = heirs.first() else { return };
        *asked.entry(*heir).or_default() += 1;
        match timeout_at(deadline, group.transfer(*heir)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => tracing::info!(group = %group.id(), to = %heir, %error, "not handed over yet"),
            Err(_) => return,
        }
    }
}

/// At the registry's leader: plans the table when it is not formed, or nodes came or are gone for good.
fn replan(context: &Arc<Context>, state: &Arc<State>, view: &ClusterView, memory: &mut Memory) {
    let gone = gone(context, state, view, memory);
    seat(context, state, &gone, memory);
    let formed = state.shards().next().is_some();
    let candidates: Vec<Candidate> = state
        .nodes()
        .filter(|node| !gone.contains(&NodeId(node.id)))
        .map(|node| Candidate {
            id: NodeId(node.id),
            zone: node.zone.clone(),
            weight: node.weight.max(1),
            available: true,
        })
        .collect();
    // The first plan waits until every founder is there: all its groups need a majority at once.
    let absent = candidates.iter().any(|candidate| memory.down.contains_key(&candidate.id));
    if candidates.is_empty() || (!formed && absent) {
        return;
    }
    let shards = plan(state.shards(), &candidates, state.shards_total(), state.replication());
    if shards.is_empty() {
        return;
    }
    let busy = memory.busy.clone();
    // The registry's own mark stands for the plan: one at a time.
    let mark = RaftGroup(u64::MAX);
    if !busy.lock().unwrap_or_else(PoisonError::into_inner).insert(mark) {
        return;
    }
    tracing::info!(rows = shards.len(), "plans the shard table");
    let command = Command::PlanShards(PlanShards { base_version: state.shards_version(), shards });
    let context = context.clone();
    context.tasks.clone().spawn("shard plan", async move {
        propose(&context, command).await;
        busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&mark);
    });
}

/// The nodes that have been away for too long to be waited for.
fn gone(context: &Context, state: &State, view: &ClusterView, memory: &mut Memory) -> BTreeSet<NodeId> {
    let now = Instant::now();
    let mut gone = BTreeSet::new();
    for id in state.nodes().map(|node| NodeId(node.id)) {
        let up = id == context.me
            || view.members.get(&id).is_some_and(|m| matches!(m.state, MemberState::Alive | MemberState::Suspect));
        if up {
            memory.down.remove(&id);
            continue;
        }
        let since = *memory.down.entry(id).or_insert(now);
        if now.duration_since(since) > context.config.forget_after {
            gone.insert(id);
        }
    }
    gone
}

/// Lets the registry's voters follow the nodes, one change at a time: the next comes when the group has made the last.
fn seat(context: &Arc<Context>, state: &State, gone: &BTreeSet<NodeId>, memory: &Memory) {
    let Some(group) = context.group(RaftGroup::REGISTRY).filter(Group::settled) else { return };
    let seats: BTreeMap<u64, NodeId> = state.registry_seats().map(|(node, replica)| (replica, node)).collect();
    // A node that is away and may come back takes no seat.
    let away = |id: &NodeId| memory.down.contains_key(id);
    let sitter = |node: &NodeRecord| {
        let (id, seated) = (NodeId(node.id), node.registry_replica_id != 0);
        let gone = if seated { gone.contains(&id) } else { away(&id) };
        Sitter { id, zone: node.zone.clone(), seated, gone }
    };
    let nodes: Vec<Sitter> = state.nodes().map(sitter).collect();
    let next = next_seats(&nodes, context.config.registry_voters_max as usize);
    let (voters, replicas) = (group.voters(), group.replicas());
    // One that is gone before it came to vote would hold up all that come after it.
    let made = seats.iter().all(|(replica, node)| voters.get(replica) == Some(node) || gone.contains(node))
        && replicas.keys().all(|replica| seats.contains_key(replica));
    let Some(next) = next.filter(|_| made) else { return };
    if !memory.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(SEATS) {
        return;
    }
    let present = seats.into_values().map(|node| node.0).collect();
    let command = PlanSeats { present, nodes: next.iter().map(|node| node.0).collect() };
    tracing::info!(from = ?command.present, to = ?command.nodes, "changes the registry's voters");
    let (context, busy) = (context.clone(), memory.busy.clone());
    context.tasks.clone().spawn("seat plan", async move {
        propose(&context, Command::PlanSeats(command)).await;
        busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&SEATS);
    });
}

/// Removes replicas that the table no longer has here. A copy of the table may be old, so it is read anew.
async fn delete(context: &Arc<Context>, state: &State) -> io::Result<()> {
    let stale = |state: &State, group: &Group| {
        let known = group.id().shard().is_none_or(|shard| state.shard(shard).is_some());
        known && replica_here(context, state, group.id()) != Some(group.replica().0)
    };
    let doubtful: Vec<Group> = context.groups().into_iter().filter(|group| stale(state, group)).collect();
    if doubtful.is_empty() {
        return Ok(());
    }
    let Ok(state) = context.registry.read(PROPOSE_PATIENCE).await else { return Ok(()) };
    for group in doubtful.into_iter().filter(|group| stale(&state, group)) {
        // As long as its own group counts it in, it stays: the move is not over.
        let counted = group.voters().get(&group.replica().0) == Some(&context.me) && group.leadership().borrow().acting;
        if counted {
            continue;
        }
        tracing::info!(group = %group.id(), replica = %group.replica(), "removes a replica that has moved away");
        context.delete_group(group.id()).await?;
    }
    Ok(())
}
