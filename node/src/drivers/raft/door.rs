//! What peers send on `Lane::Raft`.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use prost::Message;
use tokio::time::{Instant, timeout_at};
use weft_cluster::ids::{NodeId, RaftGroup};
use weft_proto::internal::v1 as wire;
use weft_proto::internal::v1::raft_request::Request;
use weft_proto::internal::v1::raft_response::Response;

use super::convert;
use super::machine::Snapshot;
use super::rafts::Context;
use super::{Group, Manifest};
use crate::drivers::link::Parts;

/// How long a snapshot waits for what is committed before it to be applied.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// Serves one request. `Err` is a frame that no node of ours sends.
pub(super) async fn request(context: &Context, from: NodeId, body: Bytes) -> Result<Parts, String> {
    let request = wire::RaftRequest::decode(body).map_err(|error| format!("a bad raft frame: {error}"))?;
    let response = match serve(context, from, request).await {
        Ok(response) => response,
        Err(reason) => Response::Refused(reason),
    };
    Ok(vec![wire::RaftResponse { response: Some(response) }.encode_to_vec().into()])
}

async fn serve(context: &Context, from: NodeId, request: wire::RaftRequest) -> Result<Response, String> {
    let id = RaftGroup(request.group);
    let group = context.group(id).ok_or_else(|| format!("{id} is not here"))?;
    if group.replica().0 != request.to {
        return Err(format!("{id} is here as {}, not as r{}", group.replica(), request.to));
    }
    let raft = &group.inner.raft;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    match request.request.ok_or("an empty raft request")? {
        Request::Append(append) => {
            if group.inner.installing.load(Ordering::Acquire) {
                return Err("a snapshot is being installed".into());
            }
            let append = convert::append_from_wire(append).map_err(|e| text(&e))?;
            let response = raft.append_entries(append).await.map_err(|e| text(&e))?;
            Ok(Response::Append(convert::appended_to_wire(&response)))
        }
        Request::Vote(vote) => {
            let mut vote = convert::vote_request_from_wire(vote).map_err(|e| text(&e))?;
            vote.leadership_transfer |= group.waived();
            let response = raft.vote(vote).await.map_err(|e| text(&e))?;
            Ok(Response::Vote(convert::voted_to_wire(&response)))
        }
        Request::PreVote(vote) => {
            let vote = convert::vote_request_from_wire(vote).map_err(|e| text(&e))?;
            let response = raft.pre_vote(vote).await.map_err(|e| text(&e))?;
            Ok(Response::Vote(convert::voted_to_wire(&response)))
        }
        Request::Transfer(transfer) => {
            let transfer = convert::transfer_from_wire(transfer).map_err(|e| text(&e))?;
            let outcome = raft.handle_transfer_leader(transfer).await.map_err(|e| text(&e))?;
            let reason = outcome.as_ref().err().map(|e| text(e)).unwrap_or_default();
            Ok(Response::Transfer(wire::TransferResponse { accepted: outcome.is_ok(), reason }))
        }
        Request::Snapshot(snapshot) => {
            let busy = group.inner.installing.swap(true, Ordering::AcqRel);
            if busy {
                return Err("a snapshot is being installed already".into());
            }
            let _installing = Installing(&group);
            let response = install(context, &group, from, snapshot).await.map_err(|e| text(&e))?;
            Ok(Response::Snapshot(response))
        }
    }
}

/// Appends are welcome again when it drops.
struct Installing<'a>(&'a Group);

impl Drop for Installing<'_> {
    fn drop(&mut self) {
        self.0.inner.installing.store(false, Ordering::Release);
    }
}

/// Installs a snapshot into the state machine first, which may fail and be tried again, and then tells
/// openraft, which could not go on after a failure. No appends come meanwhile.
async fn install(
    context: &Context,
    group: &Group,
    from: NodeId,
    request: wire::SnapshotRequest,
) -> io::Result<wire::SnapshotResponse> {
    let vote = convert::vote_from_wire(request.vote)?;
    let meta = request.meta.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no snapshot metadata"))?;
    let meta = convert::meta_from_wire(meta)?;
    let raft = &group.inner.raft;
    let present = raft.metrics().borrow_watched().vote;
    if present.leader_id.term > vote.leader_id.term {
        return Ok(wire::SnapshotResponse { vote: Some(convert::vote_to_wire(&present)) });
    }
    settle(group).await?;
    group.inner.machine.install(from, &meta, Manifest { bytes: request.manifest }).await?;
    let last = meta.last_log_id;
    let snapshot = openraft::Snapshot { meta, snapshot: Snapshot::marker() };
    let response = raft.install_full_snapshot(vote, snapshot).await.map_err(io::Error::other)?;
    if raft.data_metrics().borrow_watched().last_applied < last && response.vote != vote {
        // openraft refused what the state machine already has: read both anew from the disk.
        context.restart(group.id());
    }
    Ok(wire::SnapshotResponse { vote: Some(convert::vote_to_wire(&response.vote)) })
}

/// Waits until all that is committed here is applied.
async fn settle(group: &Group) -> io::Result<()> {
    let mut data = group.inner.raft.data_metrics();
    let deadline = Instant::now() + SETTLE_PATIENCE;
    loop {
        {
            let data = data.borrow_watched();
            if data.last_applied >= data.local_committed {
                return Ok(());
            }
        }
        match timeout_at(deadline, data.changed()).await {
            Ok(Ok(())) => {}
            _ => return Err(io::Error::other("the replica is still applying its log")),
        }
    }
}
