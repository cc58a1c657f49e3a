use std::time::{Duration, Instant};

use super::*;

/// With this seed A comes first where nothing else decides.
const SEED: u64 = 7;
const A: ConsumerId = ConsumerId(1);
const B: ConsumerId = ConsumerId(2);
const EPOCH: Epoch = Epoch(3);
const ACK_DEADLINE: Duration = Duration::from_secs(30);

/// A dispatcher with partition 0 open, and its clock.
struct Bench {
    dispatcher: Dispatcher,
    now: Instant,
}

impl Bench {
    fn new(config: Config, cursor: Cursor) -> Bench {
        let mut bench = Bench { dispatcher: Dispatcher::new(EPOCH, config, SEED), now: crate::origin() };
        assert_eq!(bench.input(Input::Open { partition: 0, cursor }), []);
        bench
    }

    /// Two consumers and events 0.. of these keys, all of whose first deliveries are returned.
    fn with(key_hashes: &[u64], credit_a: u64, credit_b: u64) -> (Bench, Vec<Effect>) {
        let mut bench = Bench::new(Config::default(), Cursor::default());
        bench.input(Input::Join { consumer: A, credit: credit_a });
        bench.input(Input::Join { consumer: B, credit: credit_b });
        let effects = bench.events(0, key_hashes);
        (bench, effects)
    }

    fn input(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.dispatcher.handle(self.now, input, &mut effects);
        effects
    }

    fn events(&mut self, base: u64, key_hashes: &[u64]) -> Vec<Effect> {
        self.input(Input::Events { partition: 0, base, key_hashes: key_hashes.to_vec() })
    }

    fn ack(&mut self, consumer: ConsumerId, first: u64, last: u64) -> Vec<Effect> {
        self.input(Input::Ack { consumer, token: 1, ranges: vec![range(first, last)] })
    }

    fn commit(&mut self, first: u64, last: u64) -> Vec<Effect> {
        self.input(Input::Committed { partition: 0, ranges: vec![(first, last)] })
    }

    fn wait(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.input(Input::Tick)
    }
}

fn range(first: u64, last: u64) -> OffsetRange {
    OffsetRange { partition: 0, epoch: EPOCH, first, last }
}

fn deliver(consumer: ConsumerId, deliveries: &[(u64, u32)]) -> Effect {
    let delivery = |&(offset, attempt)| Delivery { partition: 0, offset, attempt };
    Effect::Deliver { consumer, deliveries: deliveries.iter().map(delivery).collect() }
}

fn acked(ranges: &[(u64, u64)], refused: &[(u64, u64)]) -> Effect {
    let propose = ranges.iter().map(|&(first, last)| ProposedRange { partition: 0, first, last }).collect();
    let refuse = |&(first, last)| RefusedRange { range: range(first, last), reason: RefusedBecause::NotInFlight };
    Effect::Ack { token: 1, propose, refused: refused.iter().map(refuse).collect() }
}

fn want(from: u64) -> Effect {
    Effect::WantMore { partition: 0, from }
}

#[test]
fn nothing_is_read_until_someone_takes_it() {
    let mut bench = Bench::new(Config::default(), Cursor::at(40));
    assert_eq!(bench.input(Input::Join { consumer: A, credit: 0 }), []);
    assert_eq!(bench.input(Input::Credit { consumer: A, events: 2 }), [want(40)]);
    assert_eq!(bench.input(Input::Credit { consumer: A, events: 1 }), []);
    // The batch begins before the cursor, and holds more than is taken.
    assert_eq!(bench.events(38, &[0; 10]), [deliver(A, &[(40, 1), (41, 1), (42, 1)])]);
    // As long as what is known is enough for the credit, nothing more is asked for.
    assert_eq!(
        bench.input(Input::Credit { consumer: A, events: 4 }),
        [deliver(A, &[(43, 1), (44, 1), (45, 1), (46, 1)])]
    );
    assert_eq!(bench.input(Input::Credit { consumer: A, events: 2 }), [deliver(A, &[(47, 1)]), want(48)]);
}

