//! `weft cluster`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use weft_sdk::{Cluster, ClusterStatus, Member, Shard};

use super::args::Cluster as Command;
use super::failure::Failure;
use super::output::Output;
use super::server;

/// Between two looks while the command waits for health.
const ASK_AGAIN: Duration = Duration::from_millis(500);

pub(crate) async fn run(command: Command, servers: &[String], output: &mut Output) -> Result<(), Failure> {
    let client = match &command {
        Command::Status { wait: Some(wait), .. } => server::patient(servers, *wait)?,
        _ => server::connect(servers).await?,
    };
    let cluster = client.cluster();
    match command {
        Command::Members => {
            let mut list = cluster.members().await?;
            list.sort_by(|one, other| one.name.cmp(&other.name));
            members(&list, output)
        }
        Command::Status { check, wait } => {
            let found = settled(&cluster, wait.unwrap_or_default()).await?;
            status(&found, output)?;
            match found.healthy || !(check || wait.is_some()) {
                true => Ok(()),
                false => Err(Failure::failed(format!("not healthy: {}", found.problems.join("; ")))),
            }
        }
        Command::Remove { node } => {
            cluster.remove(&node).await?;
            let text = format_args!("node {node} is removed; its data folder is refused from now on");
            output.say(&json!({"node": node, "removed": true}), text)
        }
        Command::Shards => shards(&cluster.shards().await?, output),
        Command::Transfer { shard, node } => {
            let owned = cluster.shards().await?.into_iter().any(|it| it.shard == shard && it.owner == node);
            // Asked for in any case: what it has by a failover alone would be taken from it again.
            let epoch = cluster.transfer(shard, &node).await?;
            let object = json!({"shard": shard, "node": node, "epoch": epoch, "changed": !owned});
            let since = if owned { "owned it already and keeps it" } else { "owns it" };
            output.say(&object, format_args!("shard {shard}: {node} {since}, since epoch {epoch}"))
        }
    }
}

/// The status as soon as all is well, or after `wait`.
async fn settled(cluster: &Cluster, wait: Duration) -> Result<ClusterStatus, Failure> {
    let deadline = Instant::now() + wait;
    loop {
        let asked = cluster.status().await;
        let left = deadline.saturating_duration_since(Instant::now());
        match asked {
            Ok(found) if found.healthy || left.is_zero() => return Ok(found),
            Err(error) if left.is_zero() => return Err(error.into()),
            _ => tokio::time::sleep(left.min(ASK_AGAIN)).await,
        }
    }
}

fn state_of(member: &Member) -> &'static str {
    match member.state().as_str_name() {
        "MEMBER_STATE_ALIVE" => "alive",
        "MEMBER_STATE_SUSPECT" => "suspect",
        "MEMBER_STATE_DOWN" => "down",
        "MEMBER_STATE_LEFT" => "left",
        _ => "unknown",
    }
}

fn members(members: &[Member], output: &mut Output) -> Result<(), Failure> {
    if output.json {
        let objects = members.iter().map(|member| {
            json!({
                "id": format!("{:016x}", member.id), "name": member.name, "zone": member.zone,
                "state": state_of(member), "generation": member.generation,
                "client_address": member.client_address, "peer_address": member.peer_address,
                "version": member.version, "voter": member.voter, "shards_owned": member.shards_owned,
                "replicas": member.replicas, "disk_full": member.disk_full,
            })
        });
        return output.line(Value::from_iter(objects));
    }
    let rows = members.iter().map(|member| {
        vec![
            member.name.clone(),
            member.zone.clone(),
            if member.disk_full { format!("{}, disk full", state_of(member)) } else { state_of(member).to_owned() },
            member.client_address.clone(),
            member.peer_address.clone(),
            if member.voter { "yes" } else { "no" }.to_owned(),
            member.shards_owned.to_string(),
            member.replicas.to_string(),
            member.generation.to_string(),
            member.version.clone(),
        ]
    });
    let columns = ["name", "zone", "state", "clients", "links", "voter", "owns", "replicas", "generation", "version"];
    output.table(&columns, rows.collect())
}

fn status(status: &ClusterStatus, output: &mut Output) -> Result<(), Failure> {
    if output.json {
        return output.line(json!({
            "cluster_id": format!("{:016x}", status.cluster_id), "node": status.node, "healthy": status.healthy,
            "members_alive": status.members_alive, "members_total": status.members_total,
            "registry_leader": status.registry_leader, "registry_index": status.registry_index,
            "shards_total": status.shards_total, "shards_owned": status.shards_owned,
            "shards_underreplicated": status.shards_underreplicated, "topics": status.topics,
            "feature_level": status.feature_level, "problems": status.problems,
            "registry_voters": status.registry_voters, "registry_failures_max": status.registry_failures_max,
            "shards_failures_max": status.shards_failures_max,
        }));
    }
    let leader = if status.registry_leader.is_empty() { "none" } else { &status.registry_leader };
    let rows = [
        ("healthy", if status.healthy { "yes" } else { "no" }.to_owned()),
        ("members", format!("{} of {} alive", status.members_alive, status.members_total)),
        ("registry", format!("{} voters, led by {leader}, at index {}", status.registry_voters, status.registry_index)),
        ("shards", format!("{} of {} owned", status.shards_owned, status.shards_total)),
        ("underreplicated", status.shards_underreplicated.to_string()),
        (
            "bears",
            format!(
                "{} more failures in the registry, {} in shards",
                status.registry_failures_max, status.shards_failures_max
            ),
        ),
        ("topics", status.topics.to_string()),
        ("feature level", status.feature_level.to_string()),
        ("cluster", format!("{:016x}, answered by {}", status.cluster_id, status.node)),
    ];
    for (name, value) in rows {
        output.line(format_args!("{name:<16} {value}"))?;
    }
    for problem in &status.problems {
        output.line(format_args!("{:<16} {problem}", "problem"))?;
    }
    Ok(())
}

fn shards(shards: &[Shard], output: &mut Output) -> Result<(), Failure> {
    if output.json {
        let objects = shards.iter().map(|shard| {
            json!({
                "shard": shard.shard, "owner": shard.owner, "epoch": shard.epoch, "replicas": shard.replicas,
                "moving": shard.moving,
            })
        });
        return output.line(Value::from_iter(objects));
    }
    let rows = shards.iter().map(|shard| {
        let owner = if shard.owner.is_empty() { "none" } else { &shard.owner };
        let (replicas, moving) = (shard.replicas.join(","), shard.moving.join(","));
        vec![shard.shard.to_string(), owner.to_owned(), shard.epoch.to_string(), replicas, moving]
    });
    output.table(&["shard", "owner", "epoch", "replicas", "moving"], rows.collect())
}
