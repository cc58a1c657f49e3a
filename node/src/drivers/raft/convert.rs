//! Between openraft's types and ours on the wire and in the journal. What comes in is checked; openraft asserts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::impls::leader_id_std::LeaderId;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, message};
use weft_cluster::ids::{LogPosition, NodeId};
use weft_proto::internal::v1 as wire;

use super::types::{
    Command, Committed, Entry, LogId, Membership, Payload, Place, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};
use crate::drivers::link::Parts;
use crate::drivers::storage::{LogEntry, StoredVote};

/// Payloads up to this size are copied into the frame's head; larger ones travel as parts of their own.
const INLINE_BYTES: usize = 1024;

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("raft message: {what}"))
}

pub(super) fn log_id(at: LogPosition) -> LogId {
    LogId { leader_id: Committed::new(at.term), index: at.index }
}

pub(super) fn position(id: &LogId) -> LogPosition {
    LogPosition { term: id.leader_id.term, index: id.index }
}

pub(super) fn log_id_to_wire(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, index: id.index }
}

pub(super) fn log_id_from_wire(id: &wire::LogId) -> LogId {
    log_id(LogPosition { term: id.term, index: id.index })
}

pub(super) fn vote_to_wire(vote: &Vote) -> wire::Vote {
    let LeaderId { term, voted_for } = vote.leader_id;
    wire::Vote { term, voted_for: Some(voted_for), committed: vote.committed }
}

pub(super) fn vote_from_wire(vote: Option<wire::Vote>) -> io::Result<Vote> {
    let vote = vote.ok_or_else(|| bad("no vote"))?;
    let voted_for = vote.voted_for.ok_or_else(|| bad("a vote for nobody"))?;
    Ok(Vote { leader_id: LeaderId { term: vote.term, voted_for }, committed: vote.committed })
}

pub(super) fn vote_to_stored(vote: &Vote) -> StoredVote {
    StoredVote { term: vote.leader_id.term, voted_for: Some(vote.leader_id.voted_for), committed: vote.committed }
}

pub(super) fn vote_from_stored(vote: &StoredVote) -> Option<Vote> {
    let voted_for = vote.voted_for?;
    Some(Vote { leader_id: LeaderId { term: vote.term, voted_for }, committed: vote.committed })
}

pub(super) fn membership_to_wire(membership: &Membership) -> wire::Membership {
    let set = |ids: &BTreeSet<u64>| wire::VoterSet { replica_ids: ids.iter().copied().collect() };
    wire::Membership {
        configs: membership.get_joint_config().iter().map(set).collect(),
        replicas: membership.nodes().map(|(id, place)| (*id, wire::Replica { node: place.node.0 })).collect(),
    }
}

pub(super) fn membership_from_wire(membership: &wire::Membership) -> io::Result<Membership> {
    if membership.configs.is_empty() && membership.replicas.is_empty() {
        return Ok(Membership::default());
    }
    let configs = membership.configs.iter().map(|set| set.replica_ids.iter().copied().collect()).collect();
    let replicas: BTreeMap<u64, Place> =
        membership.replicas.iter().map(|(id, replica)| (*id, Place { node: NodeId(replica.node) })).collect();
    Membership::new(configs, replicas).map_err(|error| bad(&format!("membership: {error}")))
}

pub(super) fn stored_to_wire(stored: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
    }
}

pub(super) fn stored_from_wire(stored: &wire::StoredMembership) -> io::Result<StoredMembership> {
    let membership = stored.membership.as_ref().map(membership_from_wire).transpose()?.unwrap_or_default();
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_from_wire), membership))
}

/// Decodes what a state machine keeps; empty bytes are the membership of a new replica.
pub(super) fn stored_from_bytes(bytes: &Bytes) -> io::Result<StoredMembership> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    let stored = wire::StoredMembership::decode(bytes.clone()).map_err(|error| bad(&error.to_string()))?;
    stored_from_wire(&stored)
}

pub(super) fn stored_to_bytes(stored: &StoredMembership) -> Bytes {
    stored_to_wire(stored).encode_to_vec().into()
}

