//! Descriptors: how many this process may have, and the errors of those who get none.
//!
//! Sockets and files come from one small number (`ulimit -n`). Who opens a file and gets none waits: the disk is not broken.

use std::fmt;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Asked for when the hard limit is none.
const UNLIMITED: u64 = 1 << 20;

/// An open that found no descriptor left, in the process or in the system.
#[derive(Debug)]
struct OutOfDescriptors(String);

impl fmt::Display for OutOfDescriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OutOfDescriptors {}

/// The error of an open for which there was no descriptor; `words` say what was tried.
pub fn out_of_descriptors(words: String) -> io::Error {
    io::Error::other(OutOfDescriptors(words))
}

/// Whether an error says that the process (EMFILE) or the system (ENFILE) has no descriptor left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let by_code = |code| [Errno::MFILE, Errno::NFILE].iter().any(|errno| errno.raw_os_error() == code);
    error.raw_os_error().is_some_and(by_code) || error.get_ref().is_some_and(|inner| inner.is::<OutOfDescriptors>())
}

/// Raises this process's soft limit of descriptors to its hard one and returns what it is then.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(UNLIMITED.max(limit.current.unwrap_or(0)));
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        // Some systems have a lower limit of their own than the hard one that they tell.
        Err(_) => limit.current.unwrap_or(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_want_of_descriptors_is_told_from_other_errors() {
        assert!(is_out_of_descriptors(&Errno::MFILE.into()));
        assert!(is_out_of_descriptors(&Errno::NFILE.into()));
        assert!(is_out_of_descriptors(&out_of_descriptors("open x".into())));
        assert!(!is_out_of_descriptors(&Errno::IO.into()));
        assert!(!is_out_of_descriptors(&io::Error::other("open x")));
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, Some(limit));
        assert!(now.maximum.is_none_or(|hard| hard == limit));
    }
}
