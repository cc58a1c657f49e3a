//! What a name may look like. The same rules at every door and in `apply`.

use super::limits::{EVENT_BYTES_MAX, NAME_CHARS_MAX, NAMESPACE_DEFAULT, PARTITIONS_MAX, SERVICE_CHARS_MAX};

/// Characters of a wrong text that a message shows.
const SHOWN_CHARS_MAX: usize = 64;

/// The namespace meant: an empty one stands for "default".
pub fn namespace_or_default(namespace: &str) -> &str {
    if namespace.is_empty() { NAMESPACE_DEFAULT } else { namespace }
}

/// What a message shows of a text that may be long: its beginning, in quotes.
pub fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() == text.len() { format!("{text:?}") } else { format!("{cut:?} and so on") }
}

/// Checks the name of a `what` ("topic", "group", ...): 1..=128 characters of a-z A-Z 0-9 . _ - of which the
/// first is a letter or digit.
///
/// # Errors
/// One sentence that says what is wrong and what would be right.
pub fn check(what: &str, name: &str) -> Result<(), String> {
    const RULE: &str = "use 1 to 128 characters of a-z A-Z 0-9 . _ - and begin with a letter or digit";
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() {
        return Err(format!("the {what} name is empty: {RULE}"));
    }
    let chars = name.chars().count();
    if chars > NAME_CHARS_MAX {
        return Err(format!("the {what} name has {chars} characters: {RULE}"));
    }
    if let Some(wrong) = name.chars().find(|c| !allowed(*c)) {
        return Err(format!("the {what} name {name:?} contains {wrong:?}: {RULE}"));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!("the {what} name {name:?} does not begin with a letter or digit: {RULE}"));
    }
    Ok(())
}

/// Checks the name of a service, or of a gRPC service: 1..=255 characters of a-z A-Z 0-9 . _ - of which the first is a
/// letter or digit, and not one of Weft's own or of gRPC's.
///
/// # Errors
/// One sentence that says what is wrong and what would be right.
pub fn check_service(what: &str, name: &str) -> Result<(), String> {
    const RULE: &str = "use 1 to 255 characters of a-z A-Z 0-9 . _ - and begin with a letter or digit";
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !begins || name.len() > SERVICE_CHARS_MAX || !name.chars().all(allowed) {
        return Err(format!("the {what} name {} is not allowed: {RULE}", shown(name)));
    }
    match ["weft.v1.", "grpc.health.", "grpc.reflection."].iter().find(|own| name.starts_with(**own)) {
        Some(own) => {
            Err(format!("the {what} name {name:?} is not allowed: names that begin with {own} are Weft's own"))
        }
        None => Ok(()),
    }
}

/// Checks an instance's address, host:port.
///
/// # Errors
/// One sentence that says what is wrong and what would be right.
pub fn check_address(address: &str) -> Result<(), String> {
    const RULE: &str = "use host:port, as the home node reaches it, like 10.0.0.7:8080 or [fd00::7]:8080";
    match host_and_port(address).filter(|_| address.len() <= 255) {
        Some(_) => Ok(()),
        None => Err(format!("the address {} is not allowed: {RULE}", shown(address))),
    }
}

/// The one reading of `host:port`: a name, an IPv4 address, or an IPv6 address in brackets, without which nobody could
/// tell where it ends. Ports are 1 to 65535, in digits alone.
pub fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port != 0)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().ok().map(|_| inner)?,
        None => host,
    };
    let bracketed = address.starts_with('[');
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ',' | '@' | '[' | ']' | '?' | '#' | '"');
    let named = !host.is_empty() && (bracketed || host.chars().all(|c| plain(c) && c != ':'));
    named.then_some((host, port))
}

/// Checks a topic's partition count and largest event.
///
/// # Errors
/// One sentence that says what is wrong and what would be right.
pub fn check_topic_sizes(partitions: u32, event_bytes_max: u32) -> Result<(), String> {
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(format!("partitions is {partitions}: use 1 to {PARTITIONS_MAX}"));
    }
    if !(1..=EVENT_BYTES_MAX).contains(&event_bytes_max) {
        return Err(format!("event_bytes_max is {event_bytes_max}: use 1 to {EVENT_BYTES_MAX} (8 MiB)"));
    }
    Ok(())
}