/// Encodes a payload as the journal and the wire hold it.
pub(super) fn payload_to_bytes(payload: &Payload) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::new(),
        EntryPayload::Normal(command) => command.encoded().clone(),
        EntryPayload::Membership(membership) => {
            let payload = wire::entry_payload::Payload::Membership(membership_to_wire(membership));
            wire::EntryPayload { payload: Some(payload) }.encode_to_vec().into()
        }
    }
}

/// Decodes a payload; a command's bytes are shared with `bytes`.
pub(super) fn payload_from_bytes(bytes: &Bytes) -> io::Result<Payload> {
    if let Some(command) = Command::parse(bytes) {
        return Ok(EntryPayload::Normal(command));
    }
    let payload = wire::EntryPayload::decode(bytes.clone()).map_err(|error| bad(&error.to_string()))?;
    Ok(match payload.payload {
        None => EntryPayload::Blank,
        Some(wire::entry_payload::Payload::Command(body)) => EntryPayload::Normal(Command::wrap(&body)),
        Some(wire::entry_payload::Payload::Membership(membership)) => {
            EntryPayload::Membership(membership_from_wire(&membership)?)
        }
    })
}

pub(super) fn entry_to_log(entry: &Entry) -> LogEntry {
    LogEntry { at: position(&entry.log_id), payload: payload_to_bytes(&entry.payload) }
}

pub(super) fn entry_from_log(entry: &LogEntry) -> io::Result<Entry> {
    Ok(Entry { log_id: log_id(entry.at), payload: payload_from_bytes(&entry.payload)? })
}

/// Encodes a `RaftRequest` of `envelope`, which has no request, and an append, without copying large payloads.
pub(super) fn append_to_parts(envelope: &wire::RaftRequest, request: &AppendEntriesRequest<TypeConfig>) -> Parts {
    let vote = vote_to_wire(&request.vote);
    let prev = request.prev_log_id.as_ref().map(log_id_to_wire);
    let commit = request.leader_commit.as_ref().map(log_id_to_wire);
    let entries: Vec<(wire::LogId, Bytes)> =
        request.entries.iter().map(|e| (log_id_to_wire(&e.log_id), payload_to_bytes(&e.payload))).collect();
    let entry_len = |(id, payload): &(wire::LogId, Bytes)| {
        // protobuf leaves out what is empty.
        let framed = key_len(2) + encoded_len_varint(payload.len() as u64) + payload.len();
        message::encoded_len(1, id) + if payload.is_empty() { 0 } else { framed }
    };
    let nested = |bytes: usize| key_len(3) + encoded_len_varint(bytes as u64) + bytes;
    let append_len = message::encoded_len(1, &vote)
        + prev.as_ref().map_or(0, |id| message::encoded_len(2, id))
        + entries.iter().map(|entry| nested(entry_len(entry))).sum::<usize>()
        + commit.as_ref().map_or(0, |id| message::encoded_len(4, id));

    let mut parts = Parts::new();
    let mut head = BytesMut::with_capacity(256);
    envelope.encode(&mut head).expect("BytesMut grows");
    encode_key(4, WireType::LengthDelimited, &mut head);
    encode_varint(append_len as u64, &mut head);
    message::encode(1, &vote, &mut head);
    prev.iter().for_each(|id| message::encode(2, id, &mut head));
    for entry in &entries {
        encode_key(3, WireType::LengthDelimited, &mut head);
        encode_varint(entry_len(entry) as u64, &mut head);
        message::encode(1, &entry.0, &mut head);
        if entry.1.is_empty() {
            continue;
        }
        encode_key(2, WireType::LengthDelimited, &mut head);
        encode_varint(entry.1.len() as u64, &mut head);
        if entry.1.len() <= INLINE_BYTES {
            head.put_slice(&entry.1);
        } else {
            parts.push(head.split().freeze());
            parts.push(entry.1.clone());
        }
    }
    commit.iter().for_each(|id| message::encode(4, id, &mut head));
    if !head.is_empty() {
        parts.push(head.freeze());
    }
    parts
}

