//! `weft.v1.Topics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::{Request, Response};
use weft_cluster::caller::Caller;
use weft_cluster::ids::{PartitionId, TopicId};
use weft_cluster::registry::{State, names};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{CreateTopic, DeleteTopic, PartitionStat, TopicRecord};
use weft_proto::v1::topics_server::Topics;
use weft_proto::v1::{self, ErrorCode};

use super::groups::described_group;
use super::{READ_PATIENCE, SETTLE_PATIENCE, SETTLE_PAUSE, Status, unexpected};
use crate::wire::{caller, checks, error, status};

pub(super) type Stats = BTreeMap<u32, PartitionStat>;
type Answer<T> = Result<Response<T>, tonic::Status>;

#[tonic::async_trait]
impl Topics for Status {
    async fn create_topic(&self, request: Request<v1::CreateTopicRequest>) -> Answer<v1::Topic> {
        self.settled()?;
        self.create(&caller(&request), request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn describe_topic(&self, request: Request<v1::DescribeTopicRequest>) -> Answer<v1::TopicDescription> {
        self.settled()?;
        self.describe(&caller(&request), request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn list_topics(&self, request: Request<v1::ListTopicsRequest>) -> Answer<v1::ListTopicsResponse> {
        self.settled()?;
        let namespace = request.into_inner().namespace;
        checks::name("namespace", names::namespace_or_default(&namespace)).map_err(status)?;
        // The newest list if the registry answers, else the one that is here.
        let registry = self.backend.read(READ_PATIENCE).await.unwrap_or_else(|_| self.view().registry.clone());
        Ok(Response::new(v1::ListTopicsResponse { topics: registry.topics(&namespace).map(topic).collect() }))
    }

    async fn delete_topic(&self, request: Request<v1::DeleteTopicRequest>) -> Answer<v1::DeleteTopicResponse> {
        self.settled()?;
        let caller = caller(&request);
        let v1::DeleteTopicRequest { name, namespace } = request.into_inner();
        checks::topic(&namespace, &name).map_err(status)?;
        let command = Command::DeleteTopic(DeleteTopic { namespace, name });
        self.change(&caller, command).await.map(|_| Response::new(v1::DeleteTopicResponse {})).map_err(status)
    }

    async fn list_groups(&self, request: Request<v1::ListGroupsRequest>) -> Answer<v1::ListGroupsResponse> {
        self.settled()?;
        self.groups(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn describe_group(&self, request: Request<v1::DescribeGroupRequest>) -> Answer<v1::GroupDescription> {
        self.settled()?;
        self.group(&caller(&request), request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn delete_group(&self, request: Request<v1::DeleteGroupRequest>) -> Answer<v1::DeleteGroupResponse> {
        self.settled()?;
        let caller = caller(&request);
        self.drop_group(&caller, request.into_inner()).await.map(Response::new).map_err(status)
    }
}

impl Status {
    async fn create(&self, caller: &Caller, request: v1::CreateTopicRequest) -> Result<v1::Topic, v1::Error> {
        let v1::CreateTopicRequest { name, partitions, event_bytes_max, namespace } = checks::create_topic(request)?;
        let pool = String::new();
        let command = Command::CreateTopic(CreateTopic { namespace, name, partitions, event_bytes_max, pool });
        let Outcome::Topic(record) = self.change(caller, command).await? else { return Err(unexpected()) };
        self.settle(caller, &record).await;
        Ok(topic(&record))
    }

    /// Waits until the owners serve the new partitions, so that a publish that follows need not. The topic is there
    /// in any case: a shard without an owner delays the answer, but does not turn it into an error.
    async fn settle(&self, caller: &Caller, record: &TopicRecord) {
        let mut missing = partitions(record);
        let asked = async {
            while !missing.is_empty() {
                for stat in self.backend.stats(caller, &missing.clone(), SETTLE_PATIENCE).await {
                    missing.retain(|partition| partition.index != stat.partition);
                }
                if !missing.is_empty() {
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
            }
        };
        if tokio::time::timeout(SETTLE_PATIENCE, asked).await.is_err() {
            tracing::warn!(topic = record.name, "owners of the new topic's partitions do not answer yet");
        }
    }

    async fn describe(
        &self,
        caller: &Caller,
        request: v1::DescribeTopicRequest,
    ) -> Result<v1::TopicDescription, v1::Error> {
        let v1::DescribeTopicRequest { name, namespace } = request;
        checks::topic(&namespace, &name)?;
        let view = self.view();
        let registry = self.registry_with(|registry| registry.topic(&namespace, &name).is_some()).await?;
        let record = registry.topic(&namespace, &name).ok_or_else(|| unknown_topic(&namespace, &name))?;
        let stats = self.stats(caller, record).await;
        let described = partitions(record).into_iter().map(|id| partition(&view, id, stats.get(&id.index)));
        Ok(v1::TopicDescription {
            topic: Some(topic(record)),
            partitions: described.collect(),
            groups: registry
                .groups_of(TopicId(record.id))
                .map(|group| described_group(group, record, &stats))
                .collect(),
        })
    }

    /// This node's copy of the registry, or the newest if what is looked for may be newer than the copy.
    pub(super) async fn registry_with(&self, has: impl Fn(&State) -> bool) -> Result<Arc<State>, v1::Error> {
        let registry = self.view().registry.clone();
        if has(&registry) { Ok(registry) } else { self.backend.read(READ_PATIENCE).await }
    }

    /// What the owners of a topic's partitions say, by partition.
    pub(super) async fn stats(&self, caller: &Caller, topic: &TopicRecord) -> Stats {
        let stats = self.backend.stats(caller, &partitions(topic), READ_PATIENCE).await;
        stats.into_iter().map(|stat| (stat.partition, stat)).collect()
    }
}

pub(super) fn unknown_topic(namespace: &str, name: &str) -> v1::Error {
    let namespace = names::namespace_or_default(namespace);
    error(ErrorCode::UnknownTopic, format!("there is no topic {namespace}/{name}"))
}

fn topic(record: &TopicRecord) -> v1::Topic {
    v1::Topic {
        id: record.id,
        name: record.name.clone(),
        namespace: record.namespace.clone(),
        partitions: record.partitions,
        event_bytes_max: record.event_bytes_max,
        pool: record.pool.clone(),
        created_ms: record.created_ms,
    }
}

fn partitions(record: &TopicRecord) -> Vec<PartitionId> {
    (0..record.partitions).map(|index| PartitionId { topic: TopicId(record.id), index }).collect()
}

fn partition(view: &ClusterView, id: PartitionId, stat: Option<&PartitionStat>) -> v1::PartitionDescription {
    let shard = view.shard_of(id);
    let owner = view.owner_of(id);
    v1::PartitionDescription {
        partition: id.index,
        shard: shard.map_or(0, |shard| shard.0),
        owner: owner.map(|owner| view.name_of(owner.node)).unwrap_or_default(),
        epoch: stat.map(|stat| stat.epoch).or(owner.map(|owner| owner.epoch.0)).unwrap_or(0),
        replicas: shard.into_iter().flat_map(|shard| view.replicas_of(shard)).map(|node| view.name_of(node)).collect(),
        start_offset: stat.map(|stat| stat.start_offset),
        end_offset: stat.map(|stat| stat.end_offset),
        bytes: stat.map(|stat| stat.bytes),
    }
}
