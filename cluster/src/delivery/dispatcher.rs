use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::consumers::Consumers;
use super::ranges::{Answer, merged};
use super::timers::{Place, Timers};
use super::window::{Phase, Window};
use super::{Config, ConsumerId, Delivery, Effect, Input, NACK_DELAY_MAX, OffsetRange, RefusedBecause};
use crate::ids::Epoch;

/// Dispatch of one group on the partitions of one shard, for one epoch.
#[derive(Debug)]
pub struct Dispatcher {
    config: Config,
    epoch: Epoch,
    windows: BTreeMap<u32, Window>,
    consumers: Consumers,
    timers: Timers,
    /// To be given out again: before anything new.
    again: VecDeque<Place>,
    /// To be given out, with the consumer that had the one before of its key.
    ready: VecDeque<(Place, Option<ConsumerId>)>,
    in_flight: usize,
}

impl Dispatcher {
    /// A dispatcher with no partitions and no consumers. `seed`: for the jitter of backoffs and the turns of newcomers.
    pub fn new(epoch: Epoch, config: Config, seed: u64) -> Dispatcher {
        let config = Config { lookahead_events: config.lookahead_events.max(1), ..config };
        Dispatcher {
            config,
            epoch,
            windows: BTreeMap::new(),
            // The timers have the seed itself.
            consumers: Consumers::new(!seed),
            timers: Timers::new(seed),
            again: VecDeque::new(),
            ready: VecDeque::new(),
            in_flight: 0,
        }
    }

