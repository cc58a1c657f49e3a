//! Calls that share connections to an instance: none stops another.

use super::*;

/// More than a connection's window held, and fewer than open a second connection.
const UNREAD: usize = 60;

#[tokio::test]
async fn answers_that_nobody_reads_stop_no_other_call() {
    let (net, node) = world(&[80], &[]).await;
    let instance = Instance::start(&net, 80);
    let (mut held, slow, other) = (Vec::new(), node.client().await, node.client().await);
    for _ in 0..UNREAD {
        let mut ready = slow.clone().ready().await.expect("open");
        held.push(ready.send_request(request("Pour"), true).expect("sent"));
    }
    until(|| instance.calls() == UNREAD).await;
    // What is under way comes as far as it can.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let whole = Bytes::from(vec![7; 1 << 20]);
    let answered = tokio::time::timeout(Duration::from_secs(10), call(&other, request("Unary"), whole.clone())).await;
    let answer = answered.expect("it does not wait for others").expect("answered");
    assert!(answer.data == whole, "{} bytes came", answer.data.len());
    assert_eq!(node.calls.metrics().connects.get(), 1, "all went over one connection");
    drop(held);
    until(|| node.calls.metrics().open.get() == 0).await;
}

#[tokio::test]
async fn full_connections_get_more_and_then_calls_are_refused() {
    let config = CallsConfig {
        connections_max: 1,
        connections_full_max: 3,
        room_wait: Duration::from_millis(100),
        ..CallsConfig::default()
    };
    let net = MemoryNet::new();
    let node = Node::start(&world::authority(), net.clone(), 1, config).await;
    node.view.send_replace(Arc::new(view(node.id(), &[record(1, node.id(), 80)], &[])));
    let instance = Instance::narrow(&net, 80, 2);
    let (mut held, client) = (Vec::new(), node.client().await);
    for _ in 0..6 {
        let mut ready = client.clone().ready().await.expect("open");
        held.push(ready.send_request(request("Silent"), true).expect("sent"));
    }
    until(|| instance.calls() == 6).await;
    let metrics = node.calls.metrics();
    assert_eq!(metrics.connections_open.get(), 3, "as many as are allowed");
    // It has no deadline.
    let refused = tokio::time::timeout(Duration::from_secs(10), call(&client, request("Unary"), "x")).await;
    let refused = refused.expect("it does not wait for ever").expect("answered");
    assert_eq!(refused.code(), ErrorCode::Overloaded);
    let said = refused.status().message().to_owned();
    assert!(said.contains("calls.connections_full_max") && said.contains("10.0.0.1:80"), "{said}");
    assert!(metrics.overloaded.get() > 0);
    drop(held.pop());
    until(|| instance.cut() == 1).await;
    assert_eq!(call(&client, request("Unary"), "x").await.expect("answered").status().code(), tonic::Code::Ok);
}

#[tokio::test]
async fn an_instance_is_told_one_authority() {
    let (net, node) = world(&[80], &[]).await;
    let (instance, client) = (Instance::start(&net, 80), node.client().await);
    let mut other = request("Unary");
    other.headers_mut().insert(http::header::HOST, HeaderValue::from_static("elsewhere.example"));
    call(&client, other, "x").await.expect("answered");
    let seen = instance.seen.lock().expect("no panic");
    assert_eq!(seen.uri, "http://shop.example/t.Echo/Unary");
    assert!(!seen.headers.contains_key(http::header::HOST), "{:?}", seen.headers);
}
