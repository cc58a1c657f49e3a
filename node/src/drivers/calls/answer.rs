//! What an instance answers, checked before it goes to anybody: a status that is none, or metadata that no gRPC library
//! can read, would break more at the client than this one call.
//!
//! Source: the gRPC over HTTP/2 specification, "Responses" and "Custom-Metadata".

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::body::{H2Source, Part, Source};
use super::failure::Failure;
use crate::wire::headers::list_bytes;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// What the names of binary metadata end in.
const BINARY: &str = "-bin";
/// The greatest status that gRPC has.
const STATUS_MAX: u8 = 16;
/// Bytes of a wrong value that are shown.
const SHOWN_BYTES_MAX: usize = 64;

/// The body of an instance's answer. It ends as gRPC wants it: with trailers that hold a status.
pub(super) struct Answer {
    body: H2Source,
    header_bytes_max: u64,
    /// It is gRPC: its end must say a status.
    wants_status: bool,
    /// It has ended without one.
    short: bool,
}

impl Answer {
    /// The answer that `head` begins; `end`: it has no body. Its head and its trailers have `header_bytes_max` bytes
    /// (`calls.header_bytes_max`) at most, each.
    ///
    /// # Errors
    /// It is not one that a client may see.
    pub(super) fn new(
        head: &Response<()>,
        body: H2Source,
        end: bool,
        header_bytes_max: u64,
    ) -> Result<Answer, Failure> {
        let headers = head.headers();
        measure("metadata", headers, header_bytes_max)?;
        check(headers)?;
        let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        let wants_status = head.status() == StatusCode::OK && content_type.starts_with(b"application/grpc");
        if end && wants_status && !headers.contains_key(STATUS) {
            return Err(no_status());
        }
        Ok(Answer { body, header_bytes_max, wants_status, short: false })
    }
}

impl Source for Answer {
    async fn next(&mut self) -> Result<Part, Failure> {
        if self.short {
            return Err(no_status());
        }
        match self.body.next().await? {
            Part::Data(data, true) if self.wants_status => {
                self.short = true;
                Ok(Part::Data(data, false))
            }
            Part::Trailers(trailers) => {
                measure("trailers", &trailers, self.header_bytes_max)?;
                check(&trailers)?;
                match self.wants_status && !trailers.contains_key(STATUS) {
                    true => Err(no_status()),
                    false => Ok(Part::Trailers(trailers)),
                }
            }
            Part::End if self.wants_status => Err(no_status()),
            part => Ok(part),
        }
    }

    fn release(&mut self, bytes: usize) {
        self.body.release(bytes);
    }
}

fn no_status() -> Failure {
    Failure::unknown("the instance ended its answer without a grpc-status")
}

/// Refuses what is larger than `calls.header_bytes_max`.
fn measure(what: &str, headers: &HeaderMap, bytes_max: u64) -> Result<(), Failure> {
    let bytes = list_bytes(headers);
    if bytes as u64 <= bytes_max {
        return Ok(());
    }
    let message =
        format!("the instance answered with {what} of {bytes} bytes, more than calls.header_bytes_max ({bytes_max})");
    Err(Failure::over("calls.header_bytes_max", bytes_max, message))
}

/// Checks what gRPC says of an answer's head and trailers.
fn check(headers: &HeaderMap) -> Result<(), Failure> {
    let mut statuses = 0;
    for (name, value) in headers {
        let is_status = name == STATUS;
        statuses += usize::from(is_status);
        let rule = match is_status {
            true if statuses > 1 => "there is one",
            true if !is_status_code(value.as_bytes()) => "use a number from 0 to 16",
            false if name.as_str().ends_with(BINARY) && !is_base64(value.as_bytes()) => "it is base64",
            _ => continue,
        };
        return Err(Failure::unknown(format!("the instance answered with {name} {}: {rule}", shown(value))));
    }
    Ok(())
}

fn shown(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]))
}

fn is_status_code(value: &[u8]) -> bool {
    match value {
        [digit] => digit.is_ascii_digit(),
        [b'1', digit] => digit.is_ascii_digit() && 10 + (digit - b'0') <= STATUS_MAX,
        _ => false,
    }
}

/// Values with and without padding are taken, and several of them with commas between.
fn is_base64(value: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    value.split(|byte| *byte == b',').all(|part| {
        let part = part.trim_ascii();
        let padding = part.iter().rev().take_while(|byte| **byte == b'=').count();
        let (digits, whole) = (&part[..part.len() - padding], part.len() % 4 == 0);
        digits.iter().all(plain) && digits.len() % 4 != 1 && (padding == 0 || (padding <= 2 && whole))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grpc_says_is_taken_and_the_rest_is_told() {
        for status in ["0", "7", "10", "16"] {
            assert_eq!(checked("grpc-status", status.as_bytes()), Ok(()), "{status}");
        }
        for status in ["", "17", "-1", "00", "016", "OK", "1 ", "99999999999", "0x1"] {
            assert!(checked("grpc-status", status.as_bytes()).is_err(), "{status}");
        }
        for value in ["", "AAEC", "CAU", "CAU=", "AA==", "AAEC,CAU", "AAEC, CAU=", "+/+/"] {
            assert_eq!(checked("some-bin", value.as_bytes()), Ok(()), "{value}");
        }
        for value in ["A", "AAEC=", "A===", "====", "AA-_", "hällo", "AA=A", "AAAAA"] {
            assert!(checked("some-bin", value.as_bytes()).is_err(), "{value}");
        }
        assert_eq!(checked("some", b"\xff\xfe"), Ok(()), "it is no gRPC, and no library breaks at it");
        let mut two = HeaderMap::new();
        two.append(STATUS, HeaderValue::from_static("0"));
        two.append(STATUS, HeaderValue::from_static("0"));
        assert!(check(&two).is_err());
    }

    fn checked(name: &'static str, value: &[u8]) -> Result<(), Failure> {
        let value = HeaderValue::from_bytes(value).expect("a header's value");
        check(&HeaderMap::from_iter([(HeaderName::from_static(name), value)]))
    }
}
