//! Topics: create, look at, delete.

use weft_proto::v1::topics_client::TopicsClient;
use weft_proto::v1::{
    CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, ListTopicsRequest, Topic, TopicDescription,
};

use crate::client::Client;
use crate::error::Error;

/// The topics of the client's namespace.
#[derive(Clone)]
pub struct Topics {
    client: Client,
}

impl Topics {
    pub(crate) fn new(client: Client) -> Topics {
        Topics { client }
    }

    /// Creates a topic. `partitions`: 1 to 1,024, fixed for its life; 0 means the default, 8.
    ///
    /// # Errors
    /// `TopicExists`, `InvalidArgument` (name, partitions), and those of any request.
    pub async fn create(&self, name: &str, partitions: u32) -> Result<Topic, Error> {
        self.create_sized(name, partitions, 0).await
    }

    /// Creates a topic whose events may have up to `event_bytes_max` encoded bytes; 0 means the default, 1 MiB.
    ///
    /// # Errors
    /// As of [`Topics::create`].
    pub async fn create_sized(&self, name: &str, partitions: u32, event_bytes_max: u32) -> Result<Topic, Error> {
        let (name, namespace) = (name.to_owned(), self.client.namespace().to_owned());
        let request = CreateTopicRequest { name, partitions, event_bytes_max, namespace };
        self.client
            .request_once("create a topic", request, |channel, request| async move {
                TopicsClient::new(channel).create_topic(request).await
            })
            .await
    }

    /// One topic, with its partitions and groups. `UnknownTopic` if there is none.
    pub async fn describe(&self, name: &str) -> Result<TopicDescription, Error> {
        let request = DescribeTopicRequest { name: name.into(), namespace: self.client.namespace().to_owned() };
        self.client
            .request("describe a topic", request, |channel, request| async move {
                TopicsClient::new(channel).describe_topic(request).await
            })
            .await
    }

    /// All topics, by name.
    pub async fn list(&self) -> Result<Vec<Topic>, Error> {
        let request = ListTopicsRequest { namespace: self.client.namespace().to_owned() };
        let response = self
            .client
            .request("list topics", request, |channel, request| async move {
                TopicsClient::new(channel).list_topics(request).await
            })
            .await?;
        Ok(response.topics)
    }

    /// Deletes a topic and its events.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let request = DeleteTopicRequest { name: name.into(), namespace: self.client.namespace().to_owned() };
        self.client
            .request_once("delete a topic", request, |channel, request| async move {
                TopicsClient::new(channel).delete_topic(request).await
            })
            .await?;
        Ok(())
    }
}
