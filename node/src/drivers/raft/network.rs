//! openraft's network over the links: one request per message on `Lane::Raft`. The link coalesces what is
//! queued at one wake-up, so the messages of all groups to one peer leave in one flush.

use std::future::Future;
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

/// Makes the clients of one group's replica.
pub(super) struct Network {
    pub(super) links: Links,
    pub(super) metrics: Metrics,
    pub(super) group: u64,
    pub(super) from: u64,
}

/// Sends one group's messages to one replica.
pub(super) struct Client {
    links: Links,
    metrics: Metrics,
    group: u64,
    from: u64,
    to: u64,
    node: NodeId,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, to: u64, place: &Place) -> Client {
        let (links, metrics) = (self.links.clone(), self.metrics.clone());
        Client { links, metrics, group: self.group, from: self.from, to, node: place.node }
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
        let request = wire::RaftRequest { group: self.group, from: self.from, to: self.to, request: Some(request) };
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
        let parts = convert::append_to_parts(self.group, self.from, self.to, &request);
        match self.call(parts, option.soft_ttl()).await? {
            Response::Append(response) => convert::appended_from_wire(response).map_err(invalid),
            _ => Err(unexpected("the answer is not one to an append")),
        }
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
