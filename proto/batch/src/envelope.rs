use xxhash_rust::xxh3::xxh3_64;

/// Bytes of one row of the envelope table.
pub const ENVELOPE_BYTES: usize = 24;

/// What a node knows of an event without decoding it: one row of a batch's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// [`key_hash`] of its key; 0: no key, no order.
    pub key_hash: u64,
    /// Milliseconds after the header's `min_time_ms`; `u32::MAX`: that or later.
    pub time_delta_ms: u32,
    /// Seconds to live; 0: for ever.
    pub ttl_s: u32,
    /// [`type_hash`] of its type; 0: no type.
    pub type_hash: u32,
    /// Bytes of its record.
    pub len: u32,
}

impl Envelope {
    pub(crate) fn read(row: &[u8; ENVELOPE_BYTES]) -> Envelope {
        let word = |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        Envelope {
            key_hash: u64::from(word(0)) | u64::from(word(4)) << 32,
            time_delta_ms: word(8),
            ttl_s: word(12),
            type_hash: word(16),
            len: word(20),
        }
    }

    pub(crate) fn write(&self) -> [u8; ENVELOPE_BYTES] {
        let mut row = [0; ENVELOPE_BYTES];
        row[..8].copy_from_slice(&self.key_hash.to_le_bytes());
        row[8..12].copy_from_slice(&self.time_delta_ms.to_le_bytes());
        row[12..16].copy_from_slice(&self.ttl_s.to_le_bytes());
        row[16..20].copy_from_slice(&self.type_hash.to_le_bytes());
        row[20..].copy_from_slice(&self.len.to_le_bytes());
        row
    }
}

/// The hash that names a key's lane: xxh3_64, where 0 stands for the empty key (a key that hashes to 0 gets 1).
pub fn key_hash(key: &[u8]) -> u64 {
    if key.is_empty() { 0 } else { xxh3_64(key).max(1) }
}

/// The hash of an event's type: the low half of xxh3_64, where 0 stands for no type (a type that hashes to 0 gets 1).
pub fn type_hash(event_type: &str) -> u32 {
    if event_type.is_empty() { 0 } else { (xxh3_64(event_type.as_bytes()) as u32).max(1) }
}
