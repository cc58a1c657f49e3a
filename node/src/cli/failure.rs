//! Why a command failed: one line, or one object.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::config::ConfigError;
use crate::drivers::pki::PkiError;
use crate::wire::{DOMAIN, from_told, reason, retry_name};

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// A name of the table in docs/errors.md.
    pub(crate) code: String,
    /// One line for a person.
    pub(crate) message: String,
    /// `NEVER`, `SAME` or `IF_IDEMPOTENT`.
    pub(crate) retry: String,
    /// The reader of stdout has gone away: no failure at all.
    quiet: bool,
}

impl Failure {
    fn new(code: &str, retry: &str, message: impl Into<String>) -> Failure {
        Failure { code: code.into(), message: message.into(), retry: retry.into(), quiet: false }
    }

    /// The command was not right.
    pub(crate) fn invalid(message: impl Into<String>) -> Failure {
        Failure::new("INVALID_ARGUMENT", "NEVER", message)
    }

    /// The state of things does not allow it.
    pub(crate) fn failed(message: impl Into<String>) -> Failure {
        Failure::new("FAILED_PRECONDITION", "NEVER", message)
    }

    /// Nobody owns what is asked for.
    pub(crate) fn no_owner(message: impl Into<String>) -> Failure {
        Failure::new("NO_OWNER", "SAME", message)
    }

    /// No node could be reached.
    pub(crate) fn unreachable(message: impl std::fmt::Display) -> Failure {
        Failure::new("NOT_READY", "SAME", format!("no node can be reached: {message}"))
    }

    /// No such service.
    pub(crate) fn unknown_service(message: impl Into<String>) -> Failure {
        Failure::new("UNKNOWN_SERVICE", "NEVER", message)
    }

    /// Something took longer than it may.
    pub(crate) fn late(what: &str, timeout: Duration) -> Failure {
        Failure::new("DEADLINE", "IF_IDEMPOTENT", format!("{what} in {timeout:?}"))
    }

    /// A gRPC status: Weft's own with its code, a service's with the name of the status.
    pub(crate) fn status(status: &Status) -> Failure {
        if std::error::Error::source(status).is_some() {
            return Failure::no_answer(status);
        }
        let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
        let Some(info) = info else {
            let debug = format!("{:?}", status.code());
            let mut name = String::new();
            for (place, letter) in debug.chars().enumerate() {
                if place > 0 && letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            return Failure::new(&name, "IF_IDEMPOTENT", format!("{name}: {}", status.message()));
        };
        let retry = info.metadata.get("retry").map_or("IF_IDEMPOTENT", String::as_str);
        Failure::new(&info.reason, retry, status.message())
    }

    /// Nobody's answer: what failed on the way. Only a connection that never came about tells that nothing was sent.
    fn no_answer(status: &Status) -> Failure {
        if has_cause::<tonic::TimeoutExpired>(status) {
            return Failure::new("DEADLINE", "IF_IDEMPOTENT", "no answer came before the deadline");
        }
        let why = weft_sdk::explain("the node", status);
        if has_cause::<tonic::ConnectError>(status) {
            return Failure::unreachable(why);
        }
        Failure::new("OUTCOME_UNKNOWN", "IF_IDEMPOTENT", format!("the connection was lost before the answer: {why}"))
    }

    /// What reflection answers instead of what it was asked for: a gRPC code and a sentence.
    pub(crate) fn told(code: i32, message: &str) -> Failure {
        match from_told(code, message) {
            Some(error) => Failure::new(reason(error.code()), retry_name(error.retry()), error.message),
            None => Failure::status(&Status::new(Code::from_i32(code), message)),
        }
    }

    /// What clap says, on one line.
    pub(crate) fn usage(error: &clap::Error) -> Failure {
        let text = error.render().to_string();
        let before_usage = text.split("\nUsage:").next().unwrap_or_default();
        let words: Vec<&str> = before_usage.split_whitespace().collect();
        let message = words.join(" ");
        Failure::invalid(message.strip_prefix("error: ").unwrap_or(&message))
    }

    /// Puts words after the message.
    pub(crate) fn and(mut self, what: &str) -> Failure {
        self.message = format!("{}; {what}", self.message);
        self
    }

    /// Puts words before the message.
    pub(crate) fn context(mut self, what: &str) -> Failure {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// As an object.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({"code": self.code, "message": self.message, "retry": self.retry})
    }

    /// Prints it and gives the exit code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if self.quiet {
            return ExitCode::SUCCESS;
        }
        // With stderr closed there is nobody left to tell.
        let mut stderr = io::stderr().lock();
        let _ = if json {
            io::Write::write_fmt(&mut stderr, format_args!("{}\n", self.json()))
        } else {
            let line = self.message.split_whitespace().collect::<Vec<_>>().join(" ");
            io::Write::write_fmt(&mut stderr, format_args!("weft: {line}\n"))
        };
        ExitCode::FAILURE
    }
}

/// Whether an error of this type is among the causes of `status`.
fn has_cause<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        cause = error.source();
    }
    false
}

impl From<weft_sdk::Error> for Failure {
    fn from(error: weft_sdk::Error) -> Failure {
        Failure::new(error.code_name(), error.retry_name(), error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let quiet = error.kind() == io::ErrorKind::BrokenPipe;
        Failure { quiet, ..Failure::failed(error.to_string()) }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::invalid(error.to_string())
    }
}

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Failure {
        Failure::failed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_sent_is_never_said_to_be_unsent() {
        let of = |failure: Failure| (failure.code, failure.retry);
        let late = of(Failure::status(&Status::from_error(Box::new(tonic::TimeoutExpired(())))));
        assert_eq!(late, ("DEADLINE".into(), "IF_IDEMPOTENT".into()));
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        let lost = of(Failure::status(&Status::from_error(Box::new(broken))));
        assert_eq!(lost, ("OUTCOME_UNKNOWN".into(), "IF_IDEMPOTENT".into()));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let unsent = of(Failure::status(&Status::from_error(Box::new(tonic::ConnectError(Box::new(refused))))));
        assert_eq!(unsent, ("NOT_READY".into(), "SAME".into()));
    }

    #[test]
    fn what_reflection_answers_keeps_wefts_code() {
        let of = |failure: Failure| (failure.code, failure.retry, failure.message);
        let own = of(Failure::told(Code::Unavailable as i32, "NO_INSTANCE: shop has no instance to call"));
        assert_eq!(own, ("NO_INSTANCE".into(), "SAME".into(), "shop has no instance to call".into()));
        let theirs = of(Failure::told(Code::Internal as i32, "NO_INSTANCE: is what they say"));
        assert_eq!(theirs.0, "INTERNAL");
    }
}
