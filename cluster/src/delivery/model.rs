//! A group under random consumers, acks, nacks, deadlines, losses and new epochs, against the promises.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const ACK_DEADLINE: Duration = Duration::from_secs(10);
const PARTITIONS: u32 = 2;

#[derive(Clone, Debug)]
enum Step {
    Join(u64, u64),
    Leave(u64, bool),
    Credit(u64, u64),
    /// Acks the n-th of what is in flight, whoever has it.
    Ack(usize),
    /// Acks a range blindly, as a broken client may.
    BlindAck(u64, u32, u64, u64),
    Nack(usize, u64),
    Extend(usize),
    Wait(u64),
    /// Commits what is proposed, up to n acks.
    Commit(usize),
    Append(u32, Vec<u64>),
    /// The owner is lost with all that is not committed.
    NewEpoch,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..4u64, 0..6u64).prop_map(|(id, credit)| Step::Join(id, credit)),
        1 => (0..4u64, any::<bool>()).prop_map(|(id, lost)| Step::Leave(id, lost)),
        3 => (0..4u64, 1..8u64).prop_map(|(id, credit)| Step::Credit(id, credit)),
        8 => (0..20usize).prop_map(Step::Ack),
        1 => (0..4u64, 0..3u32, 0..30u64, 0..12u64).prop_map(|(id, p, first, n)| Step::BlindAck(id, p, first, n)),
        2 => (0..20usize, 0..5_000u64).prop_map(|(n, delay)| Step::Nack(n, delay)),
        1 => (0..20usize).prop_map(Step::Extend),
        2 => (0..12_000u64).prop_map(Step::Wait),
        4 => (0..9usize).prop_map(Step::Commit),
        2 => (0..PARTITIONS, proptest::collection::vec(0..5u64, 1..9)).prop_map(|(p, keys)| Step::Append(p, keys)),
        1 => Just(Step::NewEpoch),
    ]
}

/// The driver, the log and the promises.
struct Model {
    dispatcher: Dispatcher,
    now: Instant,
    epoch: u64,
    lookahead: usize,
    /// Key of each event.
    logs: Vec<Vec<u64>>,
    cursors: Vec<Cursor>,
    wanted: BTreeMap<u32, u64>,
    proposed: Vec<Vec<ProposedRange>>,
    /// Consumers with the streams they use now, and their free credit.
    streams: BTreeMap<u64, (ConsumerId, u64)>,
    next_stream: u64,
    /// In flight: place to stream, attempt and deadline.
    in_flight: BTreeMap<(u32, u64), (ConsumerId, u32, Instant)>,
    attempts: BTreeMap<(u32, u64), u32>,
    /// Acked in this epoch, committed or not.
    received: BTreeSet<(u32, u64)>,
}

impl Model {
    fn new(now: Instant, lookahead: usize) -> Model {
        let mut model = Model {
            dispatcher: Dispatcher::new(Epoch(0), Config::default(), 0),
            now,
            epoch: 0,
            lookahead,
            logs: vec![Vec::new(); PARTITIONS as usize],
            cursors: vec![Cursor::default(); PARTITIONS as usize],
            wanted: BTreeMap::new(),
            proposed: Vec::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            in_flight: BTreeMap::new(),
            attempts: BTreeMap::new(),
            received: BTreeSet::new(),
        };
        model.new_epoch();
        model
    }

    fn new_epoch(&mut self) {
        self.epoch += 1;
        let config = Config { ack_deadline: ACK_DEADLINE, lookahead_events: self.lookahead, ..Config::default() };
        self.dispatcher = Dispatcher::new(Epoch(self.epoch), config, self.epoch);
        self.wanted.clear();
        self.proposed.clear();
        self.streams.clear();
        self.in_flight.clear();
        self.attempts.clear();
        self.received.clear();
        for partition in 0..PARTITIONS {
            let cursor = self.cursors[partition as usize].clone();
            self.input(Input::Open { partition, cursor });
        }
    }

    fn input(&mut self, input: Input) {
        let mut effects = Vec::new();
        // A deadline that has passed is only acted on after the input: what it freed may be given out again.
        let late_acks = matches!(input, Input::Ack { .. } | Input::Extend { .. } | Input::Nack { .. });
        if !late_acks {
            self.expire();
        }
        self.dispatcher.handle(self.now, input, &mut effects);
        self.answer(effects);
    }

