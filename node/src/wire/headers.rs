//! Sizes of headers.
//!
//! What is larger than h2's own limit it cuts off, and of trailers it says nothing about that. So that limit is set where
//! nothing should come, and the limits of the configuration are kept by who takes the headers.

use http::{HeaderMap, Uri};

/// What a header counts beside its name and its value.
const BESIDE_BYTES: usize = 32;

/// Bytes of headers as HTTP/2 counts them: names, values and 32 for each.
///
/// Source: RFC 9113 §6.5.2.
pub fn list_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + BESIDE_BYTES).sum()
}

/// The same with what stands before the headers of a request: where it goes.
pub fn request_bytes(uri: &Uri, headers: &HeaderMap) -> usize {
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    path + authority + list_bytes(headers)
}
