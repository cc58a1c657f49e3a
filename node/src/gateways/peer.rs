//! The door for peers: what comes in over links goes to the driver that it is for.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::sync::mpsc;
use weft_cluster::caller::Caller;
use weft_cluster::ids::{InstanceId, NodeId, PartitionId, TopicId};
use weft_proto::internal::v1::{
    ControlRequest, ControlResponse, DeliverRequest, DeliverResponse, Done, ForwardAnswer, ForwardAppend,
    PartitionStats, PartitionStatsAnswer, RenewLease, control_request, control_response, deliver_request,
    deliver_response, forward_answer,
};
use weft_proto::v1::PackedFrame;

use crate::drivers::calls::Calls;
use crate::drivers::gossip::Gossip;
use crate::drivers::instances::Instances;
use crate::drivers::link::{Inbound, Lane, LinkStream, Parts};
use crate::drivers::raft::Rafts;
use crate::drivers::shard::Shards;
use crate::host::Promise;

/// Frames between a deliver stream's link and its shard, each way.
const DELIVER_FRAMES_MAX: usize = 16;
/// Field numbers of `DeliverResponse` and `PackedFrame`.
const PACKED_FRAME_FIELD: u32 = 2;
const PACKED_FIELD: u32 = 3;

/// Dispatches what peers send.
#[derive(Clone)]
pub struct Peer {
    rafts: Rafts,
    shards: Shards,
    gossip: Gossip,
    instances: Instances,
    calls: Calls,
}

impl Peer {
    /// A door to these drivers.
    pub fn new(rafts: Rafts, shards: Shards, gossip: Gossip, instances: Instances, calls: Calls) -> Peer {
        Peer { rafts, shards, gossip, instances, calls }
    }

    async fn control(self, from: NodeId, body: Bytes) -> Result<Parts, String> {
        let request = ControlRequest::decode(body).map_err(|error| unreadable("control request", &error))?;
        let response = match &request.request {
            Some(control_request::Request::PartitionStats(refs)) => self.stats(refs).await,
            Some(control_request::Request::RenewLease(lease)) => self.renew(lease).await,
            _ => self.rafts.control(from, request).await,
        };
        Ok(vec![response.encode_to_vec().into()])
    }

    async fn stats(&self, refs: &PartitionStats) -> ControlResponse {
        let id =
            |of: &weft_proto::internal::v1::PartitionRef| PartitionId { topic: TopicId(of.topic), index: of.partition };
        let partitions: Vec<_> = refs.partitions.iter().map(id).collect();
        let caller = Caller::from_wire(refs.caller.clone());
        let answer = PartitionStatsAnswer { stats: self.shards.stats(&caller, &partitions).await };
        ControlResponse { response: Some(control_response::Response::PartitionStats(answer)) }
    }

    async fn renew(&self, lease: &RenewLease) -> ControlResponse {
        let caller = Caller::from_wire(lease.caller.clone());
        let response = match self.instances.renew_here(&caller, InstanceId(lease.instance)).await {
            Ok(()) => control_response::Response::Done(Done {}),
            Err(refusal) => control_response::Response::Error(refusal),
        };
        ControlResponse { response: Some(response) }
    }

    /// The batch takes its place in the shard's queue before this returns.
    fn append(&self, body: Bytes) -> Promise<'static, Result<Parts, String>> {
        let mut append = match ForwardAppend::decode(body) {
            Ok(append) => append,
            Err(error) => return Box::pin(std::future::ready(Err(unreadable("append", &error)))),
        };
        let caller = Caller::from_wire(append.caller.take());
        let outcome = self.shards.append(&caller, append);
        Box::pin(async move {
            let result = match outcome.await {
                Ok(receipt) => forward_answer::Result::Receipt(receipt),
                Err(error) => forward_answer::Result::Error(error),
            };
            Ok(vec![ForwardAnswer { result: Some(result) }.encode_to_vec().into()])
        })
    }
}

