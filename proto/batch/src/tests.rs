use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use weft_proto::v1::Event;

use super::*;

fn event(key: &str, data: &[u8], time_ms: i64) -> Event {
    let mut event =
        Event { key: Bytes::copy_from_slice(key.as_bytes()), data: Bytes::copy_from_slice(data), ..Event::default() };
    event.time_ms = time_ms;
    event
}

fn small() -> Bytes {
    let mut packer = Packer::new(Limits::default());
    let mut first = event("N14228", b"EWR-IAH", 1_357_000_000_000);
    first.id = "1".into();
    first.r#type = "departure".into();
    first.headers.insert("carrier".into(), "UA".into());
    packer.push(&first, 0).unwrap();
    packer.push(&event("", b"no key", 0), 1_357_000_000_250).unwrap();
    packer.finish(Some((7, 3)), Some(Producer { id: 9, epoch: 2, first_sequence: 40 })).unwrap()
}

/// The bytes other languages must produce and read: docs/protocol.md shows them too.
const GOLDEN: &str = "dc000000b4616f0cb35e8cac01000000030000000700000000000000000000000200000000000000\
     0000000000000000000000000000000000c280f33b010000fac280f33b0100000900000000000000\
     020000000000000028000000000000000000000000000000a69681ce08f85b040000000000000000\
     8173544c350000000000000000000000fa00000000000000000000000f0000000a064e3134323238\
     12074557522d4941481a01312a09646570617274757265408084839cbf274a0d0a07636172726965\
     721202554112066e6f206b657940fa85839cbf27";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_golden_batch_does_not_change() {
    assert_eq!(hex(&small()), GOLDEN);
}

#[test]
fn keys_stay_in_their_partitions() {
    let places = |key: &str| [1, 2, 8, 64, 1024].map(|partitions| hashing::partition_of(key.as_bytes(), partitions));
    assert_eq!(places(""), [0, 0, 0, 52, 241]);
    assert_eq!(places("N14228"), [0, 1, 1, 1, 397]);
    assert_eq!(places("NA"), [0, 1, 6, 29, 727]);
}

#[test]
fn a_packed_batch_reads_back() {
    let batch = Batch::parse(small()).unwrap();
    batch.check_body().unwrap();
    let header = batch.header();
    assert_eq!((header.topic, header.partition, header.count), (7, 3, 2));
    assert_eq!(header.producer, Some(Producer { id: 9, epoch: 2, first_sequence: 40 }));
    assert_eq!((header.min_time_ms, header.max_time_ms), (1_357_000_000_000, 1_357_000_000_250));
    let envelopes: Vec<_> = batch.envelopes().collect();
    assert_eq!(envelopes[0].key_hash, key_hash(b"N14228"));
    assert_eq!(envelopes[0].type_hash, type_hash("departure"));
    assert_eq!((envelopes[1].key_hash, envelopes[1].time_delta_ms, envelopes[1].type_hash), (0, 250, 0));
    assert_eq!(batch.decode(1).unwrap(), event("", b"no key", 1_357_000_000_250));
    assert_eq!(batch.decode(0).unwrap().headers["carrier"], "UA");
    assert!(matches!(batch.decode(2), Err(BatchError::Event { index: 2, .. })));
    assert_eq!(batch.record_bytes_max(), envelopes[0].len);
}

#[test]
fn a_stamp_changes_the_header_alone() {
    let batch = Batch::parse(small()).unwrap();
    let stamp = Stamp { topic: 7, partition: 3, base_offset: 1000, term: 5, raft_index: 77, log_time_ms: 12 };
    let header = batch.stamp(stamp);
    let stored: Bytes = [header, batch.body()].concat().into();
    let read = check(&stored).unwrap();
    assert_eq!(read, batch.header().stamped(stamp));
    assert_eq!(read.end_offset(), 1002);
    assert_eq!(stored[HEADER_BYTES..], batch.bytes()[HEADER_BYTES..]);
    // A reader of a segment sees what follows, too.
    let mut longer = stored.to_vec();
    longer.extend_from_slice(&[1, 2, 3]);
    assert_eq!(Header::read(&longer).unwrap(), read);
    assert_eq!(check(&longer), Err(BatchError::Length { stated: stored.len(), have: stored.len() + 3 }));
}

