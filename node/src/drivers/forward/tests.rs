//! One whole node without its doors: real storage, Raft and shards, on an in-memory disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use weft_batch::{Batch, Limits, Packer, Producer};
use weft_cluster::caller::Caller;
use weft_cluster::hashing::partition_of;
use weft_cluster::ids::{GroupId, PartitionId, TopicId};
use weft_proto::internal::v1::{
    self as internal, NodeRecord, RegistryCommand, deliver_request, deliver_response, registry_command,
    registry_outcome,
};
use weft_proto::v1::{self, Ack, AckFrame, ErrorCode, Event, OffsetRange};

use super::*;
use crate::drivers::gossip::{Gossip, GossipConfig};
use crate::drivers::link::{self, LinkConfig};
use crate::drivers::pki::{self, Authority};
use crate::drivers::raft::{self, RaftConfig, Rafts};
use crate::drivers::registry::Registry;
use crate::drivers::shard::ShardConfig;
use crate::drivers::storage::{Storage, StorageConfig};
use crate::host::production::Production;
use crate::host::testing::MemoryDisk;

const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    forward: Forward,
    registry: Registry,
    rafts: Rafts,
    storage: Storage,
    _gossip: Gossip,
    tasks: Tasks,
}

async fn node(disk: &MemoryDisk) -> Node {
    let _ = tracing_subscriber::fmt().with_env_filter("weft_node=debug").with_test_writer().try_init();
    let host: Arc<dyn Host> = Arc::new(Production::new(Arc::new(disk.clone())));
    let tasks = Tasks::new(host.clone());
    let config = StorageConfig {
        journal_slot_bytes: bytesize::ByteSize::mib(1),
        free_bytes_min: bytesize::ByteSize::kib(4),
        ballast_bytes: bytesize::ByteSize::kib(4),
        ..StorageConfig::default()
    };
    let (storage, recovered) = Storage::open(host.clone(), "/data".into(), config, &tasks).await.expect("storage");
    let identity = storage.identity();
    let ca = Authority::create(&*host, "test").expect("a CA");
    let issued = ca.issue(&*host, "n1", &[], &[]).expect("a certificate");
    let credentials = pki::credentials(&ca.issued().cert_pem, &issued).expect("credentials");
    let me = link::Me {
        id: identity.node,
        name: "n1".into(),
        zone: "a".into(),
        generation: identity.generation,
        start: identity.start,
        secret: identity.secret,
        cluster: identity.cluster.unwrap_or(0),
        client_address: "127.0.0.1:1".into(),
        peer_address: ([127, 0, 0, 1], 0).into(),
        version: "test".into(),
        level_max: 1,
    };
    let bind = ([127, 0, 0, 1], 0).into();
    let links = Links::start(host.clone(), LinkConfig::default(), bind, me, credentials, &tasks).await.expect("links");
    let gossip =
        Gossip::start(host.clone(), GossipConfig::default(), links.clone(), Vec::new(), storage.full_watch(), &tasks);
    let record = NodeRecord {
        id: identity.node.0,
        name: "n1".into(),
        zone: "a".into(),
        generation: identity.generation.0,
        start: identity.start,
        client_address: "127.0.0.1:1".into(),
        peer_address: links.me().peer_address.to_string(),
        weight: 100,
        version: "test".into(),
        level_max: 1,
        registry_replica_id: 0,
    };
    let config = RaftConfig { bootstrap_expect: 1, shards: 4, replication: 1, ..RaftConfig::default() };
    let parts = raft::Parts {
        host: host.clone(),
        tasks: tasks.clone(),
        storage: storage.clone(),
        recovered,
        links: links.clone(),
        members: gossip.members(),
        me: record,
        seeds: Vec::new(),
        config,
    };
    let (rafts, registry) = Rafts::open(parts).await;
    let shards = Shards::start(
        host.clone(),
        storage.clone(),
        links.clone(),
        registry.view(),
        ShardConfig::default(),
        tasks.clone(),
    );
    rafts.serve(shards.clone()).await.expect("shards");
    let forward = Forward::new(shards, links, registry.view(), ForwardConfig::default(), host, tasks.clone());
    timeout(PATIENCE, registry.ready()).await.expect("the cluster is founded");
    Node { forward, registry, rafts, storage, _gossip: gossip, tasks }
}

