//! Composes the one view that gateways read: registry, members, link verdicts, owners.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use weft_cluster::ids::{NodeId, ShardId};
use weft_cluster::view::{ClusterView, Member, MemberState, Owner};

use super::Registry;
use crate::drivers::link::{Verdict, Verdicts};

type Members = Arc<BTreeMap<NodeId, Member>>;
type OwnerMap = Arc<BTreeMap<ShardId, Owner>>;

/// Keeps the view up to date.
pub(in crate::drivers) async fn compose(
    registry: Registry,
    mut members: watch::Receiver<Members>,
    mut owners: watch::Receiver<OwnerMap>,
) {
    let inner = registry.inner.clone();
    let mut verdicts = inner.links.verdicts();
    let mut states = registry.states();
    let mut group = inner.group.subscribe();
    let mut hint = inner.leader.subscribe();
    loop {
        let mut leadership = group.borrow_and_update().as_ref().map(crate::drivers::raft::Group::leadership);
        hint.borrow_and_update();
        let led = leadership.as_mut().and_then(|leadership| leadership.borrow_and_update().leader);
        let (judged, cut_off) = judge(&members.borrow_and_update(), &verdicts.borrow_and_update(), inner.me);
        let view = ClusterView {
            me: inner.me,
            registry: states.borrow_and_update().clone(),
            registry_leader: led.or(*inner.leader.borrow()),
            members: judged,
            owners: BTreeMap::clone(&owners.borrow_and_update()),
            cut_off,
        };
        if view.settled() {
            inner.awaited.send_if_modified(|awaited| awaited.take().is_some());
        }
        inner.view.send_replace(Arc::new(view));
        let led = async {
            match &mut leadership {
                Some(leadership) => drop(leadership.changed().await),
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            biased;
            changed = states.changed() => changed,
            changed = verdicts.changed() => changed,
            changed = members.changed() => changed,
            changed = owners.changed() => changed,
            changed = group.changed() => changed,
            changed = hint.changed() => changed,
            () = led => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The link's verdict routes away at once; gossip confirms. Returns also those that it has not confirmed.
fn judge(
    members: &BTreeMap<NodeId, Member>,
    verdicts: &Verdicts,
    me: NodeId,
) -> (BTreeMap<NodeId, Member>, BTreeSet<NodeId>) {
    let (mut judged, mut cut_off) = (members.clone(), BTreeSet::new());
    for (id, member) in &mut judged {
        let Some((generation, verdict)) = verdicts.get(id).filter(|_| *id != me) else { continue };
        let present = *generation >= member.generation;
        if present && member.state == MemberState::Alive && *verdict != Verdict::Up {
            cut_off.insert(*id);
        }
        member.state = match (member.state, verdict) {
            (MemberState::Alive, Verdict::Suspect) if present => MemberState::Suspect,
            (MemberState::Alive | MemberState::Suspect, Verdict::Dead) if present => MemberState::Down,
            (state, _) => state,
        };
    }
    (judged, cut_off)
}
