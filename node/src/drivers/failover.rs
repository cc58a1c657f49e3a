//! Fast failover: groups without a leader elect the survivor with the longest log at once, instead of waiting for
//! Raft's own timeout. A group is without one when the detector says that its leader is dead, or when no replica has
//! heard of a leader since its process began, as after a power loss of all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use weft_cluster::ids::{Generation, LogPosition, NodeId, RaftGroup};
use weft_proto::internal::v1::control_request::Request;
use weft_proto::internal::v1::control_response::Response;
use weft_proto::internal::v1::{DeadNotice, LogEnd, LogEnds, LogEndsAnswer};

use super::link::Verdict;
use super::raft::{Context, End, Group};

/// How long a survivor may take to say where its logs end.
const ENDS_PATIENCE: Duration = Duration::from_millis(150);
/// A group that nobody is known to have lost gets this long to show its leader: an election may be under way, and a
/// leader may be about to be heard.
const SILENCE_MAX: Duration = Duration::from_millis(500);
/// Tries in quick succession; what a group needs then will not come by haste, for example the rest of its majority.
const QUICK_TRIES: u32 = 40;
/// Least time between two of them; up to as much again is added by dice, and the time that the last try took.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// The same for later tries.
const RETRY_SLOWLY_AFTER: Duration = Duration::from_secs(1);
/// The survivor that should stand has this many tries before another does.
const TRIES_PER_CANDIDATE: u32 = 4;
const NOTICE_PATIENCE: Duration = Duration::from_secs(2);

/// Runs for as long as the node does.
pub(super) async fn run(context: Arc<Context>) {
    let deaths = watch::Sender::new(());
    let stands = stand(&context, deaths.subscribe());
    tokio::join!(follow(&context, &deaths), stands);
}

/// Watches the link's verdicts: a dead leader's lease binds its voters no longer.
async fn follow(context: &Arc<Context>, deaths: &watch::Sender<()>) {
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
                lost(context, *node, dead);
                deaths.send_replace(());
            } else if back {
                led_by(context, *node).iter().for_each(Group::unwaive);
            }
        }
        if verdicts.changed().await.is_err() {
            return;
        }
    }
}

/// The groups here whose leader, as far as this replica knows, is `node`.
fn led_by(context: &Context, node: NodeId) -> Vec<Group> {
    context.groups().into_iter().filter(|group| group.leadership().borrow().leader == Some(node)).collect()
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
}

/// What is remembered of a group here that has no leader.
struct Orphan {
    tries: u32,
    due: Instant,
}

