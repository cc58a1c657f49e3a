use std::sync::Mutex;

use hyper_util::rt::TokioIo;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Server};
use weft_cluster::caller::Caller;
use weft_cluster::ids::{Generation, LogPosition};
use weft_cluster::view::{Member, MemberState, Owner};
use weft_proto::internal::v1::{
    Bootstrap, CreateGroup, GroupStat, NodeRecord, PlanShards, PlannedShard, RegisterNode, RegistryEntry,
};
use weft_proto::v1::cluster_client::ClusterClient;
use weft_proto::v1::topics_client::TopicsClient;
use weft_proto::v1::{ErrorCode, Retry};

use super::*;
use crate::wire::{error, from_status};

/// A registry of one process, and owners that answer for what is told.
struct Fake {
    state: Mutex<State>,
    view: watch::Sender<Arc<ClusterView>>,
    /// Questions to the owners that stay unanswered before they answer.
    silent: Mutex<u32>,
    transfers: Mutex<Vec<(ShardId, NodeId)>>,
    broken: Mutex<Option<v1::Error>>,
}

impl Fake {
    fn run(&self, command: Command) -> RegistryOutcome {
        let mut state = self.state.lock().expect("the lock");
        let index = state.applied().map_or(1, |at| at.index + 1);
        let command = RegistryCommand { level: 1, command: Some(command) };
        let entry = RegistryEntry { log_time_ms: 5, command: Some(command) };
        let outcome = state.apply(LogPosition { term: 1, index }, &entry);
        self.view.send_modify(|view| Arc::make_mut(view).registry = Arc::new(state.clone()));
        outcome
    }

    fn change(&self, change: impl FnOnce(&mut ClusterView)) {
        self.view.send_modify(|view| change(Arc::make_mut(view)));
    }
}

impl Backend for Fake {
    fn settled(&self) -> Result<(), v1::Error> {
        match self.view.borrow().registry.cluster_id() {
            0 => Err(error(ErrorCode::NotReady, "1 of 3 nodes")),
            _ => Ok(()),
        }
    }

    fn propose<'a>(
        &'a self,
        _: &'a Caller,
        command: RegistryCommand,
        _: Duration,
    ) -> Promise<'a, Result<RegistryOutcome, v1::Error>> {
        Box::pin(async move {
            if let Some(error) = self.broken.lock().expect("the lock").clone() {
                return Err(error);
            }
            let outcome = self.run(command.command.expect("a command"));
            match outcome.outcome {
                Some(Outcome::Error(error)) => Err(error),
                _ => Ok(outcome),
            }
        })
    }

    fn read(&self, _: Duration) -> Promise<'_, Result<Arc<State>, v1::Error>> {
        Box::pin(async { Ok(Arc::new(self.state.lock().expect("the lock").clone())) })
    }

    fn stats<'a>(
        &'a self,
        _: &'a Caller,
        partitions: &'a [PartitionId],
        _: Duration,
    ) -> Promise<'a, Vec<PartitionStat>> {
        Box::pin(async move {
            let mut silent = self.silent.lock().expect("the lock");
            if *silent > 0 {
                *silent -= 1;
                return Vec::new();
            }
            let stat = |id: &PartitionId| PartitionStat {
                topic: id.topic.0,
                partition: id.index,
                start_offset: 2,
                end_offset: 12,
                bytes: 640,
                epoch: 7,
                groups: vec![GroupStat { group: 1, acked_below: 5, acked_above: 3 }],
            };
            // The owner of partition 1 does not answer.
            partitions.iter().filter(|id| id.index != 1 || id.topic.0 != 1).map(stat).collect()
        })
    }

    fn transfer<'a>(&'a self, _: &'a Caller, shard: ShardId, to: NodeId) -> Promise<'a, Result<Epoch, v1::Error>> {
        self.transfers.lock().expect("the lock").push((shard, to));
        Box::pin(async { Ok(Epoch(8)) })
    }
}

struct Doors {
    fake: Arc<Fake>,
    cluster: ClusterClient<Channel>,
    topics: TopicsClient<Channel>,
    stop: CancellationToken,
}

