//! Clients that mean harm, and the one beside them that must not notice.

use bytesize::ByteSize;
use http::StatusCode;
use weft_proto::v1::ErrorCode;

use super::*;
use crate::gateways::door::metrics::{Ending, Refusal};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What a client sends first, with settings of its own.
fn hello(settings: &[u8]) -> Vec<u8> {
    [sniff::PREFACE.to_vec(), frame(SETTINGS, 0, 0, settings)].concat()
}

/// The head of a POST to `path`, without compression (RFC 7541 §6.2.2; the first four are in the static table).
fn head(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let kind = [vec![0x0f, 0x10], text("application/grpc")].concat();
    let block = [vec![0x83, 0x86, 0x04], text(path), vec![0x01], text("node"), kind].concat();
    frame(HEADERS, END_HEADERS | flags, stream, &block)
}

/// The code and the text of the GOAWAY frames in what the door has sent.
fn goaways(mut bytes: &[u8]) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let payload = &bytes[9..(9 + length).min(bytes.len())];
        if bytes[3] == GOAWAY && payload.len() >= 8 {
            let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
            found.push((code, String::from_utf8_lossy(&payload[8..]).into_owned()));
        }
        bytes = &bytes[(9 + length).min(bytes.len())..];
    }
    found
}

impl House {
    fn ended(&self, reason: Ending) -> u64 {
        self.metrics().ended_count(reason)
    }

    /// Sends bytes for as long as they are taken, and returns all that the door says until it closes.
    async fn flood(&self, bytes: Vec<u8>) -> Vec<u8> {
        let (mut read, mut write) = tokio::io::split(self.connect().await);
        let mut said = Vec::new();
        let all = async { tokio::join!(write.write_all(&bytes), read.read_to_end(&mut said)) };
        drop(tokio::time::timeout(Duration::from_millis(PATIENCE_MS), all).await.expect("the door closes"));
        said
    }
}

