//! A small world: a node's proxy behind an HTTP/2 connection, instances behind others, all in memory.

#![allow(clippy::disallowed_methods, reason = "tests run outside a simulated node")]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use weft_cluster::caller::Caller;
use weft_cluster::ids::{InstanceId, NodeId};
use weft_cluster::registry::State;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::{InstanceRecord, NodeRecord, RegistryState, ServiceRecord};

use crate::drivers::calls::{self, Calls, CallsConfig};
use crate::drivers::link::{Inbound, Lane, LinkConfig, LinkStream, Links, Me, Parts};
use crate::drivers::pki::{self, Authority};
use crate::gateways::proxy::Proxy;
use crate::host::disk::OsDisk;
use crate::host::production::Production;
use crate::host::testing::{MemoryDisk, TestHost};
use crate::host::{Connection, Disk, Host, Listener, Promise, SocketBuffers, Tasks, Work};

/// The service that all instances have.
pub(super) const SERVICE: &str = "t.Echo";
/// Bytes in a connection of memory.
const PIPE_BYTES: usize = 64 << 10;

type Doors = Arc<Mutex<BTreeMap<SocketAddr, mpsc::UnboundedSender<DuplexStream>>>>;

/// A host whose connections are made of memory.
pub(super) struct MemoryNet {
    host: Arc<TestHost>,
    doors: Doors,
}

impl MemoryNet {
    pub(super) fn new() -> Arc<MemoryNet> {
        Arc::new(MemoryNet { host: TestHost::new(MemoryDisk::default(), 7), doors: Doors::default() })
    }

    /// Takes the connections made to a port; none are taken any more when the receiver is dropped.
    pub(super) fn take(&self, port: u16) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (door, taken) = mpsc::unbounded_channel();
        self.doors.lock().expect("no panic").insert(address(port), door);
        taken
    }
}

pub(super) fn address(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

impl Host for MemoryNet {
    fn disk(&self) -> Arc<dyn Disk> {
        self.host.disk()
    }
    fn quic<'a>(
        &'a self,
        bind: SocketAddr,
        buffers: SocketBuffers,
        config: quinn::EndpointConfig,
        server: quinn::ServerConfig,
    ) -> Promise<'a, io::Result<(quinn::Endpoint, SocketBuffers)>> {
        self.host.quic(bind, buffers, config, server)
    }
    fn listen<'a>(&'a self, bind: SocketAddr) -> Promise<'a, io::Result<Box<dyn Listener>>> {
        self.host.listen(bind)
    }
    fn connect<'a>(&'a self, to: SocketAddr) -> Promise<'a, io::Result<Connection>> {
        let door = self.doors.lock().expect("no panic").get(&to).cloned();
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
            door.ok_or(()).and_then(|door| door.send(far).map_err(drop)).map_err(refused)?;
            Ok(Connection { io: Box::new(near), remote: to })
        })
    }
    fn resolve<'a>(&'a self, name: &'a str) -> Promise<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { name.parse().map(|address| vec![address]).map_err(io::Error::other) })
    }
    fn wall(&self) -> weft_cluster::ids::Millis {
        self.host.wall()
    }
    fn entropy(&self, buffer: &mut [u8]) {
        self.host.entropy(buffer);
    }
    fn blocking(&self, work: Work) -> Promise<'static, ()> {
        self.host.blocking(work)
    }
    fn spawn(&self, task: Promise<'static, ()>) -> tokio::task::JoinHandle<()> {
        self.host.spawn(task)
    }
    fn abort(&self, reason: &str) -> ! {
        self.host.abort(reason)
    }
}

/// What an instance has seen and done.
#[derive(Default)]
pub(super) struct Seen {
    /// Calls whose head has come.
    pub(super) calls: usize,
    /// Calls that were cut off.
    pub(super) cut: usize,
    pub(super) headers: HeaderMap,
    pub(super) uri: String,
}

/// An instance: `behave` serves each of its connections.
pub(super) struct Instance {
    pub(super) seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Instance {
    /// Speaks HTTP/2; what it does depends on the method.
    pub(super) fn start(net: &MemoryNet, port: u16) -> Instance {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (mut taken, shared) = (net.take(port), seen.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Some(io) = taken.recv().await {
                connections.spawn(speak(io, shared.clone()));
            }
        });
        Instance { seen, task }
    }

