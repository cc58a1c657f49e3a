//! Groups and producers.

use std::sync::Arc;

use imbl::OrdMap;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{CreateGroup, DeleteGroup, GroupRecord, OpenProducer, ProducerRecord};
use weft_proto::v1::{ErrorCode, StartAt};

use super::apply::{Answer, DONE, full, invalid, not_now};
use super::limits::{
    ACK_DEADLINE_MS_DEFAULT, ACK_DEADLINE_MS_MAX, ACK_DEADLINE_MS_MIN, GROUPS_MAX, GROUPS_PER_TOPIC_MAX, PRODUCERS_MAX,
};
use super::{State, names};
use crate::errors::error;
use crate::ids::{GroupId, TopicId};

impl State {
    /// Makes a group, or answers with the record of the one there is: its start and deadline stay as they are.
    pub(super) fn create_group(&mut self, command: &CreateGroup) -> Answer {
        names::check("group", &command.name).map_err(invalid)?;
        let topic = TopicId(command.topic);
        if self.topic_by_id(topic).is_none() {
            return Err(error(ErrorCode::UnknownTopic, format!("there is no topic of id {topic}")));
        }
        if let Some(group) = self.group(topic, &command.name) {
            return Ok(Outcome::Group(group.clone()));
        }
        let start = match command.start {
            0 => StartAt::Earliest as u32,
            start if start == StartAt::Earliest as u32 || start == StartAt::Now as u32 => start,
            start => return Err(invalid(format!("start is {start}: use 1 (earliest) or 2 (now)"))),
        };
        let ack_deadline_ms = match command.ack_deadline_ms {
            0 => ACK_DEADLINE_MS_DEFAULT,
            ms if (ACK_DEADLINE_MS_MIN..=ACK_DEADLINE_MS_MAX).contains(&ms) => ms,
            ms => {
                return Err(invalid(format!(
                    "ack_deadline_ms is {ms}: use {ACK_DEADLINE_MS_MIN} to {ACK_DEADLINE_MS_MAX}"
                )));
            }
        };
        if self.group_names.get(&topic).is_some_and(|groups| groups.len() >= GROUPS_PER_TOPIC_MAX) {
            return Err(full("groups of this topic", GROUPS_PER_TOPIC_MAX));
        }
        if self.groups.len() >= GROUPS_MAX {
            return Err(full("groups", GROUPS_MAX));
        }
        let id = self.next_group_id;
        self.next_group_id = id.checked_add(1).ok_or_else(|| full("group ids", u32::MAX))?;
        let name = command.name.clone();
        let created_ms = self.log_time.0;
        let record = GroupRecord { id, topic: topic.0, name, start, ack_deadline_ms, created_ms };
        self.put_group(record.clone());
        Ok(Outcome::Group(record))
    }

    /// Forgets a group. Its shards drop its cursors when they see it gone.
    pub(super) fn delete_group(&mut self, command: &DeleteGroup) -> Answer {
        let topic = TopicId(command.topic);
        let id = self.group_names.get_mut(&topic).and_then(|groups| groups.remove(&command.name));
        let Some(id) = id else {
            let message = format!("the topic of id {topic} has no group {:?}", command.name);
            return Err(error(ErrorCode::UnknownGroup, message));
        };
        if self.group_names.get(&topic).is_some_and(OrdMap::is_empty) {
            self.group_names.remove(&topic);
        }
        self.groups.remove(&id);
        DONE
    }

    /// Opens a session: a name's next, or the only one of a fresh id. Only names take room in the registry.
    pub(super) fn open_producer(&mut self, command: &OpenProducer) -> Answer {
        if command.name.is_empty() {
            let id = self.allocate_producer_id();
            return Ok(Outcome::Producer(ProducerRecord { name: String::new(), id, epoch: 1 }));
        }
        names::check("producer", &command.name).map_err(invalid)?;
        let record = match self.producer(&command.name) {
            Some(last) => {
                let epoch = last.epoch.checked_add(1);
                let epoch = epoch.ok_or_else(|| not_now(format!("producer {:?} has no epoch left", last.name)))?;
                ProducerRecord { epoch, ..last.clone() }
            }
            None if self.producers.len() >= PRODUCERS_MAX => return Err(full("named producers", PRODUCERS_MAX)),
            None => ProducerRecord { name: command.name.clone(), id: self.allocate_producer_id(), epoch: 1 },
        };
        self.producers.insert(record.name.clone(), Arc::new(record.clone()));
        Ok(Outcome::Producer(record))
    }

    fn allocate_producer_id(&mut self) -> u64 {
        self.next_producer_id += 1;
        self.next_producer_id - 1
    }

    pub(super) fn put_group(&mut self, group: GroupRecord) {
        let id = GroupId(group.id);
        self.group_names.entry(TopicId(group.topic)).or_default().insert(group.name.clone(), id);
        self.groups.insert(id, Arc::new(group));
    }
}
