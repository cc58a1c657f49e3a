//! Journal frames: what one group commit writes.
//!
//! A frame starts on a 4 KiB boundary and is striped over 512-byte sectors. Each sector starts with a stamp, the
//! frame's LSN (top bit set in the first sector), so that a torn write (stamps missing) and rot (all stamps
//! there, a CRC wrong) can be told apart on any disk that writes sectors whole. After removal of the stamps:
//!
//! ```text
//! header     magic u32 | ver u8 flags u8 hdr_len u16 | records u32 | rsv u32 | body_len u64 | lsn u64
//!            | prev_crc u32 | directory_crc u32 | rsv u32 | header_crc u32                       48 bytes
//! directory  per record: len u32 | crc u32 | kind u8 flags u8 rsv u16 | rsv u32 | group u64 | index u64 | term u64
//! body       the records' payloads
//! ```
//!
//! `prev_crc` is the header CRC of the frame before: the chain. The directory has its own CRC, so that a flipped
//! bit in a payload still leaves the groups known that it concerns.

use bytes::Bytes;

use super::envelope::{u32_at, u64_at};

/// Frames start at multiples of this.
pub(super) const ALIGN_BYTES: usize = 4096;
/// A sector: written whole or not at all.
const SECTOR_BYTES: usize = 512;
const STAMP_BYTES: usize = 8;
const STRIPE_BYTES: usize = SECTOR_BYTES - STAMP_BYTES;
const HEADER_BYTES: usize = 48;
/// Bytes of one record's directory entry.
pub(super) const RECORD_BYTES: usize = 40;
const MAGIC: u32 = 0x4a46_5457;
const VERSION: u8 = 1;
const FIRST: u64 = 1 << 63;
/// Bytes of a frame, a bound that a reader relies on before it allocates.
const FRAME_BYTES_MAX: u64 = 1 << 31;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A log entry.
    Entry = 1,
    /// A vote: term; index = the replica voted for. Flags: VOTED_FOR, VOTE_COMMITTED.
    Vote = 2,
    /// What is committed.
    Committed = 3,
    /// All entries after (index, term) are removed; all, without flag SOME.
    Truncate = 4,
    /// All entries up to (index, term) are forgotten.
    Purge = 5,
    /// The group is made; index = its replica id.
    Create = 6,
    /// The group is removed.
    Delete = 7,
    /// Nothing: closes a run of frames.
    Seal = 8,
    /// The replica is switched to a received snapshot at (index, term); payload: see `meta::Switch`.
    Install = 9,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::{Committed, Create, Delete, Entry, Install, Purge, Seal, Truncate, Vote};
        [Entry, Vote, Committed, Truncate, Purge, Create, Delete, Seal, Install]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Flag of `Vote`: index is a replica.
pub(super) const VOTED_FOR: u8 = 1;
/// Flag of `Vote`: the replica is known to lead.
pub(super) const VOTE_COMMITTED: u8 = 2;
/// Flag of `Truncate`: there is a last entry.
pub(super) const SOME: u8 = 1;

/// A record's directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) group: u64,
    pub(super) index: u64,
    pub(super) term: u64,
    /// Of the payload.
    pub(super) bytes: u32,
    /// Of the payload.
    pub(super) crc: u32,
}

/// Where a payload is in the journal.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The journal file.
    pub(super) slot: u32,
    /// Where its frame starts in the file.
    pub(super) frame: u64,
    /// Where it starts in the frame, stamps not counted.
    pub(super) at: u32,
    /// The frame's LSN.
    pub(super) lsn: u64,
}

/// Bytes on disk of a frame with `records` records and `payload` bytes of payload.
pub(super) fn frame_bytes(records: usize, payload: usize) -> u64 {
    let sectors = (HEADER_BYTES + records * RECORD_BYTES + payload).div_ceil(STRIPE_BYTES);
    (sectors * SECTOR_BYTES).next_multiple_of(ALIGN_BYTES) as u64
}

/// Builds frames in a buffer that is used again.
#[derive(Default)]
pub(super) struct Encoder {
    out: Vec<u8>,
    directory: Vec<u8>,
}

