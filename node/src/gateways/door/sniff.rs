//! What a client speaks, by the first bytes that it sends.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The bytes that every HTTP/2 client sends first. Source: RFC 9113 §3.4.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes read so far, which the protocol's own reader is to see again.
#[derive(Clone, Copy, Default)]
pub(super) struct First {
    bytes: [u8; PREFACE.len()],
    count: usize,
}

impl First {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.count]
    }
}

impl std::fmt::Debug for First {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.bytes().escape_ascii())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http2,
    Http1,
    Unknown,
}

/// Reads until it is clear what the client speaks: at most the length of HTTP/2's preface.
///
/// # Errors
/// The connection's own, and its end.
pub(super) async fn sniff(io: &mut (impl AsyncRead + Unpin)) -> io::Result<(Protocol, First)> {
    let mut first = First::default();
    loop {
        let read = io.read(&mut first.bytes[first.count..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        first.count += read;
        if let Some(protocol) = protocol(first.bytes()) {
            return Ok((protocol, first));
        }
    }
}

/// `None` while more bytes may decide.
fn protocol(bytes: &[u8]) -> Option<Protocol> {
    if bytes == PREFACE {
        return Some(Protocol::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    // A request line: a method in capitals, a space, a target.
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match bytes.get(method) {
        Some(b' ') if method > 0 => Some(Protocol::Http1),
        None if method < PREFACE.len() => None,
        _ => Some(Protocol::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol() {
        let cases: [(&[u8], Option<Protocol>); 9] = [
            (PREFACE, Some(Protocol::Http2)),
            (&PREFACE[..20], None),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Some(Protocol::Http1)),
            (b"P", None),
            (b"POST", None),
            (b"POST /", Some(Protocol::Http1)),
            (b"GET /", Some(Protocol::Http1)),
            (b"\x16\x03\x01", Some(Protocol::Unknown)),
            (b"GETGETGETGETGETGETGETGET", Some(Protocol::Unknown)),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(protocol(bytes), wanted, "{}", bytes.escape_ascii());
        }
    }
}
