//! The Weft node: `cluster` decides, drivers do, gateways translate, and `run` here wires them.
//!
//! Production, `weft dev` and the simulator all call `run`, each with a `Host` of its own.

pub mod cli;
pub mod config;
pub mod drivers;
pub mod gateways;
pub mod host;
pub mod telemetry;
pub mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use weft_cluster::registry::limits::FEATURE_LEVEL;
use weft_proto::internal::v1::NodeRecord;
use weft_proto::v1::events_server::EventsServer;

use crate::config::Config;
use crate::drivers::calls::{self, Calls};
use crate::drivers::endpoint::Dialer;
use crate::drivers::forward::Forward;
use crate::drivers::gossip::Gossip;
use crate::drivers::instances::Instances;
use crate::drivers::link::{self, CertificateFiles, Links};
use crate::drivers::pki;
use crate::drivers::raft::{self, Rafts};
use crate::drivers::shard::Shards;
use crate::drivers::storage::{Identity, Storage};
use crate::gateways::admin::Admin;
use crate::gateways::door::{self, Door, Health, Reflection, reflection};
use crate::gateways::events::Events;
use crate::gateways::peer::Peer;
use crate::gateways::proxy::{self, Proxy};
use crate::gateways::services::{self, Services};
use crate::gateways::status::{Drivers, Status};
use crate::host::{Host, Listener, Promise, Tasks};
use crate::telemetry::{Metrics, VERSION};

/// How long tasks may take to notice that they are cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// Runs a node until `stop` is cancelled, then drains and stops it in order.
///
/// # Errors
/// What keeps it from starting (the data folder, the certificates, an address in use), or a vital task
/// that ended while it ran.
pub async fn run(config: Config, host: Arc<dyn Host>, stop: CancellationToken) -> Result<()> {
    let tasks = Tasks::new(host.clone());
    let started = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        node = Node::start(&config, host, tasks.clone()) => Some(node),
    };
    let Some(node) = started else {
        tasks.stop(CANCEL_PATIENCE).await;
        return Ok(());
    };
    let node = match node {
        Ok(node) => node,
        Err(error) => {
            tasks.stop(CANCEL_PATIENCE).await;
            return Err(error);
        }
    };
    let failed = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        reason = tasks.failed() => Some(reason),
    };
    node.stop(config.node.stop_patience).await;
    failed.map_or(Ok(()), |reason| Err(anyhow::Error::msg(reason)))
}

/// How long an instance may take to describe itself.
const REFLECTION_PATIENCE: Duration = Duration::from_secs(5);

/// A node that runs.
struct Node {
    tasks: Tasks,
    storage: Storage,
    links: Links,
    gossip: Gossip,
    rafts: Rafts,
    instances: Instances,
    door: Door,
    stopping: Stopping,
}

/// The steps of a stop.
#[derive(Default)]
struct Stopping {
    /// Not ready any more: hand over, finish.
    draining: CancellationToken,
    /// No new connection; those open end in order.
    doors: CancellationToken,
}

/// The addresses of a node, bound and told.
struct Doors {
    client: Box<dyn Listener>,
    admin: Box<dyn Listener>,
    client_address: String,
    peer_address: SocketAddr,
}

