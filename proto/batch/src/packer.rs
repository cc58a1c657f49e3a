use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use weft_proto::v1::Event;

use crate::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, BatchError, ENVELOPE_BYTES, EVENT_BYTES_MAX, Envelope, HEADER_BYTES, Header,
    Producer, check_event, key_hash, type_hash,
};

/// Field number of `time_ms` in `weft.v1.Event`.
const TIME_FIELD: u32 = 8;

/// When a packer calls a batch full. Values above the crate's own limits count as those.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a batch, header included; a single event may exceed it.
    pub batch_bytes: usize,
    /// Events of a batch.
    pub batch_events: usize,
    /// Bytes of one encoded record.
    pub event_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { batch_bytes: 128 << 10, batch_events: BATCH_EVENTS_MAX, event_bytes: 1 << 20 }
    }
}

/// Packs events into batches, one after the other.
#[derive(Debug)]
pub struct Packer {
    limits: Limits,
    rows: Vec<Row>,
    records: BytesMut,
}

/// An envelope whose time delta is known only when the batch is whole.
#[derive(Clone, Copy, Debug)]
struct Row {
    envelope: Envelope,
    time_ms: i64,
}

impl Packer {
    /// A packer with nothing in it.
    pub fn new(limits: Limits) -> Packer {
        let limits = Limits {
            batch_bytes: limits.batch_bytes.min(BATCH_BYTES_MAX),
            batch_events: limits.batch_events.clamp(1, BATCH_EVENTS_MAX),
            event_bytes: limits.event_bytes.min(EVENT_BYTES_MAX),
        };
        Packer { limits, rows: Vec::new(), records: BytesMut::new() }
    }

    /// Adds an event. One without a time gets `now_ms` (milliseconds since 1970) into its record.
    ///
    /// # Errors
    /// `Full`: finish the batch and push again. All others: the event can never be packed. Neither changes
    /// what is packed so far.
    pub fn push(&mut self, event: &Event, now_ms: i64) -> Result<(), BatchError> {
        let mut bytes = check_event(event)?;
        let fill_time = event.time_ms == 0 && now_ms != 0;
        if fill_time {
            bytes += prost::encoding::int64::encoded_len(TIME_FIELD, &now_ms);
        }
        if bytes > self.limits.event_bytes {
            return Err(BatchError::EventTooLarge { bytes, max: self.limits.event_bytes });
        }
        if !self.fits(bytes) {
            return Err(BatchError::Full);
        }
        event.encode_raw(&mut self.records);
        if fill_time {
            prost::encoding::int64::encode(TIME_FIELD, &now_ms, &mut self.records);
        }
        let len = u32::try_from(bytes).expect("at most EVENT_BYTES_MAX");
        let (key_hash, type_hash) = (key_hash(&event.key), type_hash(&event.r#type));
        let envelope = Envelope { key_hash, time_delta_ms: 0, ttl_s: 0, type_hash, len };
        self.rows.push(Row { envelope, time_ms: if fill_time { now_ms } else { event.time_ms } });
        Ok(())
    }

    /// Bytes of the batch if it were finished now.
    pub fn len_bytes(&self) -> usize {
        HEADER_BYTES + self.rows.len() * ENVELOPE_BYTES + self.records.len()
    }

    /// Events packed so far.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// True when nothing is packed.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The batch; the packer is empty again and keeps its memory. `target`: topic id and partition index, if the
    /// packer knows them.
    ///
    /// # Errors
    /// `Empty`; `Range` if the sequence runs over. What is packed stays.
    pub fn finish(&mut self, target: Option<(u32, u32)>, producer: Option<Producer>) -> Result<Bytes, BatchError> {
        let (topic, partition) = target.unwrap_or_default();
        let mut header = Header {
            len: u32::try_from(self.len_bytes()).expect("push keeps it below BATCH_BYTES_MAX"),
            body_crc: 0,
            topic,
            partition,
            base_offset: 0,
            count: u32::try_from(self.rows.len()).expect("push keeps it below BATCH_EVENTS_MAX"),
            term: 0,
            raft_index: 0,
            min_time_ms: self.rows.iter().map(|row| row.time_ms).min().unwrap_or_default(),
            max_time_ms: self.rows.iter().map(|row| row.time_ms).max().unwrap_or_default(),
            producer: producer.filter(|producer| producer.id != 0),
            log_time_ms: 0,
        };
        header.check()?;
        let mut batch = BytesMut::with_capacity(self.len_bytes());
        batch.put_bytes(0, HEADER_BYTES);
        for row in &self.rows {
            let delta = row.time_ms.abs_diff(header.min_time_ms);
            let time_delta_ms = u32::try_from(delta).unwrap_or(u32::MAX);
            batch.put_slice(&Envelope { time_delta_ms, ..row.envelope }.write());
        }
        batch.put_slice(&self.records);
        header.body_crc = crc32c::crc32c(&batch[HEADER_BYTES..]);
        batch[..HEADER_BYTES].copy_from_slice(&header.write());
        self.rows.clear();
        self.records.clear();
        Ok(batch.freeze())
    }

    fn fits(&self, bytes: usize) -> bool {
        self.rows.is_empty()
            || self.rows.len() < self.limits.batch_events
                && self.len_bytes() + ENVELOPE_BYTES + bytes <= self.limits.batch_bytes
    }
}