impl Node {
    async fn propose(&self, command: registry_command::Command) -> registry_outcome::Outcome {
        let command = RegistryCommand { level: 1, command: Some(command) };
        let outcome =
            self.registry.propose(&Caller::anonymous(), command, PATIENCE).await.expect("the registry takes it");
        outcome.outcome.expect("an outcome")
    }

    async fn topic(&self, partitions: u32) -> TopicId {
        let command = internal::CreateTopic {
            namespace: "default".into(),
            name: "t".into(),
            partitions,
            event_bytes_max: 1 << 20,
            pool: String::new(),
        };
        match self.propose(registry_command::Command::CreateTopic(command)).await {
            registry_outcome::Outcome::Topic(topic) => TopicId(topic.id),
            other => panic!("no topic: {other:?}"),
        }
    }

    async fn group(&self, topic: TopicId) -> GroupId {
        let command = internal::CreateGroup { topic: topic.0, name: "g".into(), start: 1, ack_deadline_ms: 0 };
        match self.propose(registry_command::Command::CreateGroup(command)).await {
            registry_outcome::Outcome::Group(group) => GroupId(group.id),
            other => panic!("no group: {other:?}"),
        }
    }

    async fn stop(self) {
        self.rafts.stop().await;
        self.storage.close().await;
        self.tasks.stop(PATIENCE).await;
    }
}

/// `count` events of one key, in batches of two, packed by an idempotent producer.
fn batches(count: u64, key: &str) -> Vec<Bytes> {
    let event = |number: u64| Event { key: key.to_owned().into(), data: number.to_string().into(), ..Event::default() };
    let pack = |first: u64| {
        let mut packer = Packer::new(Limits::default());
        for number in first..first + 2 {
            packer.push(&event(number), 1).expect("it fits");
        }
        packer.finish(None, Some(Producer { id: 9, epoch: 1, first_sequence: first })).expect("two events")
    };
    (0..count).step_by(2).map(pack).collect()
}

async fn publish(node: &Node, topic: TopicId, partitions: u32, key: &str, batches: Vec<Bytes>) -> Vec<(usize, u64)> {
    let partition = PartitionId { topic, index: partition_of(key.as_bytes(), partitions) };
    let mut publisher = node.forward.publisher(Caller::anonymous());
    for (tag, packed) in batches.into_iter().enumerate() {
        publisher.push(partition, packed, Ack::Committed, node.forward.publish_deadline(), tag);
    }
    let mut offsets = Vec::new();
    while !publisher.is_idle() {
        let answers = timeout(PATIENCE, publisher.answers()).await;
        let answers = answers.unwrap_or_else(|_| {
            let view = node.forward.view();
            let group =
                view.shard_of(partition).and_then(|shard| node.rafts.group(weft_cluster::ids::RaftGroup::of(shard)));
            let leadership = group.map(|group| group.leadership().borrow().clone());
            let shards: Vec<_> = view.registry.shards().cloned().collect();
            panic!("no answers; owners {:?}, leadership {leadership:?}, shards {shards:?}", view.owners)
        });
        for (tag, outcome) in answers {
            let receipt = outcome.expect("a receipt");
            assert_eq!(receipt.fsynced_nodes, vec!["n1".to_owned()]);
            assert_eq!(receipt.fsynced_zones, vec!["a".to_owned()]);
            offsets.push((tag, receipt.offset.expect("committed")));
        }
    }
    offsets.sort_unstable();
    offsets
}

