use weft_proto::v1;

use super::*;

const OLD: Identity = Identity { id: 1, epoch: 1 };
const NEW: Identity = Identity { id: 2, epoch: 1 };

/// A lane with so many sealed batches of one event each.
fn lane(batches: u64) -> Lane {
    let mut lane = Lane::new(0, Limits::default(), OLD, Instant::now());
    for _ in 0..batches {
        push(&mut lane);
    }
    lane
}

fn push(lane: &mut Lane) {
    lane.push(&Event::default(), None, 1, 0).expect("an empty event fits");
    assert!(lane.seal(0, Instant::now()));
}

/// Sends what is due, with request ids from `from` on; returns identity and number of each.
fn send(lane: &mut Lane, from: u64) -> Vec<(u64, u64)> {
    let producer = |packed: &Bytes| Header::read(packed).expect("packed here").producer.expect("it is numbered");
    let next = |request| lane.next(request, Instant::now(), Duration::ZERO, 0).map(|next| producer(&next.packed));
    (from..).map_while(next).map(|producer| (producer.id, producer.first_sequence)).collect()
}

fn refusal(code: ErrorCode) -> Error {
    let retry = if code == ErrorCode::OutcomeUnknown { v1::Retry::IfIdempotent } else { v1::Retry::Never };
    Error::from(v1::Error { code: code.into(), message: "no".into(), retry: retry.into(), ..v1::Error::default() })
}

fn refuse(lane: &mut Lane, request: u64, code: ErrorCode) -> Outcome {
    lane.refused(request, &refusal(code), Instant::now(), Duration::ZERO).0
}

#[test]
fn no_batch_is_sent_that_would_make_the_shard_forget_the_first() {
    let mut lane = lane(20);
    assert_eq!(send(&mut lane, 0).len(), 16);
    for request in 1..16 {
        assert!(lane.stored(request).is_some());
    }
    assert_eq!(send(&mut lane, 16), [], "the first has no answer, and 15 after it are stored");
    lane.lost();
    assert_eq!(send(&mut lane, 20), [(1, 0)], "again under its number");
    assert!(lane.stored(20).is_some());
    assert_eq!(send(&mut lane, 30), [(1, 16), (1, 17), (1, 18), (1, 19)]);
}

#[test]
fn what_may_be_stored_is_never_sent_under_a_new_identity() {
    let mut lane = lane(2);
    assert_eq!(send(&mut lane, 0).len(), 2);
    lane.lost();
    push(&mut lane);
    assert_eq!(send(&mut lane, 10), [(1, 0), (1, 1), (1, 2)]);
    for request in 10..13 {
        assert_eq!(refuse(&mut lane, request, ErrorCode::SequenceGap), Outcome::Again);
    }
    assert!(lane.needs_identity());
    assert_eq!(lane.renumber(NEW).len(), 2, "nobody knows whether the first two are stored");
    assert_eq!(send(&mut lane, 20), [(2, 0)], "the third is not");
}

#[test]
fn a_refusal_for_good_after_an_unknown_outcome_frees_no_numbers() {
    let mut lane = lane(1);
    send(&mut lane, 0);
    assert_eq!(refuse(&mut lane, 0, ErrorCode::OutcomeUnknown), Outcome::Again);
    assert_eq!(send(&mut lane, 1), [(1, 0)]);
    assert_eq!(refuse(&mut lane, 1, ErrorCode::FailedPrecondition), Outcome::Again);
    assert!(lane.needs_identity(), "the batch may have its numbers");
    assert_eq!(lane.renumber(NEW).len(), 1);
    push(&mut lane);
    assert_eq!(send(&mut lane, 2), [(2, 0)]);
}