    /// Takes connections and does something else with their bytes.
    pub(super) fn other(net: &MemoryNet, port: u16, says: Option<&'static [u8]>) -> Instance {
        let mut taken = net.take(port);
        let task = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(mut io) = taken.recv().await {
                if let Some(says) = says {
                    let _ = io.write_all(says).await;
                }
                kept.push(io);
            }
        });
        Instance { seen: Arc::default(), task }
    }

    pub(super) fn calls(&self) -> usize {
        self.seen.lock().expect("no panic").calls
    }

    pub(super) fn cut(&self) -> usize {
        self.seen.lock().expect("no panic").cut
    }

    /// Gone, with all its connections.
    pub(super) fn kill(&self) {
        self.task.abort();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn speak(io: DuplexStream, seen: Arc<Mutex<Seen>>) {
    let Ok(mut connection) = h2::server::Builder::new().max_concurrent_streams(1_000).handshake::<_, Bytes>(io).await
    else {
        return;
    };
    let mut calls = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        match &*method {
            // The connection ends with the call under way.
            "Vanish" => return note(&seen, &request),
            "Leave" => {
                connection.graceful_shutdown();
            }
            _ => {}
        }
        calls.spawn(answer(method, request, respond, seen.clone()));
    }
}

fn note(seen: &Mutex<Seen>, request: &Request<h2::RecvStream>) {
    let mut seen = seen.lock().expect("no panic");
    seen.calls += 1;
    seen.headers = request.headers().clone();
    seen.uri = request.uri().to_string();
}

async fn answer(
    method: String,
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    seen: Arc<Mutex<Seen>>,
) {
    if method == "Refuse" && seen.lock().expect("no panic").calls == 0 {
        seen.lock().expect("no panic").calls += 1;
        return respond.send_reset(h2::Reason::REFUSED_STREAM);
    }
    note(&seen, &request);
    let mut body = request.into_body();
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    head.headers_mut().insert("answer-bin", HeaderValue::from_static("AAEC"));
    match &*method {
        "Reset" => return respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM),
        "Silent" => {
            let reset = std::future::poll_fn(|context| respond.poll_reset(context)).await;
            seen.lock().expect("no panic").cut += usize::from(reset.is_ok());
            return;
        }
        "Status" => {
            head.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
            head.headers_mut().insert("grpc-status-details-bin", HeaderValue::from_static("CAU"));
            let _ = respond.send_response(head, true);
            return;
        }
        _ => {}
    }
    if method == "Unary" {
        let mut whole = BytesMut::new();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            whole.extend_from_slice(&data);
        }
        let mut send = respond.send_response(head, false).expect("the proxy is there");
        return put(&mut send, whole.freeze()).await.map_or((), |()| finish(&mut send));
    }
    // Everything else echoes as it comes.
    let mut send = respond.send_response(head, false).expect("the proxy is there");
    if method == "Pour" || method == "Late" {
        if method == "Late" {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        for _ in 0..20 {
            if put(&mut send, Bytes::from(vec![b'x'; 10_000])).await.is_none() {
                return;
            }
        }
        return finish(&mut send);
    }
    if method == "Half" {
        let _ = put(&mut send, Bytes::from_static(b"half")).await;
        return send.send_reset(h2::Reason::INTERNAL_ERROR);
    }
    loop {
        match body.data().await {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                if put(&mut send, data).await.is_none() {
                    break;
                }
            }
            Some(Err(_)) => break,
            None => return finish(&mut send),
        }
    }
    seen.lock().expect("no panic").cut += 1;
}

fn finish(send: &mut h2::SendStream<Bytes>) {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = send.send_trailers(trailers);
}

/// Sends with flow control; `None`: the other end is gone.
pub(super) async fn put(send: &mut h2::SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = match send.capacity() {
            0 => std::future::poll_fn(|context| send.poll_capacity(context)).await?.ok()?,
            room => room,
        };
        let part = data.split_to(room.min(data.len()));
        send.send_data(part, false).ok()?;
    }
    Some(())
}

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
    pub(super) view: watch::Sender<Arc<ClusterView>>,
    pub(super) failed: Arc<Mutex<Vec<(InstanceId, String)>>>,
    links: Links,
}

