//! Doing work one turn later, together with other work.

use std::pin::pin;
use std::task::{Context, Poll, ready};

/// Puts off what a task does when it is woken until the tasks that are ready by then have had their turn: what they hand
/// to it goes out in one write instead of one each.
#[derive(Debug, Default)]
pub struct Turn {
    /// The task has slept since its last turn.
    slept: bool,
}

impl Turn {
    /// `Pending` once after each sleep, if it `wants` to wait for others; the task is polled again by itself.
    pub fn poll(&mut self, cx: &mut Context<'_>, wants: bool) -> Poll<()> {
        if std::mem::take(&mut self.slept) && wants {
            // Polled once, it asks the runtime for another turn.
            ready!(pin!(tokio::task::yield_now()).poll(cx));
        }
        Poll::Ready(())
    }

    /// The task goes to sleep now.
    pub fn sleeps(&mut self) {
        self.slept = true;
    }
}
