//! Calls under chosen faults. That each has one honest outcome is checked in every run (P8); here is what else must hold.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_sim::history::What;
use weft_sim::plan::{Fault, Plan};
use weft_sim::run::Verdict;
use weft_sim::workload::calls::{LONG_WORK_MS, NOT_TAKEN};

use super::scenarios::{ms, noted, plan, sound};

/// One call as the history tells it; times in simulated time.
#[derive(Clone, Debug, Default, PartialEq)]
struct Call {
    work_ms: u64,
    timeout_ms: u64,
    invoked: Duration,
    ended: Option<Duration>,
    ran: Vec<(Duration, String)>,
    cancelled: Option<Duration>,
    answered: bool,
    error: String,
}

impl Call {
    fn took(&self) -> Duration {
        self.ended.expect("every call has an outcome") - self.invoked
    }
}

fn calls(verdict: &Verdict) -> Vec<Call> {
    let mut calls: BTreeMap<u64, Call> = BTreeMap::new();
    for entry in &verdict.history {
        let at = Duration::from_micros(entry.at_us);
        let mut end = |call: &u64, answered: bool, error: &str| {
            let call = calls.entry(*call).or_default();
            (call.ended, call.answered, call.error) = (Some(at), answered, error.to_owned());
        };
        match &entry.what {
            What::CallOk { call } => end(call, true, ""),
            What::CallFail { call, error } | What::CallUnknown { call, error } => end(call, false, error),
            What::CallInvoke { call, work_ms, timeout_ms, .. } => {
                let call = calls.entry(*call).or_default();
                (call.invoked, call.work_ms, call.timeout_ms) = (at, *work_ms, *timeout_ms);
            }
            What::CallRan { call, instance } => calls.entry(*call).or_default().ran.push((at, instance.clone())),
            What::CallCancelled { call } => calls.entry(*call).or_default().cancelled = Some(at),
            _ => {}
        }
    }
    calls.into_values().collect()
}

/// Calls that were answered by an instance between two times.
fn answered_by(calls: &[Call], instance: &str, from: Duration, to: Duration) -> usize {
    let ran = |call: &&Call| call.ran.iter().any(|(at, name)| name == instance && *at > from && *at < to);
    calls.iter().filter(|call| call.answered).filter(ran).count()
}

#[test]
fn a_calm_cluster_answers_every_call_in_time_and_tells_instances_when_nobody_waits() {
    let calls = calls(&sound(Plan::calm(11)));
    let (long, short): (Vec<Call>, Vec<Call>) = calls.into_iter().partition(|call| call.work_ms == LONG_WORK_MS);
    // The first come before the service is registered.
    let known = short.iter().skip_while(|call| call.error.contains("UnknownService")).collect::<Vec<_>>();
    assert!(known.len() > 40, "{} calls", known.len());
    for call in known {
        assert!(call.answered && call.took() < ms(500), "{call:?}");
    }
    let long: Vec<Call> = long.into_iter().filter(|call| !call.ran.is_empty()).collect();
    assert!(long.iter().any(|call| call.error.contains("Deadline")), "a deadline has passed: {long:?}");
    assert!(long.iter().any(|call| call.error.contains("given up")), "a call was given up: {long:?}");
    for call in &long {
        assert!(call.took() < ms(400), "its deadline holds over two hops: {call:?}");
        let cancelled = call.cancelled.expect("its instance is told that nobody waits");
        assert!(cancelled < call.ended.expect("an outcome") + ms(300), "{call:?}");
    }
}

#[test]
fn instances_of_a_dead_home_are_called_again_while_it_is_away() {
    // The first instance is registered through the first node.
    let faults = vec![(ms(3_000), Fault::Kill { node: 0, away: ms(9_000) })];
    let verdict = sound(plan(12, ms(13_000), faults));
    let killed = noted(&verdict, "Kill").expect("the kill was noted");
    let calls = calls(&verdict);
    assert!(answered_by(&calls, "i1", killed - ms(2_000), killed) > 5);
    assert!(answered_by(&calls, "i2", killed + ms(300), killed + ms(4_000)) > 5, "the other one goes on");
    assert!(answered_by(&calls, "i1", killed + ms(5_000), killed + ms(9_000)) > 5, "it has found another home");
}

