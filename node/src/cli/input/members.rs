//! The members of a JSON object as the bytes that stand in the line: what a parser makes of numbers and of the order of
//! keys is not what was written.

use serde::de::IgnoredAny;

/// Name and text of each member of the object that `line` holds.
///
/// # Errors
/// It is no JSON, or JSON of something else.
pub(super) fn of(line: &str) -> Result<Vec<(String, &str)>, String> {
    // Its own count of lines would contradict the file's.
    let plain = |error: serde_json::Error| error.to_string().split(" at line ").next().unwrap_or_default().to_owned();
    serde_json::from_str::<IgnoredAny>(line).map_err(|error| format!("not JSON: {}", plain(error)))?;
    let inside = line.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let inside = inside.ok_or("not an object like {\"key\": \"…\", \"data\": …}")?;
    let mut members = Vec::new();
    for member in split(inside, b',').into_iter().filter(|member| !member.trim().is_empty()) {
        let [name, value] = split(member, b':')[..] else { return Err(format!("not JSON: {member}")) };
        let name = serde_json::from_str(name.trim()).map_err(|error| format!("not JSON: {}", plain(error)))?;
        members.push((name, value.trim()));
    }
    Ok(members)
}

/// Cuts valid JSON at each `at` that is in no string, list or object; of `:`, at the first alone.
fn split(text: &str, at: u8) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ if byte == at && depth == 0 => {
                parts.push(&text[from..place]);
                from = place + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_the_bytes_of_the_line() {
        let line =
            r#" {"data" : {"b":1e400,"a":[0.10,"},:\""]}, "k\u0065y":"x,\"y\":z" , "n":12345678901234567890123} "#;
        let members = of(line).expect("an object");
        let members: Vec<(&str, &str)> = members.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        let wanted = [
            ("data", r#"{"b":1e400,"a":[0.10,"},:\""]}"#),
            ("key", r#""x,\"y\":z""#),
            ("n", "12345678901234567890123"),
        ];
        assert_eq!(members, wanted);
        assert_eq!(of("{}").expect("an empty object"), []);
        assert!(of("{").expect_err("open").contains("not JSON"));
        assert!(of("[1]").expect_err("a list").contains("not an object"));
    }
}
