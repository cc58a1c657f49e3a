//! What a consumer of a group knows: deliveries to handle, acks to send, credit to give back. No I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use weft_proto::v1::subscribe_request::Frame;
use weft_proto::v1::{AckAnswer, AckFrame, Delivery, EpochFrame, ExtendFrame, NackFrame, OffsetRange};

use crate::error::{Error, ErrorCode, Retry};

/// Events in flight unless said otherwise.
pub(super) const CREDIT: u64 = 256;
/// Ack frames that may be unanswered; more acks are gathered meanwhile.
const ACK_FRAMES_OUT_MAX: usize = 4;
/// Ranges of one ack frame.
const RANGES_MAX: usize = 4_096;

/// One event of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) partition: u32,
    pub(super) epoch: u64,
    pub(super) offset: u64,
}

pub(super) type Confirm = oneshot::Sender<Result<(), Error>>;

/// Acks that travel together.
#[derive(Default)]
struct Acks {
    /// Places, each with those who wait for its answer.
    places: BTreeMap<Place, Vec<Confirm>>,
    /// Those of them that were sent before, and may have been committed then.
    resent: BTreeSet<Place>,
}

pub(super) struct State {
    credit: u64,
    /// Came in and not yet taken by the application, with the session they came in.
    queue: VecDeque<(u64, Delivery)>,
    /// Given out and not settled, of the present session.
    open: BTreeMap<(u32, u64), u64>,
    /// The newest epoch seen of each partition.
    epochs: BTreeMap<u32, u64>,
    /// Counts the streams; deliveries of an earlier one are void.
    session: u64,
    acks: Acks,
    nacks: BTreeMap<u32, Vec<Place>>,
    extends: Vec<Place>,
    out: BTreeMap<u64, Acks>,
    next_request: u64,
    /// Credit to give back.
    credit_due: u64,
    pub(super) opened: bool,
    pub(super) closing: bool,
    pub(super) ended: Option<Error>,
}

impl State {
    pub(super) fn new(credit: u64) -> State {
        State {
            credit,
            queue: VecDeque::new(),
            open: BTreeMap::new(),
            epochs: BTreeMap::new(),
            session: 0,
            acks: Acks::default(),
            nacks: BTreeMap::new(),
            extends: Vec::new(),
            out: BTreeMap::new(),
            next_request: 1,
            credit_due: 0,
            opened: false,
            closing: false,
            ended: None,
        }
    }

    /// A new stream begins: what the last one gave out is void, its unanswered acks are sent again.
    pub(super) fn begin(&mut self) {
        self.session += 1;
        self.queue.clear();
        self.open.clear();
        self.credit_due = 0;
        self.nacks.clear();
        self.extends.clear();
        for (_, acks) in std::mem::take(&mut self.out) {
            self.acks.resent.extend(acks.places.keys().copied());
            self.acks.merge(acks);
        }
    }

