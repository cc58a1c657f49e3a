//! Finds the seeds, again and again until they are members: SWIM itself does not repeat a first announce.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use weft_cluster::view::MemberState;

use super::swim::Input;
use super::{GossipConfig, Members};
use crate::drivers::link::Links;
use crate::host::Host;

/// How long a name may take to resolve.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// Looks for seeds for as long as the node runs: often while it is alone, seldom afterwards, so that two
/// halves that were started apart find each other.
pub(super) async fn run(
    host: Arc<dyn Host>,
    links: Links,
    seeds: Vec<String>,
    config: GossipConfig,
    inputs: mpsc::Sender<Input>,
    members: watch::Receiver<Members>,
) {
    let mut unresolved = BTreeSet::new();
    loop {
        let addresses = resolve(&*host, &seeds, &mut unresolved).await;
        let up: BTreeSet<SocketAddr> = {
            let members = members.borrow();
            let alive = members.values().filter(|member| member.state == MemberState::Alive);
            alive.filter_map(|member| member.peer_address.parse().ok()).collect()
        };
        let dials = addresses.into_iter().filter(|at| *at != links.me().peer_address && !up.contains(at)).map(|at| {
            let links = links.clone();
            // Why nobody answers, the links log.
            async move { links.dial(at).await.ok().map(|peer| peer.peer_address) }
        });
        let answered = futures::future::join_all(dials).await.into_iter().flatten().collect();
        if inputs.send(Input::Seeds(answered)).await.is_err() {
            return;
        }
        let alone = members.borrow().len() <= 1;
        sleep(if alone { config.seed_retry } else { config.announce_period }).await;
    }
}

async fn resolve(host: &dyn Host, seeds: &[String], unresolved: &mut BTreeSet<String>) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for seed in seeds {
        let resolved = timeout(RESOLVE_PATIENCE, host.resolve(seed)).await;
        let reason = match resolved {
            Ok(Ok(addresses)) if !addresses.is_empty() => {
                found.extend(addresses.into_iter().take(ADDRESSES_MAX));
                unresolved.remove(seed);
                continue;
            }
            Ok(Ok(_)) => "it has no address".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {RESOLVE_PATIENCE:?}"),
        };
        if unresolved.insert(seed.clone()) {
            tracing::warn!(seed, reason, "a seed does not resolve; it is tried again, and logged once");
        }
    }
    found
}
