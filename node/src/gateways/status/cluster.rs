//! `weft.v1.Cluster`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response};
use weft_cluster::caller::Caller;
use weft_cluster::ids::{NodeId, ShardId};
use weft_cluster::view::{ClusterView, MemberState};
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::{PreferLeader, RemoveNode, ShardRecord};
use weft_proto::v1::cluster_server::Cluster;
use weft_proto::v1::{self, ErrorCode};

use super::Status;
use crate::telemetry::VERSION;
use crate::wire::{caller, error, status};

type Answer<T> = Result<Response<T>, tonic::Status>;

#[tonic::async_trait]
impl Cluster for Status {
    async fn list_members(&self, _: Request<v1::ListMembersRequest>) -> Answer<v1::ListMembersResponse> {
        self.settled()?;
        Ok(Response::new(v1::ListMembersResponse { members: members(&self.view()) }))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::ClusterStatus> {
        self.settled()?;
        Ok(Response::new(summary(&self.view())))
    }

    async fn list_shards(&self, _: Request<v1::ListShardsRequest>) -> Answer<v1::ListShardsResponse> {
        self.settled()?;
        let view = self.view();
        let shards = (0..view.registry.shards_total()).map(|shard| describe(&view, ShardId(shard)));
        Ok(Response::new(v1::ListShardsResponse { shards: shards.collect() }))
    }

    async fn transfer_shard(&self, request: Request<v1::TransferShardRequest>) -> Answer<v1::TransferShardResponse> {
        self.settled()?;
        let caller = caller(&request);
        let v1::TransferShardRequest { shard, node } = request.into_inner();
        self.transfer(&caller, ShardId(shard), &node).await.map(Response::new).map_err(status)
    }

    async fn remove_node(&self, request: Request<v1::RemoveNodeRequest>) -> Answer<v1::RemoveNodeResponse> {
        self.settled()?;
        let caller = caller(&request);
        self.remove(&caller, &request.into_inner().node).await.map(Response::new).map_err(status)
    }

    type WatchMembersStream = BoxStream<'static, Result<v1::WatchMembersResponse, tonic::Status>>;

    async fn watch_members(&self, _: Request<v1::WatchMembersRequest>) -> Answer<Self::WatchMembersStream> {
        Ok(Response::new(self.watch()))
    }

    async fn get_version(&self, _: Request<v1::GetVersionRequest>) -> Answer<v1::Version> {
        let view = self.view();
        Ok(Response::new(v1::Version {
            version: VERSION.into(),
            feature_level: view.registry.level(),
            node: view.name_of(view.me),
            cluster_id: view.registry.cluster_id(),
        }))
    }
}

impl Status {
    async fn transfer(
        &self,
        caller: &Caller,
        shard: ShardId,
        name: &str,
    ) -> Result<v1::TransferShardResponse, v1::Error> {
        let view = self.view();
        let total = view.registry.shards_total();
        if shard.0 >= total {
            return Err(error(ErrorCode::NotFound, format!("there is no shard {}: the cluster has {total}", shard.0)));
        }
        let node = self.named(&view, name)?;
        let holders: Vec<NodeId> = view.replicas_of(shard).collect();
        if !holders.contains(&node) {
            let holders: Vec<_> = holders.into_iter().map(|node| view.name_of(node)).collect();
            let holders = holders.join(", ");
            return Err(error(
                ErrorCode::FailedPrecondition,
                format!("node {name:?} holds no replica of shard {}; {holders} do", shard.0),
            ));
        }
        if !view.usable(node) {
            return Err(error(ErrorCode::FailedPrecondition, format!("node {name:?} does not answer")));
        }
        // Noted first: who owns it now would take it back from a node that is not the preferred one.
        self.change(caller, Command::PreferLeader(PreferLeader { shard: shard.0, node: node.0 })).await?;
        if let Some(owner) = self.view().owner_of_shard(shard).filter(|owner| owner.node == node) {
            return Ok(v1::TransferShardResponse { epoch: owner.epoch.0 });
        }
        let epoch = self.backend.transfer(caller, shard, node).await?;
        Ok(v1::TransferShardResponse { epoch: epoch.0 })
    }

    async fn remove(&self, caller: &Caller, name: &str) -> Result<v1::RemoveNodeResponse, v1::Error> {
        let view = self.view();
        let node = self.named(&view, name)?;
        if view.usable(node) {
            let message = format!("node {name:?} is alive: stop it first (SIGTERM lets it hand over what it leads)");
            return Err(error(ErrorCode::FailedPrecondition, message));
        }
        let shards = (0..view.registry.shards_total()).map(ShardId);
        let last = |shard: &ShardId| {
            let mut holders = view.replicas_of(*shard).peekable();
            let mut others = view.replicas_of(*shard).filter(|holder| *holder != node);
            holders.any(|holder| holder == node) && !others.any(|other| view.usable(other))
        };
        let last: Vec<String> = shards.filter(last).map(|shard| shard.0.to_string()).collect();
        if !last.is_empty() {
            let message = format!(
                "node {name:?} may have the last copy of shards {}: no other node that has one is alive; start those first",
                last.join(", ")
            );
            return Err(error(ErrorCode::FailedPrecondition, message));
        }
        let reason = format!("asked for by {caller}");
        self.change(caller, Command::RemoveNode(RemoveNode { id: node.0, reason })).await?;
        Ok(v1::RemoveNodeResponse {})
    }

