//! How a node becomes part of a cluster: founds it with all the expected empty nodes, or joins.
//!
//! The founder writes group 0's first membership to its journal before it takes a cluster id, and takes the id
//! before it tells anybody. So after a crash at any point it either forgets a cluster that nobody knows of,
//! or goes on with what it began; `Found` is sent until the registry is there, and hearing it twice does nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use weft_cluster::errors::error;
use weft_cluster::ids::{NodeId, RaftGroup};
use weft_cluster::registry::limits::FEATURE_LEVEL;
use weft_proto::internal::v1::control_request::Request;
use weft_proto::internal::v1::control_response::Response;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::{Bootstrap, Found, NodeRecord, Probe, ProbeAnswer, RegisterNode, RegistryCommand};
use weft_proto::v1;
use weft_proto::v1::ErrorCode;

use super::link::LinkError;
use super::raft::Context;

/// Between two rounds of questions.
const ROUND_AFTER: Duration = Duration::from_millis(250);
/// How long a node may take to answer one.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// How long one try to be registered may take.
const REGISTER_PATIENCE: Duration = Duration::from_secs(5);
/// What is in the way of a start is no news for this long: the others are starting, too.
const NORMAL_FOR: Duration = Duration::from_secs(10);
/// Voters of a new registry, at most.
const VOTERS_MAX: u64 = 5;

/// Makes this node a registered member, however long it takes, and ends it if another node has its name.
pub(super) async fn run(context: Arc<Context>) {
    let why = tokio::select! {
        biased;
        refused = become_member(&context) => refused.message,
        reason = context.links.doubled() => format!(
            "another node has the name or the folder of `{}`, and answers ({reason}): stop one of the two, or give this one its own \
             (node.name, with a certificate for it and an empty folder)",
            context.record.name
        ),
        reason = context.links.outdated() => format!(
            "NODE_REFUSED: the data folder of `{}` is an old copy ({reason}): it lacks what the node has acknowledged since. Start \
             `{}` with an empty folder; its replicas come back under new ids, filled by the others",
            context.record.name, context.record.name
        ),
    };
    context.tasks.give_up(why);
}

/// Resolves only if the registry does not take this node as it was started.
async fn become_member(context: &Arc<Context>) -> v1::Error {
    let mut since = None;
    while let Err(problem) = begin(context).await {
        grumble(*since.get_or_insert_with(Instant::now), "cannot become part of a cluster yet", &problem.to_string());
        context.registry.waits_for(format!("this node cannot become part of a cluster yet: {problem}"));
        sleep(ROUND_AFTER * 4).await;
    }
    if let Err(refused) = register(context).await {
        return refused;
    }
    let cluster = format!("{:016x}", context.registry.state().cluster_id());
    tracing::info!(cluster, name = context.record.name, "is part of the cluster");
    std::future::pending().await
}

/// Says what is in the way: for information as long as that is how a start goes, as a warning after.
fn grumble(since: Instant, what: &str, why: &str) {
    if since.elapsed() < NORMAL_FOR {
        tracing::info!("{what}: {why}");
    } else {
        tracing::warn!("{what}: {why}");
    }
}

async fn begin(context: &Arc<Context>) -> io::Result<()> {
    if context.storage.identity().cluster.is_some() {
        if let Some(cluster) = context.storage.identity().cluster {
            context.links.join(cluster);
        }
        // Its address may be new: if it asked nobody, nobody might know where it is.
        let (_, resumed) = tokio::join!(probe(context), resume(context));
        return resumed;
    }
    if let Some(group) = context.group(RaftGroup::REGISTRY).filter(|group| !group.replicas().is_empty()) {
        // Its founding was cut short before anybody was told.
        let voters = group.replicas();
        tracing::info!(voters = voters.len(), "goes on with a founding that was cut short");
        return finish_founding(context, context.host.random_id()).await;
    }
    let mut last = 0;
    let mut since = Some(Instant::now());
    loop {
        let Probed { answers, refusal } = probe(context).await;
        if let Some((node, cluster)) = answers.iter().find(|(_, a)| a.cluster_id != 0).map(|(n, a)| (*n, a.cluster_id))
        {
            return join(context, node, cluster).await;
        }
        if context.storage.identity().cluster.is_some() {
            // Another node has founded it with this one.
            return Ok(());
        }
        let empty: BTreeMap<NodeId, NodeRecord> = answers
            .iter()
            .filter(|(_, answer)| answer.empty)
            .filter_map(|(node, answer)| Some((*node, answer.node.clone()?)))
            .chain([(context.me, context.record.clone())])
            .collect();
        let expected = context.config.bootstrap_expect as usize;
        if empty.len() != last {
            last = empty.len();
            tracing::info!(met = last, expected, "empty nodes that have met");
        }
        let awaited = unfounded(last, expected) + &refusal.map(|reason| format!("; {reason}")).unwrap_or_default();
        if since.take_if(|since| since.elapsed() > NORMAL_FOR).is_some() {
            tracing::warn!("still waits: {awaited}");
        }
        context.registry.waits_for(awaited);
        if expected > 0 && empty.len() > expected {
            tracing::error!(
                met = last,
                expected,
                "more empty nodes than raft.bootstrap_expect: none founds the cluster"
            );
        }
        if empty.len() == expected && empty.keys().next() == Some(&context.me) {
            return start_founding(context, empty.into_values().collect()).await;
        }
        sleep(ROUND_AFTER).await;
    }
}

