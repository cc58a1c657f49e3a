//! Runs commands: the same entries in the same order give the same state on every node.

use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{Done, RegistryCommand, RegistryEntry, RegistryOutcome};
use weft_proto::v1::{Error, ErrorCode};

use super::State;
use super::limits::FEATURE_LEVEL;
use crate::errors::{error, over};
use crate::ids::{LogPosition, Millis};

/// What a command did, or why it was refused; a refused one has changed nothing.
pub(super) type Answer = Result<Outcome, Error>;

/// A command without an answer of its own succeeded.
pub(super) const DONE: Answer = Ok(Outcome::Done(Done {}));

/// Refuses what is wrong at any time.
pub(super) fn invalid(message: impl Into<String>) -> Error {
    error(ErrorCode::InvalidArgument, message)
}

/// Refuses what is wrong now.
pub(super) fn not_now(message: impl Into<String>) -> Error {
    error(ErrorCode::FailedPrecondition, message)
}

/// Refuses what would take a table over its limit.
pub(super) fn full(limit: &str, max: impl TryInto<u64> + std::fmt::Display) -> Error {
    let message = format!("the registry holds the {max} {limit} that it may hold");
    let name = format!("{}_max", limit.to_lowercase().replace(' ', "_"));
    over(ErrorCode::Overloaded, name, max.try_into().unwrap_or(u64::MAX), message)
}

impl State {
    /// Applies one committed entry and says what it did. A refused command changes nothing but `applied` and
    /// log time. An entry at or before `applied` is answered with an error and changes nothing.
    ///
    /// Errors in the outcome: INVALID_ARGUMENT, TOPIC_EXISTS, UNKNOWN_TOPIC, UNKNOWN_GROUP, NOT_FOUND, FAILED_PRECONDITION
    /// (also: a plan for another version of the table), FEATURE_LEVEL (the command is of a level above the
    /// cluster's, or unknown here), OVERLOADED (a named limit of a table).
    pub fn apply(&mut self, at: LogPosition, entry: &RegistryEntry) -> RegistryOutcome {
        let answer = match self.applied {
            Some(applied) if at.index <= applied.index => {
                Err(error(ErrorCode::Internal, format!("entry {at} was applied before: the registry is at {applied}")))
            }
            _ => {
                self.applied = Some(at);
                self.log_time = self.log_time.max(Millis(entry.log_time_ms));
                self.run(entry.command.as_ref())
            }
        };
        RegistryOutcome { index: at.index, outcome: Some(answer.unwrap_or_else(Outcome::Error)) }
    }

    /// Notes an entry that is no command (a membership, a blank entry): it only moves `applied`.
    pub fn note(&mut self, at: LogPosition) {
        if self.applied.is_none_or(|applied| at.index > applied.index) {
            self.applied = Some(at);
        }
    }

    fn run(&mut self, command: Option<&RegistryCommand>) -> Answer {
        let Some((level, command)) = command.and_then(|it| it.command.as_ref().map(|command| (it.level, command)))
        else {
            return Err(error(
                ErrorCode::FeatureLevel,
                format!("the command is unknown to this version, which knows feature level {FEATURE_LEVEL}"),
            ));
        };
        if let Command::Bootstrap(bootstrap) = command {
            return self.bootstrap(level, bootstrap);
        }
        if self.cluster_id == 0 {
            return Err(not_now("the cluster is not founded yet"));
        }
        if level > self.level {
            return Err(error(
                ErrorCode::FeatureLevel,
                format!("the command is of feature level {level}; the cluster runs at {}", self.level),
            ));
        }
        match command {
            Command::Bootstrap(_) => Err(not_now("the cluster is founded")),
            Command::RegisterNode(command) => self.register_node(command),
            Command::RemoveNode(command) => self.remove_node(command),
            Command::CreateTopic(command) => self.create_topic(command),
            Command::DeleteTopic(command) => self.delete_topic(command),
            Command::OpenProducer(command) => self.open_producer(command),
            Command::CreateGroup(command) => self.create_group(command),
            Command::DeleteGroup(command) => self.delete_group(command),
            Command::PlanShards(command) => self.plan_shards(command),
            Command::ShardMoved(command) => self.shard_moved(command),
            Command::ReplaceReplica(command) => self.replace_replica(command),
            Command::PlanSeats(command) => self.plan_seats(command),
            Command::PreferLeader(command) => self.prefer_leader(command),
            Command::SetFeatureLevel(command) => self.set_feature_level(command),
            Command::PutInstance(command) => self.put_instance(command),
            Command::RemoveInstance(command) => self.remove_instance(command),
            Command::InstanceHealth(command) => self.instance_health(command),
            Command::RehomeInstances(command) => self.rehome_instances(command),
            Command::ConfigureService(command) => self.configure_service(command),
        }
    }
}
