//! One attempt: a batch goes to one node, once.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use weft_cluster::caller::Caller;
use weft_cluster::ids::{NodeId, PartitionId};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::{
    ControlRequest, ControlResponse, ForwardAnswer, ForwardAppend, PartitionRef, PartitionStat, PartitionStats,
    control_request, control_response, forward_answer,
};
use weft_proto::v1::{Ack, Error, ErrorCode, Receipt, Retry};

use super::Forward;
use super::window::Redirect;
use crate::drivers::link::{Lane, LinkError, Parts};
use crate::drivers::shard::refusal;
use crate::host::Promise;

/// Field number of `packed` in `ForwardAppend`.
const PACKED_FIELD: u32 = 6;

/// A batch on its way to a node.
pub(super) struct Attempt {
    /// The node asked; `None`: there was no one to ask.
    pub(super) node: Option<NodeId>,
    /// The owner that the view shows.
    pub(super) owner: Option<NodeId>,
    pub(super) answer: Promise<'static, Result<Receipt, Error>>,
}

impl Forward {
    /// Sends a batch of `caller` to the owner, or to whom `redirect` names while the view has not changed since.
    /// Returns the node asked, the owner that the view shows, and the promise of the answer. The place in the owner's
    /// queue is that of the call, the place in the link's that of the first poll.
    pub(super) fn attempt(
        &self,
        caller: &Caller,
        partition: PartitionId,
        packed: Bytes,
        ack: Ack,
        patience: Duration,
        redirect: Option<Redirect>,
    ) -> Attempt {
        let view = self.view();
        let owner = view.owner_of(partition).map(|owner| owner.node);
        let redirect = redirect.filter(|redirect| redirect.believed == owner && view.usable(redirect.to));
        let node = redirect.map(|redirect| redirect.to).or(owner);
        let (Some(node), Some(shard)) = (node, view.shard_of(partition)) else {
            let error = match view.owner_out_of_reach(partition) {
                Some(owner) => refusal::out_of_reach(&view.name_of(owner)),
                None => refusal::no_owner(partition),
            };
            let answer = Box::pin(std::future::ready(Err(error)));
            return Attempt { node: None, owner, answer };
        };
        let mut append = ForwardAppend {
            shard: shard.0,
            epoch: 0,
            topic: partition.topic.0,
            partition: partition.index,
            ack: ack.into(),
            packed,
            caller: None,
        };
        if node == view.me {
            self.inner.metrics.local.inc();
            // Queued now, in the order of the calls.
            let outcome = tokio::time::timeout(patience, self.inner.shards.append(caller, append));
            let late = |_| Err(refusal::outcome_unknown("the owner did not answer in time"));
            let answer = async move { outcome.await.unwrap_or_else(late) };
            return Attempt { node: Some(node), owner, answer: Box::pin(answer) };
        }
        self.inner.metrics.remote.inc();
        append.caller = caller.to_wire();
        Attempt { node: Some(node), owner, answer: Box::pin(self.clone().remote(node, append, patience)) }
    }

    async fn remote(self, node: NodeId, append: ForwardAppend, patience: Duration) -> Result<Receipt, Error> {
        let answer = self.inner.links.request(node, Lane::Publish, parts(append), patience).await;
        // Looked up only for an error.
        let name = || self.view().name_of(node);
        let alive = |view: &ClusterView| view.usable(node) || view.cut_off.contains(&node);
        let answer = ForwardAnswer::decode(answer.map_err(|error| failed(error, node, &name(), alive(&self.view())))?)
            .map_err(|error| refusal::outcome_unknown(&format!("the answer of {} is not readable: {error}", name())))?;
        match answer.result {
            Some(forward_answer::Result::Receipt(receipt)) => Ok(receipt),
            Some(forward_answer::Result::Error(error)) => Err(error),
            None => Err(refusal::outcome_unknown(&format!("the answer of {} is empty", name()))),
        }
    }

