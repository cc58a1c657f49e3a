//! Calls through the proxy: connections of memory, links on loopback.

mod homes;
mod hop;
mod memory;
mod world;
mod wrong;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use weft_proto::v1::ErrorCode;

use crate::drivers::calls::CallsConfig;
use world::{Instance, MemoryNet, Node, call, put, receive, record, request, view};

/// A node with instances at home.
async fn world(ports: &[u16], idempotent: &[&str]) -> (Arc<MemoryNet>, Node) {
    let net = MemoryNet::new();
    let node = Node::start(&world::authority(), net.clone(), 1, CallsConfig::default()).await;
    let ids = 1..;
    let records: Vec<_> = ports.iter().zip(ids).map(|(port, id)| record(id, node.id(), *port)).collect();
    node.view.send_replace(Arc::new(view(node.id(), &records, idempotent)));
    (net, node)
}

#[tokio::test]
async fn a_unary_call_passes_untouched() {
    let (net, node) = world(&[80], &[]).await;
    let instance = Instance::start(&net, 80);
    let client = node.client().await;
    let answer = call(&client, request("Unary"), "hello").await.expect("answered");
    assert_eq!((answer.http.as_u16(), &answer.data[..]), (200, &b"hello"[..]));
    assert_eq!(answer.headers["answer-bin"], "AAEC");
    assert_eq!(answer.trailers["grpc-status"], "0");
    let seen = instance.seen.lock().expect("no panic");
    assert_eq!((seen.headers["token-bin"].as_bytes(), seen.headers["te"].as_bytes()), (&b"AAEC"[..], &b"trailers"[..]));
    assert_eq!(seen.uri, "http://shop.example/t.Echo/Unary");
    assert!(!seen.headers.contains_key("grpc-timeout"));
}

#[tokio::test]
async fn large_messages_pass_both_ways() {
    let (net, node) = world(&[80], &[]).await;
    let _instance = Instance::start(&net, 80);
    let client = node.client().await;
    let body = Bytes::from((0..5_000_000u32).map(|byte| byte as u8).collect::<Vec<_>>());
    for method in ["Unary", "Stream"] {
        // The echo of a stream must be read while it is sent.
        let mut ready = client.clone().ready().await.expect("open");
        let (response, mut send) = ready.send_request(request(method), false).expect("sent");
        let sending = async {
            put(&mut send, body.clone()).await.expect("taken");
            send.send_data(Bytes::new(), true).expect("taken");
        };
        let (answer, ()) = tokio::join!(receive(response), sending);
        assert!(answer.expect("answered").data == body, "{method}");
    }
}

#[tokio::test]
async fn a_bidirectional_stream_answers_before_its_request_ends() {
    let (net, node) = world(&[80], &[]).await;
    let _instance = Instance::start(&net, 80);
    let mut client = node.client().await.ready().await.expect("open");
    let (response, mut send) = client.send_request(request("Stream"), false).expect("sent");
    let mut body = response.await.expect("the head comes first").into_body();
    for message in ["one", "two", "three"] {
        send.send_data(message.into(), false).expect("taken");
        assert_eq!(body.data().await.expect("echoed").expect("whole"), message);
    }
    send.send_data(Bytes::new(), true).expect("taken");
    assert!(body.data().await.is_none());
    assert_eq!(body.trailers().await.expect("whole").expect("there")["grpc-status"], "0");
}

#[tokio::test]
async fn an_instances_status_and_its_details_pass() {
    let (net, node) = world(&[80], &[]).await;
    let _instance = Instance::start(&net, 80);
    let answer = call(&node.client().await, request("Status"), "").await.expect("answered");
    assert_eq!(answer.headers["grpc-status"], "5");
    assert_eq!(answer.headers["grpc-status-details-bin"], "CAU");
}