    /// Takes deliveries in; those of an epoch that is over are dropped.
    pub(super) fn deliver(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            let newest = self.epochs.entry(delivery.partition).or_default();
            if delivery.epoch < *newest {
                self.credit_due += 1;
                continue;
            }
            if delivery.epoch > *newest {
                self.epoch(EpochFrame { partition: delivery.partition, epoch: delivery.epoch });
            }
            // Given out again in the same session: the first one's credit is free.
            if self.open.insert((delivery.partition, delivery.offset), delivery.epoch).is_some() {
                self.credit_due += 1;
            }
            self.queue.push_back((self.session, delivery));
        }
    }

    /// A newer epoch acts: older deliveries of the partition are void.
    pub(super) fn epoch(&mut self, frame: EpochFrame) {
        let newest = self.epochs.entry(frame.partition).or_default();
        *newest = frame.epoch.max(*newest);
        let newest = *newest;
        self.queue.retain(|(_, delivery)| delivery.partition != frame.partition || delivery.epoch >= newest);
        let before = self.open.len();
        self.open.retain(|(partition, _), epoch| *partition != frame.partition || *epoch >= newest);
        self.credit_due += (before - self.open.len()) as u64;
    }

    /// The next delivery for the application, with its session.
    pub(super) fn take(&mut self) -> Option<(u64, Delivery)> {
        self.queue.pop_front()
    }

    /// Whether a delivery may still be handled.
    pub(super) fn is_valid(&self, session: u64, place: Place) -> bool {
        let newest = self.epochs.get(&place.partition).copied().unwrap_or(0);
        session == self.session && place.epoch >= newest && self.ended.is_none()
    }

    /// Gives a delivery's credit back, once.
    pub(super) fn settle(&mut self, session: u64, place: Place) {
        if session != self.session {
            return;
        }
        let key = (place.partition, place.offset);
        if self.open.get(&key) == Some(&place.epoch) {
            self.open.remove(&key);
            self.credit_due += 1;
        }
    }

    /// Notes an ack. It is sent even if the session is over: the event was handled.
    pub(super) fn ack(&mut self, place: Place, confirm: Option<Confirm>) {
        if let Some(error) = &self.ended {
            if let Some(confirm) = confirm {
                let _ = confirm.send(Err(error.clone()));
            }
            return;
        }
        self.acks.places.entry(place).or_default().extend(confirm);
    }

    pub(super) fn nack(&mut self, session: u64, place: Place, delay: Duration) {
        if self.is_valid(session, place) {
            let delay_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
            self.nacks.entry(delay_ms).or_default().push(place);
        }
    }

    pub(super) fn extend(&mut self, session: u64, place: Place) {
        if self.is_valid(session, place) {
            self.extends.push(place);
        }
    }

    /// Whether acks wait to be sent or answered.
    pub(super) fn has_acks(&self) -> bool {
        !self.acks.places.is_empty() || !self.out.is_empty()
    }

    /// Whether the node has been told all, and has answered.
    pub(super) fn is_settled(&self) -> bool {
        !self.has_acks() && self.nacks.is_empty()
    }

    /// True while gathering a little longer costs nothing: an ack frame is out already.
    pub(super) fn may_gather(&self) -> bool {
        !self.out.is_empty() && self.credit_due < self.credit / 2 && self.acks.places.len() < RANGES_MAX
    }

    /// The frames to send now.
    pub(super) fn frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for (delay_ms, mut places) in std::mem::take(&mut self.nacks) {
            places.sort_unstable();
            frames.push(Frame::Nack(NackFrame { ranges: ranges(places.into_iter()), delay_ms }));
        }
        if !self.extends.is_empty() {
            let mut places = std::mem::take(&mut self.extends);
            places.sort_unstable();
            frames.push(Frame::Extend(ExtendFrame { ranges: ranges(places.into_iter()) }));
        }
        while !self.acks.places.is_empty() && self.out.len() < ACK_FRAMES_OUT_MAX {
            let acks = self.acks.split(RANGES_MAX);
            let request_id = self.next_request;
            self.next_request += 1;
            frames.push(Frame::Ack(AckFrame { request_id, ranges: ranges(acks.places.keys().copied()) }));
            self.out.insert(request_id, acks);
        }
        // Credit after acks, so that the owner knows what is handled before it gives out more.
        if self.credit_due > 0 && !self.closing {
            frames.push(Frame::Credit(std::mem::take(&mut self.credit_due)));
        }
        frames
    }

    /// The answer to an ack frame. True if some acks have to be sent again.
    pub(super) fn answered(&mut self, answer: AckAnswer) -> bool {
        let Some(acks) = self.out.remove(&answer.request_id) else { return false };
        let refusals: Vec<(Option<OffsetRange>, Error)> = answer
            .refused
            .into_iter()
            .map(|refusal| (refusal.range, refusal.error.unwrap_or_default().into()))
            .collect();
        let mut again = false;
        for (place, confirms) in acks.places {
            let refused =
                refusals.iter().find(|(range, _)| holds(range.as_ref(), place)).map(|(_, error)| error.clone());
            let resent = acks.resent.contains(&place);
            match refused {
                Some(error) if error.retry() != Retry::Never => {
                    again = true;
                    if resent || error.retry() == Retry::IfIdempotent {
                        self.acks.resent.insert(place);
                    }
                    self.acks.places.entry(place).or_default().extend(confirms);
                }
                refused => {
                    // What an earlier try has acked is no longer given out: that is what such a refusal may say.
                    let refused = refused.map(|error| match resent && error.code() == ErrorCode::FailedPrecondition {
                        true => {
                            Error::unknown("the ack was sent before, and that answer was lost: it may be committed")
                        }
                        false => error,
                    });
                    for confirm in confirms {
                        let _ = confirm.send(refused.clone().map_or(Ok(()), Err));
                    }
                }
            }
        }
        again
    }

    /// Ends the consumer: every waiter is told.
    pub(super) fn end(&mut self, error: Error) {
        let waiting = std::mem::take(&mut self.out).into_values().chain([std::mem::take(&mut self.acks)]);
        for confirm in waiting.flat_map(|acks| acks.places.into_values().flatten()) {
            let _ = confirm.send(Err(error.clone()));
        }
        self.queue.clear();
        self.ended = Some(error);
    }
}