    fn expire(&mut self) {
        let now = self.now;
        self.in_flight.retain(|_, (_, _, deadline)| *deadline > now);
    }

    fn answer(&mut self, effects: Vec<Effect>) {
        for effect in &effects {
            if let Effect::Ack { propose, .. } = effect {
                let places = propose.iter().flat_map(|p| (p.first..=p.last).map(|offset| (p.partition, offset)));
                for place in places.collect::<Vec<_>>() {
                    self.in_flight.remove(&place);
                    self.received.insert(place);
                }
                self.proposed.push(propose.clone());
            }
        }
        self.expire();
        for effect in effects {
            match effect {
                Effect::Deliver { consumer, deliveries } => {
                    deliveries.into_iter().for_each(|delivery| self.deliver(consumer, delivery));
                }
                Effect::WantMore { partition, from } => {
                    assert_eq!(self.wanted.insert(partition, from), None, "said once");
                }
                Effect::Ack { .. } => {}
            }
        }
        let looked_at = self.dispatcher.looked_at();
        assert!(looked_at <= self.lookahead * PARTITIONS as usize, "memory is bounded, {looked_at} events");
        assert_eq!(self.dispatcher.in_flight(), self.in_flight.len());
        self.feed();
    }

    fn feed(&mut self) {
        for partition in 0..PARTITIONS {
            let log = &self.logs[partition as usize];
            let Some(from) = self.wanted.get(&partition).copied().filter(|from| *from < log.len() as u64) else {
                continue;
            };
            self.wanted.remove(&partition);
            // A batch begins before what is wanted, most times.
            let base = from - from % 3;
            let key_hashes = log[base as usize..].iter().take(9).copied().collect();
            self.input(Input::Events { partition, base, key_hashes });
        }
    }

    fn deliver(&mut self, consumer: ConsumerId, delivery: Delivery) {
        let place = (delivery.partition, delivery.offset);
        let key = self.logs[place.0 as usize][place.1 as usize];
        assert!(!self.cursors[place.0 as usize].contains(place.1), "P4: {place:?} is acked and committed");
        assert!(!self.received.contains(&place), "P4: {place:?} is acked in this epoch");
        assert!(!self.in_flight.contains_key(&place), "{place:?} is in flight");
        let (_, credit) = self.streams.values_mut().find(|(stream, _)| *stream == consumer).expect("it is there");
        *credit = credit.checked_sub(1).expect("it has credit");
        if key != 0 {
            let log = self.logs[place.0 as usize].iter().zip(0..);
            for offset in log.filter(|(other, _)| **other == key).map(|(_, offset)| offset) {
                let other = (place.0, offset);
                assert!(!self.in_flight.contains_key(&other), "P5: {other:?} of the same key is in flight");
                let done = self.received.contains(&other) || self.cursors[place.0 as usize].contains(offset);
                assert!(offset >= place.1 || done, "P5: {other:?} of the same key is not handled before {place:?}");
            }
        }
        let attempt = self.attempts.entry(place).or_default();
        *attempt += 1;
        assert_eq!(delivery.attempt, *attempt);
        self.in_flight.insert(place, (consumer, delivery.attempt, self.now + ACK_DEADLINE));
    }

    fn nth(&self, n: usize) -> Option<((u32, u64), ConsumerId)> {
        let count = self.in_flight.len().max(1);
        self.in_flight.iter().nth(n % count).map(|(place, (consumer, ..))| (*place, *consumer))
    }