    fn named(&self, view: &ClusterView, name: &str) -> Result<NodeId, v1::Error> {
        view.node_named(name).ok_or_else(|| {
            let known: Vec<_> = view.registry.nodes().map(|node| node.name.as_str()).collect();
            error(ErrorCode::NotFound, format!("there is no node {name:?}; there are {}", known.join(", ")))
        })
    }

    /// The live members at once, or as soon as this node knows them, then at each change of them; ends when the node
    /// stops. A list of nobody but this node would have clients forget the others.
    fn watch(&self) -> BoxStream<'static, Result<v1::WatchMembersResponse, tonic::Status>> {
        let mut view = self.view.clone();
        view.mark_changed();
        let backend = self.backend.clone();
        let next = move |(mut view, mut last): (tokio::sync::watch::Receiver<Arc<ClusterView>>, Option<_>)| {
            let backend = backend.clone();
            async move {
                loop {
                    view.changed().await.ok()?;
                    if backend.settled().is_err() {
                        continue;
                    }
                    let members = live(&view.borrow_and_update());
                    if last.as_ref() != Some(&members) {
                        last = Some(members.clone());
                        return Some((Ok(v1::WatchMembersResponse { members }), (view, last)));
                    }
                }
            }
        };
        stream::unfold((view, None), next).take_until(self.stop.clone().cancelled_owned()).boxed()
    }
}

/// Live members without the counts, which change with every failover.
fn live(view: &ClusterView) -> Vec<v1::Member> {
    let alive = |member: &v1::Member| member.state() == v1::MemberState::Alive;
    let bare = |member| v1::Member { shards_owned: 0, replicas: 0, ..member };
    members(view).into_iter().filter(alive).map(bare).collect()
}

/// Every node that the registry or gossip knows, by id. One whose name went over to another node is left out.
fn members(view: &ClusterView) -> Vec<v1::Member> {
    let mut owned: BTreeMap<NodeId, u32> = BTreeMap::new();
    view.owners.values().for_each(|owner| *owned.entry(owner.node).or_default() += 1);
    let mut replicas: BTreeMap<u64, u32> = BTreeMap::new();
    let held = view.registry.shards().flat_map(|row| &row.replicas);
    held.for_each(|replica| *replicas.entry(replica.node).or_default() += 1);

    let registered = view.registry.nodes().map(|node| NodeId(node.id));
    let ids: BTreeSet<NodeId> = registered.chain(view.members.keys().copied()).collect();
    let taken = |id: &NodeId| {
        let named = view.members.get(id).and_then(|member| view.registry.node_by_name(&member.name));
        named.is_some_and(|node| node.id != id.0)
    };
    // Gossip remembers for a while who was removed.
    let removed =
        |id: &NodeId| view.registry.node(*id).is_none() && !view.usable(*id) && view.registry.cluster_id() != 0;
    let present = ids.into_iter().filter(|id| !taken(id) && !removed(id));
    present
        .map(|id| v1::Member {
            shards_owned: owned.get(&id).copied().unwrap_or(0),
            replicas: replicas.get(&id.0).copied().unwrap_or(0),
            ..member(view, id)
        })
        .collect()
}

/// Gossip knows newer addresses than the registry; the registry knows those that gossip has not met.
fn member(view: &ClusterView, id: NodeId) -> v1::Member {
    let record = view.registry.node(id);
    let voter = record.is_some_and(|record| record.registry_replica_id != 0);
    if let Some(member) = view.members.get(&id) {
        let state = match member.state {
            MemberState::Alive => v1::MemberState::Alive,
            MemberState::Suspect => v1::MemberState::Suspect,
            MemberState::Down => v1::MemberState::Down,
            MemberState::Left => v1::MemberState::Left,
        };
        return v1::Member {
            id: id.0,
            name: member.name.clone(),
            zone: member.zone.clone(),
            state: state.into(),
            generation: member.generation.0,
            client_address: member.client_address.clone(),
            peer_address: member.peer_address.clone(),
            version: member.version.clone(),
            voter,
            disk_full: member.disk_full,
            ..Default::default()
        };
    }
    let record = record.cloned().unwrap_or_default();
    let state = if id == view.me { v1::MemberState::Alive } else { v1::MemberState::Down };
    v1::Member {
        id: id.0,
        name: record.name,
        zone: record.zone,
        state: state.into(),
        generation: record.generation,
        client_address: record.client_address,
        peer_address: record.peer_address,
        version: record.version,
        voter,
        ..Default::default()
    }
}

