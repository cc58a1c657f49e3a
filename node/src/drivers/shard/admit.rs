//! Admission: a batch is checked once, in the task that brought it, and takes its place in the queue.

use std::sync::Arc;

use tokio::sync::oneshot;
use weft_batch::Batch;
use weft_cluster::errors::over;
use weft_cluster::ids::{PartitionId, TopicId};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::ForwardAppend;
use weft_proto::v1::{Ack, Error, ErrorCode, Receipt, Retry};

use super::queue::{Append, Work};
use super::refusal::{bad_batch, disk_full, invalid, outcome_unknown, overloaded, refusal};
use super::seat::Seat;
use crate::host::Promise;

/// Checks a batch and queues it; resolves to its receipt. Whatever can be said at once is an error at once.
pub(super) fn append(
    seat: &Arc<Seat>,
    append: ForwardAppend,
) -> Result<Promise<'static, Result<Receipt, Error>>, Error> {
    let leadership = seat.acting()?;
    let metrics = &seat.commons.metrics;
    let view = seat.commons.view();
    if seat.commons.storage.full() || !view.majority_has_room(seat.shard) {
        metrics.disk_full.inc();
        return Err(disk_full(&view, seat.shard));
    }
    let (partition, events) = check(&view, seat, &append)?;
    let bytes = append.packed.len();
    let accepted = append.ack() == Ack::Accepted;
    let receipt = Receipt {
        partition: partition.index,
        count: events,
        epoch: leadership.epoch.0,
        ack: Ack::Accepted.into(),
        ..Receipt::default()
    };
    let (reply, outcome) = oneshot::channel();
    let reply = (!accepted).then_some(reply);
    let work = Work::Append(Append { partition, packed: append.packed, reply, permit: None });
    // Its place is that of this call, whoever is polled first; the room is waited for there.
    let place = seat.queue.enter(work);
    let stored = async move {
        if accepted {
            return Ok(receipt);
        }
        outcome.await.unwrap_or_else(|_| Err(outcome_unknown("the owner is stopping")))
    };
    let Some(mut place) = place else { return Ok(Box::pin(stored)) };
    let seat = seat.clone();
    Ok(Box::pin(async move {
        let config = &seat.commons.config;
        let waited = tokio::time::timeout(config.queue_patience, place.admitted()).await;
        let full = seat.queue.is_full(bytes);
        if waited.is_ok() || !place.give_up() {
            return stored.await;
        }
        seat.commons.metrics.overloaded.inc();
        let (limit, max) = match full {
            true => ("shards.shard_queue_bytes_max", config.shard_queue_bytes_max),
            false => ("shards.queue_bytes_max", config.queue_bytes_max),
        };
        Err(overloaded(limit, max.as_u64()))
    }))
}

/// The partition and the number of events of a batch that may be proposed.
fn check(view: &ClusterView, seat: &Seat, append: &ForwardAppend) -> Result<(PartitionId, u32), Error> {
    let id = TopicId(append.topic);
    let Some(topic) = view.registry.topic_by_id(id) else { return Err(unknown_topic(view, id)) };
    if append.partition >= topic.partitions {
        let message =
            format!("topic {} has {} partitions, there is no {}", topic.name, topic.partitions, append.partition);
        return Err(refusal(ErrorCode::UnknownPartition, Retry::Never, message));
    }
    let partition = PartitionId { topic: id, index: append.partition };
    if view.shard_of(partition) != Some(seat.shard) {
        return Err(invalid(format!("partition {partition} is not of shard {}", seat.shard)));
    }
    let batch = Batch::parse(append.packed.clone()).map_err(bad_batch)?;
    batch.check_body().map_err(bad_batch)?;
    if batch.record_bytes_max() > topic.event_bytes_max {
        let (bytes, max) = (batch.record_bytes_max(), topic.event_bytes_max);
        let message = format!("an event of {bytes} bytes, topic {} allows {max} (event_bytes_max)", topic.name);
        return Err(over(ErrorCode::TooLarge, "event_bytes_max", u64::from(max), message));
    }
    let header = batch.header();
    if header.topic != 0 && (header.topic, header.partition) != (append.topic, append.partition) {
        return Err(invalid(format!("the batch was packed for partition t{}/{}", header.topic, header.partition)));
    }
    Ok((partition, batch.count()))
}

fn unknown_topic(view: &ClusterView, id: TopicId) -> Error {
    if view.registry.topic_gone(id) {
        return refusal(ErrorCode::UnknownTopic, Retry::Never, format!("topic {id} was deleted"));
    }
    // The sender's copy of the registry is ahead of this one.
    refusal(ErrorCode::NotReady, Retry::Same, format!("this node does not know topic {id} yet"))
}