    /// Offsets, sizes and cursors of partitions, from their owners, who show all that was committed before the call.
    /// Those whose owner did not answer, or could not be sure that it still is the owner, are left out.
    pub async fn stats(&self, caller: &Caller, partitions: &[PartitionId], patience: Duration) -> Vec<PartitionStat> {
        let view = self.view();
        let mut by_owner = std::collections::BTreeMap::<NodeId, Vec<PartitionId>>::new();
        for partition in partitions {
            if let Some(owner) = view.owner_of(*partition) {
                by_owner.entry(owner.node).or_default().push(*partition);
            }
        }
        let ask =
            by_owner.into_iter().map(|(node, partitions)| self.stats_of(caller, view.me, node, partitions, patience));
        futures::future::join_all(ask).await.into_iter().flatten().collect()
    }

    async fn stats_of(
        &self,
        caller: &Caller,
        me: NodeId,
        node: NodeId,
        partitions: Vec<PartitionId>,
        patience: Duration,
    ) -> Vec<PartitionStat> {
        if node == me {
            // Too late is as good as no answer, as it is from another node.
            return tokio::time::timeout(patience, self.inner.shards.stats(caller, &partitions))
                .await
                .unwrap_or_default();
        }
        let refs = partitions.iter().map(|id| PartitionRef { topic: id.topic.0, partition: id.index }).collect();
        let stats = PartitionStats { partitions: refs, caller: caller.to_wire() };
        let request = control_request::Request::PartitionStats(stats);
        let body = ControlRequest { request: Some(request) }.encode_to_vec();
        let answer = self.inner.links.request(node, Lane::Control, vec![body.into()], patience).await;
        match answer.map(ControlResponse::decode) {
            Ok(Ok(ControlResponse { response: Some(control_response::Response::PartitionStats(answer)) })) => {
                answer.stats
            }
            _ => Vec::new(),
        }
    }
}

/// The encoded message, the batch as a part of its own: not copied.
fn parts(mut append: ForwardAppend) -> Parts {
    let packed = std::mem::take(&mut append.packed);
    let mut head = BytesMut::with_capacity(append.encoded_len() + 16);
    append.encode_raw(&mut head);
    prost::encoding::encode_key(PACKED_FIELD, prost::encoding::WireType::LengthDelimited, &mut head);
    prost::encoding::encode_varint(packed.len() as u64, &mut head);
    vec![head.freeze(), packed]
}

/// What the failure of the link to `node` says about the batch. Clients know nodes by their names. `alive`: others see it.
fn failed(error: LinkError, node: NodeId, name: &str, alive: bool) -> Error {
    let told = error.to_string().replace(&node.to_string(), name);
    match error {
        LinkError::NotSent(_) if alive => refusal::out_of_reach(name),
        LinkError::NotSent(_) | LinkError::Refused(..) => refusal::refusal(ErrorCode::NoOwner, Retry::Same, told),
        LinkError::Lost(_) | LinkError::Deadline(_) => refusal::outcome_unknown(&told),
        LinkError::TooLarge { .. } => refusal::refusal(ErrorCode::TooLarge, Retry::Never, told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_links_failure_names_the_node() {
        let (node, name) = (NodeId(7), "n7");
        let lost = failed(LinkError::Lost(node), node, name, true);
        assert_eq!(lost.message, "the batch may or may not be stored: the link to n7 was lost before the answer");
        let gone = failed(LinkError::NotSent(node), node, name, false);
        assert_eq!((gone.code(), gone.message.as_str()), (ErrorCode::NoOwner, "no link to n7"));
        let cut_off = failed(LinkError::NotSent(node), node, name, true);
        assert_eq!(cut_off.code(), ErrorCode::NotReady);
    }

    #[test]
    fn the_parts_decode_to_the_message_and_share_the_batch() {
        let packed = Bytes::from(vec![7; 300]);
        let append =
            ForwardAppend { shard: 3, topic: 9, partition: 1, ack: 2, packed: packed.clone(), epoch: 0, caller: None };
        let append = ForwardAppend { caller: Caller::node("n1").to_wire(), ..append };
        let parts = parts(append.clone());
        assert_eq!(parts[1].as_ptr(), packed.as_ptr());
        assert_eq!(ForwardAppend::decode(Bytes::from(parts.concat())), Ok(append));
    }
}
