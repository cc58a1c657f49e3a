//! Auditors: one per node, asking it who acts and what its copy of the registry holds.

use std::time::Duration;

use weft_sdk::{Client, Error};

use super::Shared;
use crate::history::What;

/// Between two questions.
const PERIOD: Duration = Duration::from_millis(500);

/// Asks one node, all the time.
pub(super) async fn auditor(shared: Shared, node: usize) {
    let name = format!("n{}", node + 1);
    loop {
        if let Ok(client) = shared.connect(node, true, Duration::from_secs(1)).await {
            while ask(&shared, &name, &client).await.is_ok() {
                tokio::time::sleep(PERIOD).await;
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn ask(shared: &Shared, node: &str, client: &Client) -> Result<(), Error> {
    for shard in client.cluster().shards().await? {
        let (owner, epoch) = (shard.owner, shard.epoch);
        shared.history.add("auditor", What::Owner { node: node.to_owned(), shard: shard.shard, owner, epoch });
    }
    let before = client.cluster().status().await?;
    shared.history.add("auditor", What::Members { node: before.node.clone(), known: before.members_total });
    let mut topics: Vec<u32> = client.topics().list().await?.iter().map(|topic| topic.id).collect();
    let after = client.cluster().status().await?;
    // The list is that of an index only if the copy has not moved meanwhile, at the node that was meant.
    if before.registry_index == after.registry_index && before.node == node && after.node == node {
        topics.sort_unstable();
        shared.history.add("auditor", What::Copy { node: node.to_owned(), index: after.registry_index, topics });
    }
    Ok(())
}
