//! The whole state as one message: for snapshots, and for followers that begin.

use weft_proto::internal::v1::RegistryState;

use super::State;

/// A `RegistryState` that no registry can have written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("registry state: {0}")]
pub struct StateError(pub String);

impl State {
    /// The state as a message; the tables are in the order of their ids.
    pub fn to_proto(&self) -> RegistryState {
        panic!("contract only")
    }

    /// The state of a message.
    ///
    /// # Errors
    /// Two records of one id or name, a record that refers to nothing, or a wrong shard count.
    pub fn from_proto(_state: RegistryState) -> Result<State, StateError> {
        panic!("contract only")
    }
}