fn record(id: u64) -> NodeRecord {
    let (name, zone) = (format!("n{id}"), format!("z{id}"));
    NodeRecord { id, name, zone, generation: 1, level_max: 1, registry_replica_id: id, ..Default::default() }
}

fn member(id: u64, name: &str, state: MemberState) -> Member {
    Member {
        id: NodeId(id),
        name: name.into(),
        zone: format!("z{id}"),
        generation: Generation(1),
        client_address: format!("h{id}:7400"),
        peer_address: format!("h{id}:7401"),
        version: "0".into(),
        disk_full: false,
        replicas_fenced: 0,
        state,
    }
}

/// Nodes 1 to 3 alive, four shards on all of them but the last, which is on 1 and 2; node 1 owns all.
async fn open() -> Doors {
    let view = ClusterView {
        me: NodeId(1),
        registry: Arc::new(State::default()),
        registry_leader: Some(NodeId(2)),
        members: (1..=3).map(|id| (NodeId(id), member(id, &format!("n{id}"), MemberState::Alive))).collect(),
        owners: (0..4).map(|shard| (ShardId(shard), Owner { node: NodeId(1), epoch: Epoch(6) })).collect(),
        cut_off: Default::default(),
    };
    let fake = Arc::new(Fake {
        state: Mutex::default(),
        view: watch::channel(Arc::new(view)).0,
        silent: Mutex::new(2),
        transfers: Mutex::default(),
        broken: Mutex::default(),
    });
    let nodes = (1..=3).map(record).collect();
    fake.run(Command::Bootstrap(Bootstrap { cluster_id: 9, shards: 4, replication: 3, nodes, level: 1 }));
    let row = |shard, nodes: &[u64]| PlannedShard { shard, nodes: nodes.to_vec(), preferred: 1 };
    let shards = vec![row(0, &[1, 2, 3]), row(1, &[1, 2, 3]), row(2, &[1, 2, 3]), row(3, &[1, 2])];
    fake.run(Command::PlanShards(PlanShards { base_version: 0, shards }));

    let stop = CancellationToken::new();
    let (cluster, topics) = Status::new(fake.clone(), fake.view.subscribe(), stop.clone()).services();
    let channel = connect(Server::builder().add_service(cluster).add_service(topics)).await;
    Doors { fake, cluster: ClusterClient::new(channel.clone()), topics: TopicsClient::new(channel), stop }
}

/// Serves on one end of a pipe in memory, and connects to the other.
#[allow(clippy::disallowed_methods, reason = "a test has no Tasks")]
async fn connect(router: tonic::transport::server::Router) -> Channel {
    let (near, far) = tokio::io::duplex(1 << 16);
    let incoming = futures::stream::iter([Ok::<_, std::io::Error>(far)]);
    tokio::spawn(router.serve_with_incoming(futures::StreamExt::chain(incoming, futures::stream::pending())));
    let mut near = Some(near);
    let connector = tower::service_fn(move |_: http::Uri| {
        let near = near.take().ok_or_else(|| std::io::Error::other("connected once"));
        async move { near.map(TokioIo::new) }
    });
    Endpoint::from_static("http://n1").connect_with_connector(connector).await.expect("the door is open")
}

impl Doors {
    async fn create(&mut self, name: &str, partitions: u32) -> Result<v1::Topic, v1::Error> {
        let request = v1::CreateTopicRequest { name: name.into(), partitions, ..Default::default() };
        self.topics.create_topic(request).await.map(|answer| answer.into_inner()).map_err(|status| from_status(&status))
    }

    async fn transfer(&mut self, shard: u32, node: &str) -> Result<u64, v1::Error> {
        let request = v1::TransferShardRequest { shard, node: node.into() };
        let answer = self.cluster.transfer_shard(request).await;
        answer.map(|answer| answer.into_inner().epoch).map_err(|status| from_status(&status))
    }
}