/// What an empty node waits for, having met so many of those that are to found a cluster, itself included.
fn unfounded(met: usize, expected: usize) -> String {
    match (met, expected) {
        (_, 0) => "this node is part of no cluster, and none of node.seeds that answers is part of one".into(),
        _ if met > expected => {
            format!("the cluster is not founded: {met} empty nodes have met, raft.bootstrap_expect is {expected}")
        }
        _ => format!("the cluster is not founded: {met} of {expected} nodes have met"),
    }
}

/// What became of a round of questions.
struct Probed {
    /// By node, without this one.
    answers: BTreeMap<NodeId, ProbeAnswer>,
    /// Why there is no link to a seed, if one of the two refuses the other.
    refusal: Option<String>,
}

/// Asks all seeds and members who they are.
async fn probe(context: &Arc<Context>) -> Probed {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for seed in &context.seeds {
        match context.host.resolve(seed).await {
            Ok(resolved) => addresses.extend(resolved.first()),
            Err(error) => tracing::debug!(seed, %error, "a seed's name does not resolve"),
        }
    }
    let known = context.members.borrow().clone();
    let known: Vec<NodeId> = known.keys().copied().filter(|node| *node != context.me).collect();
    // A list of seeds may be the same for all nodes, and so name this one.
    addresses.retain(|at| *at != context.links.me().peer_address);
    let dialled = addresses.into_iter().map(|at| async move {
        match timeout(ANSWER_PATIENCE, context.links.dial(at)).await {
            Ok(Ok(peer)) => Some(Ok(peer.id)),
            Ok(Err(LinkError::Refused(_, reason))) => Some(Err(format!("{at}: {reason}"))),
            _ => None,
        }
    });
    let (mut nodes, mut refusal) = (known, None);
    for dialled in futures::future::join_all(dialled).await.into_iter().flatten() {
        match dialled {
            Ok(node) => nodes.push(node),
            Err(reason) => refusal = Some(reason),
        }
    }
    nodes.sort_unstable();
    nodes.dedup();
    let asked = nodes.into_iter().filter(|node| *node != context.me).map(|node| async move {
        match context.ask(node, Request::Probe(Probe {}), ANSWER_PATIENCE).await {
            Ok(Response::Probe(answer)) => Some((node, answer)),
            _ => None,
        }
    });
    Probed { answers: futures::future::join_all(asked).await.into_iter().flatten().collect(), refusal }
}

/// The voters of a new registry: spread over the zones, the smallest ids first; an odd number of them.
fn choose_voters(nodes: &mut [NodeRecord]) {
    let wanted = match nodes.len() {
        0..=2 => 1,
        3..=4 => 3,
        _ => VOTERS_MAX,
    };
    nodes.sort_by_key(|node| node.id);
    let mut by_zone: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, node) in nodes.iter_mut().enumerate() {
        node.registry_replica_id = 0;
        by_zone.entry(node.zone.clone()).or_default().push(index);
    }
    let mut zones: Vec<Vec<usize>> = by_zone.into_values().collect();
    let mut next = 1;
    while next <= wanted {
        for zone in zones.iter_mut().filter(|zone| !zone.is_empty()) {
            if next <= wanted {
                nodes[zone.remove(0)].registry_replica_id = next;
                next += 1;
            }
        }
    }
}

