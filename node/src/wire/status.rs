//! `weft.v1.Error` as a gRPC status with google.rpc details, and back; and the page that documents the codes.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use weft_cluster::errors::{TABLE, code_of, error, reason, retry_name, row_of};
use weft_proto::v1::{Error, ErrorCode, Retry};

/// The domain of every google.rpc.ErrorInfo that Weft sends.
pub const DOMAIN: &str = "weft";

/// How long a client should wait before it sends a request again that has not taken effect.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// An error as a gRPC status.
///
/// The details hold an ErrorInfo: reason (the code's name without its prefix), domain "weft", metadata `retry`
/// (NEVER, SAME or IF_IDEMPOTENT) and, where it is known, `owner` (the node's id in hex), or `limit` and `limit_max`
/// (the name and the value of the limit that was hit). Where the same request may be sent again there is a RetryInfo
/// too.
pub fn status(error: Error) -> Status {
    let row = row_of(error.code());
    let retry = match error.retry() {
        Retry::Unspecified => row.retry,
        retry => retry,
    };
    let mut metadata = HashMap::from([("retry".to_string(), retry_name(retry).to_string())]);
    if error.owner != 0 {
        metadata.insert("owner".into(), format!("{:016x}", error.owner));
    }
    if !error.limit.is_empty() {
        metadata.insert("limit".into(), error.limit);
        metadata.insert("limit_max".into(), error.limit_max.to_string());
    }
    let mut details = ErrorDetails::with_error_info(reason(row.code), DOMAIN, metadata);
    if retry == Retry::Same {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    Status::with_error_details(Code::from_i32(row.grpc as i32), error.message, details)
}

/// The error in a gRPC status. One that is not Weft's own (a proxy's, the transport's) is OUTCOME_UNKNOWN,
/// since nothing says how far the request came; a deadline's is DEADLINE.
pub fn from_status(status: &Status) -> Error {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
    let Some((info, code)) = info.and_then(|info| code_of(&info.reason).map(|code| (info, code))) else {
        let code = match status.code() {
            Code::DeadlineExceeded => ErrorCode::Deadline,
            Code::InvalidArgument => ErrorCode::InvalidArgument,
            _ => ErrorCode::OutcomeUnknown,
        };
        return error(code, format!("{:?}: {}", status.code(), status.message()));
    };
    let mut found = error(code, status.message());
    if let Some(retry) = info.metadata.get("retry").and_then(|name| Retry::from_str_name(&format!("RETRY_{name}"))) {
        found.set_retry(retry);
    }
    found.owner = info.metadata.get("owner").and_then(|id| u64::from_str_radix(id, 16).ok()).unwrap_or(0);
    found.limit = info.metadata.get("limit").cloned().unwrap_or_default();
    found.limit_max = info.metadata.get("limit_max").and_then(|max| max.parse().ok()).unwrap_or(0);
    found
}

/// A status as one sentence, where there is no room for details (an error response of gRPC's reflection): Weft's own
/// begins with its code's name.
pub fn told(status: &Status) -> String {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
    info.map_or_else(|| status.message().to_owned(), |info| format!("{}: {}", info.reason, status.message()))
}

/// The error that `told` said with this gRPC code; `None` if it is not Weft's own.
pub fn from_told(code: i32, message: &str) -> Option<Error> {
    let (name, message) = message.split_once(": ")?;
    let row = code_of(name).map(row_of).filter(|row| row.grpc as i32 == code)?;
    Some(error(row.code, message))
}

/// The text of docs/errors.md.
pub fn errors_page() -> String {
    let mut page = String::from(
        "# Errors\n\n\
         Every door answers with one of these codes. The table is generated from `cluster/src/errors.rs`; a test keeps\n\
         the two equal (`WEFT_BLESS=1 cargo test -p weft-node wire::` writes this file anew).\n\n\
         Over gRPC a code travels as `google.rpc.ErrorInfo` in the status details: `reason` is the name below, `domain` is\n\
         `weft`, `metadata` holds `retry`; with `NOT_OWNER`, `owner` (the owner's node id in hex, if it is known); with\n\
         `TOO_LARGE` and `OVERLOADED`, and with `OUTCOME_UNKNOWN` if an instance's answer was too large, `limit` and\n\
         `limit_max`: which limit was hit, by its key in the configuration if it has one there\n\
         (`events.publish_bytes_max`), and its value.\n\
         Codes with retry `SAME` also carry `google.rpc.RetryInfo`.\n\n\
         | retry | what a client may do |\n|---|---|\n\
         | `NEVER` | The same request will fail again. |\n\
         | `SAME` | The same request may be sent again: it has not taken effect. |\n\
         | `IF_IDEMPOTENT` | The outcome of the first try is unknown: again only with an idempotent producer. |\n\n\
         | code | number | gRPC status | retry | meaning |\n|---|---|---|---|---|\n",
    );
    for row in TABLE {
        writeln!(
            page,
            "| `{}` | {} | {:?} | `{}` | {} |",
            reason(row.code),
            row.code as i32,
            row.grpc,
            retry_name(row.retry),
            row.meaning
        )
        .expect("a String takes every write");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_way_over_grpc() {
        for row in TABLE {
            let mut sent = error(row.code, "one sentence");
            sent.owner = if row.code == ErrorCode::NotOwner { 0xabc } else { 0 };
            if row.code == ErrorCode::Overloaded {
                (sent.limit, sent.limit_max) = ("events.publish_bytes_max".into(), 7);
            }
            let status = status(sent.clone());
            assert_eq!(status.code() as i32, row.grpc as i32);
            assert_eq!(from_status(&status), sent);
            assert_eq!(from_told(row.grpc as i32, &told(&status)), Some(error(row.code, "one sentence")));
            assert_eq!(from_told(Code::Ok as i32, &told(&status)), None);
            let retry_info = status.get_details_retry_info().is_some();
            assert_eq!(retry_info, row.retry == Retry::Same, "{:?}", row.code);
        }
    }

    #[test]
    fn a_status_of_another_maker_is_an_unknown_outcome() {
        assert_eq!(from_status(&Status::unavailable("broken pipe")).code(), ErrorCode::OutcomeUnknown);
        assert_eq!(from_status(&Status::deadline_exceeded("late")).code(), ErrorCode::Deadline);
        let other = ErrorDetails::with_error_info("UNKNOWN_TOPIC", "example.org", HashMap::new());
        let other = Status::with_error_details(Code::NotFound, "theirs", other);
        assert_eq!(from_status(&other).code(), ErrorCode::OutcomeUnknown);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test reads a file of the repository")]
    fn the_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        if std::env::var_os("WEFT_BLESS").is_some() {
            std::fs::write(path, errors_page()).expect("write docs/errors.md");
        }
        let page = std::fs::read_to_string(path).expect("docs/errors.md");
        assert_eq!(page, errors_page(), "WEFT_BLESS=1 cargo test -p weft-node wire:: writes it anew");
    }
}