#[tokio::test]
async fn topics_are_created_listed_described_and_deleted() {
    let mut doors = open().await;
    *doors.fake.silent.lock().expect("the lock") = 0;
    // Topic 1 has one partition; 1/1, whose owner is silent, is not waited for.
    let topic = doors.create("orders", 1).await.expect("created");
    assert_eq!((topic.id, topic.partitions, topic.namespace.as_str(), topic.created_ms), (1, 1, "default", 5));
    *doors.fake.silent.lock().expect("the lock") = 2;
    doors.create("alerts", 3).await.expect("created once the owners answer");
    assert_eq!(*doors.fake.silent.lock().expect("the lock"), 0, "owners were asked until they answered");

    let listed = doors.topics.list_topics(v1::ListTopicsRequest::default()).await.expect("listed").into_inner();
    assert_eq!(listed.topics.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>(), ["alerts", "orders"]);

    let create = CreateGroup { topic: 2, name: "g".into(), start: 1, ack_deadline_ms: 0 };
    doors.fake.run(Command::CreateGroup(create));
    let describe = v1::DescribeTopicRequest { name: "alerts".into(), namespace: String::new() };
    let described = doors.topics.describe_topic(describe.clone()).await.expect("described").into_inner();
    assert_eq!(described.partitions.len(), 3);
    let first = &described.partitions[0];
    assert_eq!((first.owner.as_str(), first.epoch, first.start_offset, first.end_offset), ("n1", 7, Some(2), Some(12)));
    assert!(first.replicas.contains(&"n2".to_string()));
    assert_eq!(described.groups[0].cursors.len(), 3);
    assert_eq!((described.groups[0].cursors[0].acked_below, described.groups[0].cursors[0].lag), (5, 4));

    *doors.fake.silent.lock().expect("the lock") = 1;
    let described = doors.topics.describe_topic(describe.clone()).await.expect("described").into_inner();
    assert_eq!((described.partitions[0].end_offset, described.partitions[0].epoch), (None, 6), "no owner answered");
    assert!(described.groups[0].cursors.is_empty());

    let named = |topic: &str, group: &str| (topic.to_owned(), String::new(), group.to_owned());
    let describe_group = |(topic, namespace, group)| v1::DescribeGroupRequest { topic, namespace, group };
    let delete_group = |(topic, namespace, group)| v1::DeleteGroupRequest { topic, namespace, group };
    for topic in ["", "alerts"] {
        let request = v1::ListGroupsRequest { topic: topic.into(), ..Default::default() };
        let listed = doors.topics.list_groups(request).await.expect("listed").into_inner().groups;
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (listed[0].name.as_str(), listed[0].topic.as_str(), listed[0].ack_deadline_ms),
            ("g", "alerts", 30_000)
        );
    }
    let of_orders = v1::ListGroupsRequest { topic: "orders".into(), ..Default::default() };
    assert!(doors.topics.list_groups(of_orders).await.expect("listed").into_inner().groups.is_empty());
    let group =
        doors.topics.describe_group(describe_group(named("alerts", "g"))).await.expect("described").into_inner();
    let cursor = &group.cursors[0];
    assert_eq!((cursor.acked_below, cursor.lag, cursor.end_offset), (5, 4, 12));
    doors.topics.delete_group(delete_group(named("alerts", "g"))).await.expect("deleted");
    for status in [
        doors.topics.delete_group(delete_group(named("alerts", "g"))).await.map(drop).expect_err("gone"),
        doors.topics.describe_group(describe_group(named("alerts", "g"))).await.map(drop).expect_err("gone"),
        doors
            .topics
            .describe_group(describe_group(named("orders", "g")))
            .await
            .map(drop)
            .expect_err("of another topic"),
    ] {
        assert_eq!(from_status(&status).code(), ErrorCode::UnknownGroup);
    }

    let delete = v1::DeleteTopicRequest { name: "alerts".into(), namespace: String::new() };
    doors.topics.delete_topic(delete.clone()).await.expect("deleted");
    for status in [
        doors.topics.delete_topic(delete).await.map(drop).expect_err("gone"),
        doors.topics.describe_topic(describe).await.map(drop).expect_err("gone"),
    ] {
        assert_eq!(status.code(), tonic::Code::NotFound);
        assert_eq!(from_status(&status).code(), ErrorCode::UnknownTopic);
    }
}

