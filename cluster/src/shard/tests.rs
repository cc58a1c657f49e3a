use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use weft_batch::{Limits, Packer, Producer};
use weft_proto::internal::v1::{Append, DropTopic, Membership, Range, ShardState};
use weft_proto::v1::{Event, StartAt};

use super::*;
use crate::ids::Offset;

const HOME: PartitionId = PartitionId { topic: TopicId(1), index: 0 };
const GROUP: u32 = 4;
const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

fn packed(count: usize, data_bytes: usize, producer: Option<Producer>) -> Bytes {
    let mut packer = Packer::new(Limits::default());
    for _ in 0..count {
        let event = Event { key: "k".into(), data: vec![7; data_bytes].into(), ..Event::default() };
        packer.push(&event, 1).unwrap();
    }
    packer.finish(None, producer).unwrap()
}

fn from(id: u64, epoch: u32, first_sequence: u64, count: usize) -> Bytes {
    packed(count, 3, Some(Producer { id, epoch, first_sequence }))
}

fn append(packed: Bytes) -> Append {
    Append { topic: 1, partition: 0, packed, accepted: false }
}

fn ack(epoch: u64, ranges: &[(u64, u64)]) -> AckCommand {
    let ranges = ranges.iter().map(|&(first, last)| Range { first, last }).collect();
    AckCommand { topic: 1, partition: 0, group: GROUP, epoch, ranges }
}

fn put_partition(topic: u32) -> PutPartition {
    PutPartition { topic, partition: 0, event_bytes_max: 0 }
}

fn put_group(start: u32) -> PutGroup {
    PutGroup { topic: 1, group: GROUP, start, ack_deadline_ms: 500 }
}

/// A shard with partition `HOME`, in term 1.
struct Bench {
    state: State,
    at: LogPosition,
    now: i64,
}

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench { state: State::default(), at: LogPosition { term: 1, index: 0 }, now: 1_000 };
        let entry = ShardEntry { put_partitions: vec![put_partition(1)], ..ShardEntry::default() };
        assert_eq!(bench.apply(entry).created, [HOME]);
        bench
    }

    fn apply(&mut self, entry: ShardEntry) -> Outcome {
        self.at.index += 1;
        let entry = ShardEntry { log_time_ms: self.now, ..entry };
        let mut outcome = Outcome::default();
        self.state.apply(self.at, entry, &mut outcome).unwrap();
        outcome
    }

    fn append(&mut self, packed: Bytes) -> AppendResult {
        self.apply(ShardEntry { appends: vec![append(packed)], ..ShardEntry::default() }).appends.remove(0)
    }

    /// Base offset and epoch if stored or a duplicate (then negative), or the refusal's code.
    fn short(&mut self, packed: Bytes) -> Result<(bool, u64, u64), ErrorCode> {
        match self.append(packed) {
            AppendResult::Stored(stored) => Ok((true, stored.base_offset.0, stored.epoch.0)),
            AppendResult::Duplicate { base_offset, epoch, .. } => Ok((false, base_offset.0, epoch.0)),
            AppendResult::Refused(refusal) => Err(refusal.code),
        }
    }

    fn ack(&mut self, epoch: u64, ranges: &[(u64, u64)]) -> Result<(), ErrorCode> {
        let outcome = self.apply(ShardEntry { acks: vec![ack(epoch, ranges)], ..ShardEntry::default() });
        outcome.acks[0].clone().map_err(|refusal| refusal.code)
    }

    fn put_group(&mut self, start: u32) {
        self.apply(ShardEntry { put_groups: vec![put_group(start)], ..ShardEntry::default() });
    }

    fn home(&self) -> &Partition {
        self.state.partition(HOME).unwrap()
    }

    fn cursor(&self) -> (u64, Vec<(u64, u64)>) {
        let cursor = &self.home().group(GroupId(GROUP)).unwrap().cursor;
        (cursor.acked_below(), cursor.ranges().collect())
    }
}

