//! One attempt at an instance whose home is this node (or was, when the call was sent here), over a pooled connection.

use std::pin::pin;

use http::Response;
use tokio::time::Instant;
use weft_proto::internal::v1::InstanceRecord;
use weft_proto::v1::ErrorCode;

use super::answer::Answer;
use super::body::{Client, H2Source, Opening, Source, pass_and_stay};
use super::call::Call;
use super::failure::{Failed, Failure};
use super::pool::Lease;
use super::relay::{beside, relay};
use super::{Calls, Inner};
use crate::wire::Outflow;

impl Calls {
    /// Brings a call to `instance`. `on_head` is told when its answer begins.
    ///
    /// # Errors
    /// Honest about what came to the instance.
    pub(super) async fn local(
        &self,
        instance: &InstanceRecord,
        call: &Call,
        source: &mut Opening<impl Source>,
        client: &mut impl Client,
        mut on_head: impl FnMut(),
    ) -> Result<(), Failure> {
        let mut again = true;
        loop {
            match self.inner.once(instance, call, source, client, &mut on_head).await {
                // A connection that had ended unseen says nothing about the instance: once more, over another.
                Err(Failure::Failed(failed)) if again && is_stale(&failed) && source.is_replayable() => {
                    source.rewind();
                    again = false;
                }
                ended => return ended,
            }
        }
    }
}

fn is_stale(failed: &Failed) -> bool {
    failed.not_sent && !failed.unreachable && failed.error.code() == ErrorCode::Unreachable
}

impl Inner {
    async fn once(
        &self,
        instance: &InstanceRecord,
        call: &Call,
        source: &mut Opening<impl Source>,
        client: &mut impl Client,
        on_head: &mut impl FnMut(),
    ) -> Result<(), Failure> {
        let pool = self.pool(instance);
        let lease = beside(client, pin!(pool.lease())).await??;
        let ended = over(&lease, instance, call, source, client, on_head).await;
        match ended {
            Err(Failure::Failed(failed)) if !failed.not_sent && !client.is_answered() && lease.is_unwritten() => {
                lease.close();
                Err(Failure::refused(ErrorCode::Unreachable, failed.error.message))
            }
            Err(Failure::Failed(failed)) if is_stale(&failed) => {
                lease.close();
                Err(Failure::Failed(failed))
            }
            ended => ended,
        }
    }
}

/// Sends the call over a connection and passes its answer on.
async fn over(
    lease: &Lease,
    instance: &InstanceRecord,
    call: &Call,
    source: &mut Opening<impl Source>,
    client: &mut impl Client,
    on_head: &mut impl FnMut(),
) -> Result<(), Failure> {
    let request = call.request(instance.tls, &instance.address, Instant::now())?;
    let ended = source.is_empty();
    let (response, stream) = lease.sender().send_request(request, ended).map_err(not_taken)?;
    let mut target = if ended { Outflow::ended(stream) } else { Outflow::new(stream, None) };
    let begin = async {
        let (head, body) = response.await.map_err(Failure::of_instance)?.into_parts();
        let head = Response::from_parts(head, ());
        let body = H2Source::new(body, Failure::of_instance);
        let end = body.is_ended();
        let answer = Answer::new(&head, body, end, lease.header_bytes_max())?;
        Ok((head, answer, end))
    };
    relay(pin!(pass_and_stay(source, &mut target, ended)), pin!(begin), client, on_head).await
}

/// The connection has not taken the call: not a byte was sent.
fn not_taken(error: h2::Error) -> Failure {
    if error.is_io() || error.is_go_away() {
        return Failure::refused(ErrorCode::Unreachable, format!("the connection to the instance has ended: {error}"));
    }
    Failure::refused(ErrorCode::Internal, format!("the call cannot be sent on: {error}"))
}