#[tokio::test]
async fn refusals_carry_code_and_retry() {
    let mut doors = open().await;
    let refused = doors.create("no spaces", 1).await.expect_err("refused");
    assert_eq!((refused.code(), refused.retry()), (ErrorCode::InvalidArgument, Retry::Never));
    assert!(refused.message.contains("contains ' '"), "{}", refused.message);
    doors.create("orders", 1).await.expect("created");
    assert_eq!(doors.create("orders", 1).await.expect_err("twice").code(), ErrorCode::TopicExists);
    *doors.fake.broken.lock().expect("the lock") = Some(error(ErrorCode::NoOwner, "no leader"));
    let refused = doors.create("more", 1).await.expect_err("no leader");
    assert_eq!((refused.code(), refused.retry()), (ErrorCode::NoOwner, Retry::Same));
    let bad = v1::ListTopicsRequest { namespace: "a/b".into() };
    assert_eq!(
        doors.topics.list_topics(bad).await.map(drop).expect_err("refused").code(),
        tonic::Code::InvalidArgument
    );
}

#[tokio::test]
async fn shards_are_transferred_to_live_holders() {
    let mut doors = open().await;
    let preferred =
        |doors: &Doors| doors.fake.state.lock().expect("the lock").shard(ShardId(0)).expect("a row").preferred;
    assert_eq!(doors.transfer(0, "n1").await, Ok(6), "it owns it already");
    assert_eq!(doors.transfer(0, "n2").await, Ok(8));
    assert_eq!(preferred(&doors), 2, "the balancer of leaders leaves it there");
    assert_eq!(doors.transfer(0, "n1").await, Ok(6));
    assert_eq!(preferred(&doors), 1, "also where it is the owner");
    assert_eq!(*doors.fake.transfers.lock().expect("the lock"), [(ShardId(0), NodeId(2))]);
    doors.fake.change(|view| {
        view.members.insert(NodeId(3), member(3, "n3", MemberState::Suspect));
    });
    for (shard, node, code, part) in [
        (4, "n2", ErrorCode::NotFound, "no shard 4: the cluster has 4"),
        (0, "n9", ErrorCode::NotFound, "there are n1, n2, n3"),
        (3, "n3", ErrorCode::FailedPrecondition, "n1, n2 do"),
        (0, "n3", ErrorCode::FailedPrecondition, "does not answer"),
    ] {
        let refused = doors.transfer(shard, node).await.expect_err(part);
        assert!(refused.code() == code && refused.message.contains(part), "{refused:?}");
    }
}

#[tokio::test]
async fn the_cluster_is_described() {
    let mut doors = open().await;
    let status = doors.cluster.get_status(v1::GetStatusRequest {}).await.expect("a status").into_inner();
    assert_eq!((status.node.as_str(), status.registry_leader.as_str()), ("n1", "n2"));
    assert_eq!((status.members_alive, status.members_total, status.shards_owned), (3, 3, 4));
    assert_eq!((status.shards_underreplicated, status.healthy), (1, false), "shard 3 has two of three");
    let base_version = 1;
    let row = PlannedShard { shard: 3, nodes: vec![3, 1, 2], preferred: 1 };
    doors.fake.run(Command::PlanShards(PlanShards { base_version, shards: vec![row] }));
    let shards = doors.cluster.list_shards(v1::ListShardsRequest {}).await.expect("shards").into_inner().shards;
    assert_eq!((shards[3].owner.as_str(), shards[3].epoch, &shards[3].moving), ("n1", 6, &vec!["n3".to_string()]));
    assert_eq!(shards[3].replicas, ["n1", "n2"]);
    let moved = weft_proto::internal::v1::ShardMoved {
        shard: 3,
        replica_ids: doors
            .fake
            .state
            .lock()
            .expect("the lock")
            .shard(ShardId(3))
            .expect("a row")
            .target
            .iter()
            .map(|it| it.replica_id)
            .collect(),
    };
    doors.fake.run(Command::ShardMoved(moved));
    assert!(doors.cluster.get_status(v1::GetStatusRequest {}).await.expect("a status").into_inner().healthy);
    let full = |doors: &mut Doors, full| {
        doors.fake.change(|view| view.members.get_mut(&NodeId(2)).expect("a member").disk_full = full);
    };
    full(&mut doors, true);
    let status = doors.cluster.get_status(v1::GetStatusRequest {}).await.expect("a status").into_inner();
    assert!(!status.healthy && status.shards_underreplicated > 0, "its replicas take nothing");
    full(&mut doors, false);
    let fenced = |doors: &mut Doors, count| {
        doors.fake.change(|view| view.members.get_mut(&NodeId(2)).expect("a member").replicas_fenced = count);
    };
    fenced(&mut doors, 1);
    let status = doors.cluster.get_status(v1::GetStatusRequest {}).await.expect("a status").into_inner();
    assert_eq!(status.problems, ["1 replicas on n2 failed a check and are to be filled anew"]);
    assert!(!status.healthy);
    fenced(&mut doors, 0);

    // A node with a new folder: gossip still knows the old one, which is dead.
    let node = NodeRecord { id: 33, name: "n3".into(), ..record(33) };
    doors.fake.run(Command::RegisterNode(RegisterNode { node: Some(node) }));
    doors.fake.change(|view| {
        view.members.insert(NodeId(3), member(3, "n3", MemberState::Down));
    });
    let members = doors.cluster.list_members(v1::ListMembersRequest {}).await.expect("members").into_inner().members;
    let seen: Vec<_> =
        members.iter().map(|member| (member.id, member.state(), member.voter, member.shards_owned)).collect();
    let (alive, down) = (v1::MemberState::Alive, v1::MemberState::Down);
    assert_eq!(seen, [(1, alive, true, 4), (2, alive, true, 0), (33, down, true, 0)]);
    assert_eq!(members[0].replicas, 4);
    let version = doors.cluster.get_version(v1::GetVersionRequest {}).await.expect("a version").into_inner();
    assert_eq!((version.node.as_str(), version.feature_level, version.cluster_id), ("n1", 1, 9));
}