impl Node {
    async fn start(config: &Config, host: Arc<dyn Host>, tasks: Tasks) -> Result<Node> {
        let credentials = pki::load(&*host.disk(), &config.tls.ca, &config.tls.cert, &config.tls.key)?;
        let name = node_name(config, &credentials.name)?;
        let doors = Doors::open(config, &*host).await?;
        let dir = &config.node.dir;
        let (storage, recovered) = Storage::open(host.clone(), dir.clone(), config.storage.clone(), &tasks)
            .await
            .with_context(|| format!("open the data folder {}", dir.display()))?;
        let identity = storage.identity();
        let me = record(config, &name, &identity, &doors);
        tracing::info!(node = %identity.node, name, version = VERSION, clients = doors.client_address, "starting");

        let bind = config.node.peer_listen;
        let hello = hello(config, &me, &identity, &doors);
        let links = Links::start(host.clone(), config.link.clone(), bind, hello, credentials, &tasks)
            .await
            .with_context(|| format!("open links on {bind}"))?;
        let files =
            CertificateFiles { ca: config.tls.ca.clone(), cert: config.tls.cert.clone(), key: config.tls.key.clone() };
        tasks.spawn("certificate", links.clone().watch_certificate(files));
        let keeping = storage.clone();
        let keep = move |starts| -> Promise<'static, ()> {
            let storage = keeping.clone();
            Box::pin(async move { storage.keep_starts(starts).await })
        };
        links.remember(storage.starts().await, Arc::new(keep));
        let seeds = config.node.seeds.clone();
        let (full, of_gossip) = (storage.full_watch(), config.gossip.clone());
        let gossip = Gossip::start(host.clone(), of_gossip, links.clone(), seeds.clone(), full, &tasks);
        let (rafts, registry) = Rafts::open(raft::Parts {
            host: host.clone(),
            tasks: tasks.clone(),
            storage: storage.clone(),
            recovered,
            links: links.clone(),
            members: gossip.members(),
            me,
            seeds,
            config: config.raft.clone(),
        })
        .await;
        gossip.tell_fenced(rafts.fenced_count(), &tasks);
        let view = registry.view();
        let shards = Shards::start(
            host.clone(),
            storage.clone(),
            links.clone(),
            view.clone(),
            config.shards.clone(),
            tasks.clone(),
        );
        rafts.serve(shards.clone()).await.context("start the shards")?;
        let dialer = Dialer::new(host.clone(), &config.calls.tls_ca).map_err(anyhow::Error::msg)?;
        let instances = Instances::start(
            host.clone(),
            tasks.clone(),
            registry.clone(),
            links.clone(),
            dialer.clone(),
            doors.listening(bind),
            config.instances.clone(),
        );
        for service in &config.services {
            let put = service.registration().map_err(anyhow::Error::msg).context("a service of the configuration")?;
            instances.register_at_start(put, service.tls_ca.clone());
        }
        let told = instances.clone();
        let calls = Calls::start(calls::Parts {
            host: host.clone(),
            tasks: tasks.clone(),
            links: links.clone(),
            dialer,
            view: view.clone(),
            config: config.calls.clone(),
            failed: Arc::new(move |id, reason: &str| told.failed(id, reason)),
        });
        let peer = Peer::new(rafts.clone(), shards.clone(), gossip.clone(), instances.clone(), calls.clone());
        links.serve(Arc::new(peer));

        let forward = Forward::new(
            shards.clone(),
            links.clone(),
            view.clone(),
            config.forward.clone(),
            host.clone(),
            tasks.clone(),
        );
        let stopping = Stopping::default();
        let stop = stopping.doors.clone();
        let (config_of_events, registry_of_events) = (config.events.clone(), registry.clone());
        let events =
            Events::new(forward.clone(), registry_of_events, config_of_events, host.clone(), tasks.clone(), stop);
        let metrics = Metrics::new(&name);
        metrics.register(|registry| {
            storage.metrics().register(registry);
            links.register(registry);
            rafts.metrics().register(registry);
            gossip.register(registry);
            shards.metrics().register(registry);
            forward.metrics().register(registry);
            events.metrics().register(registry);
            instances.metrics().register(registry);
            calls.metrics().register(registry);
        });

        let services = services::Drivers { instances: instances.clone(), registry: registry.clone() };
        let services = Services::new(Arc::new(services), view.clone());
        let drivers = Drivers { registry, rafts: rafts.clone(), forward };
        let status = Status::new(Arc::new(drivers), view.clone(), stopping.doors.clone());
        let stop = stopping.doors.clone();
        let health = Health::new(view.clone(), stopping.draining.clone(), stop.clone());
        let asked = calls.clone();
        let ask: reflection::Ask = Arc::new(move |question| {
            let reflection::Question { caller, hops, namespace, grpc_service, request } = question;
            let question = proxy::Question { caller, hops, namespace, grpc_service, request };
            let calls = asked.clone();
            Box::pin(async move { proxy::ask(&calls, question, REFLECTION_PATIENCE).await })
        });
        let reflection = Reflection::new(view.clone(), ask, stop.clone()).context("read the API's descriptors")?;
        let routes = routes(&events, &status, &services, &health, &reflection, config);
        let proxy = Proxy::new(calls);
        let calls: door::Calls = Arc::new(move |request, respond, caller| {
            let serving = proxy.clone().serve(request, respond, caller);
            Box::pin(serving)
        });
        let door = Door::new(routes, calls, config.api.clone(), tasks.clone());
        metrics.register(|registry| door.register(registry));
        door.serve(doors.client, stop);
        let (replicas, draining) = (Arc::new(rafts.clone()), stopping.draining.clone());
        let admin = Admin::new(host, metrics, view, replicas, draining, config.admin.clone());
        admin.serve(doors.admin, &tasks, stopping.doors.clone());
        Ok(Node { tasks, storage, links, gossip, rafts, instances, door, stopping })
    }

    /// Drains, then stops from the doors inwards; after this the data folder is free. Draining takes at most `patience`:
    /// half of it for leaderships, the rest for what clients have under way.
    async fn stop(self, patience: Duration) {
        tracing::info!("stopping");
        let deadline = tokio::time::Instant::now() + patience;
        // Balancers see it first, and send nothing new here.
        self.stopping.draining.cancel();
        // Others lead before clients are sent to them.
        self.rafts.drain(patience / 2).await;
        // Other nodes become the homes of the instances here; calls under way go on.
        self.instances.leave().await;
        self.stopping.doors.cancel();
        let left = self.door.finished(deadline).await;
        if left > 0 {
            tracing::warn!(left, "calls did not end within node.stop_patience; they are cut off");
        }
        self.gossip.leave().await;
        self.rafts.stop().await;
        self.storage.close().await;
        self.links.close().await;
        self.tasks.stop(CANCEL_PATIENCE).await;
        tracing::info!("stopped");
    }
}

