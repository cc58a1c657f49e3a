use weft_proto::v1::HealthCheck;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A home in virtual time.
struct Bench {
    home: Home,
    start: Instant,
    now: Instant,
    effects: Vec<Effect>,
}

fn record(id: u64) -> InstanceRecord {
    let check = HealthCheck { interval_ms: 2_000, unhealthy_after: 2, healthy_after: 2, ..Default::default() };
    InstanceRecord { id, home: 1, healthy: true, registered_ms: 5, check: Some(check), ..Default::default() }
}

impl Bench {
    fn new(checks_max: usize) -> Bench {
        let start = crate::origin();
        Bench { home: Home::new(start, checks_max), start, now: start, effects: Vec::new() }
    }

    fn input(&mut self, input: Input) -> Vec<Effect> {
        self.home.handle(self.now, input, &mut self.effects);
        std::mem::take(&mut self.effects)
    }

    fn put(&mut self, record: InstanceRecord) -> Vec<Effect> {
        self.input(Input::Put(Arc::new(record)))
    }

    /// Goes on to the next deadline.
    fn next(&mut self) -> Vec<Effect> {
        self.now = self.home.next_deadline().expect("something is due").max(self.now);
        self.input(Input::Tick)
    }

    /// Goes on until something is to be done.
    fn until_effects(&mut self) -> Vec<Effect> {
        (0..1_000).map(|_| self.next()).find(|effects| !effects.is_empty()).expect("something comes to be due")
    }

    fn after_ms(&self) -> u128 {
        self.now.duration_since(self.start).as_millis()
    }

    fn fail(&mut self, number: u64) -> Vec<Effect> {
        self.input(Input::Checked { id: InstanceId(1), number, result: Err("refused".into()) })
    }

    fn pass(&mut self, number: u64) -> Vec<Effect> {
        self.input(Input::Checked { id: InstanceId(1), number, result: Ok(()) })
    }
}

fn check(id: u64, number: u64) -> Effect {
    Effect::Check { id: InstanceId(id), number }
}

fn write(flips: &[(u64, bool, &str)]) -> Effect {
    let flip = |(id, healthy, reason): &(u64, bool, &str)| InstanceFlip {
        id: *id,
        healthy: *healthy,
        reason: (*reason).to_owned(),
    };
    Effect::Write(flips.iter().map(flip).collect())
}

#[test]
fn thresholds_decide_when_health_flips() {
    let mut bench = Bench::new(8);
    assert_eq!(bench.put(record(1)), [check(1, 1)], "checked at once");
    assert_eq!(bench.fail(1), []);
    assert_eq!(bench.next(), [check(1, 2)]);
    assert!((1_750..=2_000).contains(&bench.after_ms()), "{}", bench.after_ms());
    assert_eq!(bench.fail(2), [write(&[(1, false, "refused")])]);
    assert_eq!(bench.home.counts(), Counts { instances: 1, healthy: 0, checking: 0, unwritten: 1 });
    bench.put(InstanceRecord { healthy: false, ..record(1) });
    assert_eq!(bench.input(Input::Written(true)), []);
    assert_eq!(bench.home.counts().unwritten, 0);
    // One passed check is not enough, and a failed one begins anew.
    for (number, passes) in [(3, true), (4, false), (5, true)] {
        assert_eq!(bench.next(), [check(1, number)]);
        assert_eq!(if passes { bench.pass(number) } else { bench.fail(number) }, []);
    }
    assert_eq!(bench.next(), [check(1, 6)]);
    assert_eq!(bench.pass(6), [write(&[(1, true, "")])]);
}

#[test]
fn a_doubted_instance_is_checked_at_once_and_one_failure_decides() {
    let mut bench = Bench::new(8);
    bench.put(record(1));
    bench.pass(1);
    bench.now += 500 * MS;
    assert_eq!(bench.input(Input::Doubt(InstanceId(1))), [check(1, 2)]);
    assert_eq!(bench.fail(2), [write(&[(1, false, "refused")])]);
    assert_eq!(bench.input(Input::Doubt(InstanceId(1))), [], "it is known to be unhealthy");
    assert_eq!(bench.input(Input::Doubt(InstanceId(7))), [], "nobody knows it");
}

#[test]
fn doubts_do_not_make_a_storm_of_checks() {
    let mut bench = Bench::new(8);
    bench.put(record(1));
    bench.pass(1);
    let mut checks = 0;
    for _ in 0..1_000 {
        bench.now += MS;
        for effect in bench.input(Input::Doubt(InstanceId(1))) {
            let Effect::Check { number, .. } = effect else { panic!("{effect:?}") };
            checks += 1;
            // A call fails while the check runs: it is checked again, but not at once.
            assert_eq!(bench.input(Input::Doubt(InstanceId(1))), []);
            assert_eq!(bench.pass(number), []);
        }
    }
    assert!((9..=11).contains(&checks), "{checks} checks in a second");
}

#[test]
fn an_instance_that_never_passed_is_checked_soon_again() {
    let mut bench = Bench::new(8);
    let unproven = InstanceRecord { healthy: false, reason: "refused".into(), ..record(1) };
    assert_eq!(bench.put(unproven), [check(1, 1)]);
    let mut at = Vec::new();
    for number in 1..=6 {
        assert_eq!(bench.fail(number), []);
        assert_eq!(bench.next(), [check(1, number + 1)]);
        at.push(bench.after_ms());
    }
    assert_eq!(at[..4], [200, 600, 1_400, 3_000], "first 200 ms, then twice as long each time");
    assert_eq!(at[5] - at[4], 2_000, "and then an interval");
}

