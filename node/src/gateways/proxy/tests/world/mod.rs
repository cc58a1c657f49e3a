//! A small world: a node's proxy behind an HTTP/2 connection, instances behind others, all in memory.

#![allow(clippy::disallowed_methods, reason = "tests run outside a simulated node")]

mod client;
mod instance;
mod net;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use weft_cluster::caller::Caller;
use weft_cluster::ids::{InstanceId, NodeId};
use weft_cluster::registry::State;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::{InstanceRecord, NodeRecord, RegistryState, ServiceRecord};

pub(super) use client::{call, put, receive, request};
pub(super) use instance::Instance;
pub(super) use net::{MemoryNet, address};

use crate::drivers::calls::{self, Calls, CallsConfig};
use crate::drivers::endpoint::Dialer;
use crate::drivers::link::{Inbound, Lane, LinkConfig, LinkStream, Links, Me, Parts};
use crate::drivers::pki::{self, Authority};
use crate::gateways::proxy::Proxy;
use crate::host::disk::OsDisk;
use crate::host::production::Production;
use crate::host::{Host, Promise, Tasks};

/// The service that all instances have.
pub(super) const SERVICE: &str = "t.Echo";
/// Bytes in a connection of memory.
const PIPE_BYTES: usize = 64 << 10;

/// The door for peers, as far as calls need it.
struct PeerDoor(Calls);

impl Inbound for PeerDoor {
    fn request(&self, from: NodeId, lane: Lane, body: Bytes) -> Promise<'static, Result<Parts, String>> {
        assert_eq!(lane, Lane::Call);
        self.0.serve_whole(from, body)
    }
    fn stream(&self, from: NodeId, lane: Lane, mut stream: LinkStream) -> Promise<'static, ()> {
        assert_eq!(lane, Lane::Call);
        let calls = self.0.clone();
        Box::pin(async move {
            if let Ok(Some(first)) = stream.receive.next().await {
                calls.serve_stream(from, first, stream).await;
            }
        })
    }
    fn gossip(&self, _from: SocketAddr, _packet: Bytes) {}
}

/// A node with its proxy.
pub(super) struct Node {
    pub(super) calls: Calls,
    pub(super) tasks: Tasks,
    pub(super) view: watch::Sender<Arc<ClusterView>>,
    pub(super) failed: Arc<Mutex<Vec<(InstanceId, String)>>>,
    links: Links,
}

impl Node {
    pub(super) async fn start(ca: &Authority, net: Arc<MemoryNet>, id: u64, config: CallsConfig) -> Node {
        let host: Arc<dyn Host> = net;
        let tasks = Tasks::new(host.clone());
        let links = links(ca, id, &tasks).await;
        let view = watch::Sender::new(Arc::new(view(NodeId(id), &[], &[])));
        let failed: Arc<Mutex<Vec<_>>> = Arc::default();
        let told = failed.clone();
        let calls = Calls::start(calls::Parts {
            dialer: Dialer::new(host.clone(), &config.tls_ca).expect("no file is named"),
            tasks: tasks.clone(),
            host,
            links: links.clone(),
            view: view.subscribe(),
            config,
            failed: Arc::new(move |id, reason: &str| told.lock().expect("no panic").push((id, reason.to_owned()))),
        });
        links.serve(Arc::new(PeerDoor(calls.clone())));
        Node { calls, tasks, view, failed, links }
    }

    pub(super) fn id(&self) -> NodeId {
        self.links.me().id
    }

    pub(super) fn links(&self) -> &Links {
        &self.links
    }

    /// A client's connection to the node.
    pub(super) async fn client(&self) -> SendRequest<Bytes> {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(converse(Proxy::new(self.calls.clone()), far));
        let (client, connection) = h2::client::handshake(near).await.expect("the node speaks HTTP/2");
        tokio::spawn(connection);
        client
    }

    /// Has its proxy behind a port of the net, as if it were an instance.
    pub(super) fn answer_at(&self, net: &MemoryNet, port: u16) {
        let (proxy, mut taken) = (Proxy::new(self.calls.clone()), net.take(port));
        tokio::spawn(async move {
            while let Some(io) = taken.recv().await {
                tokio::spawn(converse(proxy.clone(), io));
            }
        });
    }
}

async fn converse(proxy: Proxy, io: DuplexStream) {
    let mut connection = h2::server::handshake(io).await.expect("the client speaks HTTP/2");
    let mut calls = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        calls.spawn(proxy.clone().serve(request, respond, Caller::anonymous()));
        while calls.try_join_next().is_some() {}
    }
}

async fn links(ca: &Authority, id: u64, tasks: &Tasks) -> Links {
    let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(OsDisk)));
    let name = format!("n{id}");
    let issued = ca.issue(&*host, &name, &[], &[]).expect("a certificate");
    let credentials = pki::credentials(&ca.issued().cert_pem, &issued).expect("credentials");
    let me = Me {
        id: NodeId(id),
        name,
        zone: "a".into(),
        generation: weft_cluster::ids::Generation(1),
        start: 1,
        secret: [id as u8; 32],
        cluster: 7,
        client_address: "127.0.0.1:1".into(),
        peer_address: ([127, 0, 0, 1], 0).into(),
        version: "test".into(),
        level_max: 1,
    };
    Links::start(host, LinkConfig::default(), ([127, 0, 0, 1], 0).into(), me, credentials, tasks)
        .await
        .expect("links start")
}

pub(super) fn authority() -> Authority {
    let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(OsDisk)));
    Authority::create(&*host, "test").expect("a CA")
}

/// An instance on a port of the net.
pub(super) fn record(id: u64, home: NodeId, port: u16) -> InstanceRecord {
    InstanceRecord {
        id,
        namespace: "default".into(),
        service: "echo".into(),
        home: home.0,
        address: address(port).to_string(),
        weight: 100,
        healthy: true,
        ..Default::default()
    }
}

/// A view with these instances of one service, whose idempotent methods are these.
pub(super) fn view(me: NodeId, instances: &[InstanceRecord], idempotent: &[&str]) -> ClusterView {
    let service = ServiceRecord {
        namespace: "default".into(),
        name: "echo".into(),
        grpc_services: vec![SERVICE.into()],
        idempotent_methods: idempotent.iter().map(|name| name.to_string()).collect(),
        balance: weft_proto::v1::Balance::RoundRobin.into(),
    };
    let nodes =
        [1, 2].map(|id| NodeRecord { id, name: format!("n{id}"), registry_replica_id: id, ..Default::default() });
    let registry = RegistryState {
        cluster_id: 7,
        shards_total: 1,
        nodes: nodes.to_vec(),
        services: vec![service],
        instances: instances.to_vec(),
        next_instance_id: 100,
        ..Default::default()
    };
    let member = |id: u64| weft_cluster::view::Member {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: String::new(),
        generation: weft_cluster::ids::Generation(1),
        client_address: String::new(),
        peer_address: String::new(),
        version: String::new(),
        disk_full: false,
        replicas_fenced: 0,
        state: weft_cluster::view::MemberState::Alive,
    };
    ClusterView {
        me,
        registry: Arc::new(State::from_proto(registry).expect("a good state")),
        registry_leader: Some(me),
        members: [1, 2].map(|id| (NodeId(id), member(id))).into(),
        owners: BTreeMap::new(),
        cut_off: Default::default(),
    }
}