impl Encoder {
    /// Encodes a frame; returns its bytes and its header CRC, the next frame's `prev_crc`.
    pub(super) fn encode<'a, I: Iterator<Item = &'a (Record, Bytes)>>(
        &mut self,
        lsn: u64,
        prev_crc: u32,
        count: usize,
        records: impl Fn() -> I,
    ) -> (&[u8], u32) {
        self.directory.clear();
        let mut body_bytes = 0u64;
        for (record, payload) in records() {
            debug_assert_eq!(record.bytes as usize, payload.len());
            let out = &mut self.directory;
            out.extend_from_slice(&record.bytes.to_le_bytes());
            out.extend_from_slice(&record.crc.to_le_bytes());
            out.extend_from_slice(&[record.kind as u8, record.flags, 0, 0, 0, 0, 0, 0]);
            for word in [record.group, record.index, record.term] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            body_bytes += payload.len() as u64;
        }
        let mut header = [0u8; HEADER_BYTES];
        header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4] = VERSION;
        header[6..8].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        header[8..12].copy_from_slice(&(count as u32).to_le_bytes());
        header[16..24].copy_from_slice(&body_bytes.to_le_bytes());
        header[24..32].copy_from_slice(&lsn.to_le_bytes());
        header[32..36].copy_from_slice(&prev_crc.to_le_bytes());
        header[36..40].copy_from_slice(&crc32c::crc32c(&self.directory).to_le_bytes());
        let crc = crc32c::crc32c(&header[..44]);
        header[44..48].copy_from_slice(&crc.to_le_bytes());

        self.out.clear();
        self.out.reserve(frame_bytes(count, body_bytes as usize) as usize);
        stripe(&mut self.out, lsn, &header);
        stripe(&mut self.out, lsn, &self.directory);
        for (_, payload) in records() {
            stripe(&mut self.out, lsn, payload);
        }
        self.out.resize(self.out.len().next_multiple_of(ALIGN_BYTES), 0);
        (&self.out, crc)
    }
}

/// Appends `data`, with a stamp at the start of each sector.
fn stripe(out: &mut Vec<u8>, lsn: u64, mut data: &[u8]) {
    while !data.is_empty() {
        if out.len().is_multiple_of(SECTOR_BYTES) {
            let stamp = if out.is_empty() { lsn | FIRST } else { lsn };
            out.extend_from_slice(&stamp.to_le_bytes());
        }
        let room = SECTOR_BYTES - out.len() % SECTOR_BYTES;
        let (now, later) = data.split_at(room.min(data.len()));
        out.extend_from_slice(now);
        data = later;
    }
}

/// The part of a file that holds `bytes` bytes at `at` of a frame: start in the frame, length.
pub(super) fn span(at: u32, bytes: u32) -> (u64, usize) {
    let first = at as usize / STRIPE_BYTES;
    let last = (at as usize + (bytes as usize).max(1) - 1) / STRIPE_BYTES;
    ((first * SECTOR_BYTES) as u64, (last - first + 1) * SECTOR_BYTES)
}

/// Removes the stamps of `span`'s bytes; `None` if one is missing.
pub(super) fn unstripe(sectors: &[u8], lsn: u64, at: u32, bytes: u32) -> Option<Bytes> {
    let mut skip = at as usize % STRIPE_BYTES;
    let mut out = Vec::with_capacity(bytes as usize);
    for sector in sectors.chunks(SECTOR_BYTES) {
        if sector.len() < STAMP_BYTES || u64_at(sector, 0) & !FIRST != lsn {
            return None;
        }
        let from = sector.len().min(STAMP_BYTES + skip);
        let count = (sector.len() - from).min(bytes as usize - out.len());
        out.extend_from_slice(&sector[from..from + count]);
        skip = 0;
    }
    (out.len() == bytes as usize).then(|| out.into())
}

/// A frame read back.
pub(super) struct Frame {
    pub(super) lsn: u64,
    pub(super) prev_crc: u32,
    pub(super) crc: u32,
    /// Where the frame starts in its file, and its bytes there.
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// Each record with the place of its payload in the frame.
    pub(super) records: Vec<(Record, u32)>,
    /// Payloads of kinds other than `Entry`, by their place in `records`.
    pub(super) payloads: Vec<(usize, Bytes)>,
}

/// What is at a place of a journal file.
pub(super) enum Found {
    /// A whole frame.
    Whole(Frame),
    /// Nothing was written here, or not to its end: sectors are missing. `lsn`: of the first sector, if it is one.
    Torn {
        /// LSN of the first sector.
        lsn: u64,
    },
    /// A frame that was written to its end and has changed since. `groups`: whom it concerns, if that is known.
    Rotten {
        /// The frame's LSN.
        lsn: u64,
        /// The groups in it.
        groups: Option<Vec<u64>>,
        /// Where to go on, if its header can be believed.
        bytes: Option<u64>,
    },
    /// No first sector of a frame.
    Nothing,
}

