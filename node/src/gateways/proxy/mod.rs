//! The transparent proxy: a gRPC request that is not for Weft itself becomes a call, and its answer goes back.
//!
//! Bodies, metadata and trailers pass as they are; `grpc-timeout` shrinks on the way.

mod client;
mod read;
mod reflection;
#[cfg(test)]
mod tests;

use std::pin::{Pin, pin};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::time::Instant;
use weft_cluster::caller::Caller;

use crate::drivers::calls::{Calls, Failure, H2Source};
use client::H2Client;
pub use reflection::{Question, ask};

/// The proxy. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    calls: Calls,
}

impl Proxy {
    /// A proxy in front of `calls`.
    pub fn new(calls: Calls) -> Proxy {
        Proxy { calls }
    }

    /// Serves one request: it has exactly one outcome. Dropped, it resets the client's stream and cancels the call.
    pub async fn serve(self, request: Request<RecvStream>, respond: SendResponse<Bytes>, caller: Caller) {
        let mut client = H2Client::new(respond);
        let (head, body) = request.into_parts();
        let ended = match read::call(head, caller, Instant::now()) {
            Ok(call) => {
                let deadline = call.deadline;
                let source = H2Source::new(body, Failure::of_client);
                let carried = self.calls.carry(&call, source, &mut client);
                within(deadline, pin!(carried)).await
            }
            Err(error) => Err(error.into()),
        };
        let metrics = self.calls.metrics();
        match ended {
            Ok(()) => {}
            Err(Failure::Gone) => {
                metrics.cancelled.inc();
            }
            Err(Failure::Reset(reason)) => {
                metrics.reset.inc();
                client.reset(reason);
            }
            Err(Failure::Failed(failed)) => {
                metrics.failed(failed.error.code());
                client.fail(failed.error);
            }
        }
    }
}

/// Waits until the deadline, if there is one.
async fn within(
    deadline: Option<Instant>,
    carried: Pin<&mut impl Future<Output = Result<(), Failure>>>,
) -> Result<(), Failure> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, carried).await.unwrap_or_else(|_| Err(Failure::late())),
        None => carried.await,
    }
}