async fn start_founding(context: &Arc<Context>, mut nodes: Vec<NodeRecord>) -> io::Result<()> {
    if context.storage.lost() {
        return Err(io::Error::other("a part of this folder's journal is lost: start with an empty folder"));
    }
    choose_voters(&mut nodes);
    // The founder must vote, because its journal holds what was begun: it takes a seat if it has none.
    if let Some(mine) = nodes.iter().position(|node| node.id == context.me.0 && node.registry_replica_id == 0)
        && let Some(other) = nodes.iter().position(|node| node.registry_replica_id == 1)
    {
        nodes[mine].registry_replica_id = 1;
        nodes[other].registry_replica_id = 0;
    }
    let voters: BTreeMap<u64, NodeId> = nodes
        .iter()
        .filter(|node| node.registry_replica_id != 0)
        .map(|node| (node.registry_replica_id, NodeId(node.id)))
        .collect();
    let mine = voters.iter().find(|(_, node)| **node == context.me).map(|(replica, _)| *replica);
    let mine = mine.ok_or_else(|| io::Error::other("the founder holds no seat"))?;
    let group = context.create_group(RaftGroup::REGISTRY, mine).await?;
    group.initialize(&voters).await?;
    let cluster = context.host.random_id();
    tracing::info!(nodes = nodes.len(), voters = voters.len(), "founds the cluster");
    finish_founding(context, cluster).await
}

async fn finish_founding(context: &Arc<Context>, cluster: u64) -> io::Result<()> {
    context.storage.join_cluster(cluster).await?;
    context.links.join(cluster);
    resume(context).await
}

/// A member after a restart. If it is the founder and the registry is still empty, the founding goes on.
async fn resume(context: &Arc<Context>) -> io::Result<()> {
    let Some(cluster) = context.storage.identity().cluster else { return Ok(()) };
    let Some(group) = context.group(RaftGroup::REGISTRY) else { return Ok(()) };
    let since = Instant::now();
    while context.registry.state().cluster_id() == 0 {
        let voters = group.replicas();
        if voters.is_empty() {
            // Told of the founding, but not yet reached by the registry's log.
            sleep(ROUND_AFTER).await;
            continue;
        }
        let nodes = founding_nodes(context, &voters).await;
        context.registry.waits_for(unfounded(nodes.len(), context.config.bootstrap_expect.max(1) as usize));
        let found = Found {
            cluster_id: cluster,
            shards: context.config.shards,
            replication: replication(context, nodes.len()),
            nodes: nodes.clone(),
        };
        let told = nodes.iter().filter(|node| node.id != context.me.0).map(|node| {
            let (to, name, request) = (NodeId(node.id), node.name.clone(), Request::Found(found.clone()));
            async move {
                if let Err(refused) = context.ask(to, request, ANSWER_PATIENCE).await {
                    grumble(since, &format!("{name} has not taken part in the founding yet"), &refused.message);
                }
            }
        });
        futures::future::join_all(told).await;
        if context.registry.acting() && nodes.len() >= context.config.bootstrap_expect as usize {
            let bootstrap = Bootstrap {
                cluster_id: cluster,
                shards: found.shards,
                replication: found.replication,
                nodes,
                level: FEATURE_LEVEL,
            };
            let command = RegistryCommand { level: FEATURE_LEVEL, command: Some(Command::Bootstrap(bootstrap)) };
            if let Err(refused) = context.registry.propose(&context.registry.own(), command, REGISTER_PATIENCE).await {
                grumble(since, "the registry did not take its first entry", &refused.message);
            }
        }
        sleep(ROUND_AFTER / 5).await;
    }
    Ok(())
}

fn replication(context: &Context, nodes: usize) -> u32 {
    context.config.replication.min(u32::try_from(nodes).unwrap_or(u32::MAX)).max(1)
}

/// The records of the nodes that found the cluster: those that answer, with the seats of the first membership.
async fn founding_nodes(context: &Arc<Context>, voters: &BTreeMap<u64, NodeId>) -> Vec<NodeRecord> {
    let Probed { answers, .. } = probe(context).await;
    let others = answers.into_iter().filter_map(|(node, answer)| {
        let ours = answer.empty || Some(answer.cluster_id) == context.storage.identity().cluster;
        answer.node.filter(|_| ours).map(|record| (node, record))
    });
    let mut nodes: BTreeMap<NodeId, NodeRecord> = others.collect();
    nodes.insert(context.me, context.record.clone());
    for record in nodes.values_mut() {
        let seat = voters.iter().find(|(_, node)| node.0 == record.id).map(|(replica, _)| *replica);
        record.registry_replica_id = seat.unwrap_or(0);
    }
    nodes.into_values().collect()
}