impl Node {
    pub(super) async fn start(ca: &Authority, net: Arc<MemoryNet>, id: u64, config: CallsConfig) -> Node {
        let links = links(ca, id).await;
        let view = watch::Sender::new(Arc::new(view(NodeId(id), &[], &[])));
        let failed: Arc<Mutex<Vec<_>>> = Arc::default();
        let told = failed.clone();
        let host: Arc<dyn Host> = net;
        let started = Calls::start(calls::Parts {
            tasks: Tasks::new(host.clone()),
            host,
            links: links.clone(),
            view: view.subscribe(),
            config,
            failed: Arc::new(move |id, reason: &str| told.lock().expect("no panic").push((id, reason.to_owned()))),
        });
        let calls = started.expect("it starts");
        links.serve(Arc::new(PeerDoor(calls.clone())));
        Node { calls, view, failed, links }
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
        let proxy = Proxy::new(self.calls.clone());
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(far).await.expect("the client speaks HTTP/2");
            let mut calls = tokio::task::JoinSet::new();
            while let Some(Ok((request, respond))) = connection.accept().await {
                calls.spawn(proxy.clone().serve(request, respond, Caller::anonymous()));
            }
        });
        let (client, connection) = h2::client::handshake(near).await.expect("the node speaks HTTP/2");
        tokio::spawn(connection);
        client
    }
}

async fn links(ca: &Authority, id: u64) -> Links {
    let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(OsDisk)));
    let name = format!("n{id}");
    let issued = ca.issue(&*host, &name, &[], &[]).expect("a certificate");
    let credentials = pki::credentials(&ca.issued().cert_pem, &issued).expect("credentials");
    let me = Me {
        id: NodeId(id),
        name,
        zone: "a".into(),
        generation: weft_cluster::ids::Generation(1),
        secret: [id as u8; 32],
        cluster: 7,
        client_address: "127.0.0.1:1".into(),
        peer_address: ([127, 0, 0, 1], 0).into(),
        version: "test".into(),
        level_max: 1,
    };
    let tasks = Tasks::new(host.clone());
    Links::start(host, LinkConfig::default(), ([127, 0, 0, 1], 0).into(), me, credentials, &tasks)
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
        state: weft_cluster::view::MemberState::Alive,
    };
    ClusterView {
        me,
        registry: Arc::new(State::from_proto(registry).expect("a good state")),
        registry_leader: None,
        members: [1, 2].map(|id| (NodeId(id), member(id))).into(),
        owners: BTreeMap::new(),
    }
}

/// The head of a call.
pub(super) fn request(method: &str) -> Request<()> {
    Request::post(format!("http://shop.example/{SERVICE}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("token-bin", "AAEC")
        .body(())
        .expect("a good request")
}

/// An answer as the client sees it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) http: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) data: Bytes,
    pub(super) trailers: HeaderMap,
}

impl Answer {
    /// The gRPC status, from headers or trailers.
    pub(super) fn status(&self) -> tonic::Status {
        let from = |headers: &HeaderMap| tonic::Status::from_header_map(headers);
        from(&self.trailers).or_else(|| from(&self.headers)).expect("an answer has a status")
    }

    /// Weft's own code.
    #[track_caller]
    pub(super) fn code(&self) -> weft_proto::v1::ErrorCode {
        let status = self.status();
        assert!(tonic_types::StatusExt::get_details_error_info(&status).is_some(), "not Weft's own: {status:?}");
        crate::wire::from_status(&status).code()
    }
}

/// Makes a call with a whole body.
pub(super) async fn call(
    client: &SendRequest<Bytes>,
    request: Request<()>,
    body: impl Into<Bytes>,
) -> Result<Answer, h2::Error> {
    let mut client = client.clone().ready().await?;
    let (response, mut send) = client.send_request(request, false)?;
    let body = body.into();
    if body.len() < 1_000 {
        send.send_data(body, true)?;
    } else {
        let _ = put(&mut send, body).await;
        let _ = send.send_data(Bytes::new(), true);
    }
    receive(response).await
}

/// Waits for the whole answer.
pub(super) async fn receive(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let mut data = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        data.extend_from_slice(&part);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(Answer { http: head.status, headers: head.headers, data: data.freeze(), trailers })
}
