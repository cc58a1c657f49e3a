//! The signals that a long-lived command minds, from its first moment on.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that tell a command to stop.
pub(crate) struct Stops(Vec<Signal>);

impl Stops {
    /// Those of a node: Ctrl-C and SIGTERM. SIGHUP does not end one, whoever closes the terminal it was started from.
    ///
    /// # Errors
    /// The system takes no handler.
    pub(crate) fn of_node() -> io::Result<Stops> {
        let mut hangups = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                tracing::info!("SIGHUP: the node goes on; its configuration is read when it starts");
            }
        });
        Stops::of(&[SignalKind::interrupt(), SignalKind::terminate()])
    }

    /// Those of `weft dev`: every signal that would end it leaves time to remove its folder. A SIGHUP that its starter
    /// had ignored, as nohup does, stays ignored.
    ///
    /// # Errors
    /// The system takes no handler.
    pub(crate) fn of_dev() -> io::Result<Stops> {
        let mut kinds = vec![
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::alarm(),
        ];
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if !hangup_is_ignored(&status) {
            kinds.push(SignalKind::hangup());
        }
        Stops::of(&kinds)
    }

    fn of(kinds: &[SignalKind]) -> io::Result<Stops> {
        kinds.iter().map(|kind| signal(*kind)).collect::<io::Result<_>>().map(Stops)
    }

    /// Resolves at the next of them; one that came since the last call counts.
    pub(crate) async fn next(&mut self) {
        poll_fn(|context| {
            let came = self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Reads the mask of ignored signals in a process's status as Linux tells it: bit 0 is SIGHUP.
fn hangup_is_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_that_is_ignored_is_found() {
        assert!(hangup_is_ignored("Name:\tweft\nSigIgn:\t0000000000001001\n"));
        assert!(!hangup_is_ignored("SigIgn:\t0000000000001000\n"));
        assert!(!hangup_is_ignored(""));
    }
}
