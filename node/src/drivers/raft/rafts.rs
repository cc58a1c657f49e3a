//! All groups of this node, and the door for what peers send about them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use weft_cluster::caller::Caller;
use weft_cluster::errors::{error, not_owner};
use weft_cluster::ids::{Epoch, Generation, LogPosition, NodeId, RaftGroup};
use weft_cluster::registry::{State, start_of};
use weft_cluster::view::{ClusterView, Member};
use weft_proto::internal::v1::control_request::Request;
use weft_proto::internal::v1::control_response::Response;
use weft_proto::internal::v1::{
    ControlRequest, ControlResponse, Done, Leaving, NodeRecord, ProbeAnswer, ReadIndexAnswer, Transfer, TransferAnswer,
};
use weft_proto::v1;
use weft_proto::v1::ErrorCode;

use super::metrics::Fenced;
use super::{Group, Metrics, ProposeError, RaftConfig, door, fetch, types};
use crate::drivers::link::{Lane, LinkStream, Links, Parts};
use crate::drivers::owners::{self, Owners};
use crate::drivers::registry::{self, Registry, Replica};
use crate::drivers::shard::Shards;
use crate::drivers::storage::{GroupLog, RecoveredGroup, Storage};
use crate::drivers::{bootstrap, failover, reconcile};
use crate::host::{Host, Tasks};

/// How long a control request of ours waits where nothing else is said.
const CONTROL_PATIENCE: Duration = Duration::from_secs(2);

/// What the drivers around Raft share.
pub(in crate::drivers) struct Context {
    pub(in crate::drivers) host: Arc<dyn Host>,
    pub(in crate::drivers) tasks: Tasks,
    pub(in crate::drivers) storage: Storage,
    pub(in crate::drivers) links: Links,
    pub(in crate::drivers) me: NodeId,
    /// This node, as the registry should know it.
    pub(in crate::drivers) record: NodeRecord,
    pub(in crate::drivers) seeds: Vec<String>,
    pub(in crate::drivers) members: watch::Receiver<Arc<BTreeMap<NodeId, Member>>>,
    pub(in crate::drivers) config: RaftConfig,
    pub(in crate::drivers) registry: Registry,
    pub(in crate::drivers) owners: Owners,
    /// Bumped on every change of a leadership on this node.
    pub(in crate::drivers) leaderships: watch::Sender<u64>,
    /// Cancels balancing: this node gives its leaderships away.
    pub(in crate::drivers) draining: watch::Sender<bool>,
    /// Peers that have said that they stop, by the generation that stops.
    leaving: Mutex<BTreeMap<NodeId, Generation>>,
    groups: Mutex<BTreeMap<RaftGroup, Group>>,
    /// Replicas that lack what they have acknowledged: they are to be fenced, and serve nothing until then.
    forgetful: Mutex<BTreeMap<RaftGroup, String>>,
    pub(super) fenced: Fenced,
    pub(super) metrics: Metrics,
    shards: OnceLock<Shards>,
}

impl Context {
    /// A replica that runs here.
    pub(in crate::drivers) fn group(&self, id: RaftGroup) -> Option<Group> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// All replicas that run here, by group.
    pub(in crate::drivers) fn groups(&self) -> Vec<Group> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Whether a node may be given a leadership: it is up, and has not said that it stops.
    pub(in crate::drivers) fn may_lead(&self, view: &ClusterView, node: NodeId) -> bool {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied();
        let back = |last: Generation| view.members.get(&node).is_some_and(|member| member.generation > last);
        view.usable(node) && leaving.is_none_or(back)
    }

    /// A peer stops.
    fn leaves(&self, node: NodeId) {
        let generation = self.members.borrow().get(&node).map(|member| member.generation);
        if let Some(generation) = generation {
            self.leaving.lock().unwrap_or_else(PoisonError::into_inner).insert(node, generation);
        }
    }

    /// Why a group's data here may not be used, if so.
    pub(in crate::drivers) fn fenced(&self, id: RaftGroup) -> Option<String> {
        self.fenced.get(id)
    }