#[test]
fn a_lane_goes_on_when_its_ack_is_received() {
    let (mut bench, effects) = Bench::with(&[5, 5, 6, 5, 0, 0], 9, 9);
    assert_eq!(effects, [deliver(A, &[(0, 1), (4, 1)]), deliver(B, &[(2, 1), (5, 1)]), want(6)]);
    assert_eq!(bench.ack(A, 0, 0), [acked(&[(0, 0)], &[]), deliver(A, &[(1, 1)])]);
    // The same ack again, before it is committed: it has to be committed, too.
    assert_eq!(bench.ack(A, 0, 0), [acked(&[(0, 0)], &[])]);
    assert_eq!(bench.commit(0, 0), []);
    assert_eq!(bench.ack(A, 0, 0), [acked(&[], &[])]);
    assert_eq!(bench.ack(A, 0, 5), [acked(&[(1, 1), (4, 4)], &[(2, 3), (5, 5)]), deliver(A, &[(3, 1)])]);
}

#[test]
fn an_ack_whose_answer_was_lost_with_its_owner_is_answered_by_what_is_committed() {
    let mut bench = Bench::new(Config::default(), Cursor::at(3));
    bench.input(Input::Join { consumer: A, credit: 9 });
    bench.events(0, &[0; 6]);
    assert_eq!(bench.ack(A, 4, 4), [acked(&[(4, 4)], &[])]);
    bench.commit(4, 4);
    let before = OffsetRange { epoch: Epoch(2), ..range(1, 5) };
    let stale = |first, last| RefusedRange {
        range: OffsetRange { epoch: Epoch(2), ..range(first, last) },
        reason: RefusedBecause::StaleEpoch,
    };
    let effects = bench.input(Input::Ack { consumer: B, token: 1, ranges: vec![before] });
    assert_eq!(effects, [Effect::Ack { token: 1, propose: vec![], refused: vec![stale(3, 3), stale(5, 5)] }]);
    let all = OffsetRange { epoch: Epoch(2), ..range(0, u64::MAX) };
    let effects = bench.input(Input::Ack { consumer: B, token: 2, ranges: vec![all] });
    assert_eq!(effects, [Effect::Ack { token: 2, propose: vec![], refused: vec![stale(3, 3), stale(5, u64::MAX)] }]);
}

#[test]
fn acks_of_what_is_not_in_flight_are_refused() {
    let (mut bench, _) = Bench::with(&[5, 5], 1, 0);
    assert_eq!(bench.ack(B, 0, 0), [acked(&[], &[(0, 0)])]);
    assert_eq!(bench.ack(A, 1, 1), [acked(&[], &[(1, 1)])]);
    assert_eq!(bench.ack(A, 5, u64::MAX), [acked(&[], &[(5, u64::MAX)])]);
    assert_eq!(bench.ack(A, 4, 3), [acked(&[], &[])]);
    let stale = OffsetRange { epoch: Epoch(2), ..range(0, 0) };
    let elsewhere = OffsetRange { partition: 9, ..range(0, 0) };
    let refused = [(stale, RefusedBecause::StaleEpoch), (elsewhere, RefusedBecause::UnknownPartition)];
    let refused = refused.map(|(range, reason)| RefusedRange { range, reason }).to_vec();
    let effects = bench.input(Input::Ack { consumer: A, token: 8, ranges: vec![elsewhere, stale] });
    assert_eq!(effects, [Effect::Ack { token: 8, propose: vec![], refused }]);
    // All of it, however it is written, is looked at once.
    let ranges = vec![range(0, u64::MAX); 1000];
    let effects = bench.input(Input::Ack { consumer: A, token: 1, ranges });
    assert_eq!(effects, [acked(&[(0, 0)], &[(1, u64::MAX)])]);
}

#[test]
fn a_deadline_gives_the_event_to_another() {
    let (mut bench, effects) = Bench::with(&[5, 5], 2, 1);
    assert_eq!(effects, [deliver(A, &[(0, 1)]), want(2)]);
    assert_eq!(bench.dispatcher.next_deadline(), Some(bench.now + ACK_DEADLINE));
    assert_eq!(bench.wait(ACK_DEADLINE - Duration::from_millis(1)), []);
    assert_eq!(bench.wait(Duration::from_millis(1)), [deliver(B, &[(0, 2)])]);
    assert_eq!(bench.ack(A, 0, 0), [acked(&[], &[(0, 0)])]);
    assert_eq!(bench.ack(B, 0, 0), [acked(&[(0, 0)], &[]), deliver(A, &[(1, 1)])]);
}

