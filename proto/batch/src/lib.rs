//! The packed batch: events packed once, by the SDK or by the ingress node, and then passed untouched through
//! link, Raft, journal, segment and subscriber.
//!
//! Layout and limits: docs/protocol.md, "Packed batches". Everything is little-endian. A batch is a header of
//! [`HEADER_BYTES`], whose `base_offset`, `term` and the like the shard stamps when it stores it, and a body that
//! nobody touches: a table of envelopes, so that nodes dispatch and filter without decoding, then the records.
//!
//! Pure: bytes in, bytes out. Hostile bytes are errors, never panics.

mod batch;
mod envelope;
mod error;
mod event;
pub mod hashing;
mod header;
mod packer;

pub use batch::{Batch, Envelopes, Records, check};
pub use envelope::{ENVELOPE_BYTES, Envelope, key_hash, type_hash};
pub use error::BatchError;
pub use event::check_event;
pub use header::{HEADER_BYTES, Header, Producer, Stamp, VERSION};
pub use packer::{Limits, Packer};

/// The largest encoded record of one event.
pub const EVENT_BYTES_MAX: usize = 8 << 20;

/// The largest batch, header included: one event of the largest size always fits.
pub const BATCH_BYTES_MAX: usize = EVENT_BYTES_MAX + (64 << 10);

/// The most events in one batch.
pub const BATCH_EVENTS_MAX: usize = 65_536;

/// The longest key.
pub const KEY_BYTES_MAX: usize = 4 << 10;

/// The longest id, source, type, subject or datacontenttype.
pub const ATTRIBUTE_BYTES_MAX: usize = 4 << 10;

/// The most headers of one event.
pub const HEADERS_MAX: usize = 64;

/// The longest name of a header.
pub const HEADER_NAME_BYTES_MAX: usize = 128;

/// Names and values of all headers of one event together.
pub const HEADERS_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests;