/// Elects leaders for the groups that have none.
async fn stand(context: &Arc<Context>, mut deaths: watch::Receiver<()>) {
    let mut leaderships = context.leaderships.subscribe();
    let mut orphans: BTreeMap<RaftGroup, Orphan> = BTreeMap::new();
    loop {
        leaderships.borrow_and_update();
        let groups = leaderless(context, &mut orphans);
        let due = orphans.values().map(|orphan| orphan.due).min();
        if due.is_some_and(|due| due <= Instant::now()) {
            tokio::select! {
                biased;
                // More groups may be concerned, and fewer peers need to be asked.
                changed = deaths.changed() => if changed.is_err() { return } else { make_due(&mut orphans) },
                () = round(context, &groups, &mut orphans) => {}
            }
            continue;
        }
        tokio::select! {
            biased;
            changed = deaths.changed() => if changed.is_err() { return } else { make_due(&mut orphans) },
            changed = leaderships.changed() => if changed.is_err() { return },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

/// A node is dead: whoever knows no leader may have lost its own.
fn make_due(orphans: &mut BTreeMap<RaftGroup, Orphan>) {
    let now = Instant::now();
    orphans.values_mut().for_each(|orphan| *orphan = Orphan { tries: 0, due: now });
}

/// The groups in which this node votes and that have no leader.
fn leaderless(context: &Context, orphans: &mut BTreeMap<RaftGroup, Orphan>) -> Vec<Group> {
    let groups: Vec<Group> =
        context.groups().into_iter().filter(|group| group.votes() && group.is_leaderless()).collect();
    let now = Instant::now();
    let mut of = |group: &Group| {
        orphans
            .remove(&group.id())
            .unwrap_or(Orphan { tries: 0, due: if group.waived() { now } else { now + SILENCE_MAX } })
    };
    *orphans = groups.iter().map(|group| (group.id(), of(group))).collect();
    groups
}

/// One try for all of them.
async fn round(context: &Arc<Context>, groups: &[Group], orphans: &mut BTreeMap<RaftGroup, Orphan>) {
    let begun = Instant::now();
    let ends = survivors(context, groups).await;
    let took = begun.elapsed();
    for group in groups {
        let Some(orphan) = orphans.get_mut(&group.id()) else { continue };
        let mine = (group.end(), context.me);
        let mut rivals: Vec<(End, NodeId)> = ends.get(&group.id()).cloned().unwrap_or_default();
        rivals.push(mine);
        rivals.sort_unstable();
        let majority = group.voters().len() / 2 + 1;
        // The best stands; if it does not win for a while, the next best that can win does.
        let turn = (orphan.tries / TRIES_PER_CANDIDATE) as usize % rivals.len();
        let chosen = rivals[rivals.len() - 1 - turn];
        if rivals.len() >= majority && chosen == mine && group.is_leaderless() {
            group.elect().await;
        }
        let pause = if orphan.tries < QUICK_TRIES { RETRY_AFTER } else { RETRY_SLOWLY_AFTER };
        orphan.tries = orphan.tries.saturating_add(1);
        orphan.due = Instant::now() + took + pause + jitter(context, pause);
    }
}

fn jitter(context: &Context, most: Duration) -> Duration {
    let spread = u64::try_from(most.as_millis()).expect("a short time");
    Duration::from_millis(context.host.random_id() % (spread + 1))
}

/// Where the logs of the voters that have no leader either end, by group: one request per node.
async fn survivors(context: &Arc<Context>, groups: &[Group]) -> BTreeMap<RaftGroup, Vec<(End, NodeId)>> {
    let mut wanted: BTreeMap<NodeId, Vec<u64>> = BTreeMap::new();
    for group in groups {
        let nodes: BTreeSet<NodeId> = group.voters().into_values().collect();
        for node in nodes.into_iter().filter(|node| *node != context.me) {
            wanted.entry(node).or_default().push(group.id().0);
        }
    }
    let verdicts = context.links.verdicts().borrow().clone();
    let dead = |node: &NodeId| verdicts.get(node).is_some_and(|(_, verdict)| *verdict == Verdict::Dead);
    let asks = wanted.into_iter().filter(|(node, _)| !dead(node)).map(|(node, groups)| async move {
        (node, context.ask(node, Request::LogEnds(LogEnds { groups }), ENDS_PATIENCE).await)
    });
    let mut ends: BTreeMap<RaftGroup, Vec<(End, NodeId)>> = BTreeMap::new();
    for (node, answer) in futures::future::join_all(asks).await {
        let Ok(Response::LogEnds(answer)) = answer else { continue };
        for end in answer.ends.into_iter().filter(|end| end.voter && !end.led) {
            let last = (end.term > 0 || end.index > 0).then_some(LogPosition { term: end.term, index: end.index });
            ends.entry(RaftGroup(end.group)).or_default().push((End { last, replica: end.replica_id }, node));
        }
    }
    ends
}

/// Answers a survivor.
pub(super) fn log_ends(context: &Context, request: &LogEnds) -> LogEndsAnswer {
    let ends = request.groups.iter().filter_map(|id| {
        let group = context.group(RaftGroup(*id))?;
        let end = group.end();
        let LogPosition { term, index } = end.last.unwrap_or_default();
        // A blank one grants its vote, too. If the first leader died before it had sent anything there, the group has no
        // majority without it; who asks knows that it is a voter.
        let (voter, led) = (group.votes() || group.is_blank(), !group.is_leaderless());
        Some(LogEnd { group: *id, term, index, replica_id: end.replica, voter, led })
    });
    LogEndsAnswer { ends: ends.collect() }
}
