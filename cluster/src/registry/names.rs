//! What a name may look like. The same rules at every door and in `apply`.

use super::limits::{EVENT_BYTES_MAX, NAME_CHARS_MAX, NAMESPACE_DEFAULT, PARTITIONS_MAX};

/// The namespace meant: an empty one stands for "default".
pub fn namespace_or_default(namespace: &str) -> &str {
    if namespace.is_empty() { NAMESPACE_DEFAULT } else { namespace }
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
