//! When a node is ready for clients.

use weft_cluster::ids::ShardId;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::ShardRecord;

use super::Replicas;

/// Ready: the registry is known here, this node is in it, and each replica that the shard table places here runs
/// and knows a leader (or is being filled by one). A node whose certificate has expired is not.
///
/// # Errors
/// One line that says what is missing.
pub(super) fn check(view: &ClusterView, replicas: &dyn Replicas) -> Result<(), String> {
    // First: it is why the rest is missing, now or after the next lost link.
    if let Some(reason) = replicas.cut_off() {
        return Err(reason);
    }
    if view.registry.cluster_id() == 0 {
        return Err("the registry is not known here yet: the cluster is not founded, or no node of it was met".into());
    }
    if view.registry.node(view.me).is_none() {
        return Err(format!("node {} is not registered in the cluster yet", view.name_of(view.me)));
    }
    if view.registry.shards().count() < view.registry.shards_total() as usize {
        return Err("the shards are not placed yet".into());
    }
    for row in view.registry.shards().filter(|row| is_here(view, row)) {
        let shard = ShardId(row.shard);
        match replicas.leader(shard) {
            Some(Some(_)) => {}
            Some(None) => return Err(format!("shard {} has no leader that this node knows", shard.0)),
            None => return Err(format!("the replica of shard {} has not started here", shard.0)),
        }
    }
    Ok(())
}

/// Whether this node is a voter of the shard. One that is only to become it is being filled, and holds up nobody.
fn is_here(view: &ClusterView, row: &ShardRecord) -> bool {
    let stays = row.target.is_empty() || row.target.iter().any(|replica| replica.node == view.me.0);
    stays && row.replicas.iter().any(|replica| replica.node == view.me.0)
}