#[test]
fn offsets_are_dense_and_batches_stamped() {
    let mut bench = Bench::new();
    assert_eq!(bench.short(packed(3, 1, None)), Ok((true, 0, 1)));
    bench.at.term = 2;
    bench.now = 5_000;
    let AppendResult::Stored(stored) = bench.append(packed(2, 1, None)) else { panic!("stored") };
    assert_eq!((stored.base_offset, stored.count, bench.home().end()), (Offset(3), 2, Offset(5)));
    let stored_bytes = [stored.header, stored.body].concat();
    let header = weft_batch::check(&stored_bytes).unwrap();
    assert_eq!((header.topic, header.partition, header.base_offset), (1, 0, 3));
    assert_eq!((header.term, header.raft_index, header.log_time_ms), (2, bench.at.index, 5_000));
}

#[test]
fn log_time_never_goes_back() {
    let mut bench = Bench::new();
    bench.now = -5;
    let AppendResult::Stored(stored) = bench.append(packed(1, 1, None)) else { panic!("stored") };
    assert_eq!(weft_batch::Header::read(&stored.header).unwrap().log_time_ms, 1_000);
    assert_eq!(bench.state.log_time(), Millis(1_000));
}

#[test]
fn only_the_next_sequence_is_stored() {
    let mut bench = Bench::new();
    assert_eq!(bench.short(from(9, 1, 1, 1)), Err(ErrorCode::SequenceGap));
    assert_eq!(bench.short(from(9, 1, 0, 3)), Ok((true, 0, 1)));
    assert_eq!(bench.short(from(9, 1, 4, 1)), Err(ErrorCode::SequenceGap));
    bench.at.term = 2;
    assert_eq!(bench.short(from(9, 1, 0, 3)), Ok((false, 0, 1)), "the receipt first given");
    assert_eq!(bench.short(from(9, 1, 0, 2)), Err(ErrorCode::FailedPrecondition), "not the same batch");
    assert_eq!(bench.short(from(9, 1, 2, 1)), Err(ErrorCode::FailedPrecondition), "nor a part of it");
    assert_eq!(bench.short(from(9, 1, 3, 2)), Ok((true, 3, 2)));
    assert_eq!(bench.short(from(8, 0, 0, 1)), Ok((true, 5, 2)), "producers do not know each other");
    assert_eq!(bench.home().end(), Offset(6));
}

#[test]
fn a_pipelined_producer_may_share_an_entry() {
    let mut bench = Bench::new();
    let appends = [(0, 2), (2, 1), (2, 1), (4, 1)].map(|(first, count)| append(from(9, 1, first, count))).to_vec();
    let results = bench.apply(ShardEntry { appends, ..ShardEntry::default() }).appends;
    assert!(matches!(results[0], AppendResult::Stored(_)) && matches!(results[1], AppendResult::Stored(_)));
    assert!(matches!(results[2], AppendResult::Duplicate { base_offset: Offset(2), count: 1, .. }));
    assert!(matches!(&results[3], AppendResult::Refused(refusal) if refusal.code == ErrorCode::SequenceGap));
}

#[test]
fn what_was_only_accepted_may_leave_numbers_out() {
    let mut bench = Bench::new();
    let mut store = |first, accepted| {
        let append = Append { accepted, ..append(from(9, 1, first, 2)) };
        bench.apply(ShardEntry { appends: vec![append], ..ShardEntry::default() }).appends.remove(0)
    };
    assert!(matches!(store(0, true), AppendResult::Stored(_)));
    assert!(matches!(store(4, true), AppendResult::Stored(stored) if stored.base_offset == Offset(2)), "2 was lost");
    assert!(matches!(store(4, true), AppendResult::Duplicate { base_offset: Offset(2), .. }), "still once");
    assert!(matches!(store(2, true), AppendResult::Refused(_)), "numbers never go back");
    assert!(matches!(store(8, false), AppendResult::Refused(refusal) if refusal.code == ErrorCode::SequenceGap));
    assert!(matches!(store(6, false), AppendResult::Stored(_)));
}

#[test]
fn the_newest_batches_are_kept() {
    let mut bench = Bench::new();
    let kept = u64::try_from(PRODUCER_BATCHES_KEPT).unwrap();
    for first in 0..kept + 2 {
        assert_eq!(bench.short(from(9, 1, first, 1)), Ok((true, first, 1)));
    }
    assert_eq!(bench.short(from(9, 1, 1, 1)), Err(ErrorCode::FailedPrecondition), "stored, so not a gap");
    for first in 2..kept + 2 {
        assert_eq!(bench.short(from(9, 1, first, 1)), Ok((false, first, 1)));
    }
}

