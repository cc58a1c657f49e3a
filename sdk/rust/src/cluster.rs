//! The cluster: who is in it and where the shards are.

use weft_proto::v1::cluster_client::ClusterClient;
use weft_proto::v1::{
    ClusterStatus, GetStatusRequest, GetVersionRequest, ListMembersRequest, ListShardsRequest, Member,
    RemoveNodeRequest, Shard, TransferShardRequest, Version,
};

use crate::client::Client;
use crate::error::Error;

/// Asks any node about the cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    pub(crate) fn new(client: Client) -> Cluster {
        Cluster { client }
    }

    /// The members, as the answering node sees them.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        let response = self
            .client
            .request("list members", ListMembersRequest {}, |channel, request| async move {
                ClusterClient::new(channel).list_members(request).await
            })
            .await?;
        Ok(response.members)
    }

    /// A summary: is every shard owned, is every replica caught up, who leads the registry.
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        self.client
            .request("get the status", GetStatusRequest {}, |channel, request| async move {
                ClusterClient::new(channel).get_status(request).await
            })
            .await
    }

    /// The shard table with owners.
    pub async fn shards(&self) -> Result<Vec<Shard>, Error> {
        let response = self
            .client
            .request("list shards", ListShardsRequest {}, |channel, request| async move {
                ClusterClient::new(channel).list_shards(request).await
            })
            .await?;
        Ok(response.shards)
    }

    /// Moves a shard's leadership to the named node and returns the new epoch.
    pub async fn transfer(&self, shard: u32, node: &str) -> Result<u64, Error> {
        let request = TransferShardRequest { shard, node: node.to_owned() };
        let response = self
            .client
            .request("transfer a shard", request, |channel, request| async move {
                ClusterClient::new(channel).transfer_shard(request).await
            })
            .await?;
        Ok(response.epoch)
    }

    /// Takes a node that does not run any more out of the cluster for good.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: it is alive, or may have the last copy of a shard.
    pub async fn remove(&self, node: &str) -> Result<(), Error> {
        let request = RemoveNodeRequest { node: node.to_owned() };
        let asked = self.client.request("remove a node", request, |channel, request| async move {
            ClusterClient::new(channel).remove_node(request).await
        });
        asked.await.map(drop)
    }

    /// The answering node's version.
    pub async fn version(&self) -> Result<Version, Error> {
        self.client
            .request("get the version", GetVersionRequest {}, |channel, request| async move {
                ClusterClient::new(channel).get_version(request).await
            })
            .await
    }
}
