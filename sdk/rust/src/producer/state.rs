//! All partitions of a producer and what is counted over them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::Instant;
use weft_batch::{BatchError, Limits, hashing};
use weft_proto::v1::publish_answer::Result as Answered;
use weft_proto::v1::{Event, PublishAnswer, PublishBatch, Receipt};

use super::lane::{Batch, Identity, Lane, Outcome, Reply};
use super::{Published, Settings};
use crate::client::jittered;
use crate::error::{Error, ErrorCode};

/// First and longest pause before a refused batch is sent again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// Batches that have their final answer. They are told after the lock is released.
pub(crate) type Finished = Vec<(Batch, Result<Receipt, Error>)>;

pub(crate) struct State {
    lanes: Vec<Lane>,
    /// Lanes with anything packed or queued.
    active: BTreeSet<usize>,
    /// Request id to lane.
    out: BTreeMap<u64, usize>,
    next_request: u64,
    /// Where events without a key go until a batch is full.
    keyless: usize,
    /// Bytes taken and not answered.
    bytes: usize,
    /// The present flush; and how many batches of each are unanswered.
    generation: u64,
    unanswered: BTreeMap<u64, usize>,
    counts: Published,
    first_error: Option<Error>,
    /// Why a batch was to be sent again, since the last receipt.
    waits_for: Option<Error>,
    /// Why the node that the stream is to is of no use: what it could not do for long another may.
    elsewhere: Option<Error>,
    /// No more events are taken.
    pub(crate) closing: bool,
    /// Why the producer has ended.
    pub(crate) ended: Option<Error>,
    dice: StdRng,
    settings: Settings,
}

impl State {
    pub(crate) fn new(
        partitions: u32,
        event_bytes: usize,
        identity: Identity,
        keyless: u64,
        dice: StdRng,
        settings: Settings,
    ) -> State {
        let limits = Limits { batch_bytes: settings.batch_bytes, event_bytes, ..Limits::default() };
        let now = Instant::now();
        let lanes: Vec<Lane> = (0..partitions).map(|index| Lane::new(index, limits, identity, now)).collect();
        State {
            keyless: usize::try_from(keyless % lanes.len() as u64).expect("below the number of lanes"),
            lanes,
            active: BTreeSet::new(),
            out: BTreeMap::new(),
            next_request: 1,
            bytes: 0,
            generation: 0,
            unanswered: BTreeMap::new(),
            counts: Published::default(),
            first_error: None,
            waits_for: None,
            elsewhere: None,
            closing: false,
            ended: None,
            dice,
            settings,
        }
    }

