//! What calls that end badly leave in memory. The bytes are counted that this thread takes and gives back: everything of
//! the test runs on it, other tests do not.

use std::hint::black_box;

use super::hop::pair;
use super::*;

/// Calls before it is counted: connections, tables and lists have got their sizes.
const ROUNDS_BEFORE: usize = 30;
/// Calls that are counted, in rounds of `BAD.len() + 4`.
const ROUNDS: usize = 60;
/// How often they are counted, until less is left than this: some 20 bytes of each.
const BATCHES_MAX: usize = 4;
const LEFT_BYTES_MAX: i64 = 24 << 10;

/// Methods whose calls end badly, or in order, without a wait.
const BAD: [&str; 13] = [
    "Unary",
    "Status",
    "Reset",
    "Half",
    "Vanish",
    "NoTrailers",
    "OtherTrailers",
    "WrongHead",
    "EmptyHead",
    "WrongStatus",
    "WrongBinary",
    "Head_65",
    "Trailers_65",
];

async fn round(client: &h2::client::SendRequest<Bytes>, instance: &Instance) {
    for method in BAD {
        // It says one thing or another; what is left of it is what counts.
        let _ = call(client, request(method), "hello").await;
    }
    let mut nowhere = request("Unary");
    *nowhere.uri_mut() = "http://h/t.Nobody/Get".parse().expect("good");
    let mut late = request("Unary");
    late.headers_mut().insert("grpc-timeout", HeaderValue::from_static("0n"));
    for refused in [nowhere, late] {
        assert_ne!(call(client, refused, "x").await.expect("answered").status().code(), tonic::Code::Ok);
    }
    // Given up: as a whole, and on a stream of its own.
    for whole in [true, false] {
        let (calls, cut) = (instance.calls(), instance.cut());
        let mut ready = client.clone().ready().await.expect("open");
        let given_up = ready.send_request(request("Silent"), whole).expect("sent");
        until(|| instance.calls() > calls).await;
        drop(given_up);
        until(|| instance.cut() > cut).await;
    }
}

#[test]
fn calls_that_end_badly_leave_no_memory() {
    // What is logged would be kept until the test has ended.
    let _quiet = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (near, far, client, instance) = runtime.block_on(async {
        let (net, near, far) = pair(2).await;
        let (client, instance) = (near.client().await, Instance::start(&net, 80));
        (near, far, client, instance)
    });
    let rounds = |count: usize| {
        runtime.block_on(async {
            for _ in 0..count {
                round(&client, &instance).await;
            }
            let open = |node: &Node| node.calls.metrics().open.get() + node.calls.metrics().served_open.get();
            until(|| open(&near) + open(&far) == 0 && far.calls.metrics().connections_open.get() == 1).await;
        });
    };
    rounds(ROUNDS_BEFORE);
    // What leaks does so in every batch; a buffer that has found its size does it in one.
    let mut left = Vec::new();
    while left.last().is_none_or(|bytes| *bytes >= LEFT_BYTES_MAX) {
        assert!(left.len() < BATCHES_MAX, "so many bytes are left each time: {left:?}");
        left.push(allocation_counter::measure(|| rounds(ROUNDS)).bytes_current);
    }
    // It would be seen.
    let mut kept = Vec::new();
    let left = allocation_counter::measure(|| {
        rounds(1);
        kept = black_box(vec![1; 8 * LEFT_BYTES_MAX as usize]);
    });
    assert!(left.bytes_current > LEFT_BYTES_MAX, "{left:?}");
}