#[tokio::test]
async fn a_node_that_has_just_started_says_nothing_of_its_cluster() {
    let mut doors = open().await;
    let registry = Arc::new(doors.fake.state.lock().expect("the lock").clone());
    doors.fake.change(|view| view.registry = Arc::default());
    let not_ready = |status: tonic::Status| {
        let error = from_status(&status);
        assert_eq!((error.code(), error.retry(), &*error.message), (ErrorCode::NotReady, Retry::Same, "1 of 3 nodes"));
    };
    not_ready(doors.cluster.list_members(v1::ListMembersRequest {}).await.map(drop).expect_err("members"));
    not_ready(doors.cluster.get_status(v1::GetStatusRequest {}).await.map(drop).expect_err("a status"));
    not_ready(doors.topics.list_topics(v1::ListTopicsRequest::default()).await.map(drop).expect_err("topics"));
    doors.cluster.get_version(v1::GetVersionRequest {}).await.expect("it knows its version");
    // A client that comes back to a node must not forget the others.
    let watch = doors.cluster.watch_members(v1::WatchMembersRequest {}).await.expect("a watch").into_inner();
    let mut first = std::pin::pin!(futures::StreamExt::into_future(watch));
    assert!(futures::poll!(first.as_mut()).is_pending());
    doors.fake.change(|view| view.registry = registry);
    let (first, _) = first.await;
    assert_eq!(first.expect("members").expect("no error").members.len(), 3);
    doors.cluster.list_members(v1::ListMembersRequest {}).await.expect("members");
}

#[tokio::test]
async fn watches_say_what_changed_and_end_with_the_node() {
    let mut doors = open().await;
    let mut watch =
        doors.cluster.watch_members(Request::new(v1::WatchMembersRequest {})).await.expect("a watch").into_inner();
    let mut next = async || {
        let members = watch.message().await.expect("no error")?.members;
        Some(members.into_iter().map(|member| member.client_address).collect::<Vec<_>>())
    };
    assert_eq!(next().await.expect("at once"), ["h1:7400", "h2:7400", "h3:7400"]);
    doors.fake.change(|view| {
        view.owners.remove(&ShardId(0));
    });
    tokio::task::yield_now().await;
    doors.fake.change(|view| {
        view.members.insert(NodeId(2), member(2, "n2", MemberState::Down));
    });
    assert_eq!(next().await.expect("a change"), ["h1:7400", "h3:7400"]);
    doors.stop.cancel();
    assert_eq!(next().await, None);
}
