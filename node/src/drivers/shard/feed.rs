//! Observer feeds: stored batches of some partitions, verbatim, from the offsets asked for.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender};
use weft_cluster::ids::{PartitionId, TopicId};
use weft_proto::internal::v1::{DeliverOpen, DeliverRequest, DeliverResponse, deliver_request, deliver_response};
use weft_proto::v1::{Error, ErrorCode, PackedFrame, Retry};

use super::refusal;
use super::seat::{Reader, Seat};

/// Bytes read of one partition before the next has its turn.
const READ_BYTES_MAX: usize = 1 << 20;

struct Cursor {
    partition: PartitionId,
    next: u64,
    _reader: Reader,
}

/// Serves an observer feed. `Ok` when the reader is gone; `Err` is why this side ends it.
pub(super) async fn serve(
    seat: Arc<Seat>,
    open: DeliverOpen,
    mut requests: Receiver<DeliverRequest>,
    responses: &Sender<DeliverResponse>,
) -> Result<(), Error> {
    let bell = Arc::new(Notify::new());
    let mut cursors = cursors(&seat, &open, &bell)?;
    let epoch = seat.acting()?.epoch;
    let Some(mut leadership) = seat.leaderships() else { return Err(refusal::not_owner(None)) };
    let mut credit = i64::try_from(open.credit).unwrap_or(i64::MAX);
    loop {
        // Before the reading: credit that comes after it wakes what follows.
        while let Ok(request) = requests.try_recv() {
            add_credit(&mut credit, &request);
        }
        if seat.acting()?.epoch != epoch {
            return Err(refusal::not_owner(None));
        }
        let mut sent = false;
        for cursor in &mut cursors {
            let Some(bytes_max) = usize::try_from(credit).ok().filter(|credit| *credit > 0) else { break };
            let bytes_max = bytes_max.min(READ_BYTES_MAX);
            let batches = seat.read(cursor.partition, cursor.next, bytes_max).await;
            for packed in batches.map_err(|error| unreadable(cursor.partition, &error))? {
                let header = weft_batch::Header::read(&packed).map_err(|error| refusal::corrupt(error.to_string()))?;
                let from_offset = std::mem::replace(&mut cursor.next, header.end_offset());
                credit -= i64::try_from(packed.len()).unwrap_or(i64::MAX);
                let frame = PackedFrame { partition: cursor.partition.index, from_offset, packed };
                let frame = Some(deliver_response::Frame::Packed(frame));
                if responses.send(DeliverResponse { frame }).await.is_err() {
                    return Ok(());
                }
                sent = true;
            }
        }
        if sent && credit > 0 {
            continue;
        }
        tokio::select! {
            biased;
            // The change is looked at when the loop comes round.
            changed = leadership.changed() => changed.map_err(|_| refusal::not_owner(None))?,
            request = requests.recv() => match request {
                Some(request) => add_credit(&mut credit, &request),
                None => return Ok(()),
            },
            () = bell.notified(), if credit > 0 => {}
            () = seat.gone.cancelled() => return Err(refusal::not_owner(None)),
        }
    }
}

fn cursors(seat: &Seat, open: &DeliverOpen, bell: &Arc<Notify>) -> Result<Vec<Cursor>, Error> {
    if open.offsets.len() != open.partitions.len() {
        return Err(refusal::invalid("an observer feed names an offset for each partition"));
    }
    let cursor = |(index, next): (&u32, &u64)| {
        let partition = PartitionId { topic: TopicId(open.topic), index: *index };
        let start = seat.replica().state.partition(partition).map_or(0, |state| state.start().0);
        if *next < start {
            let message = format!("offset {next} of partition {index} is trimmed; the first held is {start}");
            return Err(refusal::refusal(ErrorCode::OffsetTrimmed, Retry::Never, message));
        }
        Ok(Cursor { partition, next: *next, _reader: seat.listen(partition, bell) })
    };
    open.partitions.iter().zip(&open.offsets).map(cursor).collect()
}

fn add_credit(credit: &mut i64, request: &DeliverRequest) {
    if let Some(deliver_request::Frame::Credit(more)) = request.frame {
        *credit = credit.saturating_add(i64::try_from(more).unwrap_or(i64::MAX));
    }
}

fn unreadable(partition: PartitionId, error: &std::io::Error) -> Error {
    tracing::error!(%partition, %error, "read a segment");
    refusal::corrupt(format!("partition {partition} cannot be read here: {error}"))
}
