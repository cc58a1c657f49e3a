use bytes::Bytes;
use weft_proto::v1::ErrorCode;

use crate::ids::{Epoch, Offset, PartitionId};

/// What an entry did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// For each append of the entry, in its order.
    pub appends: Vec<AppendResult>,
    /// For each ack of the entry, in its order.
    pub acks: Vec<Result<(), Refusal>>,
    /// Partitions that are new.
    pub created: Vec<PartitionId>,
    /// Partitions whose segments are to be dropped.
    pub dropped: Vec<PartitionId>,
}

/// What became of one append.
#[derive(Clone, Debug, PartialEq)]
pub enum AppendResult {
    /// It has offsets; header and body go to the segments, on every replica.
    Stored(Stored),
    /// It was stored before: the receipt first given.
    Duplicate {
        /// Where.
        partition: PartitionId,
        /// Offset of its first event.
        base_offset: Offset,
        /// Its events.
        count: u32,
        /// The epoch that stored it.
        epoch: Epoch,
    },
    /// Nothing was stored.
    Refused(Refusal),
}

/// A stored batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Where.
    pub partition: PartitionId,
    /// Offset of its first event.
    pub base_offset: Offset,
    /// Its events.
    pub count: u32,
    /// The epoch that stored it.
    pub epoch: Epoch,
    /// The stamped header: with `body`, the batch as segments hold it.
    pub header: Bytes,
    /// Envelope table and records, as packed.
    pub body: Bytes,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// As in docs/errors.md.
    pub code: ErrorCode,
    /// One sentence for a person.
    pub message: String,
    /// With `TOO_LARGE` and `OVERLOADED`: the limit and its value.
    pub limit: Option<(&'static str, u64)>,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: String) -> Refusal {
        Refusal { code, message, limit: None }
    }

    pub(crate) fn over(code: ErrorCode, limit: &'static str, max: u64, message: String) -> Refusal {
        Refusal { code, message, limit: Some((limit, max)) }
    }

    pub(crate) fn unknown_partition(id: PartitionId) -> Refusal {
        Refusal::new(ErrorCode::UnknownPartition, format!("partition {id} is not in this shard (yet)"))
    }
}
