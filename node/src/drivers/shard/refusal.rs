//! The refusals of the publish and deliver paths: one constructor each, so that code, retry and sentence agree.

use weft_batch::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, BatchError};
use weft_cluster::errors::over;
use weft_cluster::ids::{NodeId, PartitionId, ShardId};
use weft_cluster::view::ClusterView;
use weft_proto::v1::{Error, ErrorCode, Retry};

/// An error with its code and what a client may do about it.
pub fn refusal(code: ErrorCode, retry: Retry, message: impl Into<String>) -> Error {
    Error { code: code.into(), message: message.into(), retry: retry.into(), ..Error::default() }
}

/// This node does not act for the shard; nothing was proposed.
pub fn not_owner(owner: Option<NodeId>) -> Error {
    let message = match owner {
        Some(_) => "this node does not own the shard; another does",
        None => "this node does not own the shard, and no owner is known",
    };
    Error { owner: owner.map_or(0, |node| node.0), ..refusal(ErrorCode::NotOwner, Retry::Same, message) }
}

/// No owner is known at the moment; nothing was sent.
pub fn no_owner(partition: PartitionId) -> Error {
    let message = format!("no owner of partition {} is known at the moment", partition.index);
    refusal(ErrorCode::NoOwner, Retry::Same, message)
}

/// The owner lives, and this node has no link to it.
pub fn out_of_reach(owner: &str) -> Error {
    let message = format!("this node cannot reach {owner}, the owner, which others see: ask another node");
    refusal(ErrorCode::NotReady, Retry::Same, message)
}

/// It was sent or proposed, and whether it took effect is not known.
pub fn outcome_unknown(what: &str) -> Error {
    let message = format!("the batch may or may not be stored: {what}");
    refusal(ErrorCode::OutcomeUnknown, Retry::IfIdempotent, message)
}

/// A limit is reached, named as in the configuration if it is there; nothing was proposed.
pub fn overloaded(limit: &str, max: u64) -> Error {
    over(ErrorCode::Overloaded, limit, max, format!("the limit {limit} of {max} is reached"))
}

/// The disk of the owner, which asks, or those of a majority of the shard's replicas are under their watermark.
pub fn disk_full(view: &ClusterView, shard: ShardId) -> Error {
    let full = |node: &NodeId| *node != view.me && !view.has_room(*node);
    let mut nodes: Vec<String> = view.replicas_of(shard).filter(full).map(|node| view.name_of(node)).collect();
    if !view.has_room(view.me) || nodes.is_empty() {
        nodes.insert(0, view.name_of(view.me));
    }
    let nodes = nodes.join(", ");
    let message = format!("publishes are refused until there is room on the disk of {nodes} (storage.free_bytes_min)");
    refusal(ErrorCode::DiskFull, Retry::Same, message)
}

/// The request broke a rule.
pub fn invalid(message: impl Into<String>) -> Error {
    refusal(ErrorCode::InvalidArgument, Retry::Never, message)
}

/// What is wrong with a batch, for its sender.
pub fn bad_batch(error: BatchError) -> Error {
    let (limit, max) = match error {
        BatchError::TooLarge { .. } => ("batch_bytes_max", BATCH_BYTES_MAX as u64),
        BatchError::EventTooLarge { max, .. } => ("event_bytes_max", max as u64),
        BatchError::TooManyEvents { .. } => ("batch_events_max", BATCH_EVENTS_MAX as u64),
        _ => return refusal(ErrorCode::InvalidArgument, Retry::Never, error.to_string()),
    };
    over(ErrorCode::TooLarge, limit, max, error.to_string())
}

/// Data on this node's disk failed its check, or could not be read.
pub fn corrupt(message: impl Into<String>) -> Error {
    refusal(ErrorCode::Corrupt, Retry::Same, message)
}

/// Whether an error says that the same request may be sent again, because nothing was done.
pub fn may_repeat(error: &Error) -> bool {
    error.retry() == Retry::Same
}