/// Everything from offset 0, by an observer, until `count` events have come.
async fn observe(node: &Node, topic: TopicId, partitions: u32, count: u64) -> BTreeMap<u32, Vec<Bytes>> {
    let offsets = (0..partitions).map(|index| (index, 0)).collect();
    let spec = DeliverySpec {
        caller: Caller::anonymous(),
        topic,
        partitions: offsets,
        group: None,
        consumer: 1,
        credit: 1 << 20,
    };
    let mut deliveries = node.forward.deliver(&spec);
    let mut seen = BTreeMap::<u32, Vec<Bytes>>::new();
    let mut left = count;
    while left > 0 {
        let (_, frame) = timeout(PATIENCE, deliveries.next()).await.expect("frames come").expect("legs run");
        let deliver_response::Frame::Packed(frame) = frame else { panic!("not for an observer: {frame:?}") };
        let batch = Batch::parse(frame.packed).expect("a batch");
        batch.check_body().expect("its CRC is right");
        let events = seen.entry(frame.partition).or_default();
        assert_eq!(batch.header().base_offset, events.len() as u64, "offsets are dense");
        events.extend((0..batch.count()).map(|index| batch.decode(index).expect("an event").data));
        left = left.saturating_sub(u64::from(batch.count()));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_stored_once_read_by_observers_and_handled_by_groups_across_a_restart() {
    let disk = MemoryDisk::default();
    let node1 = node(&disk).await;
    let topic = node1.topic(4).await;
    let offsets = publish(&node1, topic, 4, "k", batches(40, "k")).await;
    assert_eq!(offsets, (0..20).map(|tag| (tag, 2 * tag as u64)).collect::<Vec<_>>());
    let again = publish(&node1, topic, 4, "k", batches(40, "k")[10..].to_vec()).await;
    assert_eq!(again.last(), Some(&(9, 38)), "the receipts first given");
    let seen = observe(&node1, topic, 4, 40).await;
    let numbers: Vec<Bytes> = (0..40u64).map(|number| number.to_string().into()).collect();
    assert_eq!(seen.values().collect::<Vec<_>>(), vec![&numbers]);
    let partitions: Vec<_> = (0..4).map(|index| PartitionId { topic, index }).collect();
    let ends = node1.forward.stats(&Caller::anonymous(), &partitions, PATIENCE).await;
    assert_eq!(ends.len(), 4, "a majority of one confirms its owner");
    assert_eq!(ends.iter().map(|stat| stat.end_offset).sum::<u64>(), 40);
    let group = node1.group(topic).await;
    assert_eq!(handle(&node1, topic, group, 25).await, (0..25).collect::<Vec<_>>());
    node1.stop().await;

    let node2 = node(&disk).await;
    assert_eq!(observe(&node2, topic, 4, 40).await, seen);
    assert_eq!(handle(&node2, topic, group, 15).await, (25..40).collect::<Vec<_>>(), "acks are kept");
    node2.stop().await;
}

/// Handles `count` events of a group one by one and confirms each ack; returns their offsets in order.
async fn handle(node: &Node, topic: TopicId, group: GroupId, count: usize) -> Vec<u64> {
    let offsets = (0..4).map(|index| (index, 0)).collect();
    let spec = DeliverySpec {
        caller: Caller::anonymous(),
        topic,
        partitions: offsets,
        group: Some(group),
        consumer: 2,
        credit: 100,
    };
    let mut deliveries = node.forward.deliver(&spec);
    let (mut handled, mut confirmed) = (Vec::new(), BTreeSet::new());
    let until = Instant::now() + PATIENCE;
    while confirmed.len() < count {
        let next = tokio::time::timeout_at(until, deliveries.next()).await;
        let (shard, frame) = next.unwrap_or_else(|_| panic!("{} handled", handled.len())).expect("legs run");
        match frame {
            deliver_response::Frame::Deliveries(frame) => {
                for delivery in frame.deliveries {
                    if handled.len() == count {
                        break;
                    }
                    assert_eq!(delivery.attempt, 1);
                    handled.push(delivery.offset);
                    let (partition, epoch, offset) = (delivery.partition, delivery.epoch, delivery.offset);
                    let ranges = vec![OffsetRange { partition, epoch, first: offset, last: offset }];
                    let ack = AckFrame { request_id: offset + 1, ranges };
                    deliveries.request(shard, deliver_request::Frame::Ack(ack)).expect("there is room");
                }
            }
            deliver_response::Frame::Ack(answer) => {
                assert_eq!(answer.refused, vec![]);
                confirmed.insert(answer.request_id);
            }
            deliver_response::Frame::Epoch(_) => {}
            other => panic!("not for a group: {other:?}"),
        }
    }
    handled
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_batch_is_said_at_once() {
    let node = node(&MemoryDisk::default()).await;
    let topic = node.topic(1).await;
    let mut publisher = node.forward.publisher(Caller::anonymous());
    let deadline = node.forward.publish_deadline();
    let good = batches(2, "k").remove(0);
    let mut flipped = good.to_vec();
    *flipped.last_mut().expect("it has bytes") ^= 1;
    let partition = |index| PartitionId { topic, index };
    publisher.push(partition(0), flipped.into(), Ack::Committed, deadline, "flipped");
    publisher.push(partition(0), good.clone(), Ack::Accepted, deadline, "accepted");
    let gap = batches(8, "k").remove(3);
    publisher.push(partition(0), gap, Ack::Committed, deadline, "gap");
    let unknown = PartitionId { topic: TopicId(77), index: 0 };
    let soon = Instant::now() + Duration::from_millis(200);
    publisher.push(unknown, good, Ack::Committed, soon, "unknown");
    let mut answers = BTreeMap::new();
    while !publisher.is_idle() {
        answers.extend(timeout(PATIENCE, publisher.answers()).await.expect("answers come"));
    }
    let code = |tag| answers[tag].as_ref().expect_err("refused").code();
    assert_eq!(code("flipped"), ErrorCode::InvalidArgument);
    assert_eq!(code("gap"), ErrorCode::SequenceGap);
    assert!(matches!(code("unknown"), ErrorCode::NotReady | ErrorCode::NoOwner));
    let accepted = answers["accepted"].as_ref().expect("accepted");
    assert_eq!((accepted.offset, accepted.ack(), accepted.count), (None, Ack::Accepted, 2));
    node.stop().await;
}

/// The next delivery to a consumer; the answers to acks that come before it are put aside.
async fn next_delivery(deliveries: &mut Deliveries) -> (usize, v1::Delivery) {
    loop {
        // Long before the ack deadline of 30 s.
        match timeout(PATIENCE, deliveries.next()).await.expect("given out again at once").expect("legs run") {
            (shard, deliver_response::Frame::Deliveries(frame)) => {
                let [delivery] = frame.deliveries.try_into().expect("one of the key at a time");
                return (shard, delivery);
            }
            (_, deliver_response::Frame::Epoch(_) | deliver_response::Frame::Ack(_)) => {}
            (_, other) => panic!("not for a group: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_leaves_or_is_lost_gives_its_events_back_at_once() {
    let node = node(&MemoryDisk::default()).await;
    let topic = node.topic(1).await;
    publish(&node, topic, 1, "k", batches(4, "k")).await;
    let group = node.group(topic).await;
    let partitions = BTreeMap::from([(0, 0)]);
    let spec =
        DeliverySpec { caller: Caller::anonymous(), topic, partitions, group: Some(group), consumer: 1, credit: 9 };

    // In order: the ack on the way is committed and answered, and what came after it is not held.
    let mut first = node.forward.deliver(&spec);
    let (shard, delivery) = next_delivery(&mut first).await;
    assert_eq!((delivery.offset, delivery.attempt), (0, 1));
    let range = OffsetRange { partition: 0, epoch: delivery.epoch, first: 0, last: 0 };
    let ack = AckFrame { request_id: 5, ranges: vec![range] };
    first.request(shard, deliver_request::Frame::Ack(ack)).expect("there is room");
    first.leave();
    assert!(first.request(shard, deliver_request::Frame::Credit(1)).is_err(), "it has left");
    let mut answered = false;
    while let Some((_, frame)) = timeout(PATIENCE, first.next()).await.expect("the owner lets it go") {
        if let deliver_response::Frame::Ack(answer) = frame {
            assert_eq!((answer.request_id, answer.refused), (5, vec![]));
            answered = true;
        }
    }
    assert!(answered, "before the end");

    // Lost, with its event in flight and credit for more: the owner is on this node.
    let mut second = node.forward.deliver(&spec);
    let (_, delivery) = next_delivery(&mut second).await;
    assert_eq!(delivery.offset, 1);
    let mut third = node.forward.deliver(&spec);
    let joined = timeout(PATIENCE, third.next()).await.expect("it joins").expect("legs run");
    assert!(matches!(joined.1, deliver_response::Frame::Epoch(_)), "{joined:?}");
    drop(second);
    let (_, again) = next_delivery(&mut third).await;
    assert_eq!((again.offset, again.attempt), (1, delivery.attempt + 1));
    node.stop().await;
}
