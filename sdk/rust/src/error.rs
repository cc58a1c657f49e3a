//! One error type for all that the SDK does, and what may be done about each.

use std::sync::Arc;

use tonic_types::StatusExt;
use weft_proto::v1;

pub use weft_proto::v1::{ErrorCode, Retry};

/// Why a request failed. Cheap to clone: one failure may be told to many events.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A node answered with an error from the table in `docs/errors.md`.
    #[error("{message}")]
    Refused {
        /// Which.
        code: ErrorCode,
        /// One sentence for a person.
        message: Arc<str>,
        /// What may be done about it.
        retry: Retry,
        /// With `NotOwner`: the owner's node id, if known; else 0.
        owner: u64,
    },
    /// No node could be reached in time; nothing was sent.
    #[error("no node can be reached: {0}")]
    Unreachable(Arc<str>),
    /// The connection was lost before the answer came: the request may or may not have taken effect.
    #[error("the connection was lost before the answer: {0}")]
    Lost(Arc<str>),
    /// The answer did not come in time: the request may or may not have taken effect.
    #[error("no answer in time: {0}")]
    Deadline(Arc<str>),
    /// The request broke a rule that the SDK checks itself; nothing was sent.
    #[error("{0}")]
    Invalid(Arc<str>),
    /// The client, producer or subscriber is closed.
    #[error("it is closed")]
    Closed,
}

impl Error {
    /// What may be done: `Never`, `Same` (it has not taken effect), `IfIdempotent` (it may have).
    pub fn retry(&self) -> Retry {
        match self {
            Error::Refused { retry, .. } => *retry,
            Error::Unreachable(_) => Retry::Same,
            Error::Lost(_) | Error::Deadline(_) => Retry::IfIdempotent,
            Error::Invalid(_) | Error::Closed => Retry::Never,
        }
    }

    /// The code of the table; the SDK's own errors map to their nearest.
    pub fn code(&self) -> ErrorCode {
        match self {
            Error::Refused { code, .. } => *code,
            Error::Unreachable(_) => ErrorCode::NotReady,
            Error::Lost(_) => ErrorCode::OutcomeUnknown,
            Error::Deadline(_) => ErrorCode::Deadline,
            Error::Invalid(_) => ErrorCode::InvalidArgument,
            Error::Closed => ErrorCode::FailedPrecondition,
        }
    }

    /// The code's name as in the table, for example `UNKNOWN_TOPIC`.
    pub fn code_name(&self) -> &'static str {
        short(self.code().as_str_name(), "ERROR_CODE_")
    }

    /// The name of what may be done: `NEVER`, `SAME` or `IF_IDEMPOTENT`.
    pub fn retry_name(&self) -> &'static str {
        short(self.retry().as_str_name(), "RETRY_")
    }

    /// This error as the answer to a request of which an earlier try, `unsure`, may have taken effect: then it cannot
    /// say that nothing has.
    pub(crate) fn after(self, unsure: Option<Error>) -> Error {
        match unsure {
            Some(unsure) if self.retry() == Retry::Same => {
                Error::unknown(format!("{self}; an earlier try may have taken effect: {unsure}"))
            }
            _ => self,
        }
    }

    pub(crate) fn invalid(message: impl Into<Arc<str>>) -> Error {
        Error::Invalid(message.into())
    }

    pub(crate) fn unknown(message: impl Into<Arc<str>>) -> Error {
        let (code, retry) = (ErrorCode::OutcomeUnknown, Retry::IfIdempotent);
        Error::Refused { code, message: message.into(), retry, owner: 0 }
    }
}

