use weft_proto::v1::Retry;

use super::*;

fn with_headers(count: usize, value_bytes: usize) -> Event {
    let headers = (0..count).map(|i| (format!("h{i}"), "v".repeat(value_bytes))).collect();
    Event { headers, ..Default::default() }
}

#[test]
fn events_are_checked_against_each_limit() {
    let limit = limits::EVENT_BYTES_DEFAULT;
    let long_name = Event { headers: [("n".repeat(129), String::new())].into(), ..Default::default() };
    let cases = [
        (Event::default(), None),
        (with_headers(64, 10), None),
        (with_headers(65, 1), Some((ErrorCode::TooLarge, "65 headers"))),
        (with_headers(2, 9_000), Some((ErrorCode::TooLarge, "together"))),
        (long_name, Some((ErrorCode::TooLarge, "header name has 129 bytes"))),
        (
            Event { headers: [(String::new(), "v".into())].into(), ..Default::default() },
            Some((ErrorCode::InvalidArgument, "empty name")),
        ),
        (
            Event { data: vec![0; 2 << 20].into(), ..Default::default() },
            Some((ErrorCode::TooLarge, "event_bytes_max is 1048576")),
        ),
        (Event { key: vec![0; 4097].into(), ..Default::default() }, Some((ErrorCode::TooLarge, "key has 4097 bytes"))),
        (Event { subject: "s".repeat(4097), ..Default::default() }, Some((ErrorCode::TooLarge, "subject has 4097"))),
        (Event { time_ms: -1, ..Default::default() }, Some((ErrorCode::InvalidArgument, "time_ms is -1"))),
    ];
    for (given, wanted) in cases {
        match (event(&given, limit), wanted) {
            (Ok(()), None) => {}
            (Err(error), Some((code, part))) => {
                assert_eq!(error.code(), code, "{}", error.message);
                assert!(error.message.contains(part), "{} lacks {part}", error.message);
                assert_eq!(error.retry(), Retry::Never);
            }
            (got, wanted) => panic!("got {got:?}, wanted {wanted:?}"),
        }
    }
}

#[test]
fn a_new_topic_gets_the_defaults_and_the_rules() {
    let asked = |name: &str, partitions, event_bytes_max, namespace: &str| {
        create_topic(CreateTopicRequest { name: name.into(), partitions, event_bytes_max, namespace: namespace.into() })
    };
    let filled = asked("orders", 0, 0, "").expect("all defaults");
    assert_eq!((filled.partitions, filled.event_bytes_max, filled.namespace.as_str()), (8, 1 << 20, "default"));
    for (name, partitions, bytes, namespace, part) in [
        ("", 1, 1, "", "topic name is empty"),
        ("-a", 1, 1, "", "does not begin"),
        ("a b", 1, 1, "", "contains ' '"),
        ("a", 1_025, 1, "", "partitions is 1025: use 1 to 1024"),
        ("a", 1, (8 << 20) + 1, "", "use 1 to 8388608"),
        ("a", 1, 1, "no/slash", "namespace name"),
    ] {
        let error = asked(name, partitions, bytes, namespace).expect_err(part);
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.message.contains(part), "{} lacks {part}", error.message);
    }
}

#[test]
fn numbers_of_enums_and_counts_are_checked() {
    assert_eq!(ack(0).expect("the default"), Ack::Committed);
    assert_eq!(ack(1).expect("accepted"), Ack::Accepted);
    assert!(ack(9).is_err());
    assert_eq!(group_start(0).expect("the default"), StartAt::Earliest);
    assert!(group_start(3).is_err());
    assert_eq!(ack_deadline_ms(0).expect("the default"), 30_000);
    assert!(ack_deadline_ms(5).is_err());
    assert!(events_count(0).is_err());
    assert!(events_count(1_000).is_ok());
    assert_eq!(events_count(1_001).expect_err("too many").code(), ErrorCode::TooLarge);
}
