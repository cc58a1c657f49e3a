//! `grpc-timeout`: how long a call may take.
//!
//! Source: the gRPC over HTTP/2 specification, "Requests": at most 8 digits and a unit.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use weft_cluster::registry::names;

/// The header's name.
pub const NAME: HeaderName = HeaderName::from_static("grpc-timeout");

/// The most that 8 digits say.
const VALUE_MAX: u64 = 99_999_999;

/// What is left of a request's deadline, if it names one that can be read.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get(NAME).and_then(|value| read(value).ok())
}

/// Reads a timeout.
///
/// # Errors
/// One sentence: what is wrong, and what would be right.
pub fn read(value: &HeaderValue) -> Result<Duration, String> {
    let bytes = value.as_bytes();
    let shown = || names::shown(&String::from_utf8_lossy(bytes));
    let wrong = || format!("grpc-timeout is {}: use 1 to 8 digits and one of H, M, S, m, u, n", shown());
    let (unit, digits) = bytes.split_last().ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let count = digits.iter().fold(0, |count, digit| count * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Ok(Duration::from_secs(count * 3_600)),
        b'M' => Ok(Duration::from_secs(count * 60)),
        b'S' => Ok(Duration::from_secs(count)),
        b'm' => Ok(Duration::from_millis(count)),
        b'u' => Ok(Duration::from_micros(count)),
        b'n' => Ok(Duration::from_nanos(count)),
        _ => Err(wrong()),
    }
}

/// Writes a timeout in the finest unit from microseconds up that holds it, rounded down.
pub fn write(timeout: Duration) -> HeaderValue {
    let units = [
        (timeout.as_micros(), 'u'),
        (timeout.as_millis(), 'm'),
        (u128::from(timeout.as_secs()), 'S'),
        (u128::from(timeout.as_secs() / 60), 'M'),
        (u128::from(timeout.as_secs() / 3_600), 'H'),
    ];
    let fits = units.into_iter().find(|(count, _)| *count <= u128::from(VALUE_MAX));
    let (count, unit) = fits.unwrap_or((u128::from(VALUE_MAX), 'H'));
    HeaderValue::try_from(format!("{count}{unit}")).expect("digits and a letter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_and_written() {
        let table = [
            ("1H", Duration::from_secs(3_600), "3600000m"),
            ("99999999H", Duration::from_secs(99_999_999 * 3_600), "99999999H"),
            ("2M", Duration::from_secs(120), "120000m"),
            ("3S", Duration::from_secs(3), "3000000u"),
            ("250m", Duration::from_millis(250), "250000u"),
            ("7u", Duration::from_micros(7), "7u"),
            ("1500n", Duration::from_nanos(1_500), "1u"),
            ("0m", Duration::ZERO, "0u"),
        ];
        for (text, timeout, written) in table {
            assert_eq!(read(&HeaderValue::from_static(text)), Ok(timeout), "{text}");
            assert_eq!(write(timeout), written);
        }
        for text in ["", "S", "1", "123456789S", "-1S", "1 S", "1x", "0x1S"] {
            let error = read(&HeaderValue::from_static(text)).expect_err("it is refused");
            assert!(error.contains("digits"), "{error}");
        }
    }
}
