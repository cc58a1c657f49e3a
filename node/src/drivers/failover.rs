//! Fast failover: when the detector says that a leader is dead, its groups elect the survivor with the longest
//! log at once, instead of waiting for Raft's own timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_cluster::ids::{Generation, LogPosition, NodeId, RaftGroup};
use weft_proto::internal::v1::control_request::Request;
use weft_proto::internal::v1::control_response::Response;
use weft_proto::internal::v1::{DeadNotice, LogEnd, LogEnds, LogEndsAnswer};

use super::link::Verdict;
use super::raft::{Context, End, Group};

/// How long a survivor may take to say where its logs end.
const ENDS_PATIENCE: Duration = Duration::from_millis(150);
/// Tries before Raft's own timeout is left to do it.
const TRIES_MAX: u32 = 40;
/// Least time between two tries; up to as much again is added by dice.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// The survivor that should stand has this many tries before another does.
const TRIES_PER_CANDIDATE: u32 = 4;
const NOTICE_PATIENCE: Duration = Duration::from_secs(2);

/// Watches the link's verdicts for as long as the node runs.
pub(super) async fn watch(context: Arc<Context>) {
    let mut verdicts = context.links.verdicts();
    let mut known: BTreeMap<NodeId, (Generation, Verdict)> = BTreeMap::new();
    loop {
        let now = verdicts.borrow_and_update().clone();
        for (node, (generation, verdict)) in now.iter() {
            let before = known.insert(*node, (*generation, *verdict));
            let died = *verdict == Verdict::Dead && before != Some((*generation, Verdict::Dead));
            let restarted = before.is_some_and(|(last, _)| last < *generation);
            let back = *verdict == Verdict::Up && before == Some((*generation, Verdict::Dead));
            if died || restarted {
                let dead = if died { *generation } else { Generation(generation.0 - 1) };
                lost(&context, *node, dead);
            } else if back {
                led_by(&context, *node).iter().for_each(Group::unwaive);
            }
        }
        if verdicts.changed().await.is_err() {
            return;
        }
    }
}

/// The groups here whose leader, as far as this replica knows, is `node`. A replica that has heard of no leader yet
/// may be the one that should stand, so its groups count if `node` votes in them.
fn led_by(context: &Context, node: NodeId) -> Vec<Group> {
    let led = |group: &Group| match group.leadership().borrow().leader {
        Some(leader) => leader == node,
        None => group.voters().values().any(|voter| *voter == node),
    };
    context.groups().into_iter().filter(led).collect()
}

fn lost(context: &Arc<Context>, node: NodeId, generation: Generation) {
    let groups = led_by(context, node);
    tracing::info!(%node, groups = groups.len(), "a node is dead; its groups elect anew");
    groups.iter().for_each(Group::waive);
    for peer in context.links.peers() {
        if peer.id != node {
            let (context, request) =
                (context.clone(), Request::Dead(DeadNotice { node: node.0, generation: generation.0 }));
            context.tasks.clone().spawn("dead notice", async move {
                // A peer that misses it has its own detector.
                let _ = context.ask(peer.id, request, NOTICE_PATIENCE).await;
            });
        }
    }
    if !groups.is_empty() {
        let context = context.clone();
        context.tasks.clone().spawn("failover", async move { elect(&context, node, groups).await });
    }
}

/// Elects new leaders for `groups`, a few tries each.
async fn elect(context: &Arc<Context>, dead: NodeId, mut groups: Vec<Group>) {
    for attempt in 0..TRIES_MAX {
        groups.retain(|group| leaderless(group, dead) && group.votes());
        if groups.is_empty() {
            return;
        }
        let ends = survivors(context, dead, &groups).await;
        for group in &groups {
            let mine = (group.end(), context.me);
            let mut rivals: Vec<(End, NodeId)> = ends.get(&group.id()).cloned().unwrap_or_default();
            rivals.push(mine);
            rivals.sort_unstable();
            let majority = group.voters().len() / 2 + 1;
            // The best stands; if it does not win for a while, the next best that can win does.
            let turn = (attempt / TRIES_PER_CANDIDATE) as usize % rivals.len();
            let chosen = rivals[rivals.len() - 1 - turn];
            if rivals.len() >= majority && chosen == mine && leaderless(group, dead) {
                group.elect().await;
            }
        }
        sleep(RETRY_AFTER + jitter(context)).await;
    }
    tracing::warn!(%dead, groups = groups.len(), "no survivor could be elected at once; Raft's own timeout will do it");
}

/// Whether nobody has taken over yet. A candidate knows no leader at all.
fn leaderless(group: &Group, dead: NodeId) -> bool {
    group.leadership().borrow().leader.is_none_or(|leader| leader == dead)
}

fn jitter(context: &Context) -> Duration {
    let spread = u64::try_from(RETRY_AFTER.as_millis()).expect("a short time");
    Duration::from_millis(context.host.random_id() % (spread + 1))
}

/// Where the voters' logs end, by group: one request per surviving node.
async fn survivors(context: &Arc<Context>, dead: NodeId, groups: &[Group]) -> BTreeMap<RaftGroup, Vec<(End, NodeId)>> {
    let mut wanted: BTreeMap<NodeId, Vec<u64>> = BTreeMap::new();
    for group in groups {
        let nodes: BTreeSet<NodeId> = group.voters().into_values().collect();
        for node in nodes {
            if node != dead && node != context.me {
                wanted.entry(node).or_default().push(group.id().0);
            }
        }
    }
    let started = Instant::now();
    let asks = wanted.into_iter().map(|(node, groups)| async move {
        let request = Request::LogEnds(LogEnds { groups, dead: dead.0 });
        (node, context.ask(node, request, ENDS_PATIENCE).await)
    });
    let mut ends: BTreeMap<RaftGroup, Vec<(End, NodeId)>> = BTreeMap::new();
    for (node, answer) in futures::future::join_all(asks).await {
        let Ok(Response::LogEnds(answer)) = answer else { continue };
        for end in answer.ends.into_iter().filter(|end| end.voter) {
            let last = (end.term > 0 || end.index > 0).then_some(LogPosition { term: end.term, index: end.index });
            ends.entry(RaftGroup(end.group)).or_default().push((End { last, replica: end.replica_id }, node));
        }
    }
    tracing::debug!(%dead, elapsed = ?started.elapsed(), "survivors have said where their logs end");
    ends
}

/// Answers a survivor. That it asks is a hint that `dead` is dead: this node's own link is asked at once.
pub(super) fn log_ends(context: &Context, request: &LogEnds) -> LogEndsAnswer {
    context.links.doubt(NodeId(request.dead));
    let ends = request.groups.iter().filter_map(|id| {
        let group = context.group(RaftGroup(*id))?;
        let end = group.end();
        let last = end.last.unwrap_or_default();
        Some(LogEnd { group: *id, term: last.term, index: last.index, replica_id: end.replica, voter: group.votes() })
    });
    LogEndsAnswer { ends: ends.collect() }
}
