//! Instances and clients that do what they must not.

use super::hop::pair;
use super::*;
use crate::drivers::endpoint::testing;

/// Answers that a gRPC client could not read, and what is said of them.
const WRONG: [(&str, &str); 6] = [
    ("WrongHead", "grpc-status \"99\""),
    ("EmptyHead", "without a grpc-status"),
    ("WrongStatus", "grpc-status \"fine, thanks\""),
    ("WrongBinary", "some-bin \"#\""),
    ("OtherTrailers", "without a grpc-status"),
    ("NoTrailers", "without a grpc-status"),
];

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

#[tokio::test]
async fn an_answer_that_no_client_can_read_becomes_a_clear_status() {
    let (net, node) = world(&[80], &[]).await;
    let (near_net, near, _far) = pair(2).await;
    let _instances = [Instance::start(&net, 80), Instance::start(&near_net, 80)];
    for client in [node.client().await, near.client().await] {
        for (method, part) in WRONG {
            let answer = call(&client, request(method), "x").await.expect("answered");
            assert_eq!((answer.code(), answer.status().code()), (ErrorCode::OutcomeUnknown, tonic::Code::Unknown));
            assert!(answer.status().message().contains(part), "{method}: {:?}", answer.status());
        }
    }
}

#[tokio::test]
async fn headers_of_an_answer_pass_whole_or_end_the_call() {
    let (net, node) = world(&[80], &[]).await;
    let (near_net, near, _far) = pair(2).await;
    let _instances = [Instance::start(&net, 80), Instance::start(&near_net, 80)];
    for client in [node.client().await, near.client().await] {
        for part in ["Head", "Trailers", "Many"] {
            let answer = call(&client, request(&format!("{part}_63")), "x").await.expect("answered");
            assert_eq!(answer.status().code(), tonic::Code::Ok, "{part}");
            let bytes = |headers: &http::HeaderMap| headers.iter().map(|(_, value)| value.len()).sum::<usize>();
            let fillers = if part == "Many" { 63 * 16 * 17 } else { (63 << 10) - 47 };
            assert!(bytes(&answer.headers) + bytes(&answer.trailers) > fillers, "{part}");
            // Little above the limit, and above all that h2 is let see.
            for kib in [65, 100, 300, 3_000] {
                let answer = call(&client, request(&format!("{part}_{kib}")), "x").await.expect("answered");
                let status = answer.status();
                assert_eq!((answer.code(), status.code()), (ErrorCode::OutcomeUnknown, tonic::Code::Unknown), "{part}");
                assert!(status.message().contains("calls.header_bytes_max"), "{part} of {kib} KiB: {status:?}");
                let error = crate::wire::from_status(&status);
                let limit = (&*error.limit, error.limit_max);
                assert!(kib > 100 || limit == ("calls.header_bytes_max", 64 << 10), "{part} of {kib} KiB: {limit:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_instance_is_called_over_tls_if_its_certificate_is_good() {
    let (net, node) = world(&[80], &[]).await;
    let ca = world::authority();
    let acceptor = testing::acceptor(&ca, &*net, "echo.example");
    let (instance, client) = (Instance::secure(&net, 80, acceptor), node.client().await);
    let secure = |port, tls_ca_pem: String, tls_name: &str| {
        let tls_name = tls_name.to_owned();
        let record =
            weft_proto::internal::v1::InstanceRecord { tls: true, tls_ca_pem, tls_name, ..record(1, node.id(), port) };
        node.view.send_replace(Arc::new(view(node.id(), &[record], &[])));
    };
    let (its, other) = (ca.issued().cert_pem, world::authority().issued().cert_pem);
    for (trusted, name, part) in
        [(its.clone(), "", "TLS: "), (other, "echo.example", "TLS: "), ("".into(), "", "tls_ca")]
    {
        secure(80, trusted, name);
        let answer = call(&client, request("Unary"), "x").await.expect("answered");
        assert_eq!(answer.code(), ErrorCode::Unreachable);
        assert!(answer.status().message().contains(part), "{part}: {:?}", answer.status());
    }
    secure(80, its.clone(), "echo.example");
    let answer = call(&client, request("Unary"), "hello").await.expect("answered");
    assert_eq!((&answer.data[..], answer.status().code()), (&b"hello"[..], tonic::Code::Ok));
    {
        let seen = instance.seen.lock().expect("no panic");
        assert_eq!((seen.calls, &*seen.uri), (1, "https://shop.example/t.Echo/Unary"));
    }

    // Servers that know no newer version than 1.2 are called, too.
    let acceptor = testing::acceptor_of(&rustls::version::TLS12, &ca, &*net, "echo.example");
    let older = Instance::secure(&net, 81, acceptor);
    secure(81, its, "echo.example");
    let answer = call(&client, request("Unary"), "hello").await.expect("answered");
    assert_eq!((answer.status().code(), older.calls()), (tonic::Code::Ok, 1));
}
