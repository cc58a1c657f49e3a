//! How a group's members share its events, over shards that decide without each other.

use std::collections::BTreeMap;
use std::time::Instant;

use super::*;

const EPOCH: Epoch = Epoch(1);
const MEMBERS: [ConsumerId; 3] = [ConsumerId(0), ConsumerId(1), ConsumerId(2)];

/// A shard that owns a few partitions of a topic. Members join in the same order everywhere, as they do when they start
/// one after the other; which node a member is connected to is nothing that a shard looks at.
struct Shard {
    dispatcher: Dispatcher,
    now: Instant,
    /// Key hashes of each partition.
    logs: Vec<Vec<u64>>,
    /// Given out and not settled.
    open: BTreeMap<ConsumerId, Vec<Delivery>>,
    /// Events given to each member so far.
    given: BTreeMap<ConsumerId, usize>,
}

impl Shard {
    fn new(number: u64, partitions: u32) -> Shard {
        let mut shard = Shard {
            dispatcher: Dispatcher::new(EPOCH, Config::default(), number),
            now: crate::origin(),
            logs: vec![Vec::new(); partitions as usize],
            open: BTreeMap::new(),
            given: BTreeMap::new(),
        };
        (0..partitions).for_each(|partition| shard.input(Input::Open { partition, cursor: Cursor::default() }));
        shard
    }

    fn join(&mut self, consumer: ConsumerId, credit: u64) {
        self.given.insert(consumer, 0);
        self.input(Input::Join { consumer, credit });
    }

    fn input(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.dispatcher.handle(self.now, input, &mut effects);
        for effect in effects {
            if let Effect::Deliver { consumer, deliveries } = effect {
                *self.given.entry(consumer).or_default() += deliveries.len();
                self.open.entry(consumer).or_default().extend(deliveries);
            }
        }
    }

    fn publish(&mut self, partition: u32, key_hashes: &[u64]) {
        let log = &mut self.logs[partition as usize];
        let base = log.len() as u64;
        log.extend(key_hashes);
        self.input(Input::Events { partition, base, key_hashes: key_hashes.to_vec() });
    }

    /// A member acks the first `events` of what it has, and gives their credit back afterwards, as the SDK does.
    fn settle(&mut self, consumer: ConsumerId, events: usize) {
        let open = self.open.entry(consumer).or_default();
        let done: Vec<_> = open.drain(..events.min(open.len())).collect();
        if done.is_empty() {
            return;
        }
        let range =
            |at: &Delivery| OffsetRange { partition: at.partition, epoch: EPOCH, first: at.offset, last: at.offset };
        let ranges: Vec<_> = done.iter().map(range).collect();
        self.input(Input::Ack { consumer, token: 0, ranges: ranges.clone() });
        for range in ranges {
            self.input(Input::Committed { partition: range.partition, ranges: vec![(range.first, range.last)] });
        }
        self.input(Input::Credit { consumer, events: done.len() as u64 });
    }

    fn settle_all(&mut self) {
        MEMBERS.iter().for_each(|member| self.settle(*member, usize::MAX));
    }

    fn given(&self) -> Vec<usize> {
        self.given.values().copied().collect()
    }
}

/// The most that one member got beyond another.
fn spread(given: &[usize]) -> usize {
    given.iter().max().unwrap_or(&0) - given.iter().min().unwrap_or(&0)
}

#[test]
fn members_with_nothing_to_do_take_turns() {
    // Without keys, each with a key of its own, all with one key.
    for key_of in [|_: u64| 0, |number: u64| number + 1, |_: u64| 7] {
        // Also if one takes more than the others.
        for credits in [[64, 64, 64], [64, 10, 1]] {
            let mut shard = Shard::new(1, 2);
            MEMBERS.into_iter().zip(credits).for_each(|(member, credit)| shard.join(member, credit));
            for number in 0..300 {
                shard.publish((number % 2) as u32, &[key_of(number)]);
                shard.settle_all();
            }
            assert_eq!(shard.given(), [100, 100, 100], "{credits:?}");
        }
    }
}

