//! Bytes as text: UTF-8 where they are, else base64; hashes in hex.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Puts bytes into an object: under `name` if they are UTF-8, else in base64 under `name` + `_base64`.
pub(crate) fn put(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// Bytes for a person: UTF-8 where they are, with control characters, and nothing else, escaped; else `base64:…`.
pub(crate) fn show(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.chars().fold(String::with_capacity(text.len()), |mut shown, letter| {
            if letter.is_control() {
                shown.extend(letter.escape_debug())
            } else {
                shown.push(letter)
            }
            shown
        }),
        Err(_) => format!("base64:{}", STANDARD.encode(bytes)),
    }
}

/// Base64 to bytes.
pub(crate) fn decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|error| format!("not base64: {error}"))
}

/// SHA-256 in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_control_characters_are_escaped() {
        assert_eq!(show(b"{\"a\":\t'b'}\n"), "{\"a\":\\t'b'}\\n");
        assert_eq!(show(b"{\"a\":1}"), "{\"a\":1}");
        assert_eq!(show(&[0xff]), "base64:/w==");
    }
}
