/// Why bytes are not a batch, or an event cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The batch being packed has no room: finish it and push the event again.
    #[error("the batch is full")]
    Full,
    /// A batch holds at least one event.
    #[error("a batch has no events")]
    Empty,
    /// Fewer bytes than the header.
    #[error("{have} bytes are no batch: its header alone has {needed}")]
    Truncated {
        /// Bytes of a header.
        needed: usize,
        /// Bytes given.
        have: usize,
    },
    /// The length in the header is not that of the bytes.
    #[error("the header says {stated} bytes, there are {have}")]
    Length {
        /// As the header says.
        stated: usize,
        /// Bytes given.
        have: usize,
    },
    /// The header's CRC does not match.
    #[error("header CRC is {stated:08x}, computed {computed:08x}")]
    HeaderCrc {
        /// As the header says.
        stated: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The body's CRC does not match.
    #[error("body CRC is {stated:08x}, computed {computed:08x}")]
    BodyCrc {
        /// As the header says.
        stated: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// An event has a header without a name.
    #[error("a header has an empty name: name it, or leave it out")]
    HeaderName,
    /// A layout that this build does not know.
    #[error("batch version {0} is unknown, this build knows 1")]
    Version(u8),
    /// The body is compressed in a way that this build does not read.
    #[error("compression {0} is not supported yet, only 0 (none)")]
    Compression(u8),
    /// Attribute bits or reserved fields that must be 0 are set.
    #[error("reserved field at byte {at} is not 0")]
    Reserved {
        /// Its place in the header.
        at: usize,
    },
    /// More events than `BATCH_EVENTS_MAX`.
    #[error("{count} events in a batch, at most {max}")]
    TooManyEvents {
        /// As the header says.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// More bytes than `BATCH_BYTES_MAX`.
    #[error("a batch of {bytes} bytes, at most {max}")]
    TooLarge {
        /// Of the batch.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// One record is larger than the limit.
    #[error("an event of {bytes} bytes, at most {max}")]
    EventTooLarge {
        /// Of the encoded record.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The envelope table and the records do not fill the body exactly.
    #[error("the envelopes say {stated} bytes of records, the body has {have}")]
    Table {
        /// Sum of the envelopes' lengths.
        stated: u64,
        /// Bytes after the table.
        have: u64,
    },
    /// Times, offsets or sequences of the header run over.
    #[error("{0} in the header is out of range")]
    Range(&'static str),
    /// A key, attribute or header of an event is too long, or there are too many headers.
    #[error("{what} of {have}, at most {max}")]
    Attribute {
        /// What is over its limit.
        what: &'static str,
        /// Its size.
        have: usize,
        /// The limit.
        max: usize,
    },
    /// A record is not an encoded `weft.v1.Event`.
    #[error("event {index} of the batch is not readable: {reason}")]
    Event {
        /// Its place in the batch.
        index: usize,
        /// What the decoder says.
        reason: String,
    },
}
