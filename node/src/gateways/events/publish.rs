//! Unary publishes: events are packed per partition, and answered when all have a receipt or an error.

use std::sync::atomic::Ordering;

use prost::Message;
use tokio::time::Instant;
use tonic::Request;
use weft_proto::v1::{Ack, Error, PublishRequest, PublishResponse, PublishResult, Receipt, publish_result};

use super::packing::{Packed, Packing};
use super::{Events, named};
use crate::drivers::forward::Publisher;
use crate::drivers::shard::refusal;
use crate::wire::{self, checks};

/// Bytes of a batch packed from one request: as many as a request may hold.
const BATCH_BYTES_MAX: usize = 8 << 20;

pub(super) async fn publish(events: &Events, request: Request<PublishRequest>) -> Result<PublishResponse, Error> {
    let (deadline, caller) = (deadline(events, &request), wire::caller(&request));
    let request = request.into_inner();
    checks::events_count(request.events.len())?;
    let ack = checks::ack(request.ack)?;
    let topic = events.topic(&request.namespace, &request.topic).await?;
    let mut taken = events.inner.room.taken();
    let room = events.inner.room.clone().wait(request.encoded_len());
    match tokio::time::timeout(events.inner.config.publish_patience, room).await {
        Ok(permit) => taken.add(permit),
        Err(_) => {
            events.inner.metrics.overloaded.inc();
            let max = events.inner.config.publish_bytes_max.as_u64();
            return Err(refusal::overloaded("events.publish_bytes_max", max));
        }
    }
    let turn = events.inner.turn.fetch_add(1, Ordering::Relaxed);
    let name = topic.name.clone();
    let mut packing = Packing::new(topic, BATCH_BYTES_MAX, turn);
    let mut publisher = events.inner.forward.publisher(caller);
    let mut results: Vec<Option<Result<Receipt, Error>>> = vec![None; request.events.len()];
    let now = events.inner.host.wall();
    for (index, event) in request.events.iter().enumerate() {
        match packing.push(event, now, index) {
            Ok(Some(full)) => push(&mut publisher, full, ack, deadline),
            Ok(None) => {}
            Err((index, error)) => results[index] = Some(Err(error)),
        }
    }
    for partition in packing.partitions() {
        if let Some(packed) = packing.take(partition.index) {
            push(&mut publisher, packed, ack, deadline);
        }
    }
    while !publisher.is_idle() {
        for (names, outcome) in publisher.answers().await {
            for (place, index) in names.into_iter().enumerate() {
                results[index] = Some(each(&outcome, place));
            }
        }
    }
    let metrics = &events.inner.metrics;
    let result = |result: Option<Result<Receipt, Error>>| {
        let result = match result.expect("each event is packed and answered, or refused") {
            Ok(receipt) => {
                metrics.receipts.inc();
                publish_result::Result::Receipt(receipt)
            }
            Err(error) => {
                metrics.errors.inc();
                publish_result::Result::Error(named(error, &name))
            }
        };
        PublishResult { result: Some(result) }
    };
    Ok(PublishResponse { results: results.into_iter().map(result).collect() })
}

fn push(publisher: &mut Publisher<Vec<usize>>, packed: Packed<usize>, ack: Ack, deadline: Instant) {
    publisher.push(packed.partition, packed.batch, ack, deadline, packed.names);
}

/// The answer of one event of a batch.
pub(super) fn each(outcome: &Result<Receipt, Error>, place: usize) -> Result<Receipt, Error> {
    let mut receipt = outcome.clone()?;
    receipt.offset = receipt.offset.map(|first| first + place as u64);
    receipt.count = 1;
    Ok(receipt)
}

/// The client's deadline (the grpc-timeout header), or the node's.
fn deadline<T>(events: &Events, request: &Request<T>) -> Instant {
    let default = events.inner.forward.publish_deadline();
    let timeout = wire::grpc_timeout(request.metadata().as_ref());
    timeout.map_or(default, |timeout| default.min(Instant::now() + timeout))
}