#[test]
fn extending_restarts_the_deadline() {
    let (mut bench, _) = Bench::with(&[5], 1, 1);
    bench.wait(ACK_DEADLINE / 2);
    assert_eq!(bench.input(Input::Extend { consumer: A, ranges: vec![range(0, 9)] }), []);
    assert_eq!(bench.wait(ACK_DEADLINE / 2), []);
    assert_eq!(bench.dispatcher.next_deadline(), Some(bench.now + ACK_DEADLINE / 2));
    assert_eq!(bench.input(Input::Extend { consumer: B, ranges: vec![range(0, 9)] }), []);
    assert_eq!(bench.wait(ACK_DEADLINE / 2), [deliver(B, &[(0, 2)])]);
}

#[test]
fn a_nack_waits_as_long_as_it_says_and_holds_its_lane() {
    let (mut bench, _) = Bench::with(&[5, 5, 6], 4, 0);
    let delay = Duration::from_secs(2);
    assert_eq!(bench.input(Input::Nack { consumer: A, ranges: vec![range(0, 1)], delay }), []);
    assert_eq!(bench.ack(A, 0, 0), [acked(&[], &[(0, 0)])]);
    assert_eq!(bench.dispatcher.next_deadline(), Some(bench.now + delay));
    assert_eq!(bench.wait(delay), [deliver(A, &[(0, 2)])]);
    assert_eq!(bench.ack(A, 0, 0), [acked(&[(0, 0)], &[]), deliver(A, &[(1, 1)])]);
}

#[test]
fn backoff_doubles_with_jitter_up_to_its_limit() {
    let (mut bench, _) = Bench::with(&[5], 100, 0);
    let config = Config::default();
    for attempt in 1..40u32 {
        let start = bench.now;
        bench.input(Input::Nack { consumer: A, ranges: vec![range(0, 0)], delay: Duration::ZERO });
        let at = bench.dispatcher.next_deadline().unwrap();
        let full = config.backoff_min.saturating_mul(2u32.saturating_pow(attempt - 1)).min(config.backoff_max);
        assert!((full / 2..=full).contains(&(at - start)), "attempt {attempt}: {:?}", at - start);
        assert_eq!(bench.wait(at - start), [deliver(A, &[(0, attempt + 1)])]);
    }
    let forever = Duration::MAX;
    bench.input(Input::Nack { consumer: A, ranges: vec![range(0, 0)], delay: forever });
    assert_eq!(bench.dispatcher.next_deadline(), Some(bench.now + NACK_DELAY_MAX));
}

#[test]
fn what_a_lost_consumer_had_goes_to_others_at_once() {
    let (mut bench, effects) = Bench::with(&[5, 6, 5, 7], 0, 3);
    assert_eq!(effects, [deliver(B, &[(0, 1), (1, 1), (3, 1)])]);
    bench.ack(B, 1, 1);
    bench.input(Input::Credit { consumer: A, events: 5 });
    assert_eq!(bench.input(Input::Leave { consumer: B, lost: true }), [deliver(A, &[(0, 2), (3, 2)])]);
    assert_eq!(bench.ack(B, 0, 0), [acked(&[], &[(0, 0)])]);
    assert_eq!(bench.ack(A, 0, 0), [acked(&[(0, 0)], &[]), deliver(A, &[(2, 1)])]);
}

#[test]
fn what_a_consumer_gives_back_goes_to_the_next_in_order_and_has_not_failed() {
    let (mut bench, effects) = Bench::with(&[5, 6, 5, 7], 0, 3);
    assert_eq!(effects, [deliver(B, &[(0, 1), (1, 1), (3, 1)])]);
    // Nobody else takes events yet: they wait for whoever comes, and for no deadline.
    assert_eq!(bench.input(Input::Leave { consumer: B, lost: false }), []);
    assert_eq!((bench.dispatcher.in_flight(), bench.dispatcher.next_deadline()), (0, None));
    let effects = bench.input(Input::Credit { consumer: A, events: 4 });
    assert_eq!(effects, [deliver(A, &[(0, 2), (1, 2), (3, 2)]), want(4)]);
    assert_eq!(bench.ack(A, 0, 0), [acked(&[(0, 0)], &[]), deliver(A, &[(2, 1)])]);
}

