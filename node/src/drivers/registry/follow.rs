//! The registry's watch: nodes without a replica follow its log from one that has it, in order.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::time::sleep;
use weft_cluster::ids::LogPosition;
use weft_cluster::registry::State;
use weft_proto::internal::v1::watch_response::Item;
use weft_proto::internal::v1::{WatchRequest, WatchResponse};

use super::Registry;
use crate::drivers::link::{Lane, LinkError, LinkStream};

/// Between two tries to follow.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Serves one follower until the stream or the node ends. `first`: its `WatchRequest`.
pub(in crate::drivers) async fn serve_watch(registry: &Registry, first: Bytes, mut stream: LinkStream) {
    let Ok(request) = WatchRequest::decode(first) else { return };
    let mut states = registry.states();
    let mut next = request.from_index;
    loop {
        let state = states.borrow_and_update().clone();
        if let Some(at) = state.applied().filter(|at| at.index >= next || next == 0) {
            let entries = (next > 0).then(|| registry.entries_from(next)).flatten();
            let items = match entries {
                Some(entries) => entries.into_iter().map(Item::Entry).collect(),
                None => vec![Item::State(state.to_proto())],
            };
            next = at.index + 1;
            for item in items {
                if let Item::Entry(entry) = &item {
                    next = next.max(entry.index + 1);
                }
                let frame = WatchResponse { item: Some(item) }.encode_to_vec();
                if stream.send.send(vec![frame.into()]).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            biased;
            // The follower sends nothing more: anything here is its end.
            _ = stream.receive.next() => return,
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

/// Follows a member while this node has no replica of its own.
pub(in crate::drivers) async fn follow(registry: Registry) {
    let mut group = registry.inner.group.subscribe();
    let mut failed = false;
    loop {
        if group.wait_for(Option::is_none).await.is_err() {
            return;
        }
        let source = match registry.leader().filter(|leader| !failed && *leader != registry.inner.me) {
            Some(leader) => Some(leader),
            None => registry.next_peer(),
        };
        failed = false;
        if let Some(source) = source {
            let followed = async {
                let stream = registry.inner.links.open(source, Lane::Control).await?;
                follow_stream(&registry, stream).await
            };
            tokio::select! {
                biased;
                _ = group.wait_for(Option::is_some) => {},
                ended = followed => if let Err(error) = ended {
                    failed = true;
                    tracing::debug!(%source, %error, "the registry's watch has ended");
                },
            }
        }
        sleep(RETRY_AFTER).await;
    }
}

async fn follow_stream(registry: &Registry, mut stream: LinkStream) -> Result<(), LinkError> {
    let mut state = State::clone(&registry.state());
    let from_index = state.applied().map_or(0, |at| at.index + 1);
    stream.send.send(vec![WatchRequest { from_index }.encode_to_vec().into()]).await?;
    while let Some(frame) = stream.receive.next().await? {
        let Some(item) = WatchResponse::decode(frame).ok().and_then(|response| response.item) else { return Ok(()) };
        match item {
            Item::State(newer) => match State::from_proto(newer) {
                Ok(newer) if newer.applied() >= state.applied() => {
                    state = newer;
                    registry.publish(&state, Vec::new());
                }
                // An older one is from a member that is behind: another will do better.
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::error!(%error, "a member sent a registry that cannot be");
                    return Ok(());
                }
            },
            Item::Entry(entry) => {
                let at = LogPosition { term: entry.term, index: entry.index };
                if entry.index != state.applied().map_or(0, |applied| applied.index + 1) {
                    return Ok(());
                }
                match &entry.entry {
                    Some(command) => drop(state.apply(at, command)),
                    None => state.note(at),
                }
                registry.publish(&state, vec![entry]);
            }
        }
    }
    Ok(())
}