impl Doors {
    async fn open(config: &Config, host: &dyn Host) -> Result<Doors> {
        let node = &config.node;
        let client =
            host.listen(node.listen).await.with_context(|| format!("listen for clients on {}", node.listen))?;
        let admin = host
            .listen(node.admin_listen)
            .await
            .with_context(|| format!("listen for operators on {}", node.admin_listen))?;
        let peer = node.peer_address();
        let peer_address = *host
            .resolve(&peer)
            .await
            .with_context(|| format!("resolve the address told to other nodes, {peer}"))?
            .first()
            .with_context(|| format!("{peer} has no address"))?;
        ensure!(
            !peer_address.ip().is_unspecified(),
            "node.peer_advertise: {peer} is no address that other nodes can reach; name one, or bind \
             node.peer_listen to one"
        );
        let client_address = match node.advertise.is_empty() {
            true => {
                SocketAddr::new(reachable(client.local_addr(), peer_address), client.local_addr().port()).to_string()
            }
            false => node.advertise.clone(),
        };
        Ok(Doors { client, admin, client_address, peer_address })
    }
}

impl Doors {
    /// Where this node listens; links on `peer`.
    fn listening(&self, peer: SocketAddr) -> Vec<SocketAddr> {
        vec![self.client.local_addr(), self.admin.local_addr(), peer]
    }
}

/// The IP told to clients: the one listened on, or, if that is all, the one told to other nodes.
fn reachable(listen: SocketAddr, peer: SocketAddr) -> IpAddr {
    if listen.ip().is_unspecified() { peer.ip() } else { listen.ip() }
}

/// The node's name: the certificate's. A name that is configured must be that one.
pub(crate) fn node_name(config: &Config, certified: &str) -> Result<String> {
    let name = &config.node.name;
    ensure!(
        name.is_empty() || name == certified,
        "node.name is `{name}`, but the certificate {} is for `{certified}`: they must agree",
        config.tls.cert.display()
    );
    Ok(certified.to_owned())
}

/// This node, as the registry should know it.
fn record(config: &Config, name: &str, identity: &Identity, doors: &Doors) -> NodeRecord {
    NodeRecord {
        id: identity.node.0,
        name: name.to_owned(),
        zone: config.node.zone.clone(),
        generation: identity.generation.0,
        start: identity.start,
        client_address: doors.client_address.clone(),
        peer_address: doors.peer_address.to_string(),
        weight: config.node.weight,
        version: VERSION.to_owned(),
        level_max: FEATURE_LEVEL,
        registry_replica_id: 0,
    }
}

/// This node, as it greets its peers.
fn hello(config: &Config, me: &NodeRecord, identity: &Identity, doors: &Doors) -> link::Me {
    link::Me {
        id: identity.node,
        name: me.name.clone(),
        zone: config.node.zone.clone(),
        generation: identity.generation,
        start: identity.start,
        secret: identity.secret,
        cluster: identity.cluster.unwrap_or(0),
        client_address: doors.client_address.clone(),
        peer_address: doors.peer_address,
        version: VERSION.to_owned(),
        level_max: FEATURE_LEVEL,
    }
}

/// Everything of Weft's own that a client can call.
fn routes(
    events: &Events,
    status: &Status,
    services: &Services,
    health: &Health,
    reflection: &Reflection,
    config: &Config,
) -> Routes {
    let message_bytes_max = usize::try_from(config.api.message_bytes_max.as_u64()).unwrap_or(usize::MAX);
    let (cluster, topics) = status.services();
    let (reflection, reflection_alpha) = reflection.services();
    let events = EventsServer::new(events.clone())
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(message_bytes_max);
    Routes::new(events)
        .add_service(topics)
        .add_service(cluster)
        .add_service(services.service())
        .add_service(health.service())
        .add_service(reflection)
        .add_service(reflection_alpha)
}
