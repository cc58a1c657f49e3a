//! Read points: a majority has confirmed that this node still leads the shard, and all that was committed before it
//! was asked is applied here. Without one, an owner that was deposed behind a partition would tell an end that lies
//! before events whose receipts are out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;
use weft_cluster::ids::Epoch;
use weft_proto::v1::Error;

use super::refusal;
use super::seat::Seat;

/// How long one may wait for a majority. Less than askers give a node, so that one shard without a majority does not
/// keep back what the node knows of the others.
const CONFIRM_PATIENCE: Duration = Duration::from_millis(500);

/// The read points of one shard: those who wait while a round is under way share the next one.
#[derive(Default)]
pub(super) struct ReadPoints {
    asked: AtomicU64,
    /// Held by whoever runs a round.
    last: Mutex<Round>,
}

/// The last round that ended.
#[derive(Default)]
struct Round {
    /// Whoever asked up to here had asked before it began.
    covers: u64,
    confirmed: bool,
}

impl Seat {
    /// The epoch under which this node acts, once all that was committed before the call is applied here.
    ///
    /// # Errors
    /// `NOT_OWNER` if this node does not act, or no majority confirms it in time.
    pub(super) async fn confirm(&self) -> Result<Epoch, Error> {
        self.acting()?;
        let confirmed = timeout(CONFIRM_PATIENCE, self.read_point()).await;
        if !confirmed.unwrap_or(false) {
            self.commons.metrics.unconfirmed.inc();
            return Err(refusal::not_owner(None));
        }
        Ok(self.acting()?.epoch)
    }

    async fn read_point(&self) -> bool {
        let Some(group) = self.group() else { return false };
        let me = self.read_points.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut last = self.read_points.last.lock().await;
        if last.covers >= me {
            return last.confirmed;
        }
        let covers = self.read_points.asked.load(Ordering::Acquire);
        let confirmed = group.read_index().await.is_ok();
        *last = Round { covers, confirmed };
        confirmed
    }
}