pub(super) fn append_from_wire(request: wire::AppendRequest) -> io::Result<AppendEntriesRequest<TypeConfig>> {
    let prev = request.prev.as_ref().map(log_id_from_wire);
    let first = prev.as_ref().map_or(0, |id| id.index.saturating_add(1));
    let mut entries = Vec::with_capacity(request.entries.len());
    for (entry, next) in request.entries.iter().zip(first..) {
        let id = entry.log_id.as_ref().map(log_id_from_wire).ok_or_else(|| bad("an entry without a log id"))?;
        if id.index != next {
            return Err(bad("entries are not dense"));
        }
        entries.push(Entry { log_id: id, payload: payload_from_bytes(&entry.payload)? });
    }
    Ok(AppendEntriesRequest {
        vote: vote_from_wire(request.vote)?,
        prev_log_id: prev,
        entries,
        leader_commit: request.leader_commit.as_ref().map(log_id_from_wire),
    })
}

pub(super) fn appended_to_wire(response: &AppendEntriesResponse<TypeConfig>) -> wire::AppendResponse {
    use wire::append_response::Result as Outcome;
    let result = match response {
        AppendEntriesResponse::Success => Some(Outcome::Success(wire::Empty {})),
        // A partial success without a position says the same as one at nothing: the result stays unset.
        AppendEntriesResponse::PartialSuccess(id) => id.as_ref().map(|id| Outcome::PartialSuccess(log_id_to_wire(id))),
        AppendEntriesResponse::Conflict => Some(Outcome::Conflict(wire::Empty {})),
        AppendEntriesResponse::HigherVote(vote) => Some(Outcome::HigherVote(vote_to_wire(vote))),
    };
    wire::AppendResponse { result }
}

pub(super) fn appended_from_wire(response: wire::AppendResponse) -> io::Result<AppendEntriesResponse<TypeConfig>> {
    use wire::append_response::Result as Outcome;
    Ok(match response.result {
        Some(Outcome::Success(_)) => AppendEntriesResponse::Success,
        Some(Outcome::PartialSuccess(id)) => AppendEntriesResponse::PartialSuccess(Some(log_id_from_wire(&id))),
        None => AppendEntriesResponse::PartialSuccess(None),
        Some(Outcome::Conflict(_)) => AppendEntriesResponse::Conflict,
        Some(Outcome::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote_from_wire(Some(vote))?),
    })
}

pub(super) fn vote_request_to_wire(request: &VoteRequest<TypeConfig>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_to_wire(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_to_wire),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request_from_wire(request: wire::VoteRequest) -> io::Result<VoteRequest<TypeConfig>> {
    let last = request.last_log_id.as_ref().map(log_id_from_wire);
    let mut converted = VoteRequest::new(vote_from_wire(request.vote)?, last);
    converted.leadership_transfer = request.leadership_transfer;
    Ok(converted)
}

pub(super) fn voted_to_wire(response: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(vote_to_wire(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_to_wire),
    }
}

pub(super) fn voted_from_wire(response: wire::VoteResponse) -> io::Result<VoteResponse<TypeConfig>> {
    let last = response.last_log_id.as_ref().map(log_id_from_wire);
    Ok(VoteResponse::new(vote_from_wire(response.vote)?, last, response.granted))
}

pub(super) fn transfer_to_wire(request: &TransferLeaderRequest<TypeConfig>) -> wire::TransferRequest {
    wire::TransferRequest {
        from_leader: Some(vote_to_wire(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(log_id_to_wire),
    }
}

pub(super) fn transfer_from_wire(request: wire::TransferRequest) -> io::Result<TransferLeaderRequest<TypeConfig>> {
    let last = request.last_log_id.as_ref().map(log_id_from_wire);
    Ok(TransferLeaderRequest::new(vote_from_wire(request.from_leader)?, request.to, last))
}

pub(super) fn meta_to_wire(meta: &SnapshotMeta) -> wire::SnapshotMeta {
    wire::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id_to_wire),
        last_membership: Some(stored_to_wire(&meta.last_membership)),
    }
}

pub(super) fn meta_from_wire(meta: wire::SnapshotMeta) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id_from_wire),
        last_membership: meta.last_membership.as_ref().map(stored_from_wire).transpose()?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