    /// Takes one input; what is to be done is added to `effects`. `now` never goes back.
    pub fn handle(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Open { partition, cursor } => {
                self.close(partition);
                self.windows.insert(partition, Window::new(cursor));
            }
            Input::Close { partition } => self.close(partition),
            Input::Events { partition, base, key_hashes } => self.events(partition, base, &key_hashes),
            Input::Join { consumer, credit } => {
                self.leave(consumer, true);
                self.consumers.add(consumer, credit);
            }
            Input::Leave { consumer, lost } => self.leave(consumer, lost),
            Input::Credit { consumer, events } => self.consumers.grant(consumer, events),
            Input::Ack { consumer, token, ranges } => {
                let Answer { propose, refused } = self.ack(consumer, ranges);
                effects.push(Effect::Ack { token, propose, refused });
            }
            Input::Nack { consumer, ranges, delay } => self.nack(now, consumer, ranges, delay),
            Input::Extend { consumer, ranges } => self.extend(now, consumer, ranges),
            Input::Committed { partition, ranges } => self.committed(partition, &ranges),
            Input::Tick => {}
        }
        self.expire(now);
        self.dispatch(now);
        self.consumers.flush(effects);
        self.want(effects);
        let (windows, in_flight) = (&self.windows, self.in_flight);
        self.timers.sweep(in_flight, |at, place| deadline_of(windows, place) == Some(at));
    }

    /// When to call with `Tick`, at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Events given out and not acked.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Events looked at: in flight, waiting, or acked behind one that is not.
    pub fn looked_at(&self) -> usize {
        self.windows.values().map(Window::len).sum()
    }

    fn close(&mut self, partition: u32) {
        if let Some(window) = self.windows.remove(&partition) {
            self.in_flight -= window.in_flight().count();
            self.timers.forget(partition);
            self.again.retain(|place| place.0 != partition);
            self.ready.retain(|(place, _)| place.0 != partition);
        }
    }

    fn events(&mut self, partition: u32, base: u64, key_hashes: &[u64]) {
        if let Some(window) = self.windows.get_mut(&partition) {
            let ready = |offset| self.ready.push_back(((partition, offset), None));
            window.extend(base, key_hashes, self.config.lookahead_events, ready);
        }
    }

    fn leave(&mut self, gone: ConsumerId, lost: bool) {
        self.consumers.remove(gone);
        for (partition, window) in &mut self.windows {
            let back: Vec<u64> = window.in_flight().filter(|(_, id)| *id == gone).map(|(offset, _)| offset).collect();
            for offset in back {
                if lost {
                    window.failed(offset);
                }
                window.set(offset, Phase::Ready);
                self.in_flight -= 1;
                self.again.push_back((*partition, offset));
            }
        }
    }

    fn ack(&mut self, consumer: ConsumerId, ranges: Vec<OffsetRange>) -> Answer {
        let mut answer = Answer::default();
        let mut answered = 0;
        for range in merged(ranges) {
            if range.epoch != self.epoch {
                self.ack_again(range, &mut answer);
            } else if let Some(window) = self.windows.get_mut(&range.partition) {
                let (ready, in_flight) = (&mut self.ready, &mut self.in_flight);
                for offset in window.clip(range.first, range.last) {
                    match window.phase(offset) {
                        Some(Phase::InFlight(holder, _)) if holder == consumer => {
                            *in_flight -= 1;
                            answered += 1;
                            answer.propose(range.partition, offset);
                            let next = window.finish(offset, Phase::Acked);
                            ready.extend(next.map(|next| ((range.partition, next), Some(consumer))));
                        }
                        // Said again before it is committed: the answer must wait for that, too.
                        Some(Phase::Acked) => answer.propose(range.partition, offset),
                        Some(Phase::Committed) => {}
                        _ => answer.refuse(OffsetRange { first: offset, last: offset, ..range }, NOT_IN_FLIGHT),
                    }
                }
                let unknown = range.first.max(window.next_offset());
                if unknown <= range.last {
                    answer.refuse(OffsetRange { first: unknown, ..range }, NOT_IN_FLIGHT);
                }
            } else {
                answer.refuse(range, RefusedBecause::UnknownPartition);
            }
        }
        self.consumers.answered(consumer, answered);
        answer
    }

    /// An ack of another epoch: its answer was lost with the owner it went to. What that one has committed is
    /// acked, and the consumer is told so; the rest was void when the epoch ended.
    fn ack_again(&self, range: OffsetRange, answer: &mut Answer) {
        let Some(window) = self.windows.get(&range.partition) else {
            return answer.refuse(range, RefusedBecause::UnknownPartition);
        };
        let first = range.first.max(window.base());
        let looked_at = first.saturating_add(ACKED_AGAIN_MAX);
        for offset in (first..=range.last).take_while(|offset| *offset < looked_at) {
            if !window.is_committed(offset) {
                answer.refuse(OffsetRange { first: offset, last: offset, ..range }, RefusedBecause::StaleEpoch);
            }
        }
        if looked_at <= range.last {
            answer.refuse(OffsetRange { first: looked_at, ..range }, RefusedBecause::StaleEpoch);
        }
    }

    fn nack(&mut self, now: Instant, consumer: ConsumerId, ranges: Vec<OffsetRange>, delay: Duration) {
        let held = self.held(consumer, ranges);
        self.consumers.answered(consumer, held.len() as u64);
        for (partition, offset) in held {
            let window = self.windows.get_mut(&partition).expect("`held` found it there");
            let failures = window.failed(offset);
            let wait = match delay {
                Duration::ZERO => self.timers.backoff_of(failures, &self.config),
                delay => delay.min(NACK_DELAY_MAX),
            };
            window.set(offset, Phase::Backoff(now + wait));
            self.in_flight -= 1;
            self.timers.backoff(now + wait, (partition, offset));
        }
    }

    fn extend(&mut self, now: Instant, consumer: ConsumerId, ranges: Vec<OffsetRange>) {
        let deadline = now + self.config.ack_deadline;
        for (partition, offset) in self.held(consumer, ranges) {
            let window = self.windows.get_mut(&partition).expect("`held` found it there");
            window.set(offset, Phase::InFlight(consumer, deadline));
            self.timers.deadline(deadline, (partition, offset));
        }
    }

    /// What of these ranges is in flight for a consumer, under this epoch.
    fn held(&self, consumer: ConsumerId, ranges: Vec<OffsetRange>) -> Vec<Place> {
        let mut held = Vec::new();
        for range in merged(ranges).into_iter().filter(|range| range.epoch == self.epoch) {
            let Some(window) = self.windows.get(&range.partition) else { continue };
            let holds = |offset: &u64| matches!(window.phase(*offset), Some(Phase::InFlight(id, _)) if id == consumer);
            held.extend(window.clip(range.first, range.last).filter(holds).map(|offset| (range.partition, offset)));
        }
        held
    }

    fn committed(&mut self, partition: u32, ranges: &[(u64, u64)]) {
        let Some(window) = self.windows.get_mut(&partition) else { return };
        for (first, last) in ranges {
            for offset in window.clip(*first, *last) {
                self.in_flight -= usize::from(matches!(window.phase(offset), Some(Phase::InFlight(..))));
                let next = window.finish(offset, Phase::Committed);
                self.ready.extend(next.map(|next| ((partition, next), None)));
            }
        }
        window.trim();
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, place)) = self.timers.pop_deadline(now) {
            if deadline_of(&self.windows, place) == Some(at) {
                self.in_flight -= 1;
                self.windows.get_mut(&place.0).expect("its deadline was just read").failed(place.1);
                self.return_ready(place);
            }
        }
        while let Some((at, place)) = self.timers.pop_backoff(now) {
            if self.phase(place) == Some(Phase::Backoff(at)) {
                self.return_ready(place);
            }
        }
    }

    fn return_ready(&mut self, place: Place) {
        self.windows.get_mut(&place.0).expect("its phase was just read").set(place.1, Phase::Ready);
        self.again.push_back(place);
    }

    fn dispatch(&mut self, now: Instant) {
        let deadline = now + self.config.ack_deadline;
        while self.consumers.free() > 0 {
            let again = self.again.pop_front().map(|place| (place, None));
            let Some((place, preferred)) = again.or_else(|| self.ready.pop_front()) else { break };
            if self.phase(place) != Some(Phase::Ready) {
                continue;
            }
            let consumer = self.consumers.choose(preferred).expect("there is free credit");
            let window = self.windows.get_mut(&place.0).expect("its phase was just read");
            let attempt = window.deliver(place.1, consumer, deadline);
            self.in_flight += 1;
            self.timers.deadline(deadline, place);
            self.consumers.give(consumer, Delivery { partition: place.0, offset: place.1, attempt });
        }
    }

    /// Asks for more only while someone would take it, so that memory follows the consumers and not the backlog; and
    /// by quarters of the window, so that a batch is not read again for each event.
    fn want(&mut self, effects: &mut Vec<Effect>) {
        let enough = (self.again.len() + self.ready.len()) as u64 >= self.consumers.free();
        let max = self.config.lookahead_events;
        for (partition, window) in &mut self.windows {
            if !enough && !window.wanted && window.len() <= max - max.div_ceil(4) {
                window.wanted = true;
                effects.push(Effect::WantMore { partition: *partition, from: window.next_offset() });
            }
        }
    }

    fn phase(&self, place: Place) -> Option<Phase> {
        self.windows.get(&place.0)?.phase(place.1)
    }
}

/// Offsets of one ack of another epoch that are looked at; what is beyond is refused.
const ACKED_AGAIN_MAX: u64 = super::LOOKAHEAD_EVENTS_MAX as u64;
const NOT_IN_FLIGHT: RefusedBecause = RefusedBecause::NotInFlight;

fn deadline_of(windows: &BTreeMap<u32, Window>, place: Place) -> Option<Instant> {
    match windows.get(&place.0)?.phase(place.1)? {
        Phase::InFlight(_, deadline) => Some(deadline),
        _ => None,
    }
}
