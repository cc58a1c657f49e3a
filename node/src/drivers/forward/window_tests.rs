use weft_batch::{Limits, Packer, Producer};
use weft_proto::v1::Event;

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

struct Run {
    window: Window<u32>,
    now: Instant,
    attempts: u64,
}

impl Run {
    fn new(batches: u32, idempotent: bool) -> Run {
        let (mut window, now) = (Window::default(), Instant::now());
        for tag in 0..batches {
            let producer = idempotent.then_some(Producer { id: 5, epoch: 1, first_sequence: u64::from(tag) });
            let mut packer = Packer::new(Limits::default());
            packer.push(&Event::default(), 1).expect("an empty event fits");
            let packed = packer.finish(None, producer).expect("one event");
            window.push(packed, Ack::Committed, now + MS(10_000), tag);
        }
        Run { window, now, attempts: 0 }
    }

    /// Sends all that may be sent to `node`; returns the attempts with their batches.
    fn send(&mut self, node: u64) -> Vec<(u64, u32)> {
        let mut sent = Vec::new();
        while let Some(slot) = self.window.send(self.now, self.attempts) {
            sent.push((self.attempts, slot.tag));
            self.window.sent(self.attempts, Some(NodeId(node)), Some(NodeId(node)));
            self.attempts += 1;
        }
        sent
    }

    fn end(&mut self, attempt: u64, outcome: Result<Receipt, Error>) -> Option<(u32, Result<Receipt, ErrorCode>)> {
        let answer = self.window.ended(self.now, attempt, outcome, 0.5);
        answer.map(|(tag, outcome)| (tag, outcome.map_err(|error| error.code())))
    }

    fn tags(sent: &[(u64, u32)]) -> Vec<u32> {
        sent.iter().map(|(_, tag)| *tag).collect()
    }
}

fn ok() -> Result<Receipt, Error> {
    Ok(Receipt::default())
}

fn gap() -> Result<Receipt, Error> {
    Err(refusal::refusal(ErrorCode::SequenceGap, Retry::Never, "gap"))
}

#[test]
fn sends_in_order_and_a_bounded_number() {
    let mut run = Run::new(20, true);
    let sent = run.send(1);
    assert_eq!(Run::tags(&sent), (0..16).collect::<Vec<_>>());
    assert_eq!(run.end(3, ok()), Some((3, Ok(Receipt::default()))));
    assert_eq!(Run::tags(&run.send(1)), Vec::<u32>::new(), "17 batches from the first on: the shard would forget it");
    assert_eq!(run.end(0, ok()), Some((0, Ok(Receipt::default()))));
    assert_eq!(Run::tags(&run.send(1)), vec![16]);
    assert_eq!(run.window.len(), 18);
}

#[test]
fn a_refused_batch_and_all_after_it_go_again_in_order_when_all_have_answered() {
    let mut run = Run::new(4, true);
    run.send(1);
    assert_eq!(run.end(0, ok()), Some((0, Ok(Receipt::default()))));
    assert_eq!(run.end(1, Err(refusal::not_owner(Some(NodeId(2))))), None);
    assert_eq!(run.window.redirect, Some(Redirect { believed: Some(NodeId(1)), to: NodeId(2) }));
    assert_eq!(run.end(2, gap()), None, "the gap is ours");
    run.now += MS(1000);
    assert_eq!(run.send(2), vec![], "one is still under way");
    assert_eq!(run.end(3, gap()), None);
    assert!(run.window.next_deadline().is_some_and(|at| at <= run.now));
    let sent = run.send(2);
    assert_eq!(Run::tags(&sent), vec![1, 2, 3]);
    // They arrive out of order: the ones after the first are tried again, alone a gap is a gap.
    assert_eq!(run.end(sent[2].0, gap()), None);
    assert_eq!(run.end(sent[0].0, ok()), Some((1, Ok(Receipt::default()))));
    assert_eq!(run.end(sent[1].0, ok()), Some((2, Ok(Receipt::default()))));
    run.now += MS(1000);
    let sent = run.send(2);
    assert_eq!(run.end(sent[0].0, gap()), Some((3, Err(ErrorCode::SequenceGap))));
}

#[test]
fn an_unknown_outcome_is_tried_again_only_if_it_cannot_be_stored_twice() {
    let lost = || Err(refusal::outcome_unknown("lost"));
    let mut run = Run::new(1, false);
    run.send(1);
    assert_eq!(run.end(0, lost()), Some((0, Err(ErrorCode::OutcomeUnknown))));
    let mut run = Run::new(1, true);
    run.send(1);
    assert_eq!(run.end(0, lost()), None);
    run.now += MS(11_000);
    let answers = run.window.expired(run.now);
    assert_eq!(answers.len(), 1);
    let error = answers[0].1.clone().expect_err("its time is over");
    assert_eq!((error.code(), error.retry()), (ErrorCode::OutcomeUnknown, Retry::IfIdempotent));
}

#[test]
fn what_was_never_stored_may_be_sent_again_by_the_client() {
    let mut run = Run::new(1, true);
    run.send(1);
    assert_eq!(run.end(0, Err(refusal::not_owner(None))), None);
    run.now += MS(11_000);
    let error = run.window.expired(run.now).remove(0).1.expect_err("its time is over");
    assert_eq!((error.code(), error.retry()), (ErrorCode::NotOwner, Retry::Same));
}

#[test]
fn a_new_owner_takes_over_what_the_old_one_has_not_answered() {
    let mut run = Run::new(2, true);
    run.send(1);
    run.window.moved(run.now, NodeId(1));
    assert_eq!(run.send(1), vec![], "nothing has changed");
    run.window.moved(run.now, NodeId(2));
    let again = run.send(2);
    assert_eq!(Run::tags(&again), vec![0, 1]);
    assert_eq!(run.end(0, ok()), None, "the old owner's answer comes too late");
    assert_eq!(run.end(again[0].0, ok()), Some((0, Ok(Receipt::default()))));
    // Without a producer it could be stored twice: wait for the old owner.
    let mut run = Run::new(1, false);
    run.send(1);
    run.window.moved(run.now, NodeId(2));
    assert_eq!(run.send(2), vec![]);
    assert_eq!(run.end(0, ok()), Some((0, Ok(Receipt::default()))));
}

#[test]
fn a_gap_after_a_batch_that_failed_may_be_sent_again() {
    let mut run = Run::new(2, true);
    run.send(1);
    let overloaded = Err(refusal::overloaded("a limit", 1));
    assert_eq!(run.end(0, overloaded), Some((0, Err(ErrorCode::Overloaded))));
    assert_eq!(run.end(1, gap()), None);
    run.now += MS(1000);
    let sent = run.send(1);
    let (_, outcome) = run.window.ended(run.now, sent[0].0, gap(), 0.5).expect("alone it is final");
    let error = outcome.expect_err("a gap");
    assert_eq!((error.code(), error.retry()), (ErrorCode::SequenceGap, Retry::Same));
}

#[test]
fn a_publisher_is_sent_elsewhere_when_the_owner_lives_and_cannot_be_reached() {
    let mut run = Run::new(1, true);
    let cut_off = || Err(refusal::refusal(ErrorCode::NotReady, Retry::Same, "no link"));
    for second in 0..5 {
        let sent = run.send(1);
        assert_eq!(Run::tags(&sent), [0], "after {second} s");
        assert_eq!(run.end(sent[0].0, cut_off()), None);
        run.now += MS(1_000);
    }
    let sent = run.send(1);
    assert_eq!(run.end(sent[0].0, cut_off()), Some((0, Err(ErrorCode::NotReady))));
}
