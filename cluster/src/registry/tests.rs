use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{
    Bootstrap, CreateGroup, CreateTopic, DeleteGroup, DeleteTopic, OpenProducer, PlanSeats, PlanShards, PlannedShard,
    PreferLeader, RegisterNode, RegistryCommand, RegistryEntry, RegistryOutcome, RemoveNode, ReplaceReplica,
    SetFeatureLevel, ShardMoved,
};
use weft_proto::v1::{Error, ErrorCode};

use super::*;
use crate::hashing;

/// A registry with its log.
struct Log {
    state: State,
    index: u64,
    time: i64,
}

impl Log {
    fn new() -> Log {
        Log { state: State::default(), index: 0, time: 1_000 }
    }

    /// Three nodes, ids 1 to 3, in zones a, b and c; 8 shards; three replicas each.
    fn founded() -> Log {
        let mut log = Log::new();
        assert!(log.ok(bootstrap(3)).is_none());
        log
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.run_level(1, command)
    }

    fn run_level(&mut self, level: u32, command: Command) -> Outcome {
        self.index += 1;
        let command = RegistryCommand { level, command: Some(command) };
        let entry = RegistryEntry { log_time_ms: self.time, command: Some(command) };
        let RegistryOutcome { index, outcome } = self.state.apply(LogPosition { term: 1, index: self.index }, &entry);
        assert_eq!(index, self.index);
        outcome.expect("every command has an outcome")
    }

    /// Runs what must succeed; the record it answers with, if it does.
    fn ok(&mut self, command: Command) -> Option<Outcome> {
        match self.run(command.clone()) {
            Outcome::Error(error) => panic!("{command:?} failed: {error:?}"),
            Outcome::Done(_) => None,
            record => Some(record),
        }
    }

    /// Runs what must be refused, and changes nothing but position and time.
    fn refused(&mut self, command: Command) -> Error {
        let before = self.state.to_proto();
        let Outcome::Error(error) = self.run(command.clone()) else { panic!("{command:?} was not refused") };
        let mut after = self.state.to_proto();
        after.applied = before.applied;
        after.log_time_ms = before.log_time_ms;
        assert_eq!(after, before, "a refused command changes nothing");
        error
    }

    #[track_caller]
    fn refused_with(&mut self, command: Command, code: ErrorCode, part: &str) {
        let error = self.refused(command);
        assert_eq!(error.code(), code, "{}", error.message);
        assert!(error.message.contains(part), "{:?} lacks {part:?}", error.message);
    }
}

fn node(id: u64, name: &str, zone: &str) -> NodeRecord {
    NodeRecord {
        id,
        name: name.into(),
        zone: zone.into(),
        generation: 1,
        level_max: 1,
        weight: 100,
        ..Default::default()
    }
}

fn bootstrap(nodes: u64) -> Command {
    let nodes = (1..=nodes).map(|id| {
        let zone = ["a", "b", "c"][(id as usize - 1) % 3];
        NodeRecord { registry_replica_id: id, ..node(id, &format!("n{id}"), zone) }
    });
    Command::Bootstrap(Bootstrap { cluster_id: 77, shards: 8, replication: 3, nodes: nodes.collect(), level: 1 })
}

fn register(node: NodeRecord) -> Command {
    Command::RegisterNode(RegisterNode { node: Some(node) })
}

fn create(name: &str, partitions: u32) -> Command {
    let (name, namespace) = (name.into(), String::new());
    Command::CreateTopic(CreateTopic { namespace, name, partitions, event_bytes_max: 1 << 20, pool: String::new() })
}

fn delete(name: &str) -> Command {
    Command::DeleteTopic(DeleteTopic { namespace: String::new(), name: name.into() })
}

fn group(topic: u32, name: &str) -> Command {
    Command::CreateGroup(CreateGroup { topic, name: name.into(), start: 0, ack_deadline_ms: 0 })
}

fn producer(name: &str) -> Command {
    Command::OpenProducer(OpenProducer { name: name.into() })
}

fn plan(base_version: u64, rows: &[(u32, &[u64])]) -> Command {
    let shards =
        rows.iter().map(|(shard, nodes)| PlannedShard { shard: *shard, nodes: nodes.to_vec(), preferred: nodes[0] });
    Command::PlanShards(PlanShards { base_version, shards: shards.collect() })
}