#[tokio::test]
async fn a_flood_of_resets_ends_its_connection() {
    let house = House::open(ApiConfig { resets_burst: 50, resets_per_second: 1, ..ApiConfig::default() });
    let mut client = house.client().await;
    let pair = |at: u32| [head(2 * at + 1, WATCH, 0), frame(RST_STREAM, 0, 2 * at + 1, &8u32.to_be_bytes())].concat();
    for _ in 0..3 {
        let mut flood = hello(&[]);
        (0..2_000).for_each(|at| flood.extend(pair(at)));
        let (said, checked) = tokio::join!(house.flood(flood), check(&mut client));
        checked.expect("others are served");
        assert_eq!(goaways(&said).last().map(|(code, _)| *code), Some(ENHANCE_YOUR_CALM));
    }
    // Slowly, the door has looked at each stream before it is reset: only the rate gives it away.
    let mut stream = house.connect().await;
    stream.write_all(&hello(&[])).await.expect("it is read");
    for at in 0..1_000 {
        if stream.write_all(&pair(at)).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    house.becomes(|house| house.ended(Ending::Resets) >= 1 && house.door.connections() == 1).await;
    check(&mut client).await.expect("others are served");
    house.becomes_clean().await;
}

#[tokio::test]
async fn clients_that_never_read_are_cut_off() {
    let config = ApiConfig { write_timeout: Duration::from_millis(200), ..ApiConfig::default() };
    let house = House::open(config);
    let mut client = house.client().await;
    // All the room in the world, on every stream and on the connection: only the socket is full.
    let mut flood = hello(&[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    flood.extend(frame(WINDOW_UPDATE, 0, 0, &0x3fff_ffff_u32.to_be_bytes()));
    (0..100).for_each(|at| flood.extend(head(2 * at + 1, POUR, END_STREAM)));
    let mut never_read = Vec::new();
    for _ in 0..10 {
        let mut stream = house.connect().await;
        stream.write_all(&flood).await.expect("it is read");
        never_read.push(stream);
    }
    house.becomes(|house| house.metrics().open.get() == 1_000).await;
    check(&mut client).await.expect("others are served");
    let buffered = house.metrics().memory_bytes.get().unsigned_abs();
    assert!(buffered > 1_000 * (64 << 10) && buffered < house.door.inner.config.memory_max.as_u64(), "{buffered}");
    house.becomes(|house| house.ended(Ending::Stalled) == 10).await;
    check(&mut client).await.expect("others are served");
    house.becomes_clean().await;
}

#[tokio::test]
async fn an_answer_without_room_is_given_up() {
    let config = ApiConfig { stream_write_timeout: Duration::from_millis(50), ..ApiConfig::default() };
    let house = House::open(config);
    let mut builder = client::Builder::new();
    let handshake = builder.initial_window_size(0).handshake::<_, Bytes>(house.connect().await);
    let (mut client, connection) = handshake.await.expect("a handshake");
    house.tasks.spawn("test client", async move { drop(connection.await) });
    let (answer, _stream) = ask(&mut client, CHECK, &EMPTY);
    let mut body = answer.await.expect("a head").into_body();
    let error = body.data().await.expect("an end").expect_err("there is no room for data");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(house.metrics().stalled.get(), 1);
    drop((client, body, _stream));
    house.becomes_clean().await;
}

#[tokio::test]
async fn headers_without_end_end_their_connection() {
    let house = House::open(ApiConfig { header_bytes_max: ByteSize::kib(8), ..ApiConfig::default() });
    let mut client = house.client().await;
    // Literal headers of a name and a value of 100 bytes each, never the last.
    let header = [&[0, 100][..], &[b'n'; 100], &[100], &[b'v'; 100]].concat();
    let mut flood = hello(&[]);
    flood.extend(frame(HEADERS, 0, 1, &header));
    (0..20_000).for_each(|_| flood.extend(frame(CONTINUATION, 0, 1, &header)));
    let (said, checked) = tokio::join!(house.flood(flood), check(&mut client));
    checked.expect("others are served");
    assert_eq!(goaways(&said).len(), 1);
    house.becomes_clean().await;
}

#[tokio::test]
async fn headers_that_are_too_large_are_told_so() {
    let house = House::open(ApiConfig { header_bytes_max: ByteSize::kib(8), ..ApiConfig::default() });
    let mut client = house.client().await;
    let large = |path: &str, value_bytes: usize| {
        let mut large = request(path);
        large.headers_mut().insert("x", "y".repeat(value_bytes).parse().expect("good"));
        large
    };
    for path in [CHECK, ECHO] {
        let (answer, _stream) = client.send_request(large(path, 9 << 10), false).expect("ready");
        let answer = answer.await.expect("an answer");
        let content_type = &answer.headers()["content-type"];
        assert_eq!((answer.status(), content_type.as_bytes()), (StatusCode::OK, &b"application/grpc"[..]));
        assert!(answer.body().is_end_stream(), "there are trailers only");
        let status = tonic::Status::from_header_map(answer.headers()).expect("a status");
        let error = crate::wire::from_status(&status);
        assert_eq!((status.code(), error.code()), (tonic::Code::InvalidArgument, ErrorCode::TooLarge));
        assert_eq!((&*error.limit, error.limit_max), ("api.header_bytes_max", 8 << 10));
        assert!(error.message.contains("api.header_bytes_max"), "{}", error.message);
    }
    // What is much too large is not even looked at. The connection goes on in any case.
    let (answer, _stream) = client.send_request(large(ECHO, 40 << 10), true).expect("ready");
    assert_eq!(answer.await.expect("an answer").status(), 431);
    let (answer, mut stream) = client.send_request(large(ECHO, 7 << 10), false).expect("ready");
    stream.send_data(Bytes::from_static(b"one"), true).expect("open");
    assert_eq!(&whole(answer).await.expect("an answer").0[..], b"one");
    assert_eq!(house.metrics().headers_refused.get(), 2);
    check(&mut client).await.expect("others are served");
    house.becomes_clean().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let house = House::open(ApiConfig { connections_max: 20, ..ApiConfig::default() });
    let mut client = house.client().await;
    let mut silent = Vec::new();
    for _ in 0..19 {
        silent.push(house.connect().await);
    }
    house.becomes(|house| house.door.connections() == 20).await;
    for at in 0..3_000 {
        let said = house.flood(hello(&[])).await;
        let (code, why) = goaways(&said).pop().expect("a GOAWAY");
        assert!(code == ENHANCE_YOUR_CALM && why.contains("api.connections_max"), "{why}");
        if at % 100 == 0 {
            check(&mut client).await.expect("others are served");
        }
    }
    assert_eq!(house.metrics().refused_count(Refusal::Connections), 3_000);
    drop(silent);
    house.becomes(|house| house.door.connections() == 1).await;
    check(&mut house.client().await).await.expect("there is room again");
    house.becomes_clean().await;
}

#[tokio::test]
async fn memory_that_is_gone_refuses_connections_and_calls() {
    let house = House::open(ApiConfig { memory_max: ByteSize::mib(4), ..ApiConfig::default() });
    let mut client = house.client().await;
    let mut open = Vec::new();
    // Connections first, ...
    loop {
        let mut stream = house.connect().await;
        stream.write_all(&hello(&[])).await.expect("it is read");
        let mut first = vec![0; 1024];
        let read = stream.read(&mut first).await.expect("settings or a refusal");
        if let Some((_, why)) = goaways(&first[..read]).pop() {
            assert!(why.contains("api.memory_max"), "{why}");
            break;
        }
        open.push(stream);
    }
    assert!(open.len() > 10, "{}", open.len());
    // ... then calls, as what is left is less than one of them takes.
    let mut calls = Vec::new();
    let refused = loop {
        let (answer, mut stream) = client.send_request(request(WATCH), false).expect("ready");
        stream.send_data(Bytes::from_static(&EMPTY), true).expect("open");
        match answer.await {
            Ok(answer) => calls.push((answer, stream)),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.reason(), Some(Reason::REFUSED_STREAM));
    assert!(house.metrics().requests_refused.get() == 1 && house.metrics().memory_bytes.get() <= 4 << 20);
    drop((open, calls));
    house.becomes(|house| house.door.connections() == 1).await;
    check(&mut client).await.expect("there is room again");
    house.becomes_clean().await;
}

#[tokio::test]
async fn silent_and_idle_clients_are_let_go() {
    let config = ApiConfig { keepalive_interval: Duration::from_millis(50), ..ApiConfig::default() };
    let house = House::open(ApiConfig { keepalive_timeout: Duration::from_millis(50), ..config });
    // Says hello, and never answers a ping.
    let mut stream = house.connect().await;
    stream.write_all(&hello(&[])).await.expect("it is read");
    house.becomes(|house| house.ended(Ending::Silent) == 1 && house.door.connections() == 0).await;
    drop(stream);
    house.becomes_clean().await;

    let house = House::open(ApiConfig { idle_timeout: Duration::from_millis(100), ..ApiConfig::default() });
    let mut client = house.client().await;
    check(&mut client).await.expect("an answer");
    house.becomes(|house| house.ended(Ending::Idle) == 1 && house.door.connections() == 0).await;
    assert!(client.ready().await.is_err(), "the client knows");
    house.becomes_clean().await;
}
