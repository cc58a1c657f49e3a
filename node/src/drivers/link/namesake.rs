//! Two nodes with one name, or one data folder: how the one that the others refuse comes to know.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long a node is refused for its name's sake before it is sure. One that has lost its folder comes back as another of
/// its own name, and is taken once its old self is known to be dead.
const PATIENCE: Duration = Duration::from_secs(10);
/// Refusals further apart than this have nothing to do with each other. Longer than any pause between two dials.
const GAP: Duration = Duration::from_secs(9);

/// Refusals by peers that have a link to another node of this one's name.
pub(super) struct Namesake {
    refusals: watch::Sender<Option<Refusals>>,
}

struct Refusals {
    first: Instant,
    last: Instant,
    reason: String,
}

impl Namesake {
    pub(super) fn new() -> Namesake {
        Namesake { refusals: watch::Sender::new(None) }
    }

    /// A peer has refused this node, or closed its link.
    pub(super) fn refused(&self, reason: &str) {
        self.refused_at(Instant::now(), reason);
    }

    fn refused_at(&self, now: Instant, reason: &str) {
        self.refusals.send_modify(|refusals| {
            let first = refusals.as_ref().filter(|had| now - had.last < GAP).map_or(now, |had| had.first);
            *refusals = Some(Refusals { first, last: now, reason: reason.to_owned() });
        });
    }

    /// Whether no refusal has been counted.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        self.refusals.borrow().is_none()
    }

    /// Resolves when this has gone on for so long that the other is there to stay; with what was said last.
    pub(super) async fn stays(&self) -> String {
        let mut refusals = self.refusals.subscribe();
        let sure = |refusals: &Option<Refusals>| {
            refusals.as_ref().is_some_and(|refusals| refusals.last - refusals.first >= PATIENCE)
        };
        let sure = refusals.wait_for(sure).await.expect("the sender is borrowed");
        sure.as_ref().map(|refusals| refusals.reason.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn refusals_that_go_on_are_told_apart_from_those_of_a_restart() {
        let (namesake, start) = (Namesake::new(), Instant::now());
        for (second, sure) in [(0, false), (1, false), (3, false), (6, false), (26, false), (34, false), (36, true)] {
            namesake.refused_at(start + Duration::from_secs(second), "another answers");
            assert_eq!(namesake.stays().now_or_never().is_some(), sure, "after {second} s");
        }
        assert_eq!(namesake.stays().now_or_never().as_deref(), Some("another answers"));
    }
}
