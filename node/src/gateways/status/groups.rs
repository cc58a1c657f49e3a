//! The groups of topics.

use weft_cluster::caller::Caller;
use weft_cluster::ids::TopicId;
use weft_cluster::registry::{State, names};
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::{DeleteGroup, GroupRecord, TopicRecord};
use weft_proto::v1::{self, ErrorCode};

use super::topics::{Stats, unknown_topic};
use super::{READ_PATIENCE, Status};
use crate::wire::{checks, error};

impl Status {
    pub(super) async fn groups(&self, request: v1::ListGroupsRequest) -> Result<v1::ListGroupsResponse, v1::Error> {
        let v1::ListGroupsRequest { namespace, topic } = request;
        checks::name("namespace", names::namespace_or_default(&namespace))?;
        if !topic.is_empty() {
            checks::topic(&namespace, &topic)?;
        }
        // The newest list if the registry answers, else the one that is here.
        let registry = self.backend.read(READ_PATIENCE).await.unwrap_or_else(|_| self.view().registry.clone());
        let topics: Vec<&TopicRecord> = if topic.is_empty() {
            registry.topics(&namespace).collect()
        } else {
            vec![registry.topic(&namespace, &topic).ok_or_else(|| unknown_topic(&namespace, &topic))?]
        };
        let of = |topic: &&TopicRecord| {
            registry.groups_of(TopicId(topic.id)).map(|record| group(record, topic)).collect::<Vec<_>>()
        };
        Ok(v1::ListGroupsResponse { groups: topics.iter().flat_map(of).collect() })
    }

    pub(super) async fn group(
        &self,
        caller: &Caller,
        request: v1::DescribeGroupRequest,
    ) -> Result<v1::GroupDescription, v1::Error> {
        let v1::DescribeGroupRequest { topic, namespace, group } = request;
        check(&namespace, &topic, &group)?;
        let registry = self.registry_with(|registry| find(registry, &namespace, &topic, &group).is_ok()).await?;
        let (record, group) = find(&registry, &namespace, &topic, &group)?;
        let stats = self.stats(caller, record).await;
        Ok(described_group(group, record, &stats))
    }

    pub(super) async fn drop_group(
        &self,
        caller: &Caller,
        request: v1::DeleteGroupRequest,
    ) -> Result<v1::DeleteGroupResponse, v1::Error> {
        let v1::DeleteGroupRequest { topic, namespace, group } = request;
        check(&namespace, &topic, &group)?;
        let registry = self.registry_with(|registry| find(registry, &namespace, &topic, &group).is_ok()).await?;
        let (record, _) = find(&registry, &namespace, &topic, &group)?;
        self.change(caller, Command::DeleteGroup(DeleteGroup { topic: record.id, name: group })).await?;
        Ok(v1::DeleteGroupResponse {})
    }
}

fn check(namespace: &str, topic: &str, group: &str) -> Result<(), v1::Error> {
    checks::topic(namespace, topic)?;
    checks::name("group", group)
}

fn find<'a>(
    registry: &'a State,
    namespace: &str,
    topic: &str,
    group: &str,
) -> Result<(&'a TopicRecord, &'a GroupRecord), v1::Error> {
    let record = registry.topic(namespace, topic).ok_or_else(|| unknown_topic(namespace, topic))?;
    let unknown = || error(ErrorCode::UnknownGroup, format!("topic {topic} has no group {group:?}"));
    Ok((record, registry.group(TopicId(record.id), group).ok_or_else(unknown)?))
}

fn group(record: &GroupRecord, topic: &TopicRecord) -> v1::Group {
    v1::Group {
        id: record.id,
        name: record.name.clone(),
        topic: topic.name.clone(),
        start: i32::try_from(record.start).unwrap_or_default(),
        ack_deadline_ms: record.ack_deadline_ms,
        created_ms: record.created_ms,
    }
}

/// A group and where it is, as far as the owners have answered.
pub(super) fn described_group(record: &GroupRecord, topic: &TopicRecord, stats: &Stats) -> v1::GroupDescription {
    let cursors = stats.values().filter_map(|stat| {
        let cursor = stat.groups.iter().find(|cursor| cursor.group == record.id)?;
        let lag = stat.end_offset.saturating_sub(cursor.acked_below).saturating_sub(cursor.acked_above);
        let (partition, acked_below, end_offset) = (stat.partition, cursor.acked_below, stat.end_offset);
        Some(v1::GroupCursor { partition, acked_below, lag, end_offset })
    });
    v1::GroupDescription { name: record.name.clone(), cursors: cursors.collect(), group: Some(group(record, topic)) }
}