#[test]
fn the_first_events_of_many_shards_go_to_different_members() {
    let mut given = vec![0; MEMBERS.len()];
    for number in 0..64 {
        let mut shard = Shard::new(number, 1);
        MEMBERS.into_iter().for_each(|member| shard.join(member, 4));
        shard.publish(0, &[number + 1]);
        given.iter_mut().zip(shard.given()).for_each(|(sum, given)| *sum += given);
    }
    assert!(given.iter().all(|given| *given >= 10), "{given:?} of 64");
}

#[test]
fn a_backlog_is_shared_by_all_who_take_of_it() {
    for key_of in [|_: u64| 0, |number: u64| 1 + number % 50] {
        let mut shard = Shard::new(2, 3);
        MEMBERS.into_iter().for_each(|member| shard.join(member, 10));
        for partition in 0..3 {
            shard.publish(partition, &(0..1_000).map(key_of).collect::<Vec<_>>());
        }
        // Each at its own pace, all as fast as the others.
        for round in 0..300 {
            shard.settle(MEMBERS[round % 3], 1 + round % 10);
        }
        let given = shard.given();
        assert!(spread(&given) <= given.iter().sum::<usize>() / 20, "{given:?}");
    }
}

/// Lanes stay with their consumer while that is fair: those that have all begun with one go to others when they come.
#[test]
fn busy_lanes_spread_to_members_that_come_later() {
    let mut shard = Shard::new(3, 1);
    shard.join(MEMBERS[0], 100);
    let keys: Vec<u64> = (0..3_000).map(|number| 1 + number % 9).collect();
    shard.publish(0, &keys);
    assert_eq!(shard.open[&MEMBERS[0]].len(), 9, "one of each key");
    shard.join(MEMBERS[1], 100);
    shard.join(MEMBERS[2], 100);
    (0..10).for_each(|_| shard.settle_all());
    assert!(MEMBERS.iter().all(|member| shard.open[member].len() == 3), "{:?}", shard.open);
    // From now on each key has its place.
    let key_of = |place: &Delivery| keys[place.offset as usize];
    let keys_of = |shard: &Shard| -> Vec<Vec<u64>> {
        let sorted = |open: &Vec<Delivery>| {
            let mut keys: Vec<_> = open.iter().map(key_of).collect();
            keys.sort_unstable();
            keys
        };
        shard.open.values().map(sorted).collect()
    };
    let before = keys_of(&shard);
    (0..10).for_each(|_| shard.settle_all());
    assert_eq!(keys_of(&shard), before);
}

#[test]
fn who_settles_nothing_is_given_little_more() {
    let mut shard = Shard::new(4, 1);
    MEMBERS.into_iter().for_each(|member| shard.join(member, 50));
    for number in 0..400 {
        shard.publish(0, &[0]);
        if number % 2 == 1 {
            shard.settle(MEMBERS[1], usize::MAX);
            shard.settle(MEMBERS[2], usize::MAX);
        }
        if number % 20 == 19 {
            // What it has let expire counts on: it comes to the others.
            shard.now += Config::default().ack_deadline;
            shard.open.insert(MEMBERS[0], Vec::new());
            shard.input(Input::Tick);
        }
    }
    let given = shard.given();
    assert!(given[0] <= 3 && spread(&given[1..]) <= 2, "{given:?}");
}

/// Neither who acks and never gives credit back, nor who only gives credit back, looks busier than it is.
#[test]
fn a_client_may_say_less() {
    let mut shard = Shard::new(5, 1);
    shard.join(MEMBERS[0], 1_000);
    shard.join(MEMBERS[1], 10);
    for _ in 0..100 {
        shard.publish(0, &[0, 0]);
        let open = std::mem::take(&mut shard.open);
        for (consumer, open) in open {
            let range = |at: Delivery| OffsetRange { partition: 0, epoch: EPOCH, first: at.offset, last: at.offset };
            let (events, ranges) = (open.len() as u64, open.into_iter().map(range).collect());
            match consumer == MEMBERS[0] {
                true => shard.input(Input::Ack { consumer, token: 0, ranges }),
                false => shard.input(Input::Credit { consumer, events }),
            }
        }
    }
    assert_eq!(shard.given(), [100, 100]);
}
