//! Calls through the proxy: connections of memory, links on loopback.

mod world;

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
        (with(|it| *it.uri_mut() = "http://h/Unary".parse().expect("good")), ErrorCode::InvalidArgument, "path"),
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
async fn instances_that_misbehave_end_their_calls_in_time() {
    let (net, node) = world(&[80], &[]).await;
    let client = node.client().await;
    let garbage: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n                        ";
    for (says, part) in [(None, "within 1s"), (Some(garbage), "HTTP/2")] {
        let _instance = Instance::other(&net, 80, says);
        let answer = call(&client, request("Unary"), "x").await.expect("answered");
        assert_eq!(answer.code(), ErrorCode::Unreachable);
        assert!(answer.status().message().contains(part), "{:?}", answer.status());
        assert!(!node.failed.lock().expect("no panic").is_empty(), "its driver is told");
    }
    let instance = Instance::start(&net, 80);
    let answer = call(&client, request("Vanish"), "x").await.expect("answered");
    assert_eq!((answer.code(), answer.status().code()), (ErrorCode::OutcomeUnknown, tonic::Code::Unknown));
    let answer = call(&client, request("Half"), "x").await.expect_err("the reset passes");
    assert_eq!(answer.reason(), Some(h2::Reason::INTERNAL_ERROR));
    let answer = call(&client, request("Reset"), "x").await.expect_err("the reset passes");
    assert_eq!(answer.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    assert_eq!(instance.calls(), 3, "none was tried twice");
    until(|| node.calls.metrics().open.get() == 0).await;
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
async fn a_body_that_lies_about_its_length_ends_the_call() {
    let (net, node) = world(&[80], &[]).await;
    let instance = Instance::start(&net, 80);
    let client = node.client().await;
    let mut lying = request("Stream");
    lying.headers_mut().insert("content-length", HeaderValue::from_static("3"));
    let error = call(&client, lying, "far too long").await.expect_err("refused");
    assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR));
    until(|| node.calls.metrics().open.get() == 0 && instance.calls() == instance.cut()).await;
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
async fn a_call_that_comes_back_ends_as_a_loop() {
    let (net, node) = world(&[80], &[]).await;
    node.answer_at(&net, 80);
    let client = node.client().await;
    let answer = call(&client, request("Unary"), "x").await.expect("answered");
    assert_eq!((answer.code(), answer.status().code()), (ErrorCode::Loop, tonic::Code::FailedPrecondition));
    assert!(answer.status().message().contains("t.Echo"), "{:?}", answer.status());
    let (made, hops_max) = (node.calls.metrics().calls.get_or_create_owned(&label()).get(), 8);
    assert_eq!(made, hops_max, "it was not made again");

    // A program that passes metadata on brings it back, too, and goes on.
    let (net, node) = world(&[80], &[]).await;
    let (instance, client) = (Instance::start(&net, 80), node.client().await);
    let mut passed_on = request("Unary");
    passed_on.headers_mut().insert("weft-hops", HeaderValue::from_static("7"));
    call(&client, passed_on, "x").await.expect("answered");
    assert_eq!(instance.seen.lock().expect("no panic").headers["weft-hops"], "8");
    let mut wrong = request("Unary");
    wrong.headers_mut().insert("weft-hops", HeaderValue::from_static("many"));
    assert_eq!(call(&client, wrong, "x").await.expect("answered").code(), ErrorCode::InvalidArgument);
}

/// Two nodes with a link; the instance is at home on the second.
async fn pair(home: u64) -> (Arc<MemoryNet>, Node, Node) {
    let (ca, net) = (world::authority(), MemoryNet::new());
    let near = Node::start(&ca, net.clone(), 1, CallsConfig::default()).await;
    let far = Node::start(&ca, net.clone(), 2, CallsConfig::default()).await;
    near.links().dial(far.links().me().peer_address).await.expect("it answers");
    near.view.send_replace(Arc::new(view(near.id(), &[record(1, far.id(), 80)], &[])));
    far.view.send_replace(Arc::new(view(far.id(), &[record(1, weft_cluster::ids::NodeId(home), 80)], &[])));
    (net, near, far)
}

#[tokio::test]
async fn all_kinds_of_calls_go_one_hop() {
    let (net, near, far) = pair(2).await;
    let instance = Instance::start(&net, 80);
    let client = near.client().await;

    let mut timed = request("Unary");
    timed.headers_mut().insert("grpc-timeout", HeaderValue::from_static("20S"));
    let answer = call(&client, timed, "hello").await.expect("answered");
    assert_eq!((&answer.data[..], answer.status().code()), (&b"hello"[..], tonic::Code::Ok));
    assert_eq!(answer.headers["answer-bin"], "AAEC");
    {
        let seen = instance.seen.lock().expect("no panic");
        assert_eq!(
            (&seen.headers["token-bin"], &*seen.uri),
            (&HeaderValue::from_static("AAEC"), "http://shop.example/t.Echo/Unary")
        );
    }
    assert!(left_us(&instance) < 20_000_000, "it shrinks on the way");
    let answer = call(&client, request("Status"), "").await.expect("answered");
    assert_eq!(
        (&answer.headers["grpc-status"], answer.headers["grpc-status-details-bin"].as_bytes()),
        (&HeaderValue::from_static("5"), &b"CAU"[..])
    );
    let reset = call(&client, request("Reset"), "").await.expect_err("the reset passes");
    assert_eq!(reset.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));

    // A whole request with a long answer, and with a late one.
    for (method, continued) in [("Pour", 1), ("Late", 2)] {
        let answer = call(&client, request(method), "hello").await.expect("answered");
        assert_eq!((answer.data.len(), answer.status().code()), (200_000, tonic::Code::Ok));
        assert_eq!(far.calls.metrics().continued.get(), continued);
    }

    let body = Bytes::from((0..5_000_000u32).map(|byte| byte as u8).collect::<Vec<_>>());
    for method in ["Unary", "Stream"] {
        let mut ready = client.clone().ready().await.expect("open");
        let (response, mut send) = ready.send_request(request(method), false).expect("sent");
        let sending = async {
            put(&mut send, body.clone()).await.expect("taken");
            send.send_data(Bytes::new(), true).expect("taken");
        };
        let (answer, ()) = tokio::join!(receive(response), sending);
        assert!(answer.expect("answered").data == body, "{method}");
    }

    let (response, mut send) =
        client.clone().ready().await.expect("open").send_request(request("Stream"), false).expect("sent");
    let mut body = response.await.expect("the head comes first").into_body();
    for message in ["one", "two", "three"] {
        send.send_data(message.into(), false).expect("taken");
        assert_eq!(body.data().await.expect("echoed").expect("whole"), message);
    }
    send.send_data(Bytes::new(), true).expect("taken");
    assert!(body.data().await.is_none());
    assert_eq!(body.trailers().await.expect("whole").expect("there")["grpc-status"], "0");
    assert_eq!(far.calls.metrics().calls.get_or_create_owned(&label()).get(), 0, "it went no further");
    until(|| far.calls.metrics().served_open.get() == 0 && near.calls.metrics().open.get() == 0).await;
}

