//! What peers send on `Lane::Raft`.

use std::io;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, TransferLeaderResponse};
use prost::Message;
use weft_cluster::ids::{NodeId, RaftGroup};
use weft_proto::internal::v1 as wire;
use weft_proto::internal::v1::raft_request::Request;
use weft_proto::internal::v1::raft_response::Response;

use super::convert;
use super::rafts::Context;
use super::types::TypeConfig;
use super::{Group, Manifest};
use crate::drivers::link::Parts;

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
    if let Some(reason) = context.forgetful(id) {
        return Err(format!("{id} lacks entries here: {reason}"));
    }
    // Held until the answer: a replica stops once what it serves is done, and serves nothing new from then on.
    let _served = group.serves().ok_or_else(|| format!("{id} stops here"))?;
    let raft = &group.inner.raft;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    match request.request.ok_or("an empty raft request")? {
        Request::Append(append) => {
            let append = convert::append_from_wire(append).map_err(|e| text(&e))?;
            if group.paused() && !append.entries.is_empty() && context.storage.cramped() {
                // What cannot be applied cannot be purged either, and would take the journal from all other groups.
                return Err(format!("{id} takes no more here: the disk is full"));
            }
            let term = append.vote.leader_id.term;
            if let Some(acked) = request.acked {
                has_what_it_acked(context, id, term, acked)?;
            }
            agrees(context, &group, &append)?;
            let response = raft.append_entries(append).await.map_err(|e| text(&e))?;
            if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                group.hear(term);
            }
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
            let outcome = inherit(&group, transfer).await.map_err(|e| text(&e))?;
            let reason = outcome.as_ref().err().map(|e| text(e)).unwrap_or_default();
            Ok(Response::Transfer(wire::TransferResponse { accepted: outcome.is_ok(), reason }))
        }
        Request::Snapshot(snapshot) => {
            if group.inner.receiving.swap(true, Ordering::AcqRel) {
                return Err("a snapshot is being received already".into());
            }
            let _receiving = Receiving(&group);
            let response = install(&group, from, snapshot).await.map_err(|e| text(&e))?;
            Ok(Response::Snapshot(response))
        }
    }
}

/// A replica whose log ends before what it has acknowledged to its present leader has lost entries that count as stored. It
/// is fenced, and comes back under a new id: what is missing here must not count twice, and its votes may be lost, too.
///
/// Not so towards a leader whose term is over: the next one may have cut what was not committed.
///
/// # Errors
/// It is so.
fn has_what_it_acked(context: &Context, id: RaftGroup, term: u64, acked: u64) -> Result<(), String> {
    let log = context.storage.log(id).map(|log| log.state()).unwrap_or_default();
    let last = log.last.map(|last| last.index);
    if last >= Some(acked) || log.vote.is_some_and(|vote| vote.term > term) {
        return Ok(());
    }
    let ends = last.map_or_else(|| "is empty".to_owned(), |last| format!("ends at {last}"));
    let reason =
        format!("its log {ends}, but it has acknowledged entries up to {acked}: a part of its data folder is lost");
    context.note_forgetful(id, reason.clone());
    Err(format!("{id} lacks entries here: {reason}"))
}

/// A leader that contradicts what is committed here leads by the votes of replicas that have forgotten what they
/// acknowledged. Nothing is taken from it: this replica may be the last to have what was promised, and a person must look.
///
/// # Errors
/// It is so.
fn agrees(context: &Context, group: &Group, append: &AppendEntriesRequest<TypeConfig>) -> Result<(), String> {
    let log = context.storage.log(group.id());
    let committed = log.as_ref().and_then(|log| log.state().committed).max(group.applied());
    let Some(committed) = committed else { return Ok(()) };
    let told = append.prev_log_id.iter().chain(append.entries.iter().map(|entry| &entry.log_id)).map(convert::position);
    for at in told.take_while(|at| at.index <= committed.index) {
        let here = log.as_ref().and_then(|log| log.term_at(at.index));
        if at.term > committed.term || here.is_some_and(|term| term != at.term) {
            let id = group.id();
            tracing::error!(
                group = %id, epoch = append.vote.leader_id.term, %at, %committed,
                "the leader contradicts what is committed here: nothing is taken from it"
            );
            return Err(format!("{id}: entry {at} contradicts what is committed here up to {committed}"));
        }
    }
    Ok(())
}

/// Takes a leadership that is handed over. openraft waits for a flush of the leader's last entry under the leader's
/// vote, and after a start knows of none until an append comes, however long the entry has been on the disk. A leader
/// that hands over sends no heartbeat, so one is made of what its request says: its vote, and where its log ends.
async fn inherit(
    group: &Group,
    transfer: TransferLeaderRequest<TypeConfig>,
) -> Result<TransferLeaderResponse<TypeConfig>, Fatal<TypeConfig>> {
    let raft = &group.inner.raft;
    let last = transfer.last_log_id();
    // What is not here yet comes as an append.
    if *transfer.to_node_id() == group.replica().0 && group.end().last >= last.map(convert::position) {
        let vote = *transfer.from_leader();
        let heartbeat =
            AppendEntriesRequest { vote, prev_log_id: last.copied(), entries: Vec::new(), leader_commit: None };
        match raft.append_entries(heartbeat).await {
            Ok(AppendEntriesResponse::HigherVote(_)) | Err(RaftError::APIError(_)) => {}
            Ok(_) => group.hear(vote.leader_id.term),
            Err(RaftError::Fatal(error)) => return Err(error),
        }
    }
    raft.handle_transfer_leader(transfer).await
}

/// Another snapshot is welcome when it drops.
struct Receiving<'a>(&'a Group);

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.0.inner.receiving.store(false, Ordering::Release);
    }
}

/// Receives a snapshot whole, which may fail and be tried again, and then gives it to openraft, which could not go
/// on after a failure. Votes and appends come and go meanwhile; openraft decides by what they left, and what it
/// refuses has changed nothing.
async fn install(group: &Group, from: NodeId, request: wire::SnapshotRequest) -> io::Result<wire::SnapshotResponse> {
    let vote = convert::vote_from_wire(request.vote)?;
    let meta = request.meta.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no snapshot metadata"))?;
    let meta = convert::meta_from_wire(meta)?;
    let snapshot = group.inner.machine.stage(from, &meta, Manifest { bytes: request.manifest }).await?;
    let snapshot = openraft::Snapshot { meta, snapshot };
    let response = group.inner.raft.install_full_snapshot(vote, snapshot).await.map_err(io::Error::other)?;
    if response.vote == vote {
        group.hear(vote.leader_id.term);
    }
    Ok(wire::SnapshotResponse { vote: Some(convert::vote_to_wire(&response.vote)) })
}
