//! The deadline that a gRPC client sends.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

/// What is left of a request's deadline, if it names one that can be read. Source: the gRPC over HTTP/2 specification.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get(HeaderName::from_static("grpc-timeout"))?.to_str().ok().and_then(timeout)
}

/// One to eight digits and a unit: H, M, S, m, u or n.
fn timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        let table = [
            ("5S", Some(5000)),
            ("250m", Some(250)),
            ("1M", Some(60_000)),
            ("99999999H", Some(99_999_999 * 3_600_000)),
            ("100000000S", None),
            ("S", None),
            ("+5S", None),
            ("", None),
            ("9x", None),
        ];
        for (text, millis) in table {
            assert_eq!(timeout(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