#[test]
fn backoff_grows_with_failures_and_not_with_leaves() {
    let after = |leaves: &[bool]| {
        let (mut bench, _) = Bench::with(&[0], 9, 0);
        for lost in leaves {
            bench.input(Input::Leave { consumer: A, lost: *lost });
            bench.input(Input::Join { consumer: A, credit: 9 });
        }
        bench.input(Input::Nack { consumer: A, ranges: vec![range(0, 0)], delay: Duration::ZERO });
        bench.dispatcher.next_deadline().expect("a backoff") - bench.now
    };
    let first = Duration::from_millis(50)..=Duration::from_millis(100);
    assert!(first.contains(&after(&[])));
    assert!(first.contains(&after(&[false; 5])), "in order");
    let third = Duration::from_millis(200)..=Duration::from_millis(400);
    assert!(third.contains(&after(&[true, false, true])), "lost twice");
}

#[test]
fn what_was_acked_before_the_epoch_is_passed_over() {
    let mut cursor = Cursor::at(10);
    cursor.ack(12, 13);
    let mut bench = Bench::new(Config::default(), cursor);
    assert_eq!(bench.input(Input::Join { consumer: A, credit: 10 }), [want(10)]);
    assert_eq!(bench.events(10, &[1, 0, 1, 2, 1]), [deliver(A, &[(10, 1), (11, 1)]), want(15)]);
    assert_eq!(bench.ack(A, 10, 13), [acked(&[(10, 11)], &[]), deliver(A, &[(14, 1)])]);
    bench.commit(10, 11);
    assert_eq!(bench.dispatcher.looked_at(), 1);
}

#[test]
fn one_stuck_key_stops_nothing_within_the_window() {
    let config = Config { lookahead_events: 100, ..Config::default() };
    let mut bench = Bench::new(config, Cursor::default());
    bench.input(Input::Join { consumer: A, credit: 1_000 });
    let mut delivered = 0;
    let key_hashes: Vec<u64> = (0..1_000).map(|i| if i % 10 == 0 { 1 } else { 1_000 + i }).collect();
    let mut effects = bench.events(0, &key_hashes);
    while let Some(effect) = effects.pop() {
        match effect {
            Effect::Deliver { deliveries, .. } => {
                delivered += deliveries.len();
                for delivery in deliveries.into_iter().filter(|delivery| delivery.offset != 0) {
                    effects.extend(bench.ack(A, delivery.offset, delivery.offset));
                    effects.extend(bench.commit(delivery.offset, delivery.offset));
                }
            }
            Effect::WantMore { from, .. } => {
                effects.extend(bench.events(from, &key_hashes[usize::try_from(from).unwrap()..]));
            }
            Effect::Ack { .. } => {}
        }
    }
    // All but the nine that wait behind the first; the window is full, and stays so.
    assert_eq!((delivered, bench.dispatcher.looked_at()), (91, 100));
}

#[test]
fn closed_partitions_are_forgotten() {
    let (mut bench, _) = Bench::with(&[5, 5, 6], 1, 0);
    bench.input(Input::Close { partition: 0 });
    assert_eq!((bench.dispatcher.in_flight(), bench.dispatcher.looked_at()), (0, 0));
    assert_eq!(bench.dispatcher.next_deadline(), None);
    assert_eq!(bench.events(0, &[1, 2, 3]), []);
    bench.input(Input::Credit { consumer: A, events: 1 });
    assert_eq!(bench.input(Input::Open { partition: 0, cursor: Cursor::at(1) }), [want(1)]);
    assert_eq!(bench.events(0, &[5, 5, 6]), [deliver(A, &[(1, 1)])]);
}

#[test]
fn timers_of_acked_events_take_no_memory() {
    let (mut bench, _) = Bench::with(&[], 0, 0);
    bench.input(Input::Credit { consumer: A, events: 1_000_000 });
    // Event 0 stays in flight, so its deadline stays at the front.
    bench.events(0, &[0]);
    for offset in 1..9_000 {
        bench.events(offset, &[0]);
        bench.ack(A, offset, offset);
    }
    let debug = format!("{:?}", bench.dispatcher);
    assert!(debug.matches("Instant").count() < 4_000, "{}", debug.matches("Instant").count());
}