    fn range(&self, place: (u32, u64), last: u64) -> Vec<OffsetRange> {
        vec![OffsetRange { partition: place.0, epoch: Epoch(self.epoch), first: place.1, last }]
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Join(id, credit) => {
                self.step(Step::Leave(id, false));
                let consumer = ConsumerId(self.next_stream);
                self.next_stream += 1;
                self.streams.insert(id, (consumer, credit));
                self.input(Input::Join { consumer, credit });
            }
            Step::Leave(id, lost) => {
                if let Some((consumer, _)) = self.streams.remove(&id) {
                    let held = |(_, (holder, ..)): &(&(u32, u64), &(ConsumerId, u32, Instant))| *holder == consumer;
                    let back: Vec<_> = self.in_flight.iter().filter(held).map(|(place, _)| *place).collect();
                    self.in_flight.retain(|_, (holder, ..)| *holder != consumer);
                    self.input(Input::Leave { consumer, lost });
                    // With no deadline passed and no back-off to wait for: whoever has credit has them already.
                    let free: u64 = self.streams.values().map(|(_, credit)| *credit).sum();
                    assert!(free == 0 || back.iter().all(|place| self.in_flight.contains_key(place)), "at once");
                }
            }
            Step::Credit(id, events) => {
                if let Some((consumer, credit)) = self.streams.get_mut(&id) {
                    *credit += events;
                    let consumer = *consumer;
                    self.input(Input::Credit { consumer, events });
                }
            }
            Step::Ack(n) => {
                if let Some((place, consumer)) = self.nth(n) {
                    let ranges = self.range(place, place.1);
                    self.input(Input::Ack { consumer, token: 1, ranges });
                    assert!(self.received.contains(&place), "an ack of what is in flight is accepted");
                }
            }
            Step::BlindAck(id, partition, first, count) => {
                if let Some((consumer, _)) = self.streams.get(&id).copied() {
                    let not_its: Vec<_> = self.in_flight.iter().filter(|(_, held)| held.0 != consumer).collect();
                    let not_its: Vec<_> = not_its.into_iter().map(|(place, _)| *place).collect();
                    let before = self.received.clone();
                    let ranges = self.range((partition, first), first + count);
                    self.input(Input::Ack { consumer, token: 2, ranges });
                    assert!(!not_its.iter().any(|place| self.received.contains(place) && !before.contains(place)));
                }
            }
            Step::Nack(n, delay) => {
                if let Some((place, consumer)) = self.nth(n) {
                    self.in_flight.remove(&place);
                    let delay = Duration::from_millis(delay);
                    let ranges = self.range(place, place.1);
                    self.input(Input::Nack { consumer, ranges, delay });
                }
            }
            Step::Extend(n) => {
                if let Some((place, consumer)) = self.nth(n) {
                    self.in_flight.get_mut(&place).expect("it is there").2 = self.now + ACK_DEADLINE;
                    let ranges = self.range(place, place.1);
                    self.input(Input::Extend { consumer, ranges });
                }
            }
            Step::Wait(ms) => {
                let end = self.now + Duration::from_millis(ms);
                while let Some(at) = self.dispatcher.next_deadline().filter(|at| *at <= end) {
                    self.now = self.now.max(at);
                    self.input(Input::Tick);
                    assert!(
                        self.dispatcher.next_deadline().is_none_or(|next| next > self.now),
                        "a tick makes progress"
                    );
                }
                self.now = end;
            }
            Step::Commit(n) => {
                let n = n.min(self.proposed.len());
                for range in self.proposed.drain(..n).flatten().collect::<Vec<_>>() {
                    self.cursors[range.partition as usize].ack(range.first, range.last);
                    let ranges = vec![(range.first, range.last)];
                    self.input(Input::Committed { partition: range.partition, ranges });
                }
            }
            Step::Append(partition, keys) => {
                self.logs[partition as usize].extend(keys);
                self.feed();
            }
            Step::NewEpoch => self.new_epoch(),
        }
    }

    /// With one honest consumer everything is delivered and acked in the end.
    fn finish(&mut self) {
        self.step(Step::Join(99, 1_000_000));
        for _ in 0..10_000 {
            let done = |partition: usize| self.cursors[partition].acked_below() == self.logs[partition].len() as u64;
            if (0..PARTITIONS as usize).all(done) {
                assert_eq!((self.dispatcher.in_flight(), self.dispatcher.looked_at()), (0, 0));
                return;
            }
            if self.in_flight.is_empty() {
                self.step(Step::Wait(40_000));
            }
            self.step(Step::Ack(0));
            self.step(Step::Commit(usize::MAX));
        }
        panic!("not everything is delivered: {:?} of {:?}", self.cursors, self.logs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn promises_hold(lookahead in 1..20usize, steps in proptest::collection::vec(step(), 1..120)) {
        let mut model = Model::new(crate::origin(), lookahead);
        for step in steps {
            model.step(step);
        }
        model.finish();
    }
}
