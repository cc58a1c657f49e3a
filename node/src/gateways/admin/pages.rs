//! The view as JSON, for people who look for a fault. Ids are hex strings: JSON's numbers lose their last digits.

use serde_json::{Value, json};
use weft_cluster::ids::{InstanceId, NodeId, ShardId};
use weft_cluster::registry::Service;
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::ReplicaRecord;

pub(super) fn view(view: &ClusterView) -> Value {
    let registry = &view.registry;
    json!({
        "me": view.me.to_string(),
        "cluster": format!("{:016x}", registry.cluster_id()),
        "feature_level": registry.level(),
        "registry": {
            "applied": registry.applied().map(|at| at.to_string()),
            "log_time_ms": registry.log_time().0,
            "leader": view.registry_leader.map(|node| view.name_of(node)),
            "topics": registry.topics_count(),
            "shards_version": registry.shards_version(),
            "replication": registry.replication(),
        },
        "nodes": registry.nodes().map(|node| json!({
            "id": NodeId(node.id).to_string(),
            "name": node.name,
            "zone": node.zone,
            "generation": node.generation,
            "client_address": node.client_address,
            "peer_address": node.peer_address,
            "weight": node.weight,
            "version": node.version,
            "registry_replica_id": node.registry_replica_id,
        })).collect::<Vec<_>>(),
        "members": view.members.values().map(|member| json!({
            "id": member.id.to_string(),
            "name": member.name,
            "zone": member.zone,
            "generation": member.generation.0,
            "client_address": member.client_address,
            "peer_address": member.peer_address,
            "version": member.version,
            "state": format!("{:?}", member.state).to_lowercase(),
        })).collect::<Vec<_>>(),
        "services": registry.services_all().map(|it| service(view, it)).collect::<Vec<_>>(),
        "shards": (0..registry.shards_total()).map(|shard| self::shard(view, ShardId(shard))).collect::<Vec<_>>(),
    })
}

fn service(view: &ClusterView, service: &Service) -> Value {
    let record = service.record();
    json!({
        "name": record.name,
        "namespace": record.namespace,
        "grpc_services": record.grpc_services,
        "balance": record.balance().as_str_name(),
        "idempotent_methods": record.idempotent_methods,
        "instances": view.registry.instances_of(service).map(|instance| json!({
            "id": InstanceId(instance.id).to_string(),
            "address": instance.address,
            "zone": instance.zone,
            "weight": instance.weight,
            "home": view.name_of(NodeId(instance.home)),
            "healthy": instance.healthy,
            "usable": instance.healthy && view.usable(NodeId(instance.home)),
            "reason": instance.reason,
        })).collect::<Vec<_>>(),
    })
}

fn shard(view: &ClusterView, shard: ShardId) -> Value {
    let row = view.registry.shard(shard).cloned().unwrap_or_default();
    let owner = view.owners.get(&shard);
    let replicas = |replicas: &[ReplicaRecord]| {
        let replica = |it: &ReplicaRecord| json!({"id": it.replica_id, "node": view.name_of(NodeId(it.node))});
        replicas.iter().map(replica).collect::<Vec<_>>()
    };
    json!({
        "shard": shard.0,
        "owner": owner.map(|owner| view.name_of(owner.node)),
        "epoch": owner.map(|owner| owner.epoch.0),
        "replicas": replicas(&row.replicas),
        "target": replicas(&row.target),
        "preferred": (row.preferred != 0).then(|| view.name_of(NodeId(row.preferred))),
    })
}
