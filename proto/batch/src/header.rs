use crate::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, BatchError, ENVELOPE_BYTES};

/// Bytes of a batch's header.
pub const HEADER_BYTES: usize = 104;

/// The layout that this crate reads and writes.
pub const VERSION: u8 = 1;

const COMPRESSION_BITS: u8 = 0b11;

/// Who packed a batch, for storing it once: the shard accepts only last + 1 of (id, epoch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    /// Given by `OpenProducer`; never 0.
    pub id: u64,
    /// The session; a newer one fences this one.
    pub epoch: u32,
    /// Sequence of the batch's first event. Sequences count events; the first of a session is 0.
    pub first_sequence: u64,
}

/// What the shard writes into the header of a batch that it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The topic's id.
    pub topic: u32,
    /// The partition's index.
    pub partition: u32,
    /// Offset of the batch's first event.
    pub base_offset: u64,
    /// Term of the Raft entry that carries it.
    pub term: u64,
    /// Index of that entry.
    pub raft_index: u64,
    /// Log time of that entry, milliseconds since 1970.
    pub log_time_ms: i64,
}

/// The header of a batch. Fields of [`Stamp`] are 0 until the batch is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole batch, header included.
    pub len: u32,
    /// CRC-32C of the body, made once by the packer.
    pub body_crc: u32,
    /// The topic's id; 0: not said.
    pub topic: u32,
    /// The partition's index.
    pub partition: u32,
    /// Offset of the first event.
    pub base_offset: u64,
    /// Events, 1..=BATCH_EVENTS_MAX.
    pub count: u32,
    /// Term of the Raft entry.
    pub term: u64,
    /// Index of the Raft entry.
    pub raft_index: u64,
    /// The earliest time of its events, milliseconds since 1970.
    pub min_time_ms: i64,
    /// The latest.
    pub max_time_ms: i64,
    /// Who packed it, if it is to be stored once.
    pub producer: Option<Producer>,
    /// Log time when it was stored.
    pub log_time_ms: i64,
}

impl Header {
    /// Reads the header at the start of `bytes`, which may go on after it and after the batch.
    ///
    /// Checks its CRC, version, reserved fields and limits, that the table fits in `len`, and that offsets,
    /// sequences and times do not run over. The body is not looked at.
    pub fn read(bytes: &[u8]) -> Result<Header, BatchError> {
        let truncated = BatchError::Truncated { needed: HEADER_BYTES, have: bytes.len() };
        let raw: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(truncated)?;
        let (stated, computed) = (word(raw, 4), crc32c::crc32c(&raw[8..]));
        if stated != computed {
            return Err(BatchError::HeaderCrc { stated, computed });
        }
        check_kind(raw)?;
        let header = Header {
            len: word(raw, 0),
            body_crc: word(raw, 8),
            partition: word(raw, 16),
            topic: word(raw, 20),
            base_offset: long(raw, 24),
            count: word(raw, 32),
            term: long(raw, 40),
            raft_index: long(raw, 48),
            min_time_ms: long(raw, 56) as i64,
            max_time_ms: long(raw, 64) as i64,
            producer: match long(raw, 72) {
                0 => None,
                id => Some(Producer { id, epoch: word(raw, 80), first_sequence: long(raw, 88) }),
            },
            log_time_ms: long(raw, 96) as i64,
        };
        header.check()?;
        Ok(header)
    }

    /// The header's bytes, its CRC computed.
    pub fn write(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| raw[at..at + field.len()].copy_from_slice(field);
        put(0, &self.len.to_le_bytes());
        put(8, &self.body_crc.to_le_bytes());
        put(12, &[VERSION]);
        put(16, &self.partition.to_le_bytes());
        put(20, &self.topic.to_le_bytes());
        put(24, &self.base_offset.to_le_bytes());
        put(32, &self.count.to_le_bytes());
        put(40, &self.term.to_le_bytes());
        put(48, &self.raft_index.to_le_bytes());
        put(56, &self.min_time_ms.to_le_bytes());
        put(64, &self.max_time_ms.to_le_bytes());
        if let Some(producer) = self.producer {
            put(72, &producer.id.to_le_bytes());
            put(80, &producer.epoch.to_le_bytes());
            put(88, &producer.first_sequence.to_le_bytes());
        }
        put(96, &self.log_time_ms.to_le_bytes());
        let crc = crc32c::crc32c(&raw[8..]);
        raw[4..8].copy_from_slice(&crc.to_le_bytes());
        raw
    }

    /// This header with the shard's fields filled in.
    pub fn stamped(&self, stamp: Stamp) -> Header {
        Header {
            topic: stamp.topic,
            partition: stamp.partition,
            base_offset: stamp.base_offset,
            term: stamp.term,
            raft_index: stamp.raft_index,
            log_time_ms: stamp.log_time_ms,
            ..*self
        }
    }

    /// The offset after the batch's last event.
    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.count)
    }

    /// Bytes of the body.
    pub fn body_len(&self) -> usize {
        self.len as usize - HEADER_BYTES
    }

    pub(crate) fn table_bytes(&self) -> usize {
        self.count as usize * ENVELOPE_BYTES
    }

    pub(crate) fn check(&self) -> Result<(), BatchError> {
        let (len, count) = (self.len as usize, self.count as usize);
        if count == 0 {
            return Err(BatchError::Empty);
        }
        if count > BATCH_EVENTS_MAX {
            return Err(BatchError::TooManyEvents { count, max: BATCH_EVENTS_MAX });
        }
        if len > BATCH_BYTES_MAX {
            return Err(BatchError::TooLarge { bytes: len, max: BATCH_BYTES_MAX });
        }
        let needed = HEADER_BYTES + self.table_bytes();
        if len < needed {
            return Err(BatchError::Truncated { needed, have: len });
        }
        let over = |first: u64| first.checked_add(u64::from(self.count)).is_none();
        if over(self.base_offset) {
            return Err(BatchError::Range("base_offset"));
        }
        if self.producer.is_some_and(|producer| over(producer.first_sequence)) {
            return Err(BatchError::Range("first_sequence"));
        }
        if self.min_time_ms > self.max_time_ms {
            return Err(BatchError::Range("min_time"));
        }
        Ok(())
    }
}

fn check_kind(raw: &[u8; HEADER_BYTES]) -> Result<(), BatchError> {
    if raw[12] != VERSION {
        return Err(BatchError::Version(raw[12]));
    }
    let compression = raw[13] & COMPRESSION_BITS;
    if compression != 0 {
        return Err(BatchError::Compression(compression));
    }
    if raw[13] & !COMPRESSION_BITS != 0 {
        return Err(BatchError::Reserved { at: 13 });
    }
    for (at, len) in [(14, 2), (36, 4), (84, 4)] {
        if raw[at..at + len].iter().any(|byte| *byte != 0) {
            return Err(BatchError::Reserved { at });
        }
    }
    Ok(())
}

fn word(raw: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn long(raw: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(word(raw, at)) | u64::from(word(raw, at + 4)) << 32
}
