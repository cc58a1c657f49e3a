use bytes::Bytes;
use weft_batch::{Batch, BatchError, Stamp};
use weft_proto::internal::v1::Append;
use weft_proto::v1::ErrorCode;

use super::{AppendResult, Refusal, State, Stored};
use crate::ids::{Epoch, LogPosition, Millis, Offset, PartitionId, TopicId};

/// A committed entry holds bytes that are no batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("append {index} of the entry, for {partition}, is damaged: {error}")]
pub struct ApplyError {
    /// Which append of the entry.
    pub index: usize,
    /// Its partition.
    pub partition: PartitionId,
    /// What is wrong.
    pub error: BatchError,
}

/// An append whose batch is sound.
pub(super) struct Checked {
    partition: PartitionId,
    batch: Batch,
    /// Published with ACCEPTED.
    accepted: bool,
}

pub(super) fn check_all(appends: Vec<Append>) -> Result<Vec<Checked>, ApplyError> {
    let read = |(index, append): (usize, Append)| {
        let partition = PartitionId { topic: TopicId(append.topic), index: append.partition };
        let batch = read(append.packed).map_err(|error| ApplyError { index, partition, error })?;
        Ok(Checked { partition, batch, accepted: append.accepted })
    };
    appends.into_iter().enumerate().map(read).collect()
}

fn read(packed: Bytes) -> Result<Batch, BatchError> {
    let batch = Batch::parse(packed)?;
    batch.check_body()?;
    Ok(batch)
}

impl State {
    /// Whether a batch could be stored as things are, but for its sequence.
    ///
    /// # Errors
    /// `UNKNOWN_PARTITION` or `TOO_LARGE`.
    fn admit(&self, id: PartitionId, batch: &Batch) -> Result<(), Refusal> {
        let partition = self.partitions.get(&id).ok_or_else(|| Refusal::unknown_partition(id))?;
        let (bytes, max) = (batch.record_bytes_max(), partition.event_bytes_max());
        if bytes > max {
            let message = format!("an event of {bytes} bytes, the topic allows {max}");
            return Err(Refusal::over(ErrorCode::TooLarge, "event_bytes_max", u64::from(max), message));
        }
        if partition.end().0.checked_add(u64::from(batch.count())).is_none_or(|end| end == u64::MAX) {
            return Err(Refusal::new(ErrorCode::FailedPrecondition, format!("partition {id} has no offsets left")));
        }
        Ok(())
    }

    pub(super) fn append(&mut self, at: LogPosition, append: &Checked) -> AppendResult {
        self.try_append(at, append).unwrap_or_else(AppendResult::Refused)
    }

    fn try_append(&mut self, at: LogPosition, append: &Checked) -> Result<AppendResult, Refusal> {
        let (id, batch) = (append.partition, &append.batch);
        let duplicate =
            |(base_offset, count, epoch)| AppendResult::Duplicate { partition: id, base_offset, count, epoch };
        self.partitions.get(&id).ok_or_else(|| Refusal::unknown_partition(id))?;
        let producer = batch.header().producer;
        if let Some(producer) = producer
            && let Some(first) = self.partition_mut(id).producers.find(producer, batch.count(), append.accepted)?
        {
            return Ok(duplicate(first));
        }
        self.admit(id, batch)?;
        let log_time = self.log_time;
        let partition = self.partition_mut(id);
        let (base_offset, epoch, count) = (partition.end(), Epoch(at.term), batch.count());
        if let Some(producer) = producer {
            partition.producers.stored(producer, count, base_offset, epoch, log_time);
        }
        partition.extend(count);
        let header = batch.stamp(stamp(id, at, base_offset, log_time));
        let body = batch.body();
        Ok(AppendResult::Stored(Stored { partition: id, base_offset, count, epoch, header, body }))
    }

    fn partition_mut(&mut self, id: PartitionId) -> &mut super::Partition {
        self.partitions.get_mut(&id).expect("looked up before")
    }
}

fn stamp(id: PartitionId, at: LogPosition, base_offset: Offset, log_time: Millis) -> Stamp {
    Stamp {
        topic: id.topic.0,
        partition: id.index,
        base_offset: base_offset.0,
        term: at.term,
        raft_index: at.index,
        log_time_ms: log_time.0,
    }
}