#[tokio::test]
async fn the_deadline_is_passed_on_and_kept() {
    let (net, node) = world(&[80], &[]).await;
    let instance = Instance::start(&net, 80);
    let client = node.client().await;
    let mut timed = request("Unary");
    timed.headers_mut().insert("grpc-timeout", HeaderValue::from_static("2S"));
    call(&client, timed, "").await.expect("answered");
    let left = left_us(&instance);
    assert!(left > 0 && left <= 2_000_000, "{left}");

    let mut timed = request("Silent");
    timed.headers_mut().insert("grpc-timeout", HeaderValue::from_static("300m"));
    let answer = call(&client, timed, "").await.expect("answered");
    assert_eq!((answer.code(), answer.status().code()), (ErrorCode::Deadline, tonic::Code::DeadlineExceeded));
    until(|| instance.cut() == 1).await;
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_instance() {
    let (net, node) = world(&[80], &[]).await;
    let instance = Instance::start(&net, 80);
    let mut client = node.client().await.ready().await.expect("open");
    let (response, send) = client.send_request(request("Silent"), true).expect("sent");
    until(|| instance.calls() == 1).await;
    drop((response, send));
    until(|| instance.cut() == 1).await;
    until(|| node.calls.metrics().open.get() == 0).await;
    assert_eq!(node.calls.metrics().cancelled.get(), 1);
}

#[tokio::test]
async fn what_is_no_call_gets_one_clear_status() {
    let (_net, node) = world(&[80], &[]).await;
    let client = node.client().await;
    let with = |change: fn(&mut http::Request<()>)| {
        let mut request = request("Unary");
        change(&mut request);
        request
    };
    let table: [(http::Request<()>, ErrorCode, &str); 7] = [
        (with(|it| *it.uri_mut() = "http://h/Unary".parse().expect("good")), ErrorCode::UnknownService, "path"),
        (with(|it| *it.uri_mut() = "http://h/t.No/Get".parse().expect("good")), ErrorCode::UnknownService, "t.No"),
        (with(|it| *it.method_mut() = http::Method::GET), ErrorCode::InvalidArgument, "POST"),
        (with(|it| drop(it.headers_mut().remove("content-type"))), ErrorCode::InvalidArgument, "application/grpc"),
        (
            with(|it| drop(it.headers_mut().insert("grpc-timeout", HeaderValue::from_static("soon")))),
            ErrorCode::InvalidArgument,
            "grpc-timeout",
        ),
        (
            with(|it| drop(it.headers_mut().insert("weft-namespace", HeaderValue::from_static("other")))),
            ErrorCode::UnknownService,
            "other",
        ),
        (with(|_| {}), ErrorCode::Unreachable, "10.0.0.1:80"),
    ];
    for (request, code, part) in table {
        let answer = call(&client, request, "").await.expect("answered");
        assert_eq!((answer.http.as_u16(), answer.code()), (200, code), "{part}");
        assert!(answer.status().message().contains(part), "{:?} lacks {part}", answer.status().message());
    }
    node.view.send_replace(Arc::new(view(node.id(), &[], &[])));
    let answer = call(&client, request("Unary"), "").await.expect("answered");
    assert_eq!(answer.code(), ErrorCode::NoInstance);
}

#[tokio::test]
async fn what_did_not_run_is_tried_again() {
    let (net, node) = world(&[80, 81], &[]).await;
    let (one, client) = (Instance::start(&net, 80), node.client().await);
    // Nobody listens on the other port: half of the calls go there first.
    for _ in 0..10 {
        assert_eq!(call(&client, request("Unary"), "x").await.expect("answered").status().code(), tonic::Code::Ok);
    }
    assert_eq!(one.calls(), 10);
    assert!(node.failed.lock().expect("no panic").iter().all(|(id, _)| id.0 == 2));

    // A refused stream did not run either.
    let (net, node) = world(&[80], &[]).await;
    let (one, client) = (Instance::start(&net, 80), node.client().await);
    assert_eq!(call(&client, request("Refuse"), "x").await.expect("answered").status().code(), tonic::Code::Ok);
    assert_eq!(one.calls(), 2);
}

#[tokio::test]
async fn an_instance_that_leaves_in_order_costs_no_call() {
    let (net, node) = world(&[80], &[]).await;
    let (one, client) = (Instance::start(&net, 80), node.client().await);
    for _ in 0..20 {
        assert_eq!(call(&client, request("Leave"), "x").await.expect("answered").status().code(), tonic::Code::Ok);
    }
    assert_eq!(one.calls(), 20);
    one.kill();
    until(|| node.calls.metrics().connections_open.get() == 0).await;
    // Its connections are gone; a new instance at the same place takes the next call.
    let two = Instance::start(&net, 80);
    assert_eq!(call(&client, request("Unary"), "x").await.expect("answered").status().code(), tonic::Code::Ok);
    assert_eq!(two.calls(), 1);
}

#[tokio::test]
async fn a_call_of_which_one_try_may_have_run_is_not_said_to_be_unsent() {
    let (net, node) = world(&[80, 81], &["t.Echo/Vanish"]).await;
    // Nobody listens on the other port: a first or a last try ends there.
    let (one, client) = (Instance::start(&net, 80), node.client().await);
    let mut mixed = 0;
    for _ in 0..20 {
        let before = one.calls();
        let answer = call(&client, request("Vanish"), "x").await.expect("answered");
        let ran = one.calls() > before;
        assert_eq!(answer.code() == ErrorCode::OutcomeUnknown, ran, "{:?}", answer.status());
        mixed += usize::from(answer.status().message().contains("a first try may have run"));
    }
    assert!(mixed > 0, "the last try of some was at the other one");
}

#[tokio::test]
async fn only_idempotent_calls_run_twice() {
    let (net, node) = world(&[80, 81], &["t.Echo/Vanish"]).await;
    let (one, two) = (Instance::start(&net, 80), Instance::start(&net, 81));
    let client = node.client().await;
    let answer = call(&client, request("Vanish"), "x").await.expect("answered");
    assert_eq!(answer.code(), ErrorCode::OutcomeUnknown);
    assert_eq!((one.calls() + two.calls()), 3, "as often as the policy says, no more");
    assert!(one.calls() > 0 && two.calls() > 0);

    let (net, node) = world(&[80, 81], &[]).await;
    let (one, two) = (Instance::start(&net, 80), Instance::start(&net, 81));
    let client = node.client().await;
    call(&client, request("Vanish"), "x").await.expect("answered");
    assert_eq!(one.calls() + two.calls(), 1);
    let mut marked = request("Vanish");
    marked.headers_mut().insert("weft-idempotent", HeaderValue::from_static("true"));
    call(&client, marked, "x").await.expect("answered");
    assert_eq!(one.calls() + two.calls(), 4);
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_instance() {
    let (net, node) = world(&[80], &[]).await;
    let instance = Instance::start(&net, 80);
    let mut client = node.client().await.ready().await.expect("open");
    let (response, mut send) = client.send_request(request("Stream"), false).expect("sent");
    let body = response.await.expect("the head comes first").into_body();
    // Nobody reads the echo: what can be sent is bounded by the windows on the way.
    let mut sent = 0;
    let sending = async {
        while put(&mut send, Bytes::from(vec![0; 64 << 10])).await.is_some() {
            sent += 64 << 10;
        }
    };
    let stuck = tokio::time::timeout(Duration::from_millis(500), sending).await;
    assert!(stuck.is_err() && sent < 4 << 20, "{sent} bytes were taken while nobody reads");
    drop((body, send));
    until(|| instance.cut() == 1 && node.calls.metrics().open.get() == 0).await;
}

#[tokio::test]
async fn a_call_without_time_reaches_no_instance() {
    let (net, node) = world(&[80], &[]).await;
    let (instance, client) = (Instance::start(&net, 80), node.client().await);
    for timeout in ["0m", "0n", "1n"] {
        let mut timed = request("Unary");
        timed.headers_mut().insert("grpc-timeout", HeaderValue::from_static(timeout));
        assert_eq!(call(&client, timed, "x").await.expect("answered").code(), ErrorCode::Deadline);
    }
    assert_eq!(instance.calls(), 0);
}

/// What an instance was told of its last call's deadline.
fn left_us(instance: &Instance) -> u64 {
    let seen = instance.seen.lock().expect("no panic");
    seen.headers["grpc-timeout"].to_str().expect("text").trim_end_matches('u').parse().expect("microseconds")
}

fn label() -> crate::drivers::calls::ServiceLabel {
    crate::drivers::calls::ServiceLabel { namespace: "default".into(), service: "echo".into() }
}

/// Waits for what will happen.
async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it happens");
}