/// What an instance was told of its last call's deadline.
fn left_us(instance: &Instance) -> u64 {
    let seen = instance.seen.lock().expect("no panic");
    seen.headers["grpc-timeout"].to_str().expect("text").trim_end_matches('u').parse().expect("microseconds")
}

fn label() -> crate::drivers::calls::ServiceLabel {
    crate::drivers::calls::ServiceLabel { namespace: "default".into(), service: "echo".into() }
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_through_the_link() {
    let (net, near, far) = pair(2).await;
    let instance = Instance::start(&net, 80);
    let client = near.client().await;
    // Whole, and on a stream of its own.
    for (whole, calls) in [(true, 1), (false, 2)] {
        let mut ready = client.clone().ready().await.expect("open");
        let (response, send) = ready.send_request(request("Silent"), whole).expect("sent");
        until(|| instance.calls() == calls).await;
        drop((response, send));
        until(|| instance.cut() == calls).await;
    }
    until(|| far.calls.metrics().served_open.get() == 0 && near.calls.metrics().open.get() == 0).await;
    let mut timed = request("Silent");
    timed.headers_mut().insert("grpc-timeout", HeaderValue::from_static("200m"));
    assert_eq!(call(&client, timed, "").await.expect("answered").code(), ErrorCode::Deadline);
    until(|| instance.cut() == 3).await;
}

#[tokio::test]
async fn the_home_node_forwards_no_call_and_a_lost_link_is_told() {
    let (net, near, _far) = pair(1).await;
    let answer = call(&near.client().await, request("Unary"), "x").await.expect("answered");
    assert_eq!(answer.code(), ErrorCode::Unreachable);
    assert!(answer.status().message().contains("not at home here"), "{:?}", answer.status());

    let (net, near, far) = {
        drop((net, near));
        pair(2).await
    };
    let instance = Instance::start(&net, 80);
    let client = near.client().await;
    let mut whole = client.clone().ready().await.expect("open");
    let (whole, _) = whole.send_request(request("Silent"), true).expect("sent");
    let (streamed, _send) =
        client.clone().ready().await.expect("open").send_request(request("Silent"), false).expect("sent");
    until(|| instance.calls() == 2).await;
    far.links().close().await;
    for response in [whole, streamed] {
        assert_eq!(receive(response).await.expect("answered").code(), ErrorCode::OutcomeUnknown);
    }
    // Nothing can be sent any more, and that is known.
    assert_eq!(call(&client, request("Unary"), "x").await.expect("answered").code(), ErrorCode::Unreachable);
    assert_eq!(instance.calls(), 2);
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
