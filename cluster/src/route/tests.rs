use proptest::prelude::*;
use weft_proto::v1::Balance;

use super::*;

const FRESH: Candidate = Candidate { open: true, weight: 100, in_flight: 0, latency_us: 0 };

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn shares(balance: Balance, candidates: &[Candidate], calls: u64) -> Vec<u64> {
    let (mut shares, mut seed) = (vec![0; candidates.len()], 1);
    for turn in 0..calls {
        let chosen = choose(balance, candidates.len(), |index| candidates[index], turn, random(&mut seed));
        shares[chosen.expect("there are some")] += 1;
    }
    shares
}

#[test]
fn each_way_of_balancing_gives_its_shares() {
    let closed = Candidate { open: false, ..FRESH };
    let heavy = Candidate { weight: 300, ..FRESH };
    let busy = Candidate { in_flight: 9, latency_us: 1_000, ..FRESH };
    let slow = Candidate { latency_us: 20_000, ..FRESH };
    let quick = Candidate { latency_us: 1_000, ..FRESH };
    let table: &[(Balance, &[Candidate], &[f64])] = &[
        (Balance::RoundRobin, &[FRESH, FRESH, FRESH, FRESH], &[0.25, 0.25, 0.25, 0.25]),
        (Balance::RoundRobin, &[FRESH, closed], &[1.0, 0.0]),
        (Balance::Random, &[FRESH, FRESH, FRESH], &[0.33, 0.33, 0.33]),
        (Balance::Random, &[FRESH, closed, FRESH], &[0.5, 0.0, 0.5]),
        (Balance::Weighted, &[FRESH, heavy], &[0.25, 0.75]),
        (Balance::Weighted, &[FRESH, heavy, closed], &[0.25, 0.75, 0.0]),
        (Balance::Weighted, &[closed, closed], &[0.5, 0.5]),
        (Balance::LeastRequest, &[FRESH, FRESH, FRESH], &[0.33, 0.33, 0.33]),
        // The dearer one of two is never taken; of three it is in two of three pairs.
        (Balance::LeastRequest, &[quick, slow], &[1.0, 0.0]),
        (Balance::LeastRequest, &[quick, busy], &[1.0, 0.0]),
        (Balance::LeastRequest, &[busy, slow], &[1.0, 0.0]),
        (Balance::LeastRequest, &[quick, slow, quick], &[0.5, 0.0, 0.5]),
        (Balance::LeastRequest, &[quick, closed, slow], &[1.0, 0.0, 0.0]),
        // Nothing is known of one: only calls in flight count.
        (Balance::Unspecified, &[FRESH, busy], &[1.0, 0.0]),
        (Balance::Unspecified, &[closed, closed], &[0.5, 0.5]),
    ];
    for (balance, candidates, wanted) in table {
        let shares = shares(*balance, candidates, 10_000);
        for (share, wanted) in shares.iter().zip(*wanted) {
            let share = *share as f64 / 10_000.0;
            assert!((share - wanted).abs() < 0.03, "{balance:?} {candidates:?}: {shares:?}");
        }
    }
    assert_eq!(choose(Balance::Random, 0, |_| FRESH, 0, 0), None);
}

#[test]
fn least_request_spreads_calls_that_come_one_after_another() {
    let latencies = [1_000, 1_300, 9_000].map(|latency_us| Candidate { latency_us, ..FRESH });
    let (mut seed, mut calls) = (5, [0; 3]);
    for turn in 0..3_000 {
        calls[choose(Balance::LeastRequest, 3, |index| latencies[index], turn, random(&mut seed)).expect("three")] += 1;
    }
    assert!(calls[0] > 1_200 && calls[1] > 1_200, "about as quick: {calls:?}");
    assert_eq!(calls[2], 0, "far slower: {calls:?}");
}

#[test]
fn least_request_gives_by_weight_when_all_else_is_equal() {
    // Each call stays: the one with twice the weight gets twice the calls.
    let mut candidates = [FRESH, Candidate { weight: 200, ..FRESH }];
    let mut seed = 3;
    for turn in 0..300 {
        let look = |index: usize| candidates[index];
        let chosen = choose(Balance::LeastRequest, 2, look, turn, random(&mut seed)).expect("there are two");
        candidates[chosen].in_flight += 1;
    }
    assert!((99..=101).contains(&candidates[0].in_flight), "{candidates:?}");
}