/// A founder says that this node is part of its cluster. Hearing it again does nothing.
pub(super) async fn found(context: &Arc<Context>, from: NodeId, found: &Found) -> Result<(), v1::Error> {
    let refuse = |why: String| error(ErrorCode::FailedPrecondition, why);
    let failed = |failure: io::Error| error(ErrorCode::Internal, failure.to_string());
    let mine = found.nodes.iter().find(|node| node.id == context.me.0);
    let mine = mine.ok_or_else(|| refuse(format!("{from} does not count this node in")))?;
    match context.storage.identity().cluster {
        Some(cluster) if cluster != found.cluster_id => {
            return Err(refuse(format!("this node's folder belongs to cluster {cluster:016x}")));
        }
        Some(_) => {}
        None => {
            context.storage.join_cluster(found.cluster_id).await.map_err(failed)?;
            context.links.join(found.cluster_id);
            tracing::info!(founder = %from, "takes part in the founding of the cluster");
        }
    }
    if mine.registry_replica_id != 0
        && context.group(RaftGroup::REGISTRY).is_none()
        && context.fenced(RaftGroup::REGISTRY).is_none()
        && context.registry.state().cluster_id() == 0
        && !context.storage.lost()
    {
        context.create_group(RaftGroup::REGISTRY, mine.registry_replica_id).await.map_err(failed)?;
    }
    Ok(())
}

async fn join(context: &Arc<Context>, through: NodeId, cluster: u64) -> io::Result<()> {
    tracing::info!(%through, cluster = format!("{cluster:016x}"), "joins the cluster");
    context.registry.hint(Some(through));
    let registered = register_once(context).await;
    registered.map_err(|refused| io::Error::other(refused.message))?;
    context.storage.join_cluster(cluster).await?;
    context.links.join(cluster);
    Ok(())
}

async fn register_once(context: &Context) -> Result<(), v1::Error> {
    let register = Command::RegisterNode(RegisterNode { node: Some(context.record.clone()) });
    let command = RegistryCommand { level: FEATURE_LEVEL, command: Some(register) };
    context.registry.propose(&context.registry.own(), command, REGISTER_PATIENCE).await.map(drop)
}

/// Makes the registry's record say what this start of the node is, until it does.
///
/// # Errors
/// The registry does not take it: its folder is another node's, or its name is by now.
async fn register(context: &Arc<Context>) -> Result<(), v1::Error> {
    let since = Instant::now();
    loop {
        let state = context.registry.state();
        let known = state
            .node(context.me)
            .is_some_and(|known| NodeRecord { registry_replica_id: 0, ..known.clone() } == context.record);
        if known {
            return Ok(());
        }
        if let Err(refused) = register_once(context).await {
            if refused.code() == ErrorCode::NodeRefused {
                return Err(refused);
            }
            // Who has this node's name or folder, too, says so to whoever dials.
            drop(probe(context).await);
            grumble(since, "this node is not registered yet", &refused.message);
            context.registry.waits_for(unregistered(context, &refused.message));
            sleep(ROUND_AFTER * 4).await;
        } else {
            // The copy here follows.
            let mut states = context.registry.states();
            let mine = |state: &Arc<weft_cluster::registry::State>| {
                state.node(context.me).is_some_and(|node| node.generation >= context.record.generation)
            };
            let _ = timeout(REGISTER_PATIENCE, states.wait_for(mine)).await;
            return Ok(());
        }
    }
}

/// What a member waits for that cannot say that it has started.
fn unregistered(context: &Context, why: &str) -> String {
    let view = context.registry.view().borrow().clone();
    let silent = view.registry.nodes().filter(|node| !view.usable(NodeId(node.id))).map(|node| node.name.as_str());
    let silent: Vec<&str> = silent.collect();
    let met = if silent.is_empty() { String::new() } else { format!("; not met since: {}", silent.join(", ")) };
    format!("this node has not caught up with its cluster since its start: {why}{met}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, zone: &str) -> NodeRecord {
        NodeRecord { id, zone: zone.into(), ..NodeRecord::default() }
    }

    #[test]
    fn voters_are_odd_in_number_and_spread_over_zones() {
        let cases = [
            (vec![node(1, "a")], vec![1]),
            (vec![node(2, "a"), node(1, "a")], vec![1]),
            (vec![node(1, "a"), node(2, "a"), node(3, "a"), node(4, "b")], vec![1, 2, 4]),
            (
                vec![node(1, "a"), node(2, "a"), node(3, "b"), node(4, "b"), node(5, "c"), node(6, "c")],
                vec![1, 2, 3, 4, 5],
            ),
        ];
        for (mut nodes, expected) in cases {
            choose_voters(&mut nodes);
            let mut seated: Vec<_> = nodes.iter().filter(|n| n.registry_replica_id > 0).collect();
            seated.sort_by_key(|n| n.registry_replica_id);
            let replicas: Vec<u64> = seated.iter().map(|n| n.registry_replica_id).collect();
            assert_eq!(replicas, (1..=expected.len() as u64).collect::<Vec<_>>());
            let mut ids: Vec<u64> = seated.iter().map(|n| n.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, expected);
        }
    }
}