#[test]
fn an_instance_that_flaps_is_left_alone_and_found_again() {
    let away = ms(2_000);
    let flap = |at| (ms(at), Fault::Instance { instance: 0, away });
    let verdict = sound(plan(13, ms(13_000), vec![flap(2_000), flap(6_000)]));
    let killed = noted(&verdict, "Instance").expect("it was noted");
    let calls = calls(&verdict);
    let (after, back) = (killed + ms(200), killed + away);
    assert!(answered_by(&calls, "i2", after, back) > 10);
    let refused = |call: &&Call| call.invoked > after && call.invoked < back && call.error.contains("Unreachable");
    assert_eq!(calls.iter().filter(refused).count(), 0, "calls go to the instance that lives");
    assert!(answered_by(&calls, "i1", killed + ms(9_000), killed + ms(11_000)) > 5, "it is called again");
}

#[test]
fn calls_over_a_link_that_is_cut_end_and_others_go_on() {
    let (mut with_deadline, mut answered) = (0, 0);
    for seed in [14, 24, 34] {
        // Clients reach the node, but no node does.
        let faults = vec![(ms(3_000), Fault::Partition { side: vec![0], clients: false, lasts: ms(4_000) })];
        let verdict = sound(plan(seed, ms(10_000), faults));
        let calls = calls(&verdict);
        let cut = noted(&verdict, "Partition").expect("it was noted");
        let during = |call: &&Call| call.invoked > cut && call.invoked < cut + ms(4_000) && call.timeout_ms > 0;
        for call in calls.iter().filter(during) {
            assert!(call.took() < ms(call.timeout_ms + 200), "the client's node keeps the deadline: {call:?}");
            with_deadline += 1;
        }
        answered += answered_by(&calls, "i2", cut + ms(1_500), cut + ms(4_000));
    }
    assert!(with_deadline > 5, "{with_deadline} calls had a deadline");
    assert!(answered > 5, "{answered} calls were answered by the other instance");
}

/// All instances have the home that dies; the registry's leader finds them another one meanwhile.
#[test]
fn calls_wait_while_the_instances_of_a_dead_home_get_another() {
    for seed in [15, 16, 18] {
        let faults = vec![(ms(3_000), Fault::Kill { node: 0, away: ms(2_000) })];
        let verdict = sound(Plan { one_home: true, ..plan(seed, ms(8_000), faults) });
        let killed = noted(&verdict, "Kill").expect("it was noted");
        let calls = calls(&verdict);
        let after: Vec<&Call> = calls.iter().filter(|call| call.invoked > killed).collect();
        let waited = |call: &Call| call.timeout_ms > 0 && call.took() >= ms(call.timeout_ms);
        let refused =
            |call: &&&Call| (call.error.contains("NoInstance") || call.error.contains("Unreachable")) && !waited(call);
        assert_eq!(after.iter().find(refused), None, "seed {seed}: calls wait, they are not refused");
        let known = |call: &&&Call| !call.error.contains("UnknownService");
        let known = after.iter().filter(known).count();
        let answered = ["i1", "i2"].map(|instance| answered_by(&calls, instance, killed, killed + ms(5_000)));
        assert!(
            known > 40 && answered.iter().all(|count| *count > 5),
            "seed {seed}: {known}, {answered:?}: {after:#?}"
        );
    }
}

/// Each node is stopped in order and started again, the instances' homes too.
#[test]
fn a_rolling_restart_costs_no_call() {
    let stop = |node| (ms(3_000 + 5_000 * node as u64), Fault::Stop { node });
    let verdict = sound(plan(17, ms(18_000), vec![stop(0), stop(1), stop(2)]));
    let first = noted(&verdict, "Stop").expect("it was noted");
    for node in ["n1 ended: stopped", "n2 ended: stopped", "n3 ended: stopped"] {
        assert!(noted(&verdict, node).is_some(), "{node}");
    }
    let calls = calls(&verdict);
    let short = |call: &&Call| call.invoked > first && call.work_ms != LONG_WORK_MS;
    // GOAWAY says so in these words or those.
    let not_taken = [NOT_TAKEN, "NO_ERROR", "not a result of an error"];
    let failed = |call: &&Call| !call.answered && !not_taken.iter().any(|text| call.error.contains(text));
    assert_eq!(calls.iter().filter(short).find(failed), None, "it was under way, or came to a node that stays");
    for instance in ["i1", "i2"] {
        assert!(answered_by(&calls, instance, first, first + ms(15_000)) > 50, "{instance} goes on");
    }
}