#[test]
fn the_packer_keeps_its_limits() {
    let mut packer = Packer::new(Limits { batch_bytes: 300, batch_events: 2, event_bytes: 200 });
    assert_eq!(packer.finish(None, None), Err(BatchError::Empty));
    packer.push(&event("k", &[0; 20], 1), 1).unwrap();
    let before = packer.len_bytes();
    assert_eq!(packer.push(&event("k", &[0; 160], 1), 1), Err(BatchError::Full));
    let too_large = BatchError::EventTooLarge { bytes: 208, max: 200 };
    assert_eq!(packer.push(&event("k", &[0; 200], 1), 1), Err(too_large));
    assert_eq!((packer.len_bytes(), packer.count()), (before, 1));
    packer.push(&event("k", &[0; 20], 1), 1).unwrap();
    assert_eq!(packer.push(&event("", &[], 1), 1), Err(BatchError::Full));
    let over = Producer { id: 1, epoch: 0, first_sequence: u64::MAX };
    assert_eq!(packer.finish(None, Some(over)), Err(BatchError::Range("first_sequence")));
    assert_eq!(packer.finish(None, None).unwrap().len(), check(&packer_twice()).unwrap().len as usize);
    assert!(packer.is_empty());
    // A single event may be larger than the batch's limit, if it is an event at all.
    packer.push(&event("", &[0; 190], 1), 1).unwrap();

    fn packer_twice() -> Bytes {
        let mut packer = Packer::new(Limits::default());
        packer.push(&event("k", &[0; 20], 1), 1).unwrap();
        packer.push(&event("k", &[0; 20], 1), 1).unwrap();
        packer.finish(None, None).unwrap()
    }
}

#[test]
fn events_over_a_limit_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Event)| {
        let mut event = Event::default();
        change(&mut event);
        check_event(&event).unwrap_err().to_string()
    };
    assert_eq!(refused(&|e| e.key = vec![0; 4097].into()), "key bytes of 4097, at most 4096");
    assert_eq!(refused(&|e| e.subject = "s".repeat(5000)), "subject bytes of 5000, at most 4096");
    let many = |e: &mut Event| e.headers = (0..65).map(|i| (i.to_string(), String::new())).collect();
    assert_eq!(refused(&many), "headers of 65, at most 64");
    let long = |e: &mut Event| e.headers = [("n".repeat(129), String::new())].into();
    assert_eq!(refused(&long), "header name bytes of 129, at most 128");
    let nameless = |e: &mut Event| e.headers = [(String::new(), "v".to_string())].into();
    assert_eq!(refused(&nameless), "a header has an empty name: name it, or leave it out");
    let large = |e: &mut Event| e.headers = [("n".to_string(), "v".repeat(16 << 10))].into();
    assert_eq!(refused(&large), "header bytes of 16385, at most 16384");
    let data = |e: &mut Event| e.data = vec![0; EVENT_BYTES_MAX].into();
    assert_eq!(refused(&data), "an event of 8388613 bytes, at most 8388608");
}

#[test]
fn times_far_apart_saturate() {
    let mut packer = Packer::new(Limits::default());
    packer.push(&event("", b"a", i64::MIN), 1).unwrap();
    packer.push(&event("", b"b", i64::MAX), 1).unwrap();
    let batch = Batch::parse(packer.finish(None, None).unwrap()).unwrap();
    assert_eq!(batch.envelopes().nth(1).unwrap().time_delta_ms, u32::MAX);
    assert_eq!(batch.decode(1).unwrap().time_ms, i64::MAX);
}

