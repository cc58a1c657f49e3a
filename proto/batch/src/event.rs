use prost::Message;
use weft_proto::v1::Event;

use crate::{
    ATTRIBUTE_BYTES_MAX, BatchError, EVENT_BYTES_MAX, HEADER_NAME_BYTES_MAX, HEADERS_BYTES_MAX, HEADERS_MAX,
    KEY_BYTES_MAX,
};

/// Checks an event against the limits of docs/protocol.md and returns the bytes of its encoded record
/// (up to 11 more are added where the packer fills in the time).
///
/// # Errors
/// `Attribute` or `EventTooLarge`, with what is over its limit.
pub fn check_event(event: &Event) -> Result<usize, BatchError> {
    at_most("key bytes", event.key.len(), KEY_BYTES_MAX)?;
    at_most("id bytes", event.id.len(), ATTRIBUTE_BYTES_MAX)?;
    at_most("source bytes", event.source.len(), ATTRIBUTE_BYTES_MAX)?;
    at_most("type bytes", event.r#type.len(), ATTRIBUTE_BYTES_MAX)?;
    at_most("subject bytes", event.subject.len(), ATTRIBUTE_BYTES_MAX)?;
    at_most("datacontenttype bytes", event.datacontenttype.len(), ATTRIBUTE_BYTES_MAX)?;
    at_most("headers", event.headers.len(), HEADERS_MAX)?;
    let mut headers_bytes = 0;
    for (name, value) in &event.headers {
        if name.is_empty() {
            return Err(BatchError::HeaderName);
        }
        at_most("header name bytes", name.len(), HEADER_NAME_BYTES_MAX)?;
        headers_bytes += name.len() + value.len();
    }
    at_most("header bytes", headers_bytes, HEADERS_BYTES_MAX)?;
    let bytes = event.encoded_len();
    if bytes > EVENT_BYTES_MAX {
        return Err(BatchError::EventTooLarge { bytes, max: EVENT_BYTES_MAX });
    }
    Ok(bytes)
}

fn at_most(what: &'static str, have: usize, max: usize) -> Result<(), BatchError> {
    if have > max { Err(BatchError::Attribute { what, have, max }) } else { Ok(()) }
}
