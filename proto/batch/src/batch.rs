use bytes::Bytes;
use prost::Message;
use weft_proto::v1::Event;

use crate::{BatchError, ENVELOPE_BYTES, EVENT_BYTES_MAX, Envelope, HEADER_BYTES, Header, Stamp};

/// A batch whose header and envelope table have been checked. Cheap to clone: the bytes are shared.
#[derive(Clone, Debug)]
pub struct Batch {
    header: Header,
    bytes: Bytes,
    record_bytes_max: u32,
}

impl Batch {
    /// Checks header and envelope table in one pass; `bytes` is exactly one batch. Body CRC and records are not
    /// looked at: see [`Batch::check_body`].
    pub fn parse(bytes: Bytes) -> Result<Batch, BatchError> {
        let header = Header::read(&bytes)?;
        let record_bytes_max = check_table(&header, &bytes)?;
        Ok(Batch { header, bytes, record_bytes_max })
    }

    /// Checks the body against the CRC that its packer made.
    pub fn check_body(&self) -> Result<(), BatchError> {
        check_crc(&self.header, &self.bytes)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Events in the batch, at least 1.
    pub fn count(&self) -> u32 {
        self.header.count
    }

    /// The whole batch as it was given.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Envelope table and records; shared, not copied.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(HEADER_BYTES..)
    }

    /// Bytes of the largest record.
    pub fn record_bytes_max(&self) -> u32 {
        self.record_bytes_max
    }

    /// The envelopes, in order.
    pub fn envelopes(&self) -> Envelopes<'_> {
        let table = &self.bytes[HEADER_BYTES..HEADER_BYTES + self.header.table_bytes()];
        Envelopes { rows: table.as_chunks().0.iter() }
    }

    /// The records (encoded `weft.v1.Event`s) with their index in the batch, in order; shared, not copied.
    pub fn records(&self) -> Records<'_> {
        let at = HEADER_BYTES + self.header.table_bytes();
        Records { batch: self, envelopes: self.envelopes(), index: 0, at }
    }

    /// One record; `None` past the end. Costs a walk over the envelopes before it.
    pub fn record(&self, index: u32) -> Option<Bytes> {
        let envelope = self.envelopes().nth(index as usize)?;
        let before: usize = self.envelopes().take(index as usize).map(|envelope| envelope.len as usize).sum();
        let at = HEADER_BYTES + self.header.table_bytes() + before;
        Some(self.bytes.slice(at..at + envelope.len as usize))
    }

    /// Decodes one event. `Event` if its record is not readable, or there is none.
    pub fn decode(&self, index: u32) -> Result<Event, BatchError> {
        let fail = |reason: String| BatchError::Event { index: index as usize, reason };
        let record = self.record(index).ok_or_else(|| fail(format!("the batch has {}", self.count())))?;
        Event::decode(record).map_err(|error| fail(error.to_string()))
    }

    /// The header's bytes with the shard's fields filled in: with [`Batch::body`], the batch as it is stored.
    pub fn stamp(&self, stamp: Stamp) -> Bytes {
        Bytes::copy_from_slice(&self.header.stamped(stamp).write())
    }
}

/// Checks all that can be checked of a stored batch without decoding it: header, envelope table, both CRCs.
/// `bytes` is exactly one batch.
pub fn check(bytes: &[u8]) -> Result<Header, BatchError> {
    let header = Header::read(bytes)?;
    check_table(&header, bytes)?;
    check_crc(&header, bytes)?;
    Ok(header)
}

fn check_crc(header: &Header, bytes: &[u8]) -> Result<(), BatchError> {
    let computed = crc32c::crc32c(&bytes[HEADER_BYTES..]);
    if computed == header.body_crc { Ok(()) } else { Err(BatchError::BodyCrc { stated: header.body_crc, computed }) }
}

/// Returns the bytes of the largest record.
fn check_table(header: &Header, bytes: &[u8]) -> Result<u32, BatchError> {
    if bytes.len() != header.len as usize {
        return Err(BatchError::Length { stated: header.len as usize, have: bytes.len() });
    }
    let (table, records) = bytes[HEADER_BYTES..].split_at(header.table_bytes());
    let (mut sum, mut largest) = (0u64, 0u32);
    for row in table.as_chunks::<ENVELOPE_BYTES>().0 {
        let len = Envelope::read(row).len;
        sum += u64::from(len);
        largest = largest.max(len);
    }
    if largest as usize > EVENT_BYTES_MAX {
        return Err(BatchError::EventTooLarge { bytes: largest as usize, max: EVENT_BYTES_MAX });
    }
    if sum != records.len() as u64 {
        return Err(BatchError::Table { stated: sum, have: records.len() as u64 });
    }
    Ok(largest)
}

/// The envelopes of a batch, in order.
#[derive(Clone, Debug)]
pub struct Envelopes<'a> {
    rows: std::slice::Iter<'a, [u8; ENVELOPE_BYTES]>,
}

impl Iterator for Envelopes<'_> {
    type Item = Envelope;

    fn next(&mut self) -> Option<Envelope> {
        self.rows.next().map(Envelope::read)
    }

    fn nth(&mut self, n: usize) -> Option<Envelope> {
        self.rows.nth(n).map(Envelope::read)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rows.size_hint()
    }
}

impl ExactSizeIterator for Envelopes<'_> {}

/// The records of a batch with their index, in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    batch: &'a Batch,
    envelopes: Envelopes<'a>,
    index: u32,
    at: usize,
}

impl Iterator for Records<'_> {
    type Item = (u32, Bytes);

    fn next(&mut self) -> Option<(u32, Bytes)> {
        let end = self.at + self.envelopes.next()?.len as usize;
        let record = self.batch.bytes.slice(self.at..end);
        self.at = end;
        self.index += 1;
        Some((self.index - 1, record))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.envelopes.size_hint()
    }
}

impl ExactSizeIterator for Records<'_> {}