#[test]
fn latency_follows_its_samples_and_fades() {
    let mut latency = Latency::default();
    assert_eq!(latency.at(5), 0);
    latency = latency.with(0, 1_000);
    assert_eq!(latency.at(0), 1_000);
    for step in 1..100 {
        latency = latency.with(step, 5_000);
    }
    assert!((4_900..=5_000).contains(&latency.average_us), "{latency:?}");
    assert_eq!(latency.at(99 + 10_000_000), latency.average_us / 2);
    assert_eq!(latency.with(60_000_000, 10).average_us, 10, "after a long silence only the new counts");
    assert_eq!(latency.with(60_000_000, 0).average_us, 1, "known is never 0");
}

#[test]
fn the_budget_is_a_share_of_calls_and_a_trickle() {
    let mut budget = Budget::new(20, 10, 0);
    let full = (0..1_000).take_while(|_| budget.take(0, 0)).count();
    assert_eq!(full, 100, "ten seconds of the trickle are saved");
    assert!(budget.take(100, 0), "a tenth of a second is one retry");
    assert!(!budget.take(100, 0));
    let earned = (0..1_000).take_while(|_| budget.take(100, 200)).count();
    assert_eq!(earned, 40, "a fifth of 200 calls");
    let mut none = Budget::new(0, 0, 0);
    assert!(!none.take(1_000_000, 1_000_000));
    let mut share = Budget::new(10, 0, 0);
    let full = (0..1_000).take_while(|_| share.take(0, 0)).count();
    assert_eq!(full, 10);
}

#[test]
fn only_what_did_not_run_or_may_run_twice_is_retried() {
    let failed = |attempts, not_sent, idempotent, replayable, answered| Failed {
        attempts,
        not_sent,
        idempotent,
        replayable,
        answered,
    };
    let table = [
        (failed(1, true, false, true, false), true, "not sent"),
        (failed(1, false, false, true, false), false, "it may have run"),
        (failed(1, false, true, true, false), true, "it may run twice"),
        (failed(1, false, true, true, true), false, "a byte of the answer is out"),
        (failed(1, true, true, false, false), false, "the body is gone"),
        (failed(3, true, true, true, false), false, "tried often enough"),
    ];
    for (failed, wanted, why) in table {
        assert_eq!(may_retry(failed, 3, || true), wanted, "{why}");
    }
    assert!(!may_retry(failed(1, false, true, true, false), 3, || false), "the budget is spent");
    assert!(may_retry(failed(1, true, true, true, false), 3, || panic!("it costs nothing")));
}

#[test]
fn paths_name_a_service_and_a_method() {
    let table = [
        ("/shop.Cart/Get", Some(("shop.Cart", "Get"))),
        ("/Cart/Get", Some(("Cart", "Get"))),
        ("/Get", None),
        ("//Get", None),
        ("/shop.Cart/", None),
        ("/a/b/c", None),
        ("shop.Cart/Get", None),
        ("", None),
        ("*", None),
    ];
    for (path, wanted) in table {
        assert_eq!(method_of(path), wanted, "{path}");
    }
}

proptest! {
    #[test]
    fn an_open_one_is_chosen_while_there_is_one(
        open in prop::collection::vec(any::<bool>(), 1..12),
        balance in 0i32..5,
        weights in prop::collection::vec(0u32..10_000, 12),
        flights in prop::collection::vec(0u32..1_000_000, 12),
        latencies in prop::collection::vec(any::<u64>(), 12),
        turn in any::<u64>(),
        dice in any::<u64>(),
    ) {
        let balance = Balance::try_from(balance).expect("in range");
        let look = |index: usize| Candidate {
            open: open[index],
            weight: weights[index],
            in_flight: flights[index],
            latency_us: latencies[index],
        };
        let chosen = choose(balance, open.len(), look, turn, dice).expect("there are some");
        prop_assert!(chosen < open.len());
        prop_assert!(open[chosen] || open.iter().all(|open| !open) || open.len() == 1);
        prop_assert_eq!(Some(chosen), choose(balance, open.len(), look, turn, dice), "a pure function");
    }

    #[test]
    fn latency_never_overflows_and_stays_between(samples in prop::collection::vec((any::<u64>(), any::<u64>()), 1..50)) {
        let mut latency = Latency::default();
        let (mut least, mut most) = (u64::MAX, 0);
        for (now, sample) in samples {
            latency = latency.with(now, sample);
            (least, most) = (least.min(sample.max(1)), most.max(sample.max(1)));
            prop_assert!((least..=most).contains(&latency.average_us));
            prop_assert!(latency.at(now) <= latency.average_us);
        }
    }
}
