//! Consumer groups: look at, delete. A group is created by its first consumer ([`Client::subscriber`]).

use weft_proto::v1::topics_client::TopicsClient;
use weft_proto::v1::{DeleteGroupRequest, DescribeGroupRequest, Group, GroupDescription, ListGroupsRequest};

use crate::client::Client;
use crate::error::Error;

/// The groups of the client's namespace.
#[derive(Clone)]
pub struct Groups {
    client: Client,
}

impl Groups {
    pub(crate) fn new(client: Client) -> Groups {
        Groups { client }
    }

    /// The groups of a topic, or of all (`None`), by topic and name.
    ///
    /// # Errors
    /// `UnknownTopic`, and those of any request.
    pub async fn list(&self, topic: Option<&str>) -> Result<Vec<Group>, Error> {
        let topic = topic.unwrap_or_default().to_owned();
        let request = ListGroupsRequest { namespace: self.client.namespace().to_owned(), topic };
        let response = self
            .client
            .request("list groups", request, |channel, request| async move {
                TopicsClient::new(channel).list_groups(request).await
            })
            .await?;
        Ok(response.groups)
    }

    /// A group, and how far it is on each partition whose owner answered.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownGroup`, and those of any request.
    pub async fn describe(&self, topic: &str, group: &str) -> Result<GroupDescription, Error> {
        let (topic, namespace, group) = (topic.to_owned(), self.client.namespace().to_owned(), group.to_owned());
        let request = DescribeGroupRequest { topic, namespace, group };
        self.client
            .request("describe a group", request, |channel, request| async move {
                TopicsClient::new(channel).describe_group(request).await
            })
            .await
    }

    /// Deletes a group: where it was is forgotten, and its consumers end with `UnknownGroup`.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownGroup`, and those of any request.
    pub async fn delete(&self, topic: &str, group: &str) -> Result<(), Error> {
        let (topic, namespace, group) = (topic.to_owned(), self.client.namespace().to_owned(), group.to_owned());
        let request = DeleteGroupRequest { topic, namespace, group };
        self.client
            .request_once("delete a group", request, |channel, request| async move {
                TopicsClient::new(channel).delete_group(request).await
            })
            .await?;
        Ok(())
    }
}