    /// The groups whose data here may not be used.
    pub(in crate::drivers) fn fenced_groups(&self) -> Vec<RaftGroup> {
        self.fenced.all().into_keys().collect()
    }

    /// Starts a replica that was found on the disk. One that cannot be read is fenced; the others are not held up.
    async fn start_found(&self, found: RecoveredGroup) {
        let id = found.group;
        let started = match self.storage.log(id) {
            Some(log) => self.start_group(id, log, found.checkpoint).await.map(drop),
            None => Err(io::Error::other("its log is not there")),
        };
        if let Err(error) = started {
            tracing::error!(group = %id, %error, "the replica is fenced: it cannot be started from its data");
            self.fenced.insert(id, format!("the replica cannot be started: {error}"));
        }
    }

    /// Starts a replica whose log exists.
    pub(in crate::drivers) async fn start_group(
        &self,
        id: RaftGroup,
        log: GroupLog,
        checkpoint: Option<(LogPosition, Bytes)>,
    ) -> io::Result<Group> {
        let group = match id.shard() {
            None => {
                let (replica, kept) = Replica::recover(self.registry.clone(), self.storage.clone(), checkpoint)?;
                let group = Group::start(self, id, log, Box::new(replica)).await?;
                kept.started(group.clone());
                self.storage.register(id, kept);
                self.registry.attach(Some(group.clone()));
                group
            }
            Some(shard) => {
                let shards = self.shards.get().ok_or_else(|| io::Error::other("shards are not served yet"))?;
                let machine = shards.machine(shard, checkpoint)?;
                let group = match Group::start(self, id, log, machine).await {
                    Ok(group) => group,
                    Err(error) => {
                        shards.stopped(shard);
                        return Err(error);
                    }
                };
                shards.started(shard, group.clone());
                group
            }
        };
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(id, group.clone());
        Ok(group)
    }

    /// Makes a new replica and starts it.
    pub(in crate::drivers) async fn create_group(&self, id: RaftGroup, replica: u64) -> io::Result<Group> {
        let log = match self.storage.log(id) {
            Some(log) if log.replica() == replica => log,
            Some(log) => return Err(io::Error::other(format!("{id} is here as r{}, not r{replica}", log.replica()))),
            None => self.storage.create_group(id, replica).await?,
        };
        self.start_group(id, log, None).await
    }

    /// Stops a replica and deletes its data.
    pub(in crate::drivers) async fn delete_group(&self, id: RaftGroup) -> io::Result<()> {
        self.take_out(id).await;
        self.storage.delete_group(id).await?;
        self.fenced.remove(id);
        Ok(())
    }

    /// Takes a replica out of use whose data failed a check while it ran; its data stays, for a person to look at,
    /// until another replica takes its place.
    pub(in crate::drivers) async fn fence_group(&self, id: RaftGroup, reason: String) {
        tracing::error!(group = %id, reason, "the replica is fenced: its data failed a check");
        self.take_out(id).await;
        self.storage.fence(id, &reason);
        self.fenced.insert(id, reason);
    }

    /// Notes that a replica lacks what it has acknowledged. The next round of reconciling, which this wakes, fences it.
    pub(super) fn note_forgetful(&self, id: RaftGroup, reason: String) {
        self.forgetful.lock().unwrap_or_else(PoisonError::into_inner).insert(id, reason);
        self.leaderships.send_modify(|changes| *changes += 1);
    }