fn summary(view: &ClusterView) -> v1::ClusterStatus {
    let members = members(view);
    let shards_total = view.registry.shards_total();
    let shards = || (0..shards_total).map(ShardId);
    let owned = count(shards().filter(|shard| view.owner_of_shard(*shard).is_some()).count());
    let underreplicated = count(shards().filter(|shard| underreplicated(view, *shard)).count());
    let leader = view.registry_leader.filter(|leader| view.usable(*leader));
    let voters: Vec<NodeId> = view.registry.registry_seats().map(|(node, _)| node).collect();
    let registry_bears = bears(view, voters.iter().copied());
    let shards_bear = shards().map(|shard| bears(view, view.replicas_of(shard))).min().unwrap_or(0);

    let mut problems = Vec::new();
    let mut problem = |holds: bool, what: &dyn Fn() -> String| {
        if holds {
            problems.push(what());
        }
    };
    problem(shards_total == 0, &|| "the cluster is not founded".into());
    problem(leader.is_none(), &|| "the registry has no leader: no topics, groups or services can be made".into());
    problem(owned < shards_total, &|| format!("{} of {shards_total} shards have no owner", shards_total - owned));
    problem(underreplicated > 0, &|| format!("{underreplicated} shards are underreplicated"));
    problem(voters.len() >= 3 && registry_bears == 0, &|| {
        let away = voters.iter().filter(|node| !view.usable(**node)).map(|node| view.name_of(*node));
        format!("the registry bears no further failure: of its voters, {} do not answer", names(away))
    });
    for member in view.members.values().filter(|member| view.usable(member.id) && member.replicas_fenced > 0) {
        let (name, fenced) = (&member.name, member.replicas_fenced);
        problem(true, &|| format!("{fenced} replicas on {name} failed a check and are to be filled anew"));
    }
    v1::ClusterStatus {
        cluster_id: view.registry.cluster_id(),
        node: view.name_of(view.me),
        members_alive: count(members.iter().filter(|member| member.state() == v1::MemberState::Alive).count()),
        members_total: count(members.len()),
        registry_leader: leader.map(|leader| view.name_of(leader)).unwrap_or_default(),
        registry_index: view.registry.applied().map_or(0, |applied| applied.index),
        shards_total,
        shards_owned: owned,
        shards_underreplicated: underreplicated,
        topics: count(view.registry.topics_count()),
        feature_level: view.registry.level(),
        healthy: problems.is_empty(),
        problems,
        registry_voters: count(voters.len()),
        registry_failures_max: registry_bears,
        shards_failures_max: shards_bear,
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn names(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// How many more of these voters may fail while a majority of them stays.
fn bears(view: &ClusterView, voters: impl Iterator<Item = NodeId>) -> u32 {
    let (mut all, mut alive) = (0, 0_usize);
    for node in voters {
        all += 1;
        alive += usize::from(view.usable(node));
    }
    count(alive.saturating_sub(all / 2 + 1))
}

/// Too few replicas for the nodes there are, one on a node that does not answer or whose disk is full, or one that is
/// being filled.
fn underreplicated(view: &ClusterView, shard: ShardId) -> bool {
    let wanted = (view.registry.replication() as usize).min(view.registry.nodes().count());
    let moving = view.registry.shard(shard).is_some_and(|row| !row.target.is_empty());
    let takes = |node: &NodeId| view.usable(*node) && view.has_room(*node);
    moving || view.replicas_of(shard).filter(takes).count() < wanted
}

fn describe(view: &ClusterView, shard: ShardId) -> v1::Shard {
    let owner = view.owner_of_shard(shard);
    v1::Shard {
        shard: shard.0,
        owner: owner.map(|owner| view.name_of(owner.node)).unwrap_or_default(),
        epoch: owner.map_or(0, |owner| owner.epoch.0),
        replicas: view.replicas_of(shard).map(|node| view.name_of(node)).collect(),
        moving: view.registry.shard(shard).map(|row| moving(view, row)).unwrap_or_default(),
    }
}

/// The nodes that are in one of replicas and target only.
fn moving(view: &ClusterView, row: &ShardRecord) -> Vec<String> {
    if row.target.is_empty() {
        return Vec::new();
    }
    let nodes = |replicas: &[weft_proto::internal::v1::ReplicaRecord]| -> BTreeSet<u64> {
        replicas.iter().map(|replica| replica.node).collect()
    };
    let (now, then) = (nodes(&row.replicas), nodes(&row.target));
    now.symmetric_difference(&then).map(|node| view.name_of(NodeId(*node))).collect()
}
