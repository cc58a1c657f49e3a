//! Instances whose home node is away.

use super::hop::pair;
use super::*;

/// A view in which the instance's home, the second node, is down.
fn homeless(node: &Node) -> weft_cluster::view::ClusterView {
    let home = weft_cluster::ids::NodeId(2);
    let mut view = view(node.id(), &[record(1, home, 80)], &[]);
    view.members.get_mut(&home).expect("it is a member").state = weft_cluster::view::MemberState::Down;
    view
}

#[tokio::test]
async fn a_call_waits_while_its_instance_gets_another_home() {
    let (net, node) = world(&[80], &[]).await;
    let (instance, client) = (Instance::start(&net, 80), node.client().await);
    node.view.send_replace(Arc::new(homeless(&node)));
    let waiting = &node.calls.metrics().waiting;
    let moved = async {
        until(|| waiting.get() == 1).await;
        // Another change does not end the wait.
        node.view.send_replace(Arc::new(homeless(&node)));
        node.view.send_replace(Arc::new(view(node.id(), &[record(1, node.id(), 80)], &[])));
    };
    let (answer, ()) = tokio::join!(call(&client, request("Unary"), "x"), moved);
    assert_eq!(answer.expect("answered").status().code(), tonic::Code::Ok);
    assert_eq!((instance.calls(), waiting.get()), (1, 0));

    // It waits no longer than its deadline, and not at all for an instance that is ill.
    node.view.send_replace(Arc::new(homeless(&node)));
    let mut timed = request("Unary");
    timed.headers_mut().insert("grpc-timeout", HeaderValue::from_static("50m"));
    let answer = call(&client, timed, "x").await.expect("answered");
    assert!(matches!(answer.code(), ErrorCode::NoInstance | ErrorCode::Deadline), "{answer:?}");
    let mut ready = client.clone().ready().await.expect("open");
    let (response, send) = ready.send_request(request("Unary"), true).expect("sent");
    until(|| waiting.get() == 1).await;
    drop((response, send));
    until(|| waiting.get() == 0).await;
    let ill = weft_proto::internal::v1::InstanceRecord { healthy: false, ..record(1, node.id(), 80) };
    node.view.send_replace(Arc::new(view(node.id(), &[ill], &[])));
    let answer = call(&client, request("Unary"), "x").await.expect("answered");
    assert_eq!((answer.code(), instance.calls()), (ErrorCode::NoInstance, 1));
}

#[tokio::test]
async fn a_call_waits_for_the_view_when_the_link_to_its_home_is_lost() {
    let (net, near, far) = pair(2).await;
    let (instance, client) = (Instance::start(&net, 80), near.client().await);
    far.links().close().await;
    let moved = async {
        until(|| near.calls.metrics().waiting.get() == 1).await;
        near.view.send_replace(Arc::new(view(near.id(), &[record(1, near.id(), 80)], &[])));
    };
    let (answer, ()) = tokio::join!(call(&client, request("Unary"), "x"), moved);
    assert_eq!((answer.expect("answered").status().code(), instance.calls()), (tonic::Code::Ok, 1));
}

#[tokio::test]
async fn a_home_that_has_just_started_waits_for_the_registry() {
    let (net, near, far) = pair(2).await;
    let (instance, client) = (Instance::start(&net, 80), near.client().await);
    let none = || view(far.id(), &[], &[]);
    let known = far.view.borrow().clone();
    far.view.send_replace(Arc::new(weft_cluster::view::ClusterView { registry: Arc::default(), ..none() }));
    let learned = async {
        until(|| far.calls.metrics().waiting.get() == 1).await;
        far.view.send_replace(known);
    };
    let (answer, ()) = tokio::join!(call(&client, request("Unary"), "x"), learned);
    assert_eq!((answer.expect("answered").status().code(), instance.calls()), (tonic::Code::Ok, 1));

    // If the instance is gone it does not wait; the client's node does, for a view of its own without the instance.
    far.view.send_replace(Arc::new(none()));
    let learned = async {
        until(|| near.calls.metrics().waiting.get() == 1).await;
        near.view.send_replace(Arc::new(none()));
    };
    let (answer, ()) = tokio::join!(call(&client, request("Unary"), "x"), learned);
    assert_eq!((answer.expect("answered").code(), instance.calls()), (ErrorCode::NoInstance, 1));
    assert_eq!(far.calls.metrics().waiting.get(), 0);
}