fn short(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

impl From<v1::Error> for Error {
    fn from(error: v1::Error) -> Error {
        let code = error.code();
        let retry = match error.retry() {
            Retry::Unspecified => default_retry(code),
            retry => retry,
        };
        Error::Refused { code, message: error.message.into(), retry, owner: error.owner }
    }
}

/// A status with an `ErrorInfo` of the domain `weft` is an answer of a node; any other comes from the way there.
impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Error {
        let info = status.get_details_error_info().filter(|info| info.domain == "weft");
        if let Some(info) = info {
            let code = ErrorCode::from_str_name(&format!("ERROR_CODE_{}", info.reason)).unwrap_or_default();
            let told = info.metadata.get("retry").and_then(|name| Retry::from_str_name(&format!("RETRY_{name}")));
            let owner = info.metadata.get("owner").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
            let retry = told.unwrap_or_else(|| default_retry(code));
            return Error::Refused { code, message: status.message().into(), retry, owner };
        }
        let refused = |code, retry| Error::Refused { code, message: status.message().into(), retry, owner: 0 };
        match status.code() {
            tonic::Code::DeadlineExceeded => Error::Deadline(status.message().into()),
            tonic::Code::InvalidArgument => refused(ErrorCode::InvalidArgument, Retry::Never),
            tonic::Code::NotFound => refused(ErrorCode::NotFound, Retry::Never),
            tonic::Code::FailedPrecondition => refused(ErrorCode::FailedPrecondition, Retry::Never),
            tonic::Code::Unimplemented => refused(ErrorCode::FeatureLevel, Retry::Never),
            tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => refused(ErrorCode::TooLarge, Retry::Never),
            _ => Error::Lost(told(&status).into()),
        }
    }
}

/// What a code alone says may be done, for answers that do not say it themselves.
fn default_retry(code: ErrorCode) -> Retry {
    match code {
        ErrorCode::NotOwner
        | ErrorCode::NoOwner
        | ErrorCode::Overloaded
        | ErrorCode::DiskFull
        | ErrorCode::NotReady
        | ErrorCode::Corrupt => Retry::Same,
        ErrorCode::OutcomeUnknown | ErrorCode::Deadline => Retry::IfIdempotent,
        _ => Retry::Never,
    }
}

/// What a status that no node has sent says, without the names of types that its libraries put there.
fn told(status: &tonic::Status) -> String {
    let cause = std::error::Error::source(status).map(inmost);
    match cause {
        Some(cause) if status.message().is_empty() || cause.contains(status.message()) => cause,
        Some(cause) if !status.message().contains(&cause) => format!("{}: {cause}", status.message()),
        None if status.message().is_empty() => status.code().to_string(),
        _ => status.message().to_owned(),
    }
}

/// The message of the last of an error's causes: what happened, without the layers that passed it on.
pub(crate) fn inmost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// The message of an error with those of its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_lost_connection_is_told_without_names_of_types() {
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let lost = Error::from(tonic::Status::from_error(Box::new(broken))).to_string();
        assert!(lost.ends_with("broken pipe") && !lost.contains("::") && !lost.contains("source"), "{lost}");
    }

    #[test]
    fn a_refusal_after_an_unknown_outcome_is_unknown() {
        let refused = Error::Unreachable("n1".into());
        assert_eq!(refused.clone().after(None).retry(), Retry::Same);
        let after = refused.after(Some(Error::Lost("n2".into())));
        assert_eq!((after.code(), after.retry()), (ErrorCode::OutcomeUnknown, Retry::IfIdempotent));
        let never = Error::invalid("no").after(Some(Error::Lost("n2".into())));
        assert_eq!(never.retry(), Retry::Never);
    }

    #[test]
    fn statuses_become_typed_errors() {
        let details = |reason: &str, retry: Option<&str>| {
            let metadata = retry.map(|retry| ("retry".to_owned(), retry.to_owned()));
            ErrorDetails::with_error_info(reason, "weft", metadata.into_iter().collect::<HashMap<_, _>>())
        };
        let status = |details| tonic::Status::with_error_details(tonic::Code::Unavailable, "why", details);

        let told = Error::from(status(details("UNKNOWN_TOPIC", Some("NEVER"))));
        assert_eq!(
            (told.code(), told.retry(), told.code_name()),
            (ErrorCode::UnknownTopic, Retry::Never, "UNKNOWN_TOPIC")
        );
        let by_code = Error::from(status(details("NO_OWNER", None)));
        assert_eq!((by_code.code(), by_code.retry()), (ErrorCode::NoOwner, Retry::Same));
        let lost = Error::from(tonic::Status::unavailable("broken pipe"));
        assert!(matches!(lost, Error::Lost(_)));
        assert_eq!(lost.retry_name(), "IF_IDEMPOTENT");
    }
}
