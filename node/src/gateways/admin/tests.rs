use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use weft_cluster::ids::Generation;
use weft_cluster::registry::State;
use weft_cluster::view::{Member, MemberState};
use weft_proto::internal::v1::{NodeRecord, RegistryState, ReplicaRecord, ShardRecord};

use super::*;
use crate::host::Promise;
use crate::host::testing::{MemoryDisk, TestHost};

/// Leaders by shard; a shard that is not there has no replica here.
struct Leaders(BTreeMap<u32, Option<NodeId>>);

impl Replicas for Leaders {
    fn leader(&self, shard: ShardId) -> Option<Option<NodeId>> {
        self.0.get(&shard.0).copied()
    }
}

/// Hands out the other ends of the streams that a test makes.
struct Streams(mpsc::Receiver<DuplexStream>);

impl Listener for Streams {
    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7403))
    }

    fn accept(&mut self) -> Promise<'_, io::Result<Connection>> {
        Box::pin(async {
            match self.0.recv().await {
                Some(stream) => Ok(Connection { io: Box::new(stream), remote: SocketAddr::from(([127, 0, 0, 1], 1)) }),
                None => std::future::pending().await,
            }
        })
    }
}

struct Door {
    connect: mpsc::Sender<DuplexStream>,
    view: watch::Sender<Arc<ClusterView>>,
    draining: CancellationToken,
    tasks: Tasks,
}

impl Door {
    fn open(state: RegistryState, leaders: &[(u32, Option<u64>)]) -> Door {
        let host: Arc<dyn Host> = TestHost::new(MemoryDisk::default(), 1);
        let tasks = Tasks::new(host.clone());
        let (view, receiver) = watch::channel(Arc::new(view(state)));
        let leaders = leaders.iter().map(|(shard, leader)| (*shard, leader.map(NodeId))).collect();
        let draining = CancellationToken::new();
        let config = AdminConfig { headers_patience: Duration::from_millis(200), ..Default::default() };
        let leaders = Arc::new(Leaders(leaders));
        let admin = Admin::new(host, Metrics::new("n1"), receiver, leaders, draining.clone(), config);
        let (connect, streams) = mpsc::channel(1);
        admin.serve(Box::new(Streams(streams)), &tasks, CancellationToken::new());
        Door { connect, view, draining, tasks }
    }

    async fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 16);
        self.connect.send(far).await.expect("the door accepts");
        near
    }

    /// Sends raw bytes and returns all that comes until the door closes.
    async fn send(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("the door reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    /// Status and body of a page.
    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.send(&format!("GET {path} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n")).await;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, answer.split_once("\r\n\r\n").expect("a body").1.to_string())
    }
}

fn view(state: RegistryState) -> ClusterView {
    let member = Member {
        id: NodeId(2),
        name: "n2".into(),
        zone: "b".into(),
        generation: Generation(1),
        client_address: "h2:7400".into(),
        peer_address: "h2:7401".into(),
        version: "0".into(),
        disk_full: false,
        replicas_fenced: 0,
        state: MemberState::Alive,
    };
    ClusterView {
        me: NodeId(1),
        registry: Arc::new(State::from_proto(state).expect("a good state")),
        registry_leader: Some(NodeId(2)),
        members: [(NodeId(2), member)].into(),
        owners: BTreeMap::new(),
        cut_off: Default::default(),
    }
}

/// Two nodes and two shards; node 1 is in both.
fn founded() -> RegistryState {
    let node = |id, name: &str| NodeRecord { id, name: name.into(), registry_replica_id: id, ..Default::default() };
    let replica = |node| ReplicaRecord { replica_id: node, node };
    let shard = |shard| ShardRecord { shard, replicas: vec![replica(1), replica(2)], target: vec![], preferred: 2 };
    RegistryState {
        cluster_id: 9,
        shards_total: 2,
        replication: 2,
        nodes: vec![node(1, "n1"), node(2, "n2")],
        shards: vec![shard(0), shard(1)],
        ..Default::default()
    }
}

#[tokio::test]
async fn pages_are_served() {
    let door = Door::open(founded(), &[(0, Some(2)), (1, Some(1))]);
    assert_eq!(door.get("/livez").await, (200, "ok\n".into()));
    assert_eq!(door.get("/readyz").await, (200, "ready\n".into()));
    let (status, page) = door.get("/metrics").await;
    assert!(status == 200 && page.contains("weft_build_info{") && page.contains("weft_node_open_files"), "{page}");
    let (status, page) = door.get("/debug/view").await;
    let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    assert_eq!(status, 200);
    assert_eq!(page["registry"]["leader"], "n2");
    assert_eq!(page["members"][0]["state"], "alive");
    assert_eq!(page["shards"][1]["replicas"][0]["node"], "n1");
    assert_eq!(door.get("/other").await.0, 404);
    let posted = door.send("POST /livez HTTP/1.1\r\nhost: n\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
    door.tasks.stop(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let door = Door::open(RegistryState::default(), &[(0, Some(2)), (1, None)]);
    let becomes = async |state, status, part: &str| {
        door.view.send_replace(Arc::new(view(state)));
        let (got, reason) = door.get("/readyz").await;
        assert!(got == status && reason.contains(part), "{got} {reason:?} lacks {part:?}");
        assert_eq!(reason.lines().count(), 1);
    };
    becomes(RegistryState::default(), 503, "registry is not known").await;
    becomes(RegistryState { nodes: vec![], ..founded() }, 503, "not registered").await;
    becomes(RegistryState { shards: vec![], ..founded() }, 503, "not placed").await;
    becomes(founded(), 503, "shard 1 has no leader").await;
    let mut moving = founded();
    moving.shards[1].target = vec![ReplicaRecord { replica_id: 2, node: 2 }];
    becomes(moving, 200, "ready").await;
    let mut elsewhere = founded();
    elsewhere.shards[1].replicas.remove(0);
    becomes(elsewhere, 200, "ready").await;
    door.draining.cancel();
    becomes(founded(), 503, "stopping").await;

    let door = Door::open(founded(), &[(0, Some(2))]);
    assert!(door.get("/readyz").await.1.contains("replica of shard 1 has not started"));
}

#[tokio::test]
async fn slow_and_hostile_clients_are_cut_off() {
    let door = Door::open(founded(), &[]);
    let mut silent = Vec::new();
    for _ in 0..AdminConfig::default().connections_max {
        let mut stream = door.connect().await;
        stream.write_all(b"GET /livez HT").await.expect("the door reads");
        silent.push(stream);
    }
    // The door is full, but the silent ones run out of time.
    assert_eq!(door.get("/livez").await.0, 200);
    for mut stream in silent {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("closed");
    }
    let long = door.send(&format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(32 << 10))).await;
    assert!(long.starts_with("HTTP/1.1 431"), "{long}");
    let garbage = door.send("\0\u{1}\u{2} nonsense\r\n\r\n").await;
    assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400"), "{garbage}");
}
