//! openraft's network over the links: one request per message on `Lane::Raft`. The link coalesces what is
//! queued at one wake-up, so the messages of all groups to one peer leave in one flush.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use prost::Message;
use weft_cluster::ids::NodeId;
use weft_proto::internal::v1 as wire;
use weft_proto::internal::v1::raft_request::Request;
use weft_proto::internal::v1::raft_response::Response;

use super::Metrics;
use super::convert;
use super::machine::Snapshot;
use super::types::{Committed, Place, TypeConfig, Vote};
use crate::drivers::link::{Lane, LinkError, Links, Parts};

/// The last index that each replica has acknowledged to this one as the leader of a term. Only within the term: a leader
/// in between may have cut what was not committed.
#[derive(Clone, Default)]
pub(super) struct Acked(Arc<Mutex<BTreeMap<u64, (u64, u64)>>>);

impl Acked {
    fn of(&self, replica: u64, term: u64) -> Option<u64> {
        let acked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        acked.get(&replica).filter(|(of, _)| *of == term).map(|(_, index)| *index)
    }

    fn note(&self, replica: u64, term: u64, index: u64) {
        let mut acked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = acked.entry(replica).or_insert((term, index));
        // Answers may come in any order.
        *known = (*known).max((term, index));
    }
}

/// Makes the clients of one group's replica.
pub(super) struct Network {
    pub(super) links: Links,
    pub(super) metrics: Metrics,
    pub(super) group: u64,
    pub(super) from: u64,
    pub(super) acked: Acked,
}

/// Sends one group's messages to one replica.
pub(super) struct Client {
    links: Links,
    metrics: Metrics,
    group: u64,
    from: u64,
    to: u64,
    node: NodeId,
    acked: Acked,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, to: u64, place: &Place) -> Client {
        let (links, metrics) = (self.links.clone(), self.metrics.clone());
        Client { links, metrics, group: self.group, from: self.from, to, node: place.node, acked: self.acked.clone() }
    }
}

type Failure = RPCError<TypeConfig>;

fn unexpected(what: &str) -> Failure {
    RPCError::Network(NetworkError::from_string(what))
}

impl Client {
    async fn call(&self, body: Parts, patience: Duration) -> Result<Response, Failure> {
        let answer = self.links.request(self.node, Lane::Raft, body, patience).await.map_err(|error| match error {
            LinkError::NotSent(_) | LinkError::Refused(..) => RPCError::Unreachable(Unreachable::new(&error)),
            error => RPCError::Network(NetworkError::new(&error)),
        })?;
        match decode(answer)? {
            Response::Refused(reason) => Err(RPCError::Unreachable(Unreachable::from_string(reason))),
            response => Ok(response),
        }
    }

    async fn ask(&self, request: Request, patience: Duration) -> Result<Response, Failure> {
        let request =
            wire::RaftRequest { group: self.group, from: self.from, to: self.to, request: Some(request), acked: None };
        self.call(vec![request.encode_to_vec().into()], patience).await
    }
}

fn decode(answer: Bytes) -> Result<Response, Failure> {
    let response = wire::RaftResponse::decode(answer).map_err(|error| unexpected(&error.to_string()))?;
    response.response.ok_or_else(|| unexpected("an empty answer"))
}

fn invalid(error: std::io::Error) -> Failure {
    unexpected(&error.to_string())
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Snapshot;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Failure> {
        let term = request.vote.leader_id.term;
        let envelope = wire::RaftRequest {
            group: self.group,
            from: self.from,
            to: self.to,
            request: None,
            acked: self.acked.of(self.to, term),
        };
        let parts = convert::append_to_parts(&envelope, &request);
        let response = match self.call(parts, option.soft_ttl()).await? {
            Response::Append(response) => convert::appended_from_wire(response).map_err(invalid)?,
            _ => return Err(unexpected("the answer is not one to an append")),
        };
        let sent = request.entries.last().map(|entry| &entry.log_id).or(request.prev_log_id.as_ref());
        let matched = match &response {
            AppendEntriesResponse::Success => sent,
            AppendEntriesResponse::PartialSuccess(matched) => matched.as_ref(),
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => None,
        };
        if let Some(matched) = matched {
            self.acked.note(self.to, term, matched.index);
        }
        Ok(response)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        match self.ask(Request::Vote(convert::vote_request_to_wire(&request)), option.soft_ttl()).await? {
            Response::Vote(response) => convert::voted_from_wire(response).map_err(invalid),
            _ => Err(unexpected("the answer is not one to a vote")),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        match self.ask(Request::PreVote(convert::vote_request_to_wire(&request)), option.soft_ttl()).await? {
            Response::Vote(response) => convert::voted_from_wire(response).map_err(invalid),
            _ => Err(unexpected("the answer is not one to a pre-vote")),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::Snapshot<Committed, u64, Place, Snapshot>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        if snapshot.snapshot.is_marker() {
            let full = std::io::Error::other("this node's disk is full: the snapshot waits for room");
            return Err(StreamingError::Unreachable(Unreachable::new(&full)));
        }
        let request = wire::SnapshotRequest {
            vote: Some(convert::vote_to_wire(&vote)),
            meta: Some(convert::meta_to_wire(&snapshot.meta)),
            manifest: snapshot.snapshot.manifest.bytes.clone(),
        };
        // `snapshot` lives until the answer: the receiver fetches the files that its pin keeps.
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            answer = self.ask(Request::Snapshot(request), option.hard_ttl()) => answer?,
        };
        match answer {
            Response::Snapshot(response) => {
                self.metrics.snapshots_sent.inc();
                Ok(SnapshotResponse::new(convert::vote_from_wire(response.vote).map_err(invalid)?))
            }
            _ => Err(unexpected("the answer is not one to a snapshot").into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Failure> {
        match self.ask(Request::Transfer(convert::transfer_to_wire(&request)), option.soft_ttl()).await? {
            Response::Transfer(response) if response.accepted => Ok(Ok(())),
            Response::Transfer(response) => Err(unexpected(&response.reason)),
            _ => Err(unexpected("the answer is not one to a transfer")),
        }
    }
}