/// Reads the frame at `start` of a journal file's bytes.
pub(super) fn decode(file: &[u8], start: u64) -> Found {
    let Some(rest) = file.get(start as usize..).filter(|rest| rest.len() >= SECTOR_BYTES) else {
        return Found::Nothing;
    };
    let stamp = u64_at(rest, 0);
    let lsn = stamp & !FIRST;
    if stamp & FIRST == 0 || lsn == 0 {
        return Found::Nothing;
    }
    let header = &rest[STAMP_BYTES..STAMP_BYTES + HEADER_BYTES];
    let crc = crc32c::crc32c(&header[..44]);
    if u32_at(header, 44) != crc || u32_at(header, 0) != MAGIC || u64_at(header, 24) != lsn {
        return Found::Rotten { lsn, groups: None, bytes: None };
    }
    let (count, body_bytes) = (u32_at(header, 8) as usize, u64_at(header, 16));
    let bytes = match body_bytes < FRAME_BYTES_MAX && count as u64 * (RECORD_BYTES as u64) < FRAME_BYTES_MAX {
        true => frame_bytes(count, body_bytes as usize),
        false => u64::MAX,
    };
    if header[4] != VERSION || bytes > rest.len() as u64 {
        return Found::Rotten { lsn, groups: None, bytes: None };
    }
    let total = HEADER_BYTES + count * RECORD_BYTES + body_bytes as usize;
    let sectors = &rest[..total.div_ceil(STRIPE_BYTES) * SECTOR_BYTES];
    let Some(whole) = unstripe(sectors, lsn, 0, total as u32) else { return Found::Torn { lsn } };
    let directory = &whole[HEADER_BYTES..HEADER_BYTES + count * RECORD_BYTES];
    if crc32c::crc32c(directory) != u32_at(header, 36) {
        return Found::Rotten { lsn, groups: None, bytes: Some(bytes) };
    }
    let mut frame = Frame {
        lsn,
        prev_crc: u32_at(header, 32),
        crc,
        start,
        bytes,
        records: Vec::with_capacity(count),
        payloads: Vec::new(),
    };
    let (mut at, mut intact) = (HEADER_BYTES + count * RECORD_BYTES, true);
    for entry in directory.chunks_exact(RECORD_BYTES) {
        let (length, crc) = (u32_at(entry, 0), u32_at(entry, 4));
        let end = at + length as usize;
        let (Some(kind), true) = (Kind::of(entry[8]), end <= whole.len()) else {
            return Found::Rotten { lsn, groups: None, bytes: Some(bytes) };
        };
        let record = Record {
            kind,
            flags: entry[9],
            group: u64_at(entry, 16),
            index: u64_at(entry, 24),
            term: u64_at(entry, 32),
            bytes: length,
            crc,
        };
        intact &= crc32c::crc32c(&whole[at..end]) == crc;
        if kind != Kind::Entry && length > 0 {
            frame.payloads.push((frame.records.len(), whole.slice(at..end)));
        }
        frame.records.push((record, at as u32));
        at = end;
    }
    if !intact {
        let groups = frame.records.iter().map(|(record, _)| record.group).collect();
        return Found::Rotten { lsn, groups: Some(groups), bytes: Some(bytes) };
    }
    Found::Whole(frame)
}

impl Record {
    /// A record without payload.
    pub(super) fn bare(kind: Kind, flags: u8, group: u64, index: u64, term: u64) -> (Record, Bytes) {
        (Record { kind, flags, group, index, term, bytes: 0, crc: 0 }, Bytes::new())
    }

    /// A record with a payload. Payloads are limited to u32 bytes by their writers.
    pub(super) fn with(kind: Kind, group: u64, index: u64, term: u64, payload: Bytes) -> (Record, Bytes) {
        let bytes = payload.len() as u32;
        (Record { kind, flags: 0, group, index, term, bytes, crc: crc32c::crc32c(&payload) }, payload)
    }
}

/// A payload's place in a frame, while the frame is made.
pub(super) fn payload_start(records: usize) -> u32 {
    (HEADER_BYTES + records * RECORD_BYTES) as u32
}