fn moved(shard: u32, replica_ids: &[u64]) -> Command {
    Command::ShardMoved(ShardMoved { shard, replica_ids: replica_ids.to_vec() })
}

/// (replica id, node) of a row's replicas and of its target.
fn row(state: &State, shard: u32) -> (Vec<(u64, u64)>, Vec<(u64, u64)>) {
    let row = state.shard(ShardId(shard)).expect("the row is there");
    let pairs = |replicas: &[weft_proto::internal::v1::ReplicaRecord]| {
        replicas.iter().map(|replica| (replica.replica_id, replica.node)).collect()
    };
    (pairs(&row.replicas), pairs(&row.target))
}

fn seats(state: &State) -> Vec<(u64, u64)> {
    state.registry_seats().map(|(node, replica)| (node.0, replica)).collect()
}

#[test]
fn a_cluster_is_founded_once_and_before_all_else() {
    let mut log = Log::new();
    log.refused_with(create("t", 1), ErrorCode::FailedPrecondition, "not founded");
    let mut wrong = |change: fn(&mut Bootstrap), part: &str| {
        let Command::Bootstrap(mut command) = bootstrap(3) else { unreachable!() };
        change(&mut command);
        let error = log.refused(Command::Bootstrap(command));
        assert!(error.message.contains(part), "{:?} lacks {part:?}", error.message);
    };
    wrong(|it| it.shards = 12, "power of two");
    wrong(|it| it.shards = 8_192, "1 to 4096");
    wrong(|it| it.replication = 0, "replication is 0");
    wrong(|it| it.cluster_id = 0, "not 0");
    wrong(|it| it.level = 2, "knows up to 1");
    wrong(|it| it.nodes[1].name = "n1".into(), "one name");
    wrong(|it| it.nodes[1].registry_replica_id = 7, "1..=k");
    wrong(|it| it.nodes.clear(), "1..=k");
    log.ok(bootstrap(3));
    let state = &log.state;
    assert_eq!((state.cluster_id(), state.level(), state.shards_total(), state.replication()), (77, 1, 8, 3));
    assert_eq!(seats(state), [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(state.shards().count(), 0);
    log.refused_with(bootstrap(3), ErrorCode::FailedPrecondition, "founded already");
}

#[test]
fn a_name_with_a_new_folder_supersedes_the_old_one() {
    let mut log = Log::founded();
    log.ok(register(NodeRecord { generation: 4, client_address: "h:7400".into(), ..node(2, "n2", "b") }));
    assert_eq!(log.state.node(NodeId(2)).expect("renewed").client_address, "h:7400");
    assert_eq!(log.state.node(NodeId(2)).expect("renewed").registry_replica_id, 2, "a renewal keeps the seat");
    log.refused_with(
        register(NodeRecord { generation: 3, ..node(2, "n2", "b") }),
        ErrorCode::NodeRefused,
        "start 3 of node \"n2\" is over",
    );
    log.ok(register(NodeRecord { generation: 5, start: 50, ..node(2, "n2", "b") }));
    log.refused_with(
        register(NodeRecord { generation: 5, start: 51, ..node(2, "n2", "b") }),
        ErrorCode::NodeRefused,
        "old copy",
    );
    log.refused_with(register(node(2, "other", "b")), ErrorCode::NodeRefused, "belongs to node \"n2\"");
    log.ok(register(node(22, "n2", "b")));
    assert!(log.state.node(NodeId(2)).is_none());
    assert_eq!(log.state.node_by_name("n2").expect("the new folder").id, 22);
    assert_eq!(seats(&log.state), [(1, 1), (3, 3), (22, 4)], "the seat is a new replica");
    log.refused_with(
        register(NodeRecord { generation: 9, ..node(2, "n2", "b") }),
        ErrorCode::NodeRefused,
        "superseded",
    );
}

#[test]
fn nodes_are_checked() {
    let mut log = Log::founded();
    log.refused_with(register(node(0, "n9", "a")), ErrorCode::InvalidArgument, "id 0");
    log.refused_with(register(node(9, "", "a")), ErrorCode::InvalidArgument, "node name is empty");
    log.refused_with(register(node(9, "n9", &"z".repeat(256))), ErrorCode::InvalidArgument, "255 bytes");
    let heavy = NodeRecord { weight: 10_001, ..node(9, "n9", "a") };
    log.refused_with(register(heavy), ErrorCode::InvalidArgument, "weight");
    let old = NodeRecord { level_max: 0, ..node(9, "n9", "a") };
    log.refused_with(register(old), ErrorCode::FeatureLevel, "newer version");
    log.ok(register(NodeRecord { weight: 0, ..node(9, "n9", "a") }));
    assert_eq!(log.state.node(NodeId(9)).expect("added").weight, limits::WEIGHT_DEFAULT);
    for id in 10..10 + limits::NODES_MAX as u64 - 4 {
        log.ok(register(node(id, &format!("n{id}"), "a")));
    }
    log.refused_with(register(node(5_000, "one-more", "a")), ErrorCode::Overloaded, "1000 nodes");
}

#[test]
fn seats_go_to_the_nodes_that_the_plan_names() {
    let plan = |present: &[u64], nodes: &[u64]| {
        Command::PlanSeats(PlanSeats { present: present.to_vec(), nodes: nodes.to_vec() })
    };
    let remove = |id| Command::RemoveNode(RemoveNode { id, reason: String::new() });
    let mut log = Log::new();
    log.ok(bootstrap(1));
    (2..5).for_each(|id| drop(log.ok(register(node(id, &format!("n{id}"), "a")))));
    assert_eq!(seats(&log.state), [(1, 1)]);
    log.ok(plan(&[1], &[1, 2, 3]));
    assert_eq!(seats(&log.state), [(1, 1), (2, 2), (3, 3)]);
    log.refused_with(plan(&[1], &[1, 2]), ErrorCode::FailedPrecondition, "changed since");
    log.refused_with(plan(&[1, 2, 3], &[]), ErrorCode::InvalidArgument, "use 1 to 7");
    log.refused_with(plan(&[1, 2, 3], &[1, 9]), ErrorCode::NotFound, "no node");
    log.ok(plan(&[1, 2, 3], &[1, 2, 4]));
    assert_eq!(seats(&log.state), [(1, 1), (2, 2), (4, 4)], "a seat that moves is a new replica");
    log.ok(remove(2));
    log.refused_with(remove(2), ErrorCode::NotFound, "0000000000000002");
    let back = NodeRecord { generation: 9, ..node(2, "n2", "a") };
    log.refused_with(register(back), ErrorCode::NodeRefused, "or removed");

    let mut log = Log::new();
    log.ok(bootstrap(1));
    log.refused_with(remove(1), ErrorCode::FailedPrecondition, "only voter");
}

#[test]
fn topics_are_made_once_and_ids_never_come_back() {
    let mut log = Log::founded();
    let Some(Outcome::Topic(first)) = log.ok(create("orders", 4)) else { panic!("a record") };
    assert_eq!(
        (first.id, first.namespace.as_str(), first.pool.as_str(), first.created_ms),
        (1, "default", "default", 1_000)
    );
    log.refused_with(create("orders", 4), ErrorCode::TopicExists, "default/orders");
    for (name, partitions, part) in [
        ("", 1, "is empty"),
        ("_a", 1, "does not begin"),
        ("a/b", 1, "contains '/'"),
        ("grün", 1, "contains 'ü'"),
        ("t", 0, "partitions is 0: use 1 to 1024"),
        ("t", 1_025, "partitions is 1025"),
    ] {
        log.refused_with(create(name, partitions), ErrorCode::InvalidArgument, part);
    }
    log.refused_with(create(&"t".repeat(129), 1), ErrorCode::InvalidArgument, "129 characters");
    log.ok(create(&"t".repeat(128), 1));
    let pool =
        CreateTopic { name: "p".into(), partitions: 1, event_bytes_max: 1, pool: "fast".into(), ..Default::default() };
    log.refused_with(Command::CreateTopic(pool.clone()), ErrorCode::InvalidArgument, "no pool \"fast\"");
    let large = CreateTopic { event_bytes_max: (8 << 20) + 1, pool: String::new(), ..pool };
    log.refused_with(Command::CreateTopic(large.clone()), ErrorCode::InvalidArgument, "8 MiB");
    let spaced = CreateTopic { event_bytes_max: 1, namespace: "team.a".into(), ..large };
    log.ok(Command::CreateTopic(spaced));
    assert_eq!(log.state.topics("team.a").map(|topic| topic.name.as_str()).collect::<Vec<_>>(), ["p"]);
    assert!(log.state.topic("", "p").is_none() && log.state.topic("team.a", "p").is_some());

    let Some(Outcome::Group(group1)) = log.ok(group(first.id, "billing")) else { panic!("a record") };
    log.ok(delete("orders"));
    assert!(log.state.topic("default", "orders").is_none());
    assert!(log.state.group_by_id(GroupId(group1.id)).is_none(), "its groups go with it");
    assert!(log.state.topic_gone(TopicId(first.id)) && log.state.group_gone(GroupId(group1.id)));
    assert!(!log.state.topic_gone(TopicId(2)) && !log.state.topic_gone(TopicId(4)), "there, and too new");
    log.refused_with(delete("orders"), ErrorCode::UnknownTopic, "no topic default/orders");
    let Some(Outcome::Topic(again)) = log.ok(create("orders", 4)) else { panic!("a record") };
    assert_eq!(again.id, 4);
}

#[test]
fn partitions_are_found_by_shard() {
    let mut log = Log::founded();
    log.ok(create("a", 20));
    log.ok(create("b", 3));
    log.ok(create("c", 16));
    log.ok(delete("b"));
    let mut seen = Vec::new();
    for shard in (0..8).map(ShardId) {
        let here: Vec<_> = log.state.partitions_of_shard(shard).collect();
        assert!(here.iter().all(|partition| hashing::shard_of(*partition, 8) == shard));
        let mut topics: Vec<_> = here.iter().map(|partition| partition.topic.0).collect();
        topics.dedup();
        assert_eq!(log.state.topics_of_shard(shard).map(|topic| topic.id).collect::<Vec<_>>(), topics);
        for id in 1..=4 {
            let some: Vec<_> = log.state.partitions_of_topic(shard, TopicId(id)).collect();
            assert_eq!(some, here.iter().copied().filter(|held| held.topic.0 == id).collect::<Vec<_>>());
        }
        seen.extend(here);
    }
    seen.sort_unstable();
    let topic = |id, count| (0..count).map(move |index| PartitionId { topic: TopicId(id), index });
    assert_eq!(seen, topic(1, 20).chain(topic(3, 16)).collect::<Vec<_>>());
}

#[test]
fn groups_and_producers_keep_their_ids() {
    let mut log = Log::founded();
    log.refused_with(group(1, "g"), ErrorCode::UnknownTopic, "t1");
    log.ok(create("orders", 1));
    let Some(Outcome::Group(gone)) = log.ok(group(1, "g")) else { panic!("a record") };
    let delete = |name: &str| Command::DeleteGroup(DeleteGroup { topic: 1, name: name.into() });
    log.refused_with(delete("h"), ErrorCode::UnknownGroup, "\"h\"");
    log.ok(delete("g"));
    assert!(log.state.group_gone(GroupId(gone.id)) && log.state.groups_of(TopicId(1)).next().is_none());
    let Some(Outcome::Group(record)) = log.ok(group(1, "g")) else { panic!("a record") };
    assert_ne!(record.id, gone.id, "another group of the same name");
    assert_eq!((record.id, record.start, record.ack_deadline_ms), (2, 1, 30_000));
    let other = CreateGroup { topic: 1, name: "g".into(), start: 2, ack_deadline_ms: 500 };
    assert_eq!(log.ok(Command::CreateGroup(other.clone())), Some(Outcome::Group(record)), "as it is");
    let wrong = CreateGroup { name: "h".into(), start: 3, ..other.clone() };
    log.refused_with(Command::CreateGroup(wrong), ErrorCode::InvalidArgument, "start is 3");
    let wrong = CreateGroup { name: "h".into(), ack_deadline_ms: 1, ..other };
    log.refused_with(Command::CreateGroup(wrong), ErrorCode::InvalidArgument, "use 10 to 3600000");
    for i in 1..limits::GROUPS_PER_TOPIC_MAX {
        log.ok(group(1, &format!("g{i}")));
    }
    log.refused_with(group(1, "one-more"), ErrorCode::Overloaded, "1000 groups");
    assert_eq!(log.state.groups_of(TopicId(1)).count(), 1_000);

    let mut open = |name: &str| match log.ok(producer(name)) {
        Some(Outcome::Producer(record)) => (record.id, record.epoch),
        other => panic!("{other:?}"),
    };
    assert_eq!(open("p"), (1, 1));
    assert_eq!(open(""), (2, 1));
    assert_eq!(open("p"), (1, 2));
    assert_eq!(open("q"), (3, 1));
    assert_eq!(open(""), (4, 1));
}

#[test]
fn a_plan_gives_replicas_then_targets() {
    let mut log = Log::founded();
    log.ok(register(node(4, "n4", "a")));
    log.ok(plan(0, &[(0, &[1, 2, 3]), (5, &[3, 1])]));
    assert_eq!(row(&log.state, 0), (vec![(4, 1), (5, 2), (6, 3)], vec![]));
    assert_eq!(row(&log.state, 5), (vec![(7, 3), (8, 1)], vec![]));
    log.refused_with(plan(0, &[(0, &[1])]), ErrorCode::FailedPrecondition, "at 1");
    log.refused_with(plan(1, &[(8, &[1])]), ErrorCode::InvalidArgument, "no shard 8");
    log.refused_with(plan(1, &[(1, &[1, 1])]), ErrorCode::InvalidArgument, "each once");
    log.refused_with(plan(1, &[(1, &[1, 9])]), ErrorCode::FailedPrecondition, "unknown node");
    log.refused_with(plan(1, &[(1, &[1]), (1, &[2])]), ErrorCode::InvalidArgument, "two rows");

    log.ok(plan(1, &[(0, &[1, 2, 4])]));
    assert_eq!(row(&log.state, 0), (vec![(4, 1), (5, 2), (6, 3)], vec![(4, 1), (5, 2), (9, 4)]));
    log.ok(plan(2, &[(0, &[4, 1, 3])]));
    assert_eq!(row(&log.state, 0).1, [(9, 4), (4, 1), (6, 3)], "what is being filled keeps its id");
    log.refused_with(moved(0, &[9, 99]), ErrorCode::FailedPrecondition, "knows not all");
    log.refused_with(moved(1, &[9]), ErrorCode::NotFound, "no row");
    log.ok(moved(0, &[4, 6, 9]));
    assert_eq!(row(&log.state, 0), (vec![(9, 4), (4, 1), (6, 3)], vec![]));
    assert_eq!(log.state.shards_version(), 4);
    log.ok(moved(0, &[9, 6, 4]));
    assert_eq!(log.state.shards_version(), 4, "said twice");
    log.ok(plan(4, &[(0, &[1, 3, 4])]));
    assert_eq!(row(&log.state, 0).1, [], "only the preferred leader changes");
    assert_eq!(log.state.shard(ShardId(0)).expect("a row").preferred, 1);
}

#[test]
fn a_person_chooses_who_leads() {
    let prefer = |shard, node| Command::PreferLeader(PreferLeader { shard, node });
    let preferred = |log: &Log| log.state.shard(ShardId(0)).expect("a row").preferred;
    let mut log = Log::founded();
    log.ok(register(node(4, "n4", "a")));
    log.refused_with(prefer(0, 1), ErrorCode::NotFound, "no row");
    log.ok(plan(0, &[(0, &[1, 2, 3])]));
    log.ok(prefer(0, 2));
    assert_eq!((preferred(&log), log.state.shards_version()), (2, 2), "a plan of the table before is refused");
    log.ok(prefer(0, 2));
    assert_eq!(log.state.shards_version(), 2, "said twice");
    log.refused_with(prefer(0, 4), ErrorCode::FailedPrecondition, "n4 holds no replica of shard s0 that stays");
    // While replicas move, those count that are to be there.
    log.ok(plan(2, &[(0, &[1, 3, 4])]));
    log.refused_with(prefer(0, 2), ErrorCode::FailedPrecondition, "n2 holds no replica");
    log.ok(prefer(0, 4));
    assert_eq!(preferred(&log), 4);
    check(&log.state);
}

#[test]
fn a_failed_replica_comes_back_under_a_new_id() {
    let replace = |group: u64, replica_id| Command::ReplaceReplica(ReplaceReplica { group, replica_id });
    let mut log = Log::founded();
    log.ok(register(node(4, "n4", "a")));
    log.ok(plan(0, &[(0, &[1, 2, 3]), (5, &[1])]));
    assert_eq!(row(&log.state, 0), (vec![(4, 1), (5, 2), (6, 3)], vec![]));
    log.ok(replace(1, 5));
    assert_eq!(row(&log.state, 0), (vec![(4, 1), (5, 2), (6, 3)], vec![(4, 1), (8, 2), (6, 3)]));
    log.refused_with(replace(1, 5), ErrorCode::FailedPrecondition, "replaced or moved away already");
    log.refused_with(replace(1, 6), ErrorCode::FailedPrecondition, "another replica of shard s0 is being replaced");
    log.refused_with(replace(6, 7), ErrorCode::FailedPrecondition, "the only one");
    log.refused_with(replace(8, 1), ErrorCode::NotFound, "no row");
    // The one that is being filled may fail as well, and a plan made meanwhile keeps it.
    log.ok(replace(1, 8));
    assert_eq!(row(&log.state, 0).1, [(4, 1), (9, 2), (6, 3)]);
    log.ok(plan(log.state.shards_version(), &[(0, &[2, 3, 4])]));
    assert_eq!(row(&log.state, 0).1, [(9, 2), (6, 3), (10, 4)]);
    log.ok(moved(0, &[9, 6, 10]));
    assert_eq!(row(&log.state, 0), (vec![(9, 2), (6, 3), (10, 4)], vec![]));
    log.ok(replace(1, 6));

    let seats: Vec<_> = log.state.registry_seats().collect();
    assert_eq!(seats, [(NodeId(1), 1), (NodeId(2), 2), (NodeId(3), 3)]);
    log.ok(replace(0, 2));
    log.refused_with(replace(0, 2), ErrorCode::FailedPrecondition, "replaced already");
    log.refused_with(replace(0, 0), ErrorCode::FailedPrecondition, "replaced already");
    let seats: Vec<_> = log.state.registry_seats().collect();
    assert_eq!(seats, [(NodeId(1), 1), (NodeId(2), 12), (NodeId(3), 3)]);
    check(&log.state);
}

#[test]
fn levels_gate_commands() {
    let mut log = Log::founded();
    let Outcome::Error(error) = log.run_level(2, create("t", 1)) else { panic!("refused") };
    assert_eq!(error.code(), ErrorCode::FeatureLevel);
    log.refused_with(
        Command::SetFeatureLevel(SetFeatureLevel { level: 2 }),
        ErrorCode::FeatureLevel,
        "\"n1\" knows feature levels up to 1",
    );
    log.refused_with(
        Command::SetFeatureLevel(SetFeatureLevel { level: 0 }),
        ErrorCode::FailedPrecondition,
        "never goes back",
    );
    for id in 1..=3 {
        log.ok(register(NodeRecord { generation: 2, level_max: 2, ..node(id, &format!("n{id}"), "a") }));
    }
    log.ok(Command::SetFeatureLevel(SetFeatureLevel { level: 2 }));
    assert_eq!(log.state.level(), 2);
    let entry = RegistryEntry { log_time_ms: 0, command: Some(RegistryCommand { level: 1, command: None }) };
    let outcome = log.state.apply(LogPosition { term: 1, index: 1_000 }, &entry).outcome;
    assert!(matches!(outcome, Some(Outcome::Error(error)) if error.code() == ErrorCode::FeatureLevel));
}

#[test]
fn log_time_and_position_never_go_back() {
    let mut log = Log::founded();
    log.time = 500;
    let Some(Outcome::Topic(topic)) = log.ok(create("t", 1)) else { panic!("a record") };
    assert_eq!(topic.created_ms, 1_000);
    let before = log.state.clone();
    let entry = RegistryEntry { log_time_ms: 9_000, command: None };
    let outcome = log.state.apply(LogPosition { term: 1, index: 1 }, &entry).outcome;
    assert!(matches!(outcome, Some(Outcome::Error(error)) if error.code() == ErrorCode::Internal));
    assert!(log.state == before);
    log.state.note(LogPosition { term: 2, index: 9 });
    assert_eq!(log.state.applied(), Some(LogPosition { term: 2, index: 9 }));
    log.state.note(LogPosition { term: 2, index: 3 });
    assert_eq!(log.state.applied(), Some(LogPosition { term: 2, index: 9 }));
}

#[test]
fn a_clone_stays_as_it_was() {
    let mut log = Log::founded();
    log.ok(create("a", 4));
    let seen = log.state.clone();
    log.ok(create("b", 4));
    log.ok(delete("a"));
    assert!(seen.topic("", "a").is_some() && seen.topic("", "b").is_none());
}

#[test]
fn a_state_that_no_registry_wrote_is_refused() {
    let mut log = Log::founded();
    log.ok(create("a", 4));
    log.ok(group(1, "g"));
    log.ok(producer("p"));
    log.ok(plan(0, &[(0, &[1, 2, 3])]));
    let good = log.state.to_proto();
    assert!(State::from_proto(good.clone()).is_ok());
    type Change = fn(&mut weft_proto::internal::v1::RegistryState);
    let changes: [(&str, Change); 9] = [
        ("shards", |it| it.shards_total = 3),
        ("founded", |it| it.cluster_id = 0),
        ("node", |it| it.nodes.push(it.nodes[0].clone())),
        ("topic", |it| it.topics.push(it.topics[0].clone())),
        ("partitions", |it| it.topics[0].partitions = u32::MAX),
        ("group", |it| it.groups.push(it.groups[0].clone())),
        ("no topic", |it| it.groups[0].topic = 9),
        ("producer", |it| it.producers.push(it.producers[0].clone())),
        ("shard", |it| it.shards[0].shard = 8),
    ];
    for (part, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let error = State::from_proto(bad).expect_err(part);
        assert!(error.to_string().contains(part), "{error} lacks {part}");
    }
}

/// Any command, right or wrong, over few ids and names, so that they meet.
fn command() -> impl Strategy<Value = Command> {
    let name = || prop::sample::select(vec!["a", "b", "c", "-", ""]).prop_map(String::from);
    let ids = prop::collection::vec(1..8u64, 0..4);
    prop_oneof![
        (1..8u64, name(), 0..3u64, 0..3u32).prop_map(|(id, name, generation, level)| {
            register(NodeRecord { generation, level_max: level, ..node(id, &name, "z") })
        }),
        (1..8u64).prop_map(|id| Command::RemoveNode(RemoveNode { id, reason: String::new() })),
        (name(), 0..20u32).prop_map(|(name, partitions)| create(&name, partitions)),
        name().prop_map(|name| delete(&name)),
        name().prop_map(|name| producer(&name)),
        (0..5u32, name()).prop_map(|(topic, name)| group(topic, &name)),
        (0..4u64, 0..9u32, ids.clone()).prop_map(|(base_version, shard, nodes)| {
            let preferred = nodes.first().copied().unwrap_or(0);
            Command::PlanShards(PlanShards { base_version, shards: vec![PlannedShard { shard, nodes, preferred }] })
        }),
        (0..9u32, ids).prop_map(|(shard, ids)| moved(shard, &ids)),
        (0..9u32, 1..6u64).prop_map(|(shard, node)| Command::PreferLeader(PreferLeader { shard, node })),
        (0..3u32).prop_map(|level| Command::SetFeatureLevel(SetFeatureLevel { level })),
    ]
}

/// What holds after every command.
fn check(state: &State) {
    let mut replica_ids = BTreeMap::new();
    for row in state.shards() {
        for replica in row.replicas.iter().chain(&row.target) {
            let at = (row.shard, replica.node);
            assert_eq!(*replica_ids.entry(replica.replica_id).or_insert(at), at, "one id, one replica");
            assert!(replica.replica_id < state.next_replica_id);
        }
    }
    for (node, replica_id) in state.registry_seats() {
        assert!(replica_ids.insert(replica_id, (u32::MAX, node.0)).is_none(), "seats have ids of their own");
    }
    let partitions: usize = (0..8).map(|shard| state.partitions_of_shard(ShardId(shard)).count()).sum();
    assert_eq!(partitions as u64, state.topics_all().map(|topic| u64::from(topic.partitions)).sum::<u64>());
    assert!(state.nodes().all(|node| state.node_by_name(&node.name) == Some(node)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_log_gives_one_state_that_survives_its_snapshot(commands in prop::collection::vec(command(), 0..60), cut in 0..60usize) {
        let (mut one, mut two) = (Log::founded(), Log::founded());
        for (at, command) in commands.into_iter().enumerate() {
            if at == cut {
                two.state = State::from_proto(two.state.to_proto()).expect("what a registry wrote");
            }
            prop_assert_eq!(one.run(command.clone()), two.run(command));
            check(&one.state);
        }
        prop_assert!(one.state == two.state);
        prop_assert!(State::from_proto(one.state.to_proto()).expect("what a registry wrote") == one.state);
    }
}
