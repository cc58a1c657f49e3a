//! Who acts for each shard: every new owner says so to all peers, and each node keeps the newest epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use weft_cluster::ids::{Epoch, NodeId, ShardId};
use weft_cluster::view::Owner;
use weft_proto::internal::v1::control_request::Request;
use weft_proto::internal::v1::{Owned, OwnedNotice};

use super::link::Verdict;
use super::raft::Context;

/// Every owner says again what it owns this often, for peers that missed it.
const REPEAT_AFTER: Duration = Duration::from_secs(10);
/// How long one notice waits for its peer.
const NOTICE_PATIENCE: Duration = Duration::from_secs(2);

type OwnerMap = BTreeMap<ShardId, Owner>;

/// The newest owner announced for each shard.
#[derive(Default)]
pub(super) struct Owners {
    map: watch::Sender<Arc<OwnerMap>>,
}

impl Owners {
    /// The map, published on change.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<OwnerMap>> {
        self.map.subscribe()
    }

    /// Takes in what owners say; an older epoch than the one known is ignored.
    pub(super) fn learn(&self, owned: impl IntoIterator<Item = (ShardId, Owner)>) {
        self.map.send_if_modified(|map| {
            let newer: OwnerMap = owned
                .into_iter()
                .filter(|(shard, owner)| map.get(shard).is_none_or(|known| known.epoch < owner.epoch))
                .collect();
            let changed = !newer.is_empty();
            if changed {
                Arc::make_mut(map).extend(newer);
            }
            changed
        });
    }

    /// Takes in a peer's notice.
    pub(super) fn notice(&self, from: NodeId, notice: &OwnedNotice) {
        // A node speaks for itself only.
        let said = notice.owned.iter().filter(|owned| owned.owner == from.0);
        self.learn(said.map(|owned| (ShardId(owned.shard), Owner { node: from, epoch: Epoch(owned.epoch) })));
    }
}

/// What this node acts for.
fn mine(context: &Context) -> OwnerMap {
    let mut mine = OwnerMap::new();
    for group in context.groups() {
        let leadership = group.leadership().borrow().clone();
        if let Some(shard) = group.id().shard().filter(|_| leadership.acting) {
            mine.insert(shard, Owner { node: context.me, epoch: leadership.epoch });
        }
    }
    mine
}

/// Announces what this node acts for: what is new to all peers, all to a peer that is new.
pub(super) async fn announce(context: Arc<Context>) {
    let mut leaderships = context.leaderships.subscribe();
    let mut verdicts = context.links.verdicts();
    let mut repeat = interval(REPEAT_AFTER);
    repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = OwnerMap::new();
    let mut told: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        let again = tokio::select! {
            biased;
            changed = leaderships.changed() => if changed.is_err() { return } else { false },
            changed = verdicts.changed() => if changed.is_err() { return } else { false },
            _ = repeat.tick() => true,
        };
        let now = mine(&context);
        context.owners.learn(now.clone());
        let fresh: OwnerMap =
            now.iter().filter(|(shard, owner)| said.get(shard) != Some(owner)).map(|(s, o)| (*s, *o)).collect();
        let up: BTreeSet<NodeId> = {
            let verdicts = verdicts.borrow_and_update();
            verdicts.iter().filter(|(_, (_, verdict))| *verdict == Verdict::Up).map(|(node, _)| *node).collect()
        };
        for peer in &up {
            let all = again || !told.contains(peer);
            let owned = if all { &now } else { &fresh };
            if !owned.is_empty() {
                tell(&context, *peer, owned);
            }
        }
        (said, told) = (now, up);
    }
}

fn tell(context: &Arc<Context>, peer: NodeId, owned: &OwnerMap) {
    let owned = owned.iter().map(|(shard, owner)| Owned { shard: shard.0, epoch: owner.epoch.0, owner: owner.node.0 });
    let request = Request::Owned(OwnedNotice { owned: owned.collect() });
    let context = context.clone();
    context.tasks.clone().spawn("owned notice", async move {
        if let Err(error) = context.ask(peer, request, NOTICE_PATIENCE).await {
            tracing::debug!(%peer, error = error.message, "an owner's notice was not taken");
        }
    });
}
