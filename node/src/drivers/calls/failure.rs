//! Why a call has no answer of its instance's.

use h2::Reason;
use weft_cluster::errors::{error, over};
use weft_proto::v1::{Error, ErrorCode};

/// Why a call has no answer, or no whole one.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Weft's own refusal or failure.
    Failed(Failed),
    /// The instance has reset the call, with this HTTP/2 code.
    Reset(Reason),
    /// Whoever made the call takes no answer any more.
    Gone,
}

/// A failure of Weft's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    /// What the client is told.
    pub error: Error,
    /// Not a byte of the call has come to an instance.
    pub not_sent: bool,
    /// The instance could not be reached: others should be tried first.
    pub unreachable: bool,
    /// There was no link to its home node, or the node did not know of it: the view will say so.
    pub homeless: bool,
}

impl Failure {
    /// Refused before a byte went out; the instance is not to blame.
    pub(super) fn refused(code: ErrorCode, message: impl Into<String>) -> Failure {
        Failure::Failed(Failed { error: error(code, message), not_sent: true, unreachable: false, homeless: false })
    }

    /// No byte has come to the instance, and none would now.
    pub(super) fn unreachable(message: impl Into<String>) -> Failure {
        let error = error(ErrorCode::Unreachable, message);
        Failure::Failed(Failed { error, not_sent: true, unreachable: true, homeless: false })
    }

    /// There is no way to the instance as the view has it, and none comes now.
    pub(super) fn homeless(message: impl Into<String>) -> Failure {
        let error = error(ErrorCode::Unreachable, message);
        Failure::Failed(Failed { error, not_sent: true, unreachable: true, homeless: true })
    }

    /// It may have run.
    pub(super) fn unknown(message: impl Into<String>) -> Failure {
        let error = error(ErrorCode::OutcomeUnknown, message);
        Failure::Failed(Failed { error, not_sent: false, unreachable: false, homeless: false })
    }

    /// It may have run, but its answer is over a limit of the configuration.
    pub(super) fn over(limit: &str, max: u64, message: impl Into<String>) -> Failure {
        let error = over(ErrorCode::OutcomeUnknown, limit, max, message);
        Failure::Failed(Failed { error, not_sent: false, unreachable: false, homeless: false })
    }

    /// The deadline has passed.
    pub fn late() -> Failure {
        let error = error(ErrorCode::Deadline, "the call's deadline passed before its answer had come");
        Failure::Failed(Failed { error, not_sent: false, unreachable: false, homeless: false })
    }

    /// What it means that a client's stream broke: whatever the reason, the client is gone.
    pub fn of_client(_: h2::Error) -> Failure {
        Failure::Gone
    }

    /// What it means that a stream to an instance broke after the call was handed to HTTP/2.
    pub(super) fn of_instance(error: h2::Error) -> Failure {
        if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) {
            // RFC 9113 §6.8 and §8.7: streams above the last one named by GOAWAY, and refused ones, were not processed.
            return Failure::refused(ErrorCode::Unreachable, format!("the instance did not take the call: {error}"));
        }
        if error.is_remote() && error.is_reset() {
            return Failure::Reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
        }
        Failure::unknown(format!("the connection to the instance broke before its answer was whole: {error}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Failed(Failed { error, not_sent: true, unreachable: false, homeless: false })
    }
}
