//! Whether a failed call may be made again, without its client being told of the failure.

/// A call that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// How often it was tried.
    pub attempts: u32,
    /// Not a byte of it has come to an instance.
    pub not_sent: bool,
    /// Its method may run more than once.
    pub idempotent: bool,
    /// All of its body that was sent can be sent again.
    pub replayable: bool,
    /// A part of an answer has gone to the client.
    pub answered: bool,
}

/// Whether it may be made again (P8): it has not run, or it may run twice and `budget` has a retry left.
///
/// What has not reached an instance costs no budget: it is no load on one.
pub fn may_retry(failed: Failed, attempts_max: u32, budget: impl FnOnce() -> bool) -> bool {
    let again = failed.attempts < attempts_max && failed.replayable && !failed.answered;
    again && (failed.not_sent || (failed.idempotent && budget()))
}
