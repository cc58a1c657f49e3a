//! A node of a few hundred lines: real gRPC on loopback, one shared log, faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use weft_batch::{Batch, Stamp};
use weft_proto::v1::events_server::{Events, EventsServer};
use weft_proto::v1::topics_server::{Topics, TopicsServer};
use weft_proto::v1::*;

pub(crate) const TOPIC: &str = "flights";
const PARTITIONS: u32 = 4;

/// How a fake misbehaves.
#[derive(Clone)]
pub(crate) enum Fault {
    None,
    /// Breaks every stream after so many batches or deliveries: after storing, before answering.
    BreakAfter(usize),
    /// Refuses about every so-manieth batch with NO_OWNER.
    RefuseEvery(usize),
    /// Refuses a batch with this data for good.
    RefuseData(String),
    /// Refuses every batch: its topic is gone.
    Deleted,
    /// Answers after a while, later batches first.
    AnswerLate(Duration),
}

/// What all fakes of a test share: the partitions' logs.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Partitions>>);

#[derive(Default)]
struct Partitions {
    batches: BTreeMap<u32, Vec<Batch>>,
    /// Per partition, producer and epoch: the next sequence, and the receipts given.
    producers: BTreeMap<(u32, u64, u32), (u64, BTreeMap<u64, Receipt>)>,
    next_producer: u64,
    acked: BTreeSet<(u32, u64)>,
}

impl Log {
    pub(crate) fn events(&self) -> Vec<Event> {
        let log = self.0.lock().unwrap();
        let batches = log.batches.values().flatten();
        batches.flat_map(|batch| (0..batch.count()).map(|index| batch.decode(index).unwrap())).collect()
    }

    pub(crate) fn acked(&self) -> usize {
        self.0.lock().unwrap().acked.len()
    }

    fn end(&self, partition: u32) -> u64 {
        let log = self.0.lock().unwrap();
        log.batches.get(&partition).and_then(|batches| batches.last()).map_or(0, |batch| batch.header().end_offset())
    }

    /// Stores a batch once: only last + 1 is accepted.
    fn append(&self, partition: u32, packed: bytes::Bytes) -> Result<Receipt, Error> {
        let batch = Batch::parse(packed).unwrap();
        batch.check_body().unwrap();
        let producer = batch.header().producer.unwrap();
        let base_offset = self.end(partition);
        let mut log = self.0.lock().unwrap();
        let (next, receipts) = log.producers.entry((partition, producer.id, producer.epoch)).or_default();
        if let Some(receipt) = receipts.get(&producer.first_sequence) {
            return Ok(Receipt { duplicate: true, ..receipt.clone() });
        }
        if producer.first_sequence != *next {
            return Err(refusal(ErrorCode::SequenceGap, Retry::Never));
        }
        *next += u64::from(batch.count());
        let (count, offset) = (batch.count(), Some(base_offset));
        let receipt = Receipt { partition, offset, count, epoch: 1, ack: Ack::Committed.into(), ..Receipt::default() };
        receipts.insert(producer.first_sequence, receipt.clone());
        let stamp = Stamp { topic: 1, partition, base_offset, term: 1, raft_index: 1, log_time_ms: 1 };
        let stored = [batch.stamp(stamp), batch.body()].concat();
        log.batches.entry(partition).or_default().push(Batch::parse(stored.into()).unwrap());
        Ok(receipt)
    }
}

fn refusal(code: ErrorCode, retry: Retry) -> Error {
    Error { code: code.into(), message: code.as_str_name().into(), retry: retry.into(), ..Error::default() }
}

/// A node.
pub(crate) struct Fake {
    pub address: SocketAddr,
}

impl Fake {
    pub(crate) async fn start(log: Log, fault: Fault) -> Fake {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door { log, fault };
        let server = tonic::transport::Server::builder()
            .add_service(TopicsServer::new(door.clone()))
            .add_service(EventsServer::new(door).max_decoding_message_size(16 << 20));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Fake { address }
    }
}

#[derive(Clone)]
struct Door {
    log: Log,
    fault: Fault,
}

