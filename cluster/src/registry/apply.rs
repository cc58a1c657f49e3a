//! Runs commands: the same entries in the same order give the same state on every node.

use weft_proto::internal::v1::{RegistryEntry, RegistryOutcome};

use super::State;
use crate::ids::LogPosition;

impl State {
    /// Applies one committed entry and says what it did. A refused command changes nothing but `applied` and
    /// log time. An entry at or before `applied` is answered with an error and changes nothing.
    ///
    /// Errors in the outcome: INVALID_ARGUMENT, TOPIC_EXISTS, UNKNOWN_TOPIC, NOT_FOUND, FAILED_PRECONDITION
    /// (also: a plan for another version of the table), FEATURE_LEVEL (the command is of a level above the
    /// cluster's, or unknown here), OVERLOADED (a named limit of a table).
    pub fn apply(&mut self, _at: LogPosition, _entry: &RegistryEntry) -> RegistryOutcome {
        panic!("contract only")
    }

    /// Notes an entry that is no command (a membership, a blank entry): it only moves `applied`.
    pub fn note(&mut self, at: LogPosition) {
        self.applied = self.applied.max(Some(at));
    }
}
