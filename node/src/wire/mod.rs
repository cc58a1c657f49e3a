//! What all doors share: how errors leave and come in, the checks of what clients send, and HTTP/2's flow.

pub mod checks;
mod frames;
pub mod headers;
pub mod hops;
mod outbox;
mod outflow;
mod status;
pub mod timeout;
mod traffic;

pub use outbox::{GATHERED_BYTES_MAX, Outbox};
pub use outflow::{Broken, Outflow};
pub use status::{DOMAIN, errors_page, from_status, from_told, status, told};
pub use timeout::grpc_timeout;
pub use traffic::{Pulse, Traffic};
use weft_cluster::caller::Caller;
pub use weft_cluster::errors::{code_of, error, not_owner, over, reason, retry_name, row_of};

/// Who asks: the door puts it into each own request's extensions.
pub fn caller<T>(request: &tonic::Request<T>) -> Caller {
    request.extensions().get().cloned().unwrap_or_else(Caller::anonymous)
}