#[test]
fn checks_in_flight_are_bounded_and_the_rest_wait_in_order() {
    let mut bench = Bench::new(2);
    assert_eq!(bench.put(record(1)), [check(1, 1)]);
    assert_eq!(bench.put(record(2)), [check(2, 2)]);
    assert_eq!(bench.put(record(3)), []);
    assert_eq!(bench.home.next_deadline(), None, "nothing can begin before one ends");
    assert_eq!(bench.pass(1), [check(3, 3)]);
    assert_eq!(bench.home.counts().checking, 2);
    // One that goes while it is checked frees its place when the check ends.
    assert_eq!(bench.input(Input::Gone(InstanceId(2))), []);
    assert_eq!(bench.home.counts().checking, 2);
    assert_eq!(bench.input(Input::Checked { id: InstanceId(2), number: 2, result: Ok(()) }), []);
    assert_eq!(bench.home.counts(), Counts { instances: 2, healthy: 2, checking: 1, unwritten: 0 });
}

#[test]
fn flips_gather_while_one_write_is_in_flight() {
    let mut bench = Bench::new(100);
    for id in 1..=20 {
        let mut record = record(id);
        record.check.as_mut().expect("set").unhealthy_after = 1;
        bench.put(record);
    }
    let fail = |id| Input::Checked { id: InstanceId(id), number: id, result: Err("refused".into()) };
    assert_eq!(bench.input(fail(1)), [write(&[(1, false, "refused")])]);
    for id in 2..=20 {
        assert_eq!(bench.input(fail(id)), []);
    }
    // The registry did not answer: all are written, after a pause.
    assert_eq!(bench.input(Input::Written(false)), []);
    let effects = bench.next();
    assert_eq!(bench.after_ms(), 500);
    let [Effect::Write(flips)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(flips.len(), 20);
}

#[test]
fn a_registration_anew_forgets_what_was_known() {
    let mut bench = Bench::new(8);
    bench.put(record(1));
    bench.fail(1);
    bench.until_effects();
    // While check 2 runs it is registered anew: what that check says is of its past.
    assert_eq!(bench.put(InstanceRecord { registered_ms: 6, ..record(1) }), [check(1, 3)]);
    assert_eq!(bench.fail(2), []);
    assert_eq!(bench.fail(3), [], "the first failure since");
    assert_eq!(bench.home.counts(), Counts { instances: 1, healthy: 1, checking: 0, unwritten: 0 });
}

#[test]
fn a_lease_runs_out_unless_it_is_renewed() {
    let mut bench = Bench::new(8);
    bench.put(InstanceRecord { ttl_ms: 3_000, check: Some(hourly()), ..record(1) });
    bench.pass(1);
    for _ in 0..20 {
        while bench.after_ms() % 2_000 != 1_500 {
            assert_eq!(bench.next(), []);
        }
        assert!(bench.home.renew(bench.now, InstanceId(1)));
        bench.now += 500 * MS;
        bench.input(Input::Tick);
    }
    let renewed = bench.after_ms() - 500;
    assert_eq!(bench.until_effects(), [Effect::Remove(InstanceId(1), Millis(5))]);
    assert_eq!(bench.after_ms() - renewed, 3_000);
    assert!(!bench.home.renew(bench.now, InstanceId(1)), "it is too late");
    // The registry does not answer: again, until it does.
    assert_eq!(bench.input(Input::Removed(InstanceId(1), false)), []);
    assert_eq!(bench.until_effects(), [Effect::Remove(InstanceId(1), Millis(5))]);
    assert_eq!(bench.input(Input::Removed(InstanceId(1), true)), []);
    assert_eq!(bench.input(Input::Gone(InstanceId(1))), []);
    assert_eq!(bench.home.next_deadline(), None);
    assert!(!bench.home.renew(bench.now, InstanceId(1)));
}

#[test]
fn a_pause_of_this_node_is_not_held_against_leases() {
    let mut bench = Bench::new(8);
    bench.put(InstanceRecord { ttl_ms: 3_000, check: Some(hourly()), ..record(1) });
    bench.pass(1);
    bench.next();
    assert_eq!(bench.after_ms(), 500);
    bench.now += 3_600_000 * MS;
    assert_eq!(bench.input(Input::Tick), [check(1, 2)], "the check is due, the lease is not over");
    let paused_until = bench.after_ms();
    bench.pass(2);
    assert_eq!(bench.until_effects(), [Effect::Remove(InstanceId(1), Millis(5))]);
    assert_eq!(bench.after_ms() - paused_until, 2_500, "what was left of it");
}

#[test]
fn an_instance_without_a_lease_stays() {
    let mut bench = Bench::new(8);
    bench.put(InstanceRecord { check: Some(hourly()), ..record(1) });
    bench.pass(1);
    assert!(bench.home.renew(bench.now, InstanceId(1)));
    assert!(bench.home.next_deadline().expect("the next check") > bench.now + 3_000_000 * MS);
}

#[test]
fn many_leases_that_run_out_together_end_a_few_at_a_time() {
    let mut bench = Bench::new(1_000);
    for id in 1..=100 {
        bench.put(InstanceRecord { ttl_ms: 1_000, ..record(id) });
    }
    let mut ended: Vec<Effect> = bench.until_effects();
    assert_eq!(ended.len(), REMOVALS_MAX);
    let mut answered = 0;
    while let Some(Effect::Remove(id, _)) = ended.get(answered).cloned() {
        answered += 1;
        ended.extend(bench.input(Input::Removed(id, true)));
    }
    assert_eq!(answered, 100);
}

fn hourly() -> HealthCheck {
    HealthCheck { interval_ms: 3_600_000, unhealthy_after: 2, healthy_after: 1, ..Default::default() }
}
