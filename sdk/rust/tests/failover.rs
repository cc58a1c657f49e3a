//! The producer and the subscribers against nodes that misbehave: one integration binary.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::collections::BTreeMap;
use std::time::Duration;

use fake::{Fake, Fault, TOPIC};
use weft_sdk::{Client, ErrorCode, Event, StartAt, event};

async fn client(fakes: &[&Fake]) -> Client {
    let servers = fakes.iter().map(|fake| fake.address.to_string());
    Client::builder().servers(servers).seed(7).connect().await.unwrap()
}

/// Publishes `count` events over `keys` keys in bulk and checks that each is stored once, in order per key.
async fn publish_and_check(fault: Fault, count: u64) {
    let log = fake::Log::default();
    let first = Fake::start(log.clone(), fault).await;
    let second = Fake::start(log.clone(), Fault::None).await;
    let client = client(&[&first, &second]).await;
    let producer = client.producer(TOPIC).batch_bytes(2_000).linger(Duration::from_millis(1)).open().await.unwrap();
    for number in 0..count {
        producer.push(event(format!("key-{}", number % 13), number.to_string())).await.unwrap();
    }
    let published = producer.close().await.unwrap();
    assert_eq!((published.events, published.failed), (count, 0));
    let mut by_key: BTreeMap<Vec<u8>, Vec<u64>> = BTreeMap::new();
    for stored in log.events() {
        let number = std::str::from_utf8(&stored.data).unwrap().parse().unwrap();
        by_key.entry(stored.key.to_vec()).or_default().push(number);
    }
    assert_eq!(by_key.values().map(Vec::len).sum::<usize>() as u64, count, "each once");
    assert!(by_key.values().all(|numbers| numbers.is_sorted()), "in order per key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_stored_once_and_in_order() {
    publish_and_check(Fault::None, 5_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_after_storing_makes_no_doubles() {
    publish_and_check(Fault::BreakAfter(7), 5_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_for_the_moment_keep_the_order() {
    publish_and_check(Fault::RefuseEvery(5), 5_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_answers_keep_the_order() {
    publish_and_check(Fault::AnswerLate(Duration::from_millis(20)), 1_000).await;
}

#[tokio::test]
async fn a_receipt_names_the_place_of_each_event() {
    let fake = Fake::start(fake::Log::default(), Fault::None).await;
    let producer = client(&[&fake]).await.producer(TOPIC).open().await.unwrap();
    let mut pending = Vec::new();
    for number in 0..100 {
        pending.push(producer.send(event("k", number.to_string())).await.unwrap());
    }
    for (number, pending) in pending.into_iter().enumerate() {
        assert_eq!(pending.await.unwrap().offset, Some(number as u64));
    }
}

#[tokio::test]
async fn an_event_that_is_refused_for_good_gives_its_numbers_to_the_next() {
    let log = fake::Log::default();
    let fake = Fake::start(log.clone(), Fault::RefuseData("bad".into())).await;
    let producer = client(&[&fake]).await.producer(TOPIC).batch_bytes(1).open().await.unwrap();
    let mut pending = Vec::new();
    for data in ["a", "bad", "b", "c"] {
        pending.push(producer.send(event("k", data)).await.unwrap());
    }
    let mut results = Vec::new();
    for pending in pending {
        results.push(pending.await.map(|receipt| receipt.offset.unwrap()).map_err(|error| error.code()));
    }
    assert_eq!(results, [Ok(0), Err(ErrorCode::TooLarge), Ok(1), Ok(2)]);
    assert_eq!(producer.close().await.unwrap_err().code(), ErrorCode::TooLarge);
}

#[tokio::test]
async fn what_can_never_be_packed_is_refused_at_once() {
    let fake = Fake::start(fake::Log::default(), Fault::None).await;
    let producer = client(&[&fake]).await.producer(TOPIC).open().await.unwrap();
    let large = producer.send(event("k", vec![0; 2 << 20])).await.err().unwrap();
    assert_eq!(large.code(), ErrorCode::TooLarge);
    producer.close().await.unwrap();
    assert!(producer.push(Event::default()).await.is_err(), "it is closed");
}

#[tokio::test]
async fn without_a_node_nothing_is_promised() {
    let connecting = Client::builder().servers(["127.0.0.1:1"]).patience(Duration::from_millis(200));
    assert!(matches!(connecting.connect().await.err(), Some(weft_sdk::Error::Unreachable(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_goes_on_where_it_was() {
    let log = fake::Log::default();
    let healthy = Fake::start(log.clone(), Fault::None).await;
    let producer = client(&[&healthy]).await.producer(TOPIC).batch_bytes(500).open().await.unwrap();
    for number in 0..500 {
        producer.push(event(format!("key-{}", number % 13), number.to_string())).await.unwrap();
    }
    producer.close().await.unwrap();
    let breaking = Fake::start(log.clone(), Fault::BreakAfter(3)).await;
    let subscriber = client(&[&breaking, &healthy]).await.subscriber(TOPIC).start(StartAt::Earliest).until_end();
    let mut observer = subscriber.observe().await.unwrap();
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    let mut seen = 0;
    while let Some(observed) = observer.next().await.unwrap() {
        let expected = next.entry(observed.partition).or_default();
        assert_eq!(observed.offset, *expected, "dense, each once");
        *expected += 1;
        seen += 1;
    }
    assert_eq!(seen, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_joins_again_and_its_acks_arrive() {
    let log = fake::Log::default();
    let healthy = Fake::start(log.clone(), Fault::None).await;
    let producer = client(&[&healthy]).await.producer(TOPIC).open().await.unwrap();
    for number in 0..200 {
        producer.push(event(format!("key-{}", number % 13), number.to_string())).await.unwrap();
    }
    producer.close().await.unwrap();
    let breaking = Fake::start(log.clone(), Fault::BreakAfter(40)).await;
    let mut consumer = client(&[&breaking, &healthy]).await.subscriber(TOPIC).credit(16).group("g").await.unwrap();
    let mut void = None;
    while log.acked() < 200 {
        let next = tokio::time::timeout(Duration::from_millis(50), consumer.next()).await;
        let Ok(delivery) = next else { continue };
        let delivery = delivery.unwrap();
        if void.is_none() {
            // Kept over the break: it becomes void, and comes again.
            void = Some(delivery.handle);
            continue;
        }
        delivery.handle.ack();
    }
    let void = void.unwrap();
    void.voided().await;
    assert!(!void.is_valid());
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn a_producer_ends_with_its_topic() {
    let fake = Fake::start(fake::Log::default(), Fault::Deleted).await;
    let client = client(&[&fake]).await;
    let producer = client.producer(TOPIC).open().await.unwrap();
    producer.push(event("k", "v")).await.unwrap();
    let ended = producer.ended().await;
    assert_eq!(ended.code(), ErrorCode::UnknownTopic);
    assert_eq!(producer.push(event("k", "v")).await.unwrap_err().code(), ErrorCode::UnknownTopic);
    assert_eq!(producer.close().await.unwrap_err().code(), ErrorCode::UnknownTopic);
    let published = producer.published();
    assert_eq!((published.events, published.failed, published.unknown), (0, 1, 0));
}

#[tokio::test]
async fn what_a_client_waits_for_is_told() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::builder().servers([nobody.to_string()]).patience(Duration::from_secs(5)).start().unwrap();
    assert_eq!(client.waits_for(), None, "nothing is asked");
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.cluster().members().await }
    });
    let told = async {
        loop {
            match client.waits_for() {
                Some(why) if why.contains("nothing listens") => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), told).await.expect("it is told");
    asking.abort();
    let _ = asking.await;
    assert_eq!(client.waits_for(), None, "nothing is asked any more");
}