fn topic() -> Topic {
    Topic { id: 1, name: TOPIC.into(), partitions: PARTITIONS, event_bytes_max: 1 << 20, ..Topic::default() }
}

#[tonic::async_trait]
impl Topics for Door {
    async fn create_topic(&self, _: Request<CreateTopicRequest>) -> Result<Response<Topic>, Status> {
        Ok(Response::new(topic()))
    }
    async fn describe_topic(&self, _: Request<DescribeTopicRequest>) -> Result<Response<TopicDescription>, Status> {
        let place = |partition| PartitionDescription {
            partition,
            start_offset: Some(0),
            end_offset: Some(self.log.end(partition)),
            ..PartitionDescription::default()
        };
        let partitions = (0..PARTITIONS).map(place).collect();
        Ok(Response::new(TopicDescription { topic: Some(topic()), partitions, groups: Vec::new() }))
    }
    async fn list_topics(&self, _: Request<ListTopicsRequest>) -> Result<Response<ListTopicsResponse>, Status> {
        Ok(Response::new(ListTopicsResponse { topics: vec![topic()] }))
    }
    async fn delete_topic(&self, _: Request<DeleteTopicRequest>) -> Result<Response<DeleteTopicResponse>, Status> {
        Ok(Response::new(DeleteTopicResponse {}))
    }
    async fn list_groups(&self, _: Request<ListGroupsRequest>) -> Result<Response<ListGroupsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn describe_group(&self, _: Request<DescribeGroupRequest>) -> Result<Response<GroupDescription>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn delete_group(&self, _: Request<DeleteGroupRequest>) -> Result<Response<DeleteGroupResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Events for Door {
    type PublishStreamStream = Answers<PublishStreamResponse>;
    type SubscribeStream = Answers<SubscribeResponse>;

    async fn publish(&self, _: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn open_producer(&self, _: Request<OpenProducerRequest>) -> Result<Response<OpenProducerResponse>, Status> {
        let mut log = self.log.0.lock().unwrap();
        log.next_producer += 1;
        Ok(Response::new(OpenProducerResponse { producer_id: log.next_producer, producer_epoch: 1 }))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let (answers, stream) = mpsc::channel(64);
        tokio::spawn(publish(self.clone(), request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (frames, stream) = mpsc::channel(64);
        let mut requests = request.into_inner();
        let Some(subscribe_request::Frame::Open(open)) = requests.message().await?.and_then(|first| first.frame) else {
            return Err(Status::invalid_argument("the first frame is not open"));
        };
        let opened = SubscribeOpened { topic: Some(topic()), ack_deadline_ms: 30_000 };
        send(&frames, subscribe_response::Frame::Opened(opened)).await;
        if open.group.is_empty() {
            tokio::spawn(observe(self.clone(), open, requests, frames));
        } else {
            tokio::spawn(consume(self.clone(), open, requests, frames));
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn publish(
    door: Door,
    mut requests: Streaming<PublishStreamRequest>,
    answers: mpsc::Sender<Result<PublishStreamResponse, Status>>,
) {
    let mut batches = 0;
    while let Ok(Some(request)) = requests.message().await {
        let Some(publish_stream_request::Frame::Batch(batch)) = request.frame else { continue };
        batches += 1;
        let refused = match &door.fault {
            // Uneven, or a lane of 5 batches would have its head refused for ever.
            Fault::RefuseEvery(count) if (batches + batches / 7) % count == 0 => {
                Some(refusal(ErrorCode::NoOwner, Retry::Same))
            }
            Fault::RefuseData(data) => {
                let event = Batch::parse(batch.packed.clone()).unwrap().decode(0).unwrap();
                (event.data == data.as_bytes()).then(|| refusal(ErrorCode::TooLarge, Retry::Never))
            }
            Fault::Deleted => Some(refusal(ErrorCode::UnknownTopic, Retry::Never)),
            _ => None,
        };
        let result = refused.map_or_else(|| door.log.append(batch.partition, batch.packed), Err);
        if matches!(door.fault, Fault::BreakAfter(count) if batches == count) {
            let _ = answers.send(Err(Status::unavailable("the node is gone"))).await;
            return;
        }
        let result = Some(match result {
            Ok(receipt) => publish_answer::Result::Receipt(receipt),
            Err(error) => publish_answer::Result::Error(error),
        });
        let answer = PublishStreamResponse { answers: vec![PublishAnswer { request_id: batch.request_id, result }] };
        let answers = answers.clone();
        match door.fault {
            Fault::AnswerLate(most) => {
                let late = most / (1 + batches as u32 % 4);
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    let _ = answers.send(Ok(answer)).await;
                });
            }
            _ => drop(answers.send(Ok(answer)).await),
        }
    }
}

async fn send(frames: &mpsc::Sender<Result<SubscribeResponse, Status>>, frame: subscribe_response::Frame) {
    let _ = frames.send(Ok(SubscribeResponse { frame: Some(frame) })).await;
}

async fn observe(
    door: Door,
    open: SubscribeOpen,
    _requests: Streaming<SubscribeRequest>,
    frames: mpsc::Sender<Result<SubscribeResponse, Status>>,
) {
    let mut sent = 0;
    for partition in 0..PARTITIONS {
        if open.partition.is_some_and(|wanted| wanted != partition) {
            continue;
        }
        let batches = door.log.0.lock().unwrap().batches.get(&partition).cloned().unwrap_or_default();
        for batch in batches.into_iter().filter(|batch| batch.header().end_offset() > open.offset) {
            if matches!(door.fault, Fault::BreakAfter(count) if sent == count) {
                let _ = frames.send(Err(Status::unavailable("the node is gone"))).await;
                return;
            }
            let packed = PackedFrame { partition, from_offset: open.offset, packed: batch.bytes().clone() };
            send(&frames, subscribe_response::Frame::Packed(packed)).await;
            sent += 1;
        }
    }
    send(&frames, subscribe_response::Frame::End(true)).await;
}

async fn consume(
    door: Door,
    open: SubscribeOpen,
    mut requests: Streaming<SubscribeRequest>,
    frames: mpsc::Sender<Result<SubscribeResponse, Status>>,
) {
    let mut credit = open.credit;
    let mut waiting = Vec::new();
    for (partition, batches) in &door.log.0.lock().unwrap().batches {
        for batch in batches {
            for index in 0..batch.count() {
                let offset = batch.header().base_offset + u64::from(index);
                let event = batch.decode(index).unwrap().encode_to_vec().into();
                waiting.push(Delivery { partition: *partition, offset, epoch: 1, attempt: 1, event, dispatch: 1 });
            }
        }
    }
    waiting.retain(|delivery| !door.log.0.lock().unwrap().acked.contains(&(delivery.partition, delivery.offset)));
    waiting.reverse();
    let mut sent = 0;
    loop {
        while credit > 0
            && let Some(delivery) = waiting.pop()
        {
            credit -= 1;
            sent += 1;
            let deliveries = vec![delivery];
            send(&frames, subscribe_response::Frame::Deliveries(DeliveryFrame { deliveries })).await;
        }
        if matches!(door.fault, Fault::BreakAfter(count) if sent >= count) {
            let _ = frames.send(Err(Status::unavailable("the node is gone"))).await;
            return;
        }
        match requests.message().await {
            Ok(Some(SubscribeRequest { frame: Some(subscribe_request::Frame::Credit(more)) })) => credit += more,
            Ok(Some(SubscribeRequest { frame: Some(subscribe_request::Frame::Ack(ack)) })) => {
                let acked: Vec<(u32, u64)> = ack
                    .ranges
                    .iter()
                    .flat_map(|range| (range.first..=range.last).map(|offset| (range.partition, offset)))
                    .collect();
                door.log.0.lock().unwrap().acked.extend(acked);
                let answer = AckAnswer { request_id: ack.request_id, refused: Vec::new() };
                send(&frames, subscribe_response::Frame::Ack(answer)).await;
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return,
        }
    }
}