    /// Whether there is room for an event, or nothing to wait for.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < self.settings.in_flight_bytes_max
    }

    /// Packs an event into its partition; true if the sender has to look.
    pub(crate) fn push(&mut self, event: &Event, reply: Option<Reply>, now_ms: i64) -> Result<bool, Error> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        if self.closing {
            return Err(Error::Closed);
        }
        let keyless = event.key.is_empty();
        let index = if keyless {
            self.keyless
        } else {
            let partitions = u32::try_from(self.lanes.len()).expect("made from a u32");
            hashing::partition_of(&event.key, partitions) as usize
        };
        let pushed =
            self.lanes[index].push(event, reply, now_ms, self.generation).map_err(|error| unpackable(&error))?;
        self.note_sealed(usize::from(pushed.sealed));
        if keyless && pushed.sealed {
            self.keyless = (index + 1) % self.lanes.len();
        }
        self.bytes += pushed.bytes;
        if pushed.wake {
            self.active.insert(index);
        }
        Ok(pushed.wake)
    }

    fn note_sealed(&mut self, batches: usize) {
        if batches > 0 {
            *self.unanswered.entry(self.generation).or_default() += batches;
        }
    }

    /// Seals all that is packed; what was taken up to now belongs to the generation returned.
    pub(crate) fn seal_all(&mut self) -> u64 {
        let now = Instant::now();
        let mut sealed = 0;
        for index in &self.active {
            sealed += usize::from(self.lanes[*index].seal(self.generation, now));
        }
        self.note_sealed(sealed);
        self.generation += 1;
        self.generation - 1
    }

    /// Whether everything up to a generation is answered.
    pub(crate) fn answered(&self, generation: u64) -> bool {
        self.unanswered.first_key_value().is_none_or(|(first, _)| *first > generation)
    }

    /// Nothing is packed, queued or out.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// The counts, and the first error since the last call.
    pub(crate) fn report(&mut self) -> Result<Published, Error> {
        match self.first_error.take() {
            None => Ok(self.counts),
            Some(error) => Err(error),
        }
    }

    /// What was answered so far.
    pub(crate) fn counts(&self) -> Published {
        self.counts
    }

    /// Why nothing is stored at present, if so.
    pub(crate) fn waits_for(&self) -> Option<Error> {
        self.waits_for.clone()
    }

    /// The first error since the last report.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.first_error.clone()
    }

    /// The batches that are due now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<PublishBatch> {
        let mut batches = Vec::new();
        let active: Vec<usize> = self.active.iter().copied().collect();
        for index in active {
            let lane = &mut self.lanes[index];
            let partition = lane.partition;
            let mut sealed = 0;
            while let Some(next) = lane.next(self.next_request, now, self.settings.linger, self.generation) {
                sealed += usize::from(next.sealed);
                self.out.insert(self.next_request, index);
                batches.push(PublishBatch { request_id: self.next_request, partition, packed: next.packed });
                self.next_request += 1;
            }
            self.note_sealed(sealed);
        }
        batches
    }

    /// When to look again, if nothing else happens. A batch that is due and cannot go is no reason.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let patience = self.settings.patience;
        let lanes = || self.active.iter().map(|index| &self.lanes[*index]);
        let send = lanes().filter_map(|lane| lane.deadline(self.settings.linger)).min();
        let expire = lanes().filter_map(Lane::oldest).min().map(|sealed| sealed + patience);
        send.into_iter().chain(expire).min()
    }

    /// When the oldest unanswered request was sent.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.active.iter().filter_map(|index| self.lanes[*index].waiting_since()).min()
    }

    /// Takes one answer.
    pub(crate) fn answer(&mut self, answer: PublishAnswer, finished: &mut Finished) {
        let Some(index) = self.out.remove(&answer.request_id) else { return };
        let lane = &mut self.lanes[index];
        let error = match answer.result {
            Some(Answered::Receipt(receipt)) => {
                self.waits_for = None;
                if let Some(batch) = lane.stored(answer.request_id) {
                    self.finish(index, batch, Ok(receipt), finished);
                }
                return;
            }
            Some(Answered::Error(error)) => Error::from(error),
            None => Error::unknown("the node sent an empty answer"),
        };
        let pause = jittered(&mut self.dice, BACKOFF, lane.tries());
        match lane.refused(answer.request_id, &error, Instant::now(), pause) {
            (Outcome::Fatal, _) => self.end(error, finished),
            (Outcome::Done, Some(batch)) => self.finish(index, batch, Err(error), finished),
            (Outcome::Done | Outcome::Again, _) => {
                tracing::debug!(%error, partition = index, "a batch will be sent again");
                if gave_up(&error) {
                    self.elsewhere = Some(error.clone());
                }
                self.waits_for = Some(error);
            }
        }
    }

    /// Why the producer should go on at another node, if it should.
    pub(crate) fn elsewhere(&mut self) -> Option<Error> {
        self.elsewhere.take()
    }

    /// The stream is lost; everything unanswered begins again.
    pub(crate) fn lost(&mut self) {
        self.out.clear();
        for index in &self.active {
            self.lanes[*index].lost();
        }
    }

    /// Fails what has been tried for too long.
    pub(crate) fn expire(&mut self, now: Instant, last: Option<&Error>, finished: &mut Finished) {
        let Some(limit) = now.checked_sub(self.settings.patience) else { return };
        let active: Vec<usize> = self.active.iter().copied().collect();
        for index in active {
            while let Some((batch, unknown)) = self.lanes[index].expire(limit) {
                let why = self.waits_for.as_ref().or(last);
                let message = why.map_or_else(|| "no answer".into(), Error::to_string);
                let message = format!("given up after {:?}: {message}", self.settings.patience);
                let error = match why {
                    _ if unknown => Error::unknown(message),
                    // What nodes say is told under their code: a full disk is no lost connection.
                    Some(Error::Refused { code, retry, owner, .. }) => {
                        Error::Refused { code: *code, message: message.into(), retry: *retry, owner: *owner }
                    }
                    _ => Error::Unreachable(message.into()),
                };
                self.finish(index, batch, Err(error), finished);
            }
        }
    }

    /// A lane whose numbers cannot go on.
    pub(crate) fn unnumbered(&self) -> Option<usize> {
        self.active.iter().copied().find(|index| self.lanes[*index].needs_identity())
    }

    /// Goes on under another identity. What may be stored under the former one ends here with an unknown outcome.
    pub(crate) fn renumber(&mut self, index: usize, identity: Identity, finished: &mut Finished) {
        for batch in self.lanes[index].renumber(identity) {
            let error = Error::unknown("it may be stored, and its producer's numbers cannot go on");
            self.finish(index, batch, Err(error), finished);
        }
        self.retire(index);
    }

    /// Ends the producer: everything fails with `error`.
    pub(crate) fn end(&mut self, error: Error, finished: &mut Finished) {
        self.out.clear();
        let now = Instant::now();
        for index in std::mem::take(&mut self.active) {
            let batches = self.lanes[index].drain(self.generation, now);
            for batch in batches {
                let error = match batch.may_be_stored() {
                    true => Error::unknown(format!("it may be stored: {error}")),
                    false => error.clone(),
                };
                self.count(&batch, Some(&error));
                finished.push((batch, Err(error)));
            }
        }
        self.unanswered.clear();
        self.bytes = 0;
        self.first_error.get_or_insert_with(|| error.clone());
        self.ended = Some(error);
    }

    fn finish(&mut self, index: usize, batch: Batch, result: Result<Receipt, Error>, finished: &mut Finished) {
        self.count(&batch, result.as_ref().err());
        self.bytes -= batch.bytes;
        if let Some(left) = self.unanswered.get_mut(&batch.generation) {
            *left -= 1;
            if *left == 0 {
                self.unanswered.remove(&batch.generation);
            }
        }
        self.retire(index);
        finished.push((batch, result));
    }

    fn count(&mut self, batch: &Batch, error: Option<&Error>) {
        let count = u64::from(batch.count());
        match error {
            None => self.counts.events += count,
            Some(error) => {
                let unknown = error.code() == ErrorCode::OutcomeUnknown;
                *if unknown { &mut self.counts.unknown } else { &mut self.counts.failed } += count;
                self.first_error.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// A lane with nothing to do is passed over, unless it still waits for an identity.
    fn retire(&mut self, index: usize) {
        if self.lanes[index].is_idle() && !self.lanes[index].needs_identity() {
            self.active.remove(&index);
        }
    }
}

/// Whether a node has said that it tried for long and did not come to the owner. A full disk or queue is the owner's word,
/// and the same through any node.
fn gave_up(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::NotReady | ErrorCode::NoOwner | ErrorCode::OutcomeUnknown | ErrorCode::Deadline)
}

/// An event that can never be packed.
fn unpackable(error: &BatchError) -> Error {
    match error {
        BatchError::EventTooLarge { .. } => Error::Refused {
            code: ErrorCode::TooLarge,
            message: error.to_string().into(),
            retry: crate::error::Retry::Never,
            owner: 0,
        },
        _ => Error::invalid(error.to_string()),
    }
}