    /// What a replica lacks, if it is to be fenced for it.
    pub(super) fn forgetful(&self, id: RaftGroup) -> Option<String> {
        self.forgetful.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Takes the replicas that lack what they have acknowledged out of use.
    pub(in crate::drivers) async fn fence_forgetful(&self) {
        let forgetful = self.forgetful.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (id, reason) in forgetful {
            self.fence_group(id, reason).await;
            self.forgetful.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }

    /// Stops a replica, if it runs.
    async fn take_out(&self, id: RaftGroup) {
        let group = self.groups.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        match id.shard() {
            None => self.registry.attach(None),
            Some(shard) => {
                if let Some(shards) = self.shards.get().filter(|_| group.is_some()) {
                    shards.stopped(shard);
                }
            }
        }
        if let Some(group) = group {
            group.stop().await;
        }
    }

    /// Tells the links which starts of nodes the registry knows.
    pub(in crate::drivers) fn tell_starts(&self, state: &State) {
        let others = state.nodes().filter(|node| node.id != self.me.0);
        self.links.met(others.map(|node| (NodeId(node.id), start_of(node))));
    }

    /// One control request to a peer.
    pub(in crate::drivers) async fn ask(
        &self,
        to: NodeId,
        request: Request,
        patience: Duration,
    ) -> Result<Response, v1::Error> {
        let body = ControlRequest { request: Some(request) }.encode_to_vec();
        let answer = self.links.request(to, Lane::Control, vec![body.into()], patience).await;
        let answer = answer.map_err(|lost| error(ErrorCode::NotReady, lost.to_string()))?;
        match ControlResponse::decode(answer).ok().and_then(|answer| answer.response) {
            Some(Response::Error(refusal)) => Err(refusal),
            Some(response) => Ok(response),
            None => Err(error(ErrorCode::Internal, "the peer's answer cannot be read")),
        }
    }
}

/// All groups of this node, the registry's included, and the door for what peers send. Cheap to clone.
#[derive(Clone)]
pub struct Rafts {
    context: Arc<Context>,
    recovered: Arc<Mutex<Vec<RecoveredGroup>>>,
}

impl Rafts {
    /// Why no link can come up, if this node's certificate has expired.
    pub fn certificate_expired(&self) -> Option<String> {
        self.context.links.certificate_expired()
    }

    /// Makes the handles and starts this node's replica of the registry if it has one. Does not wait for peers. If
    /// its data cannot be read, it is fenced.
    pub async fn open(parts: super::Parts) -> (Rafts, Registry) {
        types::seed(parts.host.as_ref());
        let me = NodeId(parts.me.id);
        let generation = Generation(parts.me.generation);
        let registry = Registry::new(parts.links.clone(), me, generation);
        let metrics = Metrics::default();
        let context = Arc::new(Context {
            host: parts.host,
            tasks: parts.tasks,
            storage: parts.storage,
            links: parts.links,
            me,
            record: NodeRecord { registry_replica_id: 0, ..parts.me },
            seeds: parts.seeds,
            members: parts.members,
            config: parts.config,
            registry: registry.clone(),
            owners: Owners::default(),
            leaderships: watch::Sender::default(),
            draining: watch::Sender::default(),
            leaving: Mutex::default(),
            groups: Mutex::default(),
            forgetful: Mutex::default(),
            fenced: Fenced::new(metrics.fenced_groups.clone()),
            metrics,
            shards: OnceLock::new(),
        });
        let mut rest = Vec::new();
        for found in parts.recovered {
            if let Some(reason) = &found.fenced {
                tracing::error!(group = %found.group, %reason, "the replica is fenced: its data failed a check");
                context.fenced.insert(found.group, reason.clone());
            } else if found.group == RaftGroup::REGISTRY {
                context.start_found(found).await;
            } else {
                rest.push(found);
            }
        }
        context.tell_starts(&registry.state());
        let composed = registry::compose(registry.clone(), context.members.clone(), context.owners.subscribe());
        context.tasks.spawn("registry view", composed);
        (Rafts { context, recovered: Arc::new(Mutex::new(rest)) }, registry)
    }

    /// Starts the replicas found on disk, then founds or joins the cluster in the background, follows the
    /// shard table and watches for dead leaders. Call it before `links.serve`. A replica whose data cannot be read is
    /// fenced.
    ///
    /// # Errors
    /// It was called before.
    pub async fn serve(&self, shards: Shards) -> io::Result<()> {
        let context = &self.context;
        if context.shards.set(shards).is_err() {
            return Err(io::Error::other("the shards are served already"));
        }
        let recovered = std::mem::take(&mut *self.recovered.lock().unwrap_or_else(PoisonError::into_inner));
        for found in recovered {
            context.start_found(found).await;
        }
        let tasks = &context.tasks;
        tasks.spawn("owners", owners::announce(context.clone()));
        tasks.spawn("failover", failover::run(context.clone()));
        tasks.spawn("registry follow", registry::follow(context.registry.clone()));
        tasks.spawn("bootstrap", bootstrap::run(context.clone()));
        tasks.spawn_vital("reconcile", reconcile::run(context.clone()));
        Ok(())
    }

    /// A replica that runs on this node.
    pub fn group(&self, group: RaftGroup) -> Option<Group> {
        self.context.group(group)
    }

    #[cfg(test)]
    pub(super) fn context_for_tests(&self) -> &Context {
        &self.context
    }

    /// Groups whose data on this node failed a check, or whose replica has failed since, with the reason for a person.
    pub fn fenced(&self) -> BTreeMap<RaftGroup, String> {
        self.context.fenced.all()
    }

    /// How many groups are fenced, published on change.
    pub fn fenced_count(&self) -> watch::Receiver<u32> {
        self.context.fenced.count()
    }

    /// What the groups of this node count.
    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Lane::Raft: one encoded `RaftRequest`, answered by an encoded `RaftResponse`.
    ///
    /// # Errors
    /// The frame is none of ours.
    pub async fn request(&self, from: NodeId, body: Bytes) -> Result<Parts, String> {
        door::request(&self.context, from, body).await
    }

    /// Lane::Control: all requests except `partition_stats`, which the peer door answers from `Shards`.
    pub async fn control(&self, from: NodeId, request: ControlRequest) -> ControlResponse {
        let response = match request.request {
            Some(request) => self.answer(from, request).await.unwrap_or_else(Response::Error),
            None => Response::Error(error(ErrorCode::InvalidArgument, "an empty or unknown control request")),
        };
        ControlResponse { response: Some(response) }
    }

    async fn answer(&self, from: NodeId, request: Request) -> Result<Response, v1::Error> {
        let context = &self.context;
        Ok(match request {
            Request::Probe(_) => Response::Probe(self.probe()),
            Request::Found(found) => {
                bootstrap::found(context, from, &found).await?;
                Response::Done(Done {})
            }
            Request::RegistryPropose(propose) => {
                let command = propose.command.ok_or_else(|| error(ErrorCode::InvalidArgument, "no command"))?;
                let caller = Caller::from_wire(propose.caller);
                registry::serve_propose(&context.registry, &caller, command).await
            }
            Request::LogEnds(request) => Response::LogEnds(failover::log_ends(context, &request)),
            Request::Dead(notice) => {
                context.links.doubt(NodeId(notice.node));
                Response::Done(Done {})
            }
            Request::Owned(notice) => {
                context.owners.notice(from, &notice);
                Response::Done(Done {})
            }
            Request::ReadIndex(_) => {
                let index = registry::read_index_here(&context.registry).await;
                let leader = context.registry.leader().filter(|leader| *leader != context.me);
                let index = index.ok_or_else(|| not_owner(leader, "this node does not lead the registry"))?;
                Response::ReadIndex(ReadIndexAnswer { index })
            }
            Request::Transfer(transfer) => {
                let caller = Caller::from_wire(transfer.caller);
                let epoch = self.transfer_here(&caller, RaftGroup(transfer.group), NodeId(transfer.to)).await?;
                Response::Transfer(TransferAnswer { epoch: epoch.0 })
            }
            Request::Leaving(_) => {
                tracing::info!(node = %from, "a peer is stopping");
                context.leaves(from);
                Response::Done(Done {})
            }
            Request::PartitionStats(_) | Request::RenewLease(_) => {
                return Err(error(ErrorCode::Internal, "the door for peers answers this from other drivers"));
            }
        })
    }

    fn probe(&self) -> ProbeAnswer {
        let context = &self.context;
        let cluster = context.storage.identity().cluster;
        ProbeAnswer {
            node: Some(context.record.clone()),
            // A founding that has begun is no longer empty, even if the cluster has no id yet.
            empty: cluster.is_none() && context.storage.log(RaftGroup::REGISTRY).is_none(),
            cluster_id: cluster.unwrap_or(0),
            registry_leader: context.registry.leader().map_or(0, |leader| leader.0),
            bootstrap_expect: context.config.bootstrap_expect,
        }
    }

    /// A registry watch: a stream of Lane::Control whose first frame (a `WatchRequest`) is `first`.
    pub async fn watch(&self, _from: NodeId, first: Bytes, stream: LinkStream) {
        registry::serve_watch(&self.context.registry, first, stream).await;
    }

    /// A segment file for a peer: a stream of Lane::Bulk whose first frame (a `FetchRequest`) is `first`.
    pub async fn fetch(&self, from: NodeId, first: Bytes, stream: LinkStream) {
        if let Err(error) = fetch::serve(&self.context.storage, first, stream).await {
            tracing::warn!(%from, %error, "a peer could not be given a segment file");
        }
    }

    /// A planned stop, first step: says so, that nobody hands it more, and hands every leadership to a peer that is
    /// up (at most `patience`).
    pub async fn drain(&self, patience: Duration) {
        let context = &self.context;
        context.draining.send_replace(true);
        let deadline = Instant::now() + patience;
        let peers = context.links.peers().into_iter();
        let left = peers.map(|peer| async move {
            // A peer that does not hear it finds out by itself.
            let _ = context.ask(peer.id, Request::Leaving(Leaving {}), Duration::from_millis(200)).await;
        });
        futures::future::join_all(left).await;
        let handed = context.groups().into_iter().map(|group| reconcile::hand_over(context, group, deadline));
        futures::future::join_all(handed).await;
    }

    /// Second step: stops all replicas. The storage may be closed afterwards.
    pub async fn stop(&self) {
        let stopped = self.context.groups().into_iter().map(|group| async move { group.stop().await });
        if timeout(Duration::from_secs(10), futures::future::join_all(stopped)).await.is_err() {
            tracing::warn!("replicas did not stop in time");
        }
    }

    /// Hands this group's leadership to a node for `caller`, wherever the leader is.
    ///
    /// # Errors
    /// `NO_OWNER`: nobody is known to lead. `FAILED_PRECONDITION`: `to` has no voter or did not take over.
    pub async fn transfer(&self, caller: &Caller, group: RaftGroup, to: NodeId) -> Result<Epoch, v1::Error> {
        let owner = match group.shard() {
            None => self.context.registry.leader(),
            Some(shard) => self.context.owners.subscribe().borrow().get(&shard).map(|owner| owner.node),
        };
        let owner = owner.ok_or_else(|| error(ErrorCode::NoOwner, format!("nobody is known to lead {group}")))?;
        if owner == self.context.me {
            return self.transfer_here(caller, group, to).await;
        }
        let request = Request::Transfer(Transfer { group: group.0, to: to.0, caller: caller.to_wire() });
        match self.context.ask(owner, request, CONTROL_PATIENCE * 2).await? {
            Response::Transfer(answer) => Ok(Epoch(answer.epoch)),
            _ => Err(error(ErrorCode::Internal, "the peer's answer cannot be read")),
        }
    }

    async fn transfer_here(&self, caller: &Caller, id: RaftGroup, to: NodeId) -> Result<Epoch, v1::Error> {
        tracing::info!(%caller, group = %id, %to, "a leadership is handed over as asked");
        let group = self.context.group(id).ok_or_else(|| error(ErrorCode::NotFound, format!("{id} is not here")))?;
        let name = self.context.registry.view().borrow().name_of(to);
        group.transfer(to).await.map_err(|failed| match failed {
            ProposeError::NotLeader(leader) if leader != Some(self.context.me) => {
                not_owner(leader, format!("this node does not lead {id}"))
            }
            ProposeError::NotLeader(_) => {
                error(ErrorCode::FailedPrecondition, format!("{name} holds no replica of {id} that votes"))
            }
            ProposeError::Unknown => {
                error(ErrorCode::FailedPrecondition, format!("{name} did not take over {id} in time"))
            }
            ProposeError::Stopped(reason) => error(ErrorCode::NotReady, reason),
        })
    }
}