impl Inbound for Peer {
    fn request(&self, from: NodeId, lane: Lane, body: Bytes) -> Promise<'static, Result<Parts, String>> {
        match lane {
            Lane::Publish => self.append(body),
            Lane::Raft => {
                let rafts = self.rafts.clone();
                Box::pin(async move { rafts.request(from, body).await })
            }
            Lane::Control => Box::pin(self.clone().control(from, body)),
            Lane::Call => self.calls.serve_whole(from, body),
            Lane::Gossip | Lane::Deliver | Lane::Bulk => {
                Box::pin(std::future::ready(Err(format!("lane {lane:?} takes no requests"))))
            }
        }
    }

    fn stream(&self, from: NodeId, lane: Lane, mut stream: LinkStream) -> Promise<'static, ()> {
        let door = self.clone();
        Box::pin(async move {
            let first = match stream.receive.next().await {
                Ok(Some(first)) => first,
                Ok(None) | Err(_) => return,
            };
            match lane {
                Lane::Deliver => deliver(door.shards, from, first, stream).await,
                Lane::Control => door.rafts.watch(from, first, stream).await,
                Lane::Bulk => door.rafts.fetch(from, first, stream).await,
                Lane::Call => door.calls.serve_stream(from, first, stream).await,
                // Dropped, the stream is reset.
                _ => tracing::debug!(%from, ?lane, "a lane that takes no streams"),
            }
        })
    }

    fn gossip(&self, from: SocketAddr, packet: Bytes) {
        self.gossip.receive(from, packet);
    }
}

fn unreadable(what: &str, error: &prost::DecodeError) -> String {
    format!("the {what} is not readable: {error}")
}

/// Serves one deliver stream of a node, whose first frame is `first`.
async fn deliver(shards: Shards, from: NodeId, first: Bytes, stream: LinkStream) {
    let Ok(DeliverRequest { frame: Some(deliver_request::Frame::Open(mut open)) }) = DeliverRequest::decode(first)
    else {
        return;
    };
    let caller = Caller::from_wire(open.caller.take());
    let LinkStream { mut send, mut receive } = stream;
    let (requests_in, requests) = mpsc::channel(DELIVER_FRAMES_MAX);
    let (responses, mut responses_out) = mpsc::channel(DELIVER_FRAMES_MAX);
    let read = async move {
        while let Ok(Some(frame)) = receive.next().await {
            let Ok(request) = DeliverRequest::decode(frame) else { return };
            if requests_in.send(request).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some(response) = responses_out.recv().await {
            if send.send(parts(response)).await.is_err() {
                return;
            }
        }
        send.finish();
    };
    let serve = async { tokio::join!(shards.deliver(&caller, open, requests, responses), write) };
    tokio::select! {
        biased;
        _ = serve => {}
        () = shards.lost(from) => {}
        // When the peer has gone, the requests end and the serving side ends by itself.
        () = async { read.await; std::future::pending().await } => {}
    }
}

/// A response as a frame; a packed batch is a part of its own, not copied.
fn parts(response: DeliverResponse) -> Parts {
    match response.frame {
        Some(deliver_response::Frame::Packed(PackedFrame { partition, from_offset, packed })) => {
            let fields = PackedFrame { partition, from_offset, packed: Bytes::new() };
            let mut inner = BytesMut::with_capacity(32);
            fields.encode_raw(&mut inner);
            encode_key(PACKED_FIELD, WireType::LengthDelimited, &mut inner);
            encode_varint(packed.len() as u64, &mut inner);
            let mut head = BytesMut::with_capacity(48);
            encode_key(PACKED_FRAME_FIELD, WireType::LengthDelimited, &mut head);
            encode_varint((inner.len() + packed.len()) as u64, &mut head);
            head.extend_from_slice(&inner);
            vec![head.freeze(), packed]
        }
        frame => vec![DeliverResponse { frame }.encode_to_vec().into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_frame_decodes_and_shares_the_batch() {
        let packed = Bytes::from(vec![9; 1000]);
        let frame = PackedFrame { partition: 3, from_offset: 77, packed: packed.clone() };
        let response = DeliverResponse { frame: Some(deliver_response::Frame::Packed(frame)) };
        let parts = parts(response.clone());
        assert_eq!(parts[1].as_ptr(), packed.as_ptr());
        assert_eq!(DeliverResponse::decode(Bytes::from(parts.concat())), Ok(response));
    }
}