/// Re-makes the header CRC, so that what lies behind it is reached.
fn resealed(mut bytes: Vec<u8>) -> Bytes {
    let crc = crc32c::crc32c(&bytes[8..HEADER_BYTES]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes.into()
}

#[test]
fn hostile_headers_are_errors() {
    let with = |at: usize, field: &[u8]| {
        let mut bytes = small().to_vec();
        bytes[at..at + field.len()].copy_from_slice(field);
        Batch::parse(resealed(bytes)).err()
    };
    let len = small().len();
    assert_eq!(with(12, &[2]), Some(BatchError::Version(2)));
    assert_eq!(with(13, &[1]), Some(BatchError::Compression(1)));
    assert_eq!(with(13, &[4]), Some(BatchError::Reserved { at: 13 }));
    assert_eq!(with(14, &[1]), Some(BatchError::Reserved { at: 14 }));
    assert_eq!(with(36, &[1]), Some(BatchError::Reserved { at: 36 }));
    assert_eq!(with(87, &[1]), Some(BatchError::Reserved { at: 84 }));
    assert_eq!(with(32, &[0, 0, 0, 0]), Some(BatchError::Empty));
    let many = BatchError::TooManyEvents { count: u32::MAX as usize, max: BATCH_EVENTS_MAX };
    assert_eq!(with(32, &[0xff; 4]), Some(many));
    assert!(matches!(with(32, &[0, 0, 1, 0]), Some(BatchError::Truncated { .. })));
    assert!(matches!(with(32, &[1]), Some(BatchError::Table { .. })));
    assert!(matches!(with(0, &[0xff; 4]), Some(BatchError::TooLarge { .. })));
    assert_eq!(with(0, &[9, 0, 0, 0]), Some(BatchError::Truncated { needed: 152, have: 9 }));
    assert_eq!(with(0, &[200, 0, 0, 0]), Some(BatchError::Length { stated: 200, have: len }));
    assert_eq!(with(24, &[0xff; 8]), Some(BatchError::Range("base_offset")));
    assert_eq!(with(88, &[0xff; 8]), Some(BatchError::Range("first_sequence")));
    assert_eq!(with(56, &i64::MAX.to_le_bytes()), Some(BatchError::Range("min_time")));
    assert!(matches!(with(HEADER_BYTES + 20, &[0xff; 4]), Some(BatchError::EventTooLarge { .. })));
}

#[test]
fn a_flip_of_any_bit_is_found() {
    let good = small();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(check(&bytes).is_err(), "bit {bit}");
    }
    for len in 0..good.len() {
        assert!(check(&good[..len]).is_err(), "{len} bytes");
        assert!(Batch::parse(good.slice(..len)).is_err(), "{len} bytes");
    }
}

prop_compose! {
    fn any_event()(
        key in proptest::collection::vec(any::<u8>(), 0..20),
        data in proptest::collection::vec(any::<u8>(), 0..300),
        id in "[a-z]{0,8}",
        event_type in "[a-z.]{0,12}",
        time_ms in any::<i64>(),
        headers in proptest::collection::btree_map("[a-z]{1,5}", "[a-z]{0,5}", 0..3),
    ) -> Event {
        let mut event = Event { id, r#type: event_type, time_ms, headers, ..Event::default() };
        (event.key, event.data) = (key.into(), data.into());
        event
    }
}

proptest! {
    #[test]
    fn round_trip(events in proptest::collection::vec(any_event(), 1..40), now_ms in 1..i64::MAX, id in any::<u64>()) {
        let mut packer = Packer::new(Limits::default());
        for event in &events {
            packer.push(event, now_ms).unwrap();
        }
        let expected_len = packer.len_bytes();
        let producer = Producer { id, epoch: 1, first_sequence: 0 };
        let bytes = packer.finish(None, Some(producer)).unwrap();
        prop_assert_eq!(bytes.len(), expected_len);
        check(&bytes).unwrap();
        let batch = Batch::parse(bytes).unwrap();
        prop_assert_eq!(batch.header().producer, (id != 0).then_some(producer));
        prop_assert_eq!(batch.records().len(), events.len());
        for (index, record) in batch.records() {
            let mut event = events[index as usize].clone();
            if event.time_ms == 0 {
                event.time_ms = now_ms;
            }
            prop_assert_eq!(batch.record(index).unwrap(), record.clone());
            let envelope = batch.envelopes().nth(index as usize).unwrap();
            prop_assert_eq!(envelope.key_hash, key_hash(&event.key));
            prop_assert_eq!(envelope.len as usize, record.len());
            prop_assert_eq!(Event::decode(record).unwrap(), event);
        }
    }

    #[test]
    fn noise_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), seal in any::<bool>()) {
        if seal && bytes.len() >= HEADER_BYTES {
            bytes[12..16].fill(0);
            bytes[12] = VERSION;
            bytes = resealed(bytes).to_vec();
        }
        let _ = check(&bytes);
        prop_assert!(Batch::parse(bytes.into()).is_err());
    }

    #[test]
    fn damage_never_panics(damage in proptest::collection::vec((0usize..200, any::<u8>()), 1..6)) {
        let mut bytes = small().to_vec();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(batch) = Batch::parse(resealed(bytes)) {
            for (index, _) in batch.records() {
                let _ = batch.decode(index);
            }
        }
    }
}
