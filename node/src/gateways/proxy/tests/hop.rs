//! Calls over the link to the instance's home node.

use super::world::{put, receive};
use super::*;

/// Two nodes with a link; the instance is at home on the second.
pub(super) async fn pair(home: u64) -> (Arc<MemoryNet>, Node, Node) {
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
async fn a_call_for_an_instance_that_moves_goes_to_it_from_its_former_home() {
    let (net, near, far) = pair(1).await;
    let instance = Instance::start(&net, 80);
    let answer = call(&near.client().await, request("Unary"), "x").await.expect("answered");
    assert_eq!((answer.status().code(), instance.calls()), (tonic::Code::Ok, 1));
    assert_eq!(far.calls.metrics().served.get(), 1, "the former home brought it there");
    assert_eq!(near.calls.metrics().served.get(), 0, "it was not sent back");
}

#[tokio::test]
async fn a_lost_link_is_told() {
    let (net, near, far) = pair(2).await;
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

/// Calls that end in every way there is: answered, reset, cut off, given up, late.
async fn storm(client: &h2::client::SendRequest<Bytes>) {
    for method in ["Unary", "Stream", "Pour", "Late", "Reset", "Half", "Vanish", "NoTrailers", "WrongHead", "Status"] {
        // It says one thing or another; that all is over afterwards is what counts.
        let _ = call(client, request(method), "hello").await;
    }
    for whole in [true, false] {
        let mut ready = client.clone().ready().await.expect("open");
        let (response, send) = ready.send_request(request("Silent"), whole).expect("sent");
        assert!(tokio::time::timeout(Duration::from_millis(20), response).await.is_err(), "it is silent");
        drop(send);
    }
    let mut timed = request("Silent");
    timed.headers_mut().insert("grpc-timeout", HeaderValue::from_static("20m"));
    call(client, timed, "").await.expect("answered");
}

#[tokio::test]
async fn nothing_is_left_of_calls_however_they_end() {
    let (net, near, far) = pair(2).await;
    let instance = Instance::start(&net, 80);
    let client = near.client().await;
    call(&client, request("Unary"), "x").await.expect("answered");
    let before = (near.tasks.count(), far.tasks.count());
    for _ in 0..3 {
        storm(&client).await;
    }
    call(&client, request("Unary"), "x").await.expect("answered");
    let open = |node: &Node| {
        let metrics = node.calls.metrics();
        metrics.open.get() + metrics.served_open.get() + metrics.waiting.get() + node.calls.continuing() as i64
    };
    until(|| open(&near) + open(&far) == 0).await;
    // The connection to the instance is another one by now, and still one.
    until(|| far.calls.metrics().connections_open.get() == 1).await;
    until(|| (near.tasks.count(), far.tasks.count()) == before).await;
    drop(instance);
}
