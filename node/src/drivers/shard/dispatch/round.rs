//! Rounds of acks: what a group's consumers have acked since the last round goes into one command per partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use weft_cluster::delivery::ProposedRange;
use weft_cluster::ids::{Epoch, GroupId, TopicId};
use weft_proto::internal::v1::{AckCommand, Range};
use weft_proto::v1::{AckRefusal, Error, ErrorCode};

use super::super::queue::{Ack, Work};
use super::super::refusal;
use super::super::seat::Seat;

/// Between two tries of an ack that has no outcome while the epoch goes on.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Acks that are proposed together.
#[derive(Default)]
pub(super) struct Round {
    ranges: BTreeMap<u32, Vec<(u64, u64)>>,
    replies: Vec<(oneshot::Sender<Vec<AckRefusal>>, Vec<AckRefusal>)>,
}

/// What became of a round.
pub(super) struct Ended {
    /// Per partition, what is committed.
    pub(super) committed: BTreeMap<u32, Vec<(u64, u64)>>,
    replies: Vec<(oneshot::Sender<Vec<AckRefusal>>, Vec<AckRefusal>)>,
    failed: Option<Error>,
}

impl Round {
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.replies.is_empty()
    }

    /// Adds an accepted ack. With nothing to propose it is answered at once.
    pub(super) fn add(
        &mut self,
        propose: Vec<ProposedRange>,
        refused: Vec<AckRefusal>,
        reply: oneshot::Sender<Vec<AckRefusal>>,
    ) {
        if propose.is_empty() {
            // A consumer that has gone does not want to know.
            let _ = reply.send(refused);
            return;
        }
        for range in propose {
            add(self.ranges.entry(range.partition).or_default(), range.first, range.last);
        }
        self.replies.push((reply, refused));
    }

    /// Proposes the round until it is committed or the epoch is over.
    pub(super) async fn run(self, seat: Arc<Seat>, topic: TopicId, group: GroupId, epoch: Epoch) -> Ended {
        let commands = self.ranges.into_iter().map(|(partition, ranges)| {
            let seat = &seat;
            async move {
                let proto = ranges.iter().map(|(first, last)| Range { first: *first, last: *last }).collect();
                let (topic, group) = (topic.0, group.0);
                let command = AckCommand { topic, partition, group, epoch: epoch.0, ranges: proto };
                (partition, ranges, propose(seat, command, epoch).await)
            }
        });
        let mut ended = Ended { committed: BTreeMap::new(), replies: self.replies, failed: None };
        for (partition, ranges, outcome) in futures::future::join_all(commands).await {
            match outcome {
                Ok(()) => drop(ended.committed.insert(partition, ranges)),
                Err(error) => ended.failed = Some(error),
            }
        }
        ended
    }
}

/// Joins a range with the last one where they touch: consumers ack in order more often than not.
fn add(ranges: &mut Vec<(u64, u64)>, first: u64, last: u64) {
    match ranges.last_mut() {
        Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
        _ => ranges.push((first, last)),
    }
}

async fn propose(seat: &Seat, command: AckCommand, epoch: Epoch) -> Result<(), Error> {
    loop {
        let (reply, outcome) = oneshot::channel();
        // Held while it waits for room: dropped, it would give its place up.
        let _place = seat.queue.enter(Work::Ack(Ack { command: command.clone(), reply, permit: None }));
        let error = match outcome.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => refusal::outcome_unknown("the owner is stopping"),
        };
        let repeats = matches!(error.code(), ErrorCode::NotOwner | ErrorCode::OutcomeUnknown);
        if !repeats || seat.acting().map(|leadership| leadership.epoch) != Ok(epoch) {
            return Err(error);
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

impl Ended {
    /// Answers the consumers.
    pub(super) fn answer(self) {
        for (reply, mut refused) in self.replies {
            if let Some(error) = &self.failed {
                refused.push(AckRefusal { range: None, error: Some(error.clone()) });
            }
            let _ = reply.send(refused);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut round = Round::default();
        assert!(round.is_empty());
        let range = |partition, first, last| ProposedRange { partition, first, last };
        let (reply, mut answer) = oneshot::channel();
        round.add(vec![range(0, 0, 1), range(0, 2, 2), range(1, 2, 2)], Vec::new(), reply);
        assert!(answer.try_recv().is_err(), "answered when it is committed");
        round.add(vec![range(0, 5, 5)], Vec::new(), oneshot::channel().0);
        assert_eq!(round.ranges[&0], vec![(0, 2), (5, 5)]);
        assert_eq!(round.ranges[&1], vec![(2, 2)]);
        let (reply, mut answer) = oneshot::channel();
        round.add(Vec::new(), Vec::new(), reply);
        assert_eq!(answer.try_recv(), Ok(Vec::new()), "nothing to commit");
    }
}
