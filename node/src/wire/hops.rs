//! `weft-hops`: how often a call has gone through Weft to an instance.
//!
//! The node that takes a call counts one more and sends that on with it. An instance that is a node, or a program that
//! passes metadata on with calls of its own, brings it back; so a call that goes round is told from one that does not.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header's name.
pub const NAME: HeaderName = HeaderName::from_static("weft-hops");
/// The most that can be counted.
pub const HOPS_MAX: u32 = 99;

/// The count that a request bears; 0 without one.
///
/// # Errors
/// One sentence: what is wrong, and what would be right.
pub fn read(headers: &HeaderMap) -> Result<u32, String> {
    let Some(value) = headers.get(NAME) else { return Ok(0) };
    let digits = value.to_str().ok().filter(|text| text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit()));
    let count = digits.and_then(|digits| digits.parse().ok());
    count.ok_or_else(|| format!("{NAME} is not a number of 1 or 2 digits: nodes write it, leave it out"))
}

/// A count as a header's value.
pub fn write(count: u32) -> HeaderValue {
    HeaderValue::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_are_read_and_written() {
        assert_eq!(read(&HeaderMap::new()), Ok(0));
        for count in [1, 8, HOPS_MAX] {
            assert_eq!(read(&HeaderMap::from_iter([(NAME, write(count))])), Ok(count));
        }
        for wrong in ["", "+1", "-1", "100", "x", " 1"] {
            let headers = HeaderMap::from_iter([(NAME, HeaderValue::from_static(wrong))]);
            assert!(read(&headers).is_err_and(|error| error.contains("weft-hops")), "{wrong:?}");
        }
    }
}
