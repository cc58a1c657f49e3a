//! One call between two ends: its request goes up, its answer comes down, both at once.
//!
//! Futures come in pinned: moved from hand to hand, each would be in a call's memory several times.

use std::future::Future;
use std::pin::{Pin, pin};

use http::Response;

use super::body::{Client, Cut, Source, pass};
use super::failure::Failure;

/// Drives a call until its answer is whole. `up` carries the request and ends only with a failure; `begin` waits for
/// the head of the answer, its body, and whether that is empty; `on_head` is told when it has come.
///
/// # Errors
/// Why there is no answer, or no whole one.
pub(super) async fn relay<A: Source>(
    up: Pin<&mut impl Future<Output = Cut>>,
    mut begin: Pin<&mut impl Future<Output = Result<(Response<()>, A, bool), Failure>>>,
    client: &mut impl Client,
    on_head: &mut impl FnMut(),
) -> Result<(), Failure> {
    let mut up = pin!(async {
        match up.await {
            Cut::Source(_) => Failure::Gone,
            // The other end takes no more of the request: its answer says why.
            Cut::Target => std::future::pending().await,
        }
    });
    let (head, mut answer, end) = loop {
        tokio::select! {
            biased;
            begun = &mut begin => break begun?,
            failure = &mut up => return Err(failure),
            due = client.due() => due?,
        }
        client.attend().await?;
    };
    on_head();
    client.head(head, end).await?;
    if end {
        return Ok(());
    }
    let mut down = pin!(pass(&mut answer, client));
    tokio::select! {
        biased;
        done = &mut down => match done {
            Ok(()) => Ok(()),
            Err(Cut::Source(failure)) => Err(failure),
            Err(Cut::Target) => Err(Failure::Gone),
        },
        failure = &mut up => Err(failure),
    }
}

/// Waits for `work` while the client stays.
///
/// # Errors
/// `Gone`.
pub(super) async fn beside<T>(
    client: &mut impl Client,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Failure> {
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            due = client.due() => due?,
        }
        client.attend().await?;
    }
}