#[test]
fn a_new_session_fences_the_old_one() {
    let mut bench = Bench::new();
    bench.short(from(9, 1, 0, 3)).unwrap();
    assert_eq!(bench.short(from(9, 2, 3, 1)), Err(ErrorCode::SequenceGap), "a session begins at 0");
    assert_eq!(bench.short(from(9, 1, 3, 1)), Ok((true, 3, 1)), "what was refused fences nobody");
    assert_eq!(bench.short(from(9, 2, 0, 1)), Ok((true, 4, 1)));
    assert_eq!(bench.short(from(9, 1, 4, 1)), Err(ErrorCode::ProducerFenced));
    assert_eq!(bench.short(from(9, 1, 0, 3)), Err(ErrorCode::ProducerFenced));
}

#[test]
fn a_clock_that_jumps_forgets_no_producer() {
    let mut bench = Bench::new();
    bench.short(from(9, 1, 0, 1)).unwrap();
    bench.now += YEAR_MS;
    bench.short(from(8, 1, 0, 1)).unwrap();
    assert_eq!(bench.short(from(9, 1, 0, 1)), Ok((false, 0, 1)), "sent again after the jump, stored once");
    assert_eq!(bench.short(from(9, 1, 1, 1)), Ok((true, 2, 1)));
}

#[test]
fn the_oldest_producer_makes_room() {
    let mut bench = Bench::new();
    let appends = (1..=PRODUCERS_PER_PARTITION_MAX as u64).map(|id| append(from(id, 0, 0, 1))).collect();
    bench.apply(ShardEntry { appends, ..ShardEntry::default() });
    assert!(bench.short(from(1, 0, 1, 1)).is_ok());
    assert!(bench.short(from(1 << 40, 0, 0, 1)).is_ok());
    assert_eq!(bench.short(from(2, 0, 1, 1)), Err(ErrorCode::SequenceGap), "2 was silent for longest");
    assert!(bench.short(from(1, 0, 2, 1)).is_ok());
    assert!(bench.short(from(3, 0, 1, 1)).is_ok());
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let mut bench = Bench::new();
    let put = PutPartition { event_bytes_max: 50, ..put_partition(1) };
    bench.apply(ShardEntry { put_partitions: vec![put], ..ShardEntry::default() });
    assert_eq!(bench.short(packed(1, 100, None)), Err(ErrorCode::TooLarge));
    assert!(bench.short(packed(1, 30, None)).is_ok(), "renewed settings apply from then on");
    let elsewhere = Append { partition: 6, ..append(packed(1, 1, None)) };
    let results = bench.apply(ShardEntry { appends: vec![elsewhere], ..ShardEntry::default() }).appends;
    assert!(matches!(&results[0], AppendResult::Refused(refusal) if refusal.code == ErrorCode::UnknownPartition));
}

#[test]
fn damaged_bytes_stop_apply_before_anything_changes() {
    let mut bench = Bench::new();
    let mut damaged = packed(1, 4, None).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let appends = vec![append(packed(1, 1, None)), append(damaged.into())];
    let before = bench.state.clone();
    let mut outcome = Outcome::default();
    let at = LogPosition { term: 1, index: 50 };
    let error = bench.state.apply(at, ShardEntry { appends, ..ShardEntry::default() }, &mut outcome).unwrap_err();
    assert_eq!((error.index, error.partition), (1, HOME));
    assert_eq!(bench.state, before);
    assert!(outcome.appends.is_empty());
}

#[test]
fn groups_start_where_they_are_told_and_keep_their_place() {
    let mut bench = Bench::new();
    bench.short(packed(3, 1, None)).unwrap();
    bench.put_group(StartAt::Earliest as u32);
    assert_eq!(bench.cursor(), (0, vec![]));
    bench.put_group(StartAt::Now as u32);
    assert_eq!(bench.cursor(), (0, vec![]), "a group that is known keeps its place");
    let now = PutGroup { group: 5, ..put_group(StartAt::Now as u32) };
    bench.apply(ShardEntry { put_groups: vec![now], ..ShardEntry::default() });
    assert_eq!(bench.home().group(GroupId(5)).unwrap().cursor.acked_below(), 3);
    assert_eq!(bench.home().group(GroupId(5)).unwrap().ack_deadline_ms, 500);
    bench.apply(ShardEntry { drop_groups: vec![DropGroup { topic: 1, group: 5 }], ..ShardEntry::default() });
    assert_eq!(bench.home().groups().len(), 1);
}

