//! The one table of errors: what each code means, what a client may do, and how gRPC says it.
//! docs/errors.md is generated from it.

use weft_proto::v1::{Error, ErrorCode, Retry};

use crate::ids::NodeId;

/// A gRPC status code by number. The core does not know tonic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(i32)]
pub enum Grpc {
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The code.
    pub code: ErrorCode,
    /// The gRPC status it travels as.
    pub grpc: Grpc,
    /// What a client may do.
    pub retry: Retry,
    /// One sentence.
    pub meaning: &'static str,
}

const fn row(code: ErrorCode, grpc: Grpc, retry: Retry, meaning: &'static str) -> Row {
    Row { code, grpc, retry, meaning }
}

/// Every code but UNSPECIFIED, in the order of their numbers.
pub const TABLE: [Row; 27] = {
    use ErrorCode as C;
    use Grpc as G;
    use Retry as R;
    [
        row(C::InvalidArgument, G::InvalidArgument, R::Never, "The request broke a rule that the message names."),
        row(C::UnknownTopic, G::NotFound, R::Never, "No topic of this name."),
        row(C::UnknownGroup, G::NotFound, R::Never, "No group of this name on this topic."),
        row(C::TopicExists, G::AlreadyExists, R::Never, "A topic of this name exists."),
        row(C::UnknownPartition, G::NotFound, R::Never, "The partition is not below the topic's partition count."),
        row(
            C::TooLarge,
            G::InvalidArgument,
            R::Never,
            "An event, a batch or the metadata of a request is larger than the limit that the message names.",
        ),
        row(C::SequenceGap, G::FailedPrecondition, R::Never, "A producer's sequence is not the last one plus 1."),
        row(C::ProducerFenced, G::Aborted, R::Never, "A newer session of the same producer exists."),
        row(C::OffsetTrimmed, G::OutOfRange, R::Never, "The offset asked for is before the partition's start."),
        row(C::NotOwner, G::Unavailable, R::Same, "The node asked does not own the shard (any more)."),
        row(C::NoOwner, G::Unavailable, R::Same, "No owner is known: an election is under way or a majority is gone."),
        row(C::OutcomeUnknown, G::Unknown, R::IfIdempotent, "The request may or may not have taken effect."),
        row(C::Overloaded, G::ResourceExhausted, R::Same, "A limit is reached; the message names it."),
        row(
            C::DiskFull,
            G::ResourceExhausted,
            R::Same,
            "The disk of the owner, or of a majority of the shard's replicas, is nearly full; publishes are refused until there is room.",
        ),
        row(C::StaleEpoch, G::Aborted, R::Never, "An ack, nack or extend names an epoch that is over."),
        row(C::Corrupt, G::DataLoss, R::Same, "Data on this node's disk failed its check; the shard is fenced here."),
        row(C::NotReady, G::Unavailable, R::Same, "The node is starting, draining or stopping."),
        row(C::FeatureLevel, G::FailedPrecondition, R::Never, "The cluster's feature level does not include this."),
        row(C::NotFound, G::NotFound, R::Never, "No such node, shard or other named thing."),
        row(
            C::FailedPrecondition,
            G::FailedPrecondition,
            R::Never,
            "Not possible in the present state; the message says why.",
        ),
        row(
            C::Deadline,
            G::DeadlineExceeded,
            R::IfIdempotent,
            "The deadline passed before an outcome was known to be final.",
        ),
        row(C::Internal, G::Internal, R::IfIdempotent, "A fault of Weft's own."),
        row(
            C::UnknownService,
            G::Unimplemented,
            R::Never,
            "Nobody has registered a service of this name, or the path names no method.",
        ),
        row(C::NoInstance, G::Unavailable, R::Same, "The service has no instance that may be called at the moment."),
        row(
            C::Unreachable,
            G::Unavailable,
            R::Same,
            "No instance could be reached: not a byte of the call has come to one.",
        ),
        row(
            C::Loop,
            G::FailedPrecondition,
            R::Never,
            "The call has come back to Weft more often than `calls.hops_max` allows: an instance's address leads to a node.",
        ),
        row(
            C::NodeRefused,
            G::FailedPrecondition,
            R::Never,
            "A node cannot be a member as it was started: its data folder is not, or no longer, that of its name.",
        ),
    ]
};

/// The row of a code; UNSPECIFIED is a fault of Weft's own.
pub fn row_of(code: ErrorCode) -> &'static Row {
    let number = if code == ErrorCode::Unspecified { ErrorCode::Internal } else { code } as usize;
    &TABLE[number - 1]
}

/// An error with the retry that the table gives its code.
pub fn error(code: ErrorCode, message: impl Into<String>) -> Error {
    Error { code: code.into(), message: message.into(), retry: row_of(code).retry.into(), ..Error::default() }
}

/// An error of a limit: TOO_LARGE, OVERLOADED, or OUTCOME_UNKNOWN of an answer that is over it. `limit`: its key in the
/// configuration, or its name in lower case; `max`: its value.
pub fn over(code: ErrorCode, limit: impl Into<String>, max: u64, message: impl Into<String>) -> Error {
    Error { limit: limit.into(), limit_max: max, ..error(code, message) }
}

/// NOT_OWNER, with the owner if it is known.
pub fn not_owner(owner: Option<NodeId>, message: impl Into<String>) -> Error {
    Error { owner: owner.map_or(0, |node| node.0), ..error(ErrorCode::NotOwner, message) }
}

/// A code's name as clients see it: without the prefix, as `UNKNOWN_TOPIC`.
pub fn reason(code: ErrorCode) -> &'static str {
    let name = code.as_str_name();
    name.strip_prefix("ERROR_CODE_").unwrap_or(name)
}

/// A retry's name as clients see it: `NEVER`, `SAME` or `IF_IDEMPOTENT`.
pub fn retry_name(retry: Retry) -> &'static str {
    let name = retry.as_str_name();
    name.strip_prefix("RETRY_").unwrap_or(name)
}

/// The code of a name as clients see it.
pub fn code_of(reason: &str) -> Option<ErrorCode> {
    TABLE.iter().map(|row| row.code).find(|code| self::reason(*code) == reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_row_of_its_number() {
        for number in 1.. {
            let Ok(code) = ErrorCode::try_from(number) else {
                assert_eq!(number as usize, TABLE.len() + 1, "one row for each code");
                break;
            };
            assert_eq!(row_of(code).code, code);
            assert_eq!(code_of(reason(code)), Some(code));
            assert_ne!(row_of(code).retry, Retry::Unspecified);
        }
        assert_eq!(row_of(ErrorCode::Unspecified).code, ErrorCode::Internal);
        assert_eq!(reason(ErrorCode::UnknownTopic), "UNKNOWN_TOPIC");
    }

    #[test]
    fn an_error_carries_the_tables_retry_the_owner_and_the_limit() {
        assert_eq!(error(ErrorCode::Overloaded, "permits").retry(), Retry::Same);
        assert_eq!(error(ErrorCode::OutcomeUnknown, "lost").retry(), Retry::IfIdempotent);
        assert_eq!(not_owner(Some(NodeId(7)), "moved").owner, 7);
        assert_eq!(not_owner(None, "moved").owner, 0);
        let over = over(ErrorCode::Overloaded, "events.publish_bytes_max", 7, "full");
        assert_eq!((over.retry(), over.limit.as_str(), over.limit_max), (Retry::Same, "events.publish_bytes_max", 7));
    }
}