impl Acks {
    fn merge(&mut self, other: Acks) {
        for (place, confirms) in other.places {
            self.places.entry(place).or_default().extend(confirms);
        }
        self.resent.extend(other.resent);
    }

    /// Takes the first `count` places.
    fn split(&mut self, count: usize) -> Acks {
        match self.places.keys().nth(count).copied() {
            None => std::mem::take(self),
            Some(first_left) => {
                let left = self.places.split_off(&first_left);
                let resent_left = self.resent.split_off(&first_left);
                Acks {
                    places: std::mem::replace(&mut self.places, left),
                    resent: std::mem::replace(&mut self.resent, resent_left),
                }
            }
        }
    }
}

/// A refusal without a range is one of the whole frame.
fn holds(range: Option<&OffsetRange>, place: Place) -> bool {
    let Some(range) = range else { return true };
    let same = range.partition == place.partition && range.epoch == place.epoch;
    same && (range.first..=range.last).contains(&place.offset)
}

/// Sorted places as ranges.
fn ranges(places: impl Iterator<Item = Place>) -> Vec<OffsetRange> {
    let mut ranges: Vec<OffsetRange> = Vec::new();
    for Place { partition, epoch, offset } in places {
        match ranges.last_mut() {
            Some(last) if last.partition == partition && last.epoch == epoch && last.last + 1 >= offset => {
                last.last = offset;
            }
            _ => ranges.push(OffsetRange { partition, epoch, first: offset, last: offset }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{self, AckRefusal};

    use super::*;

    #[test]
    fn an_ack_sent_again_that_is_refused_may_be_committed() {
        let refusal = || AckRefusal {
            range: None,
            error: Some(v1::Error {
                code: ErrorCode::FailedPrecondition.into(),
                retry: Retry::Never.into(),
                ..v1::Error::default()
            }),
        };
        let sent = |state: &mut State| match state.frames().as_slice() {
            [Frame::Ack(ack)] => ack.request_id,
            other => panic!("one ack frame, not {other:?}"),
        };
        for (again, code) in [(false, ErrorCode::FailedPrecondition), (true, ErrorCode::OutcomeUnknown)] {
            let mut state = State::new(CREDIT);
            state.begin();
            let (confirm, mut told) = oneshot::channel();
            state.ack(Place { partition: 0, epoch: 1, offset: 7 }, Some(confirm));
            let mut request_id = sent(&mut state);
            if again {
                // The connection is lost before the answer.
                state.begin();
                request_id = sent(&mut state);
            }
            assert!(!state.answered(AckAnswer { request_id, refused: vec![refusal()] }));
            let told = told.try_recv().expect("told");
            assert_eq!(told.expect_err("refused").code(), code);
            assert!(!state.has_acks());
        }
    }
}