#[test]
fn acks_move_the_cursor_or_are_refused_whole() {
    let mut bench = Bench::new();
    assert_eq!(bench.ack(1, &[(0, 0)]), Err(ErrorCode::UnknownGroup));
    bench.put_group(StartAt::Earliest as u32);
    bench.short(packed(10, 1, None)).unwrap();
    assert_eq!(bench.ack(1, &[(2, 3), (7, 7)]), Ok(()));
    assert_eq!(bench.cursor(), (0, vec![(2, 3), (7, 7)]));
    assert_eq!(bench.ack(1, &[(0, 1), (9, 10)]), Err(ErrorCode::InvalidArgument));
    assert_eq!(bench.ack(1, &[(0, 1), (5, 4)]), Err(ErrorCode::InvalidArgument));
    assert_eq!(bench.cursor(), (0, vec![(2, 3), (7, 7)]));
    assert_eq!(bench.ack(1, &[(0, 1)]), Ok(()));
    assert_eq!(bench.cursor(), (4, vec![(7, 7)]));
    bench.at.term = 2;
    assert_eq!(bench.ack(1, &[(4, 4)]), Err(ErrorCode::StaleEpoch));
    assert_eq!(bench.ack(2, &[(0, 9)]), Ok(()));
    assert_eq!(bench.cursor(), (10, vec![]));
    let elsewhere = AckCommand { partition: 3, ..ack(2, &[]) };
    let outcome = bench.apply(ShardEntry { acks: vec![elsewhere], ..ShardEntry::default() });
    assert_eq!(outcome.acks[0].clone().unwrap_err().code, ErrorCode::UnknownPartition);
}

#[test]
fn a_dropped_topic_does_not_come_back() {
    let mut bench = Bench::new();
    let put_partitions = vec![put_partition(2), PutPartition { partition: 7, ..put_partition(1) }];
    bench.apply(ShardEntry { put_partitions, ..ShardEntry::default() });
    let dropped =
        bench.apply(ShardEntry { drop_topics: vec![DropTopic { topic: 1 }], ..ShardEntry::default() }).dropped;
    assert_eq!(dropped, [HOME, PartitionId { index: 7, ..HOME }]);
    assert!(bench.state.dropped(TopicId(1)));
    let outcome = bench.apply(ShardEntry { put_partitions: vec![put_partition(1)], ..ShardEntry::default() });
    assert_eq!(outcome.created, []);
    assert_eq!(bench.short(packed(1, 1, None)), Err(ErrorCode::UnknownPartition));
    assert_eq!(bench.state.partitions().count(), 1);
}

#[test]
fn a_partition_and_its_first_events_may_share_an_entry() {
    let mut bench = Bench { state: State::default(), at: LogPosition { term: 1, index: 0 }, now: 0 };
    let outcome = bench.apply(ShardEntry {
        put_partitions: vec![put_partition(1)],
        put_groups: vec![put_group(StartAt::Now as u32)],
        appends: vec![append(packed(2, 1, None))],
        acks: vec![ack(1, &[(0, 0)])],
        ..ShardEntry::default()
    });
    assert!(matches!(outcome.appends[0], AppendResult::Stored(_)));
    assert_eq!(outcome.acks, [Ok(())]);
}

#[test]
fn a_broken_state_is_not_loaded() {
    let broken = |change: &dyn Fn(&mut ShardState)| {
        let mut bench = Bench::new();
        bench.put_group(1);
        bench.short(from(9, 1, 0, 2)).unwrap();
        let mut state = bench.state.to_proto();
        change(&mut state);
        State::from_proto(state).map_err(|error| error.to_string())
    };
    assert!(broken(&|_| ()).is_ok());
    let is_err = |result: Result<State, String>, what: &str| assert!(result.unwrap_err().contains(what), "{what}");
    is_err(broken(&|s| s.partitions[0].start_offset = 5), "offsets of t1/0");
    is_err(broken(&|s| s.partitions[0].cursors[0].acked_below = 5), "place of t1/0");
    is_err(broken(&|s| s.partitions[0].cursors[0].acked = vec![Range { first: 0, last: u64::MAX }]), "range");
    is_err(broken(&|s| s.partitions[0].producers[0].batches[0].first_sequence = u64::MAX), "sequence");
    is_err(broken(&|s| s.partitions.push(s.partitions[0].clone())), "twice");
}

#[test]
#[should_panic(expected = "in order")]
fn no_entry_is_applied_twice() {
    let mut bench = Bench::new();
    bench.at.index -= 1;
    bench.apply(ShardEntry::default());
}

#[derive(Clone, Debug)]
enum Step {
    Append { producer: u64, epoch: u32, first: u64, count: usize },
    Ack { group: u32, first: u64, count: u64 },
    PutGroup(u32, u32),
    NewTerm,
    Wait(i64),
    Note,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u64, 0..2u32, 0..8u64, 1..4usize)
            .prop_map(|(producer, epoch, first, count)| Step::Append { producer, epoch, first, count }),
        4 => (1..3u32, 0..20u64, 1..5u64).prop_map(|(group, first, count)| Step::Ack { group, first, count }),
        1 => (1..3u32, 1..3u32).prop_map(|(group, start)| Step::PutGroup(group, start)),
        1 => Just(Step::NewTerm),
        1 => (0..YEAR_MS).prop_map(Step::Wait),
        1 => Just(Step::Note),
    ]
}

proptest! {
    /// Two replicas, one of which is restored from a snapshot at every step, stay the same; offsets stay dense.
    #[test]
    fn replicas_are_identical(steps in proptest::collection::vec(step(), 1..60)) {
        let mut bench = Bench::new();
        let mut other = bench.state.clone();
        let mut stored = 0;
        for step in steps {
            let mut entry = ShardEntry::default();
            match step {
                Step::Append { producer: 0, count, .. } => entry.appends.push(append(packed(count, 1, None))),
                Step::Append { producer, epoch, first, count } => {
                    entry.appends.push(append(from(producer, epoch, first, count)));
                }
                Step::Ack { group, first, count } => {
                    entry.acks.push(AckCommand { group, ..ack(bench.at.term, &[(first, first + count)]) });
                }
                Step::PutGroup(group, start) => entry.put_groups.push(PutGroup { group, ..put_group(start) }),
                Step::NewTerm => bench.at.term += 1,
                Step::Wait(ms) => bench.now += ms,
                Step::Note => {
                    bench.at.index += 1;
                    let membership = StoredMembership { log_id: None, membership: Some(Membership::default()) };
                    bench.state.note(bench.at, Some(membership.clone()));
                    other.note(bench.at, Some(membership));
                }
            }
            let bytes = other.to_proto().encode_to_vec();
            other = State::from_proto(ShardState::decode(&bytes[..]).unwrap()).unwrap();
            let outcome = bench.apply(entry.clone());
            let mut others = Outcome::default();
            other.apply(bench.at, ShardEntry { log_time_ms: bench.now, ..entry }, &mut others).unwrap();
            prop_assert_eq!(&outcome.appends, &others.appends);
            prop_assert_eq!(&outcome.acks, &others.acks);
            prop_assert_eq!(&bench.state, &other);
            for result in outcome.appends {
                if let AppendResult::Stored(batch) = result {
                    prop_assert_eq!(batch.base_offset, Offset(stored));
                    stored += u64::from(batch.count);
                }
            }
            prop_assert_eq!(bench.home().end(), Offset(stored));
        }
    }

    #[test]
    fn a_cursor_is_a_set(start in 0..10u64, acks in proptest::collection::vec((0..60u64, 0..12u64), 0..40)) {
        let mut cursor = Cursor::at(start);
        let mut set: BTreeSet<u64> = (0..start).collect();
        for (first, more) in acks {
            cursor.ack(first, first + more);
            set.extend(first..=first + more);
            prop_assert_eq!(cursor.acked_below(), (0..).find(|offset| !set.contains(offset)).unwrap());
            for offset in 0..90 {
                prop_assert_eq!(cursor.contains(offset), set.contains(&offset), "{}", offset);
            }
            let ranges: Vec<_> = cursor.ranges().collect();
            prop_assert!(ranges.is_sorted() && ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", ranges);
            prop_assert!(ranges.first().is_none_or(|range| range.0 > cursor.acked_below()));
            prop_assert_eq!(cursor.acked_above(), set.range(cursor.acked_below()..).count() as u64);
        }
    }
}
