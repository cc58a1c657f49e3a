//! Tells whoever reads or publishes why nothing goes on: nobody owns it.

use std::time::Duration;

use tokio::time::Instant;
use weft_sdk::{Client, TopicDescription};

use super::failure::Failure;

/// Silence before the owners are looked at, and between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a reader that is to end waits for owners.
const PATIENCE: Duration = Duration::from_secs(10);

/// The owners of what a command reads.
pub(crate) struct Owners {
    client: Client,
    topic: String,
    partition: Option<u32>,
    /// It gives up after `PATIENCE`.
    ends: bool,
    since: Option<Instant>,
}

impl Owners {
    /// Of all partitions of a topic, or of one; `ends`: whoever reads does not wait for ever.
    pub(crate) fn new(client: &Client, topic: &str, partition: Option<u32>, ends: bool) -> Self {
        Owners { client: client.clone(), topic: topic.to_owned(), partition, ends, since: None }
    }

    /// Waits; while that is long, looks at the owners and says if there are none.
    ///
    /// # Errors
    /// `NO_OWNER` for a reader that ends, after 10 s without one.
    pub(crate) async fn wait<T>(&mut self, wanted: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(wanted);
        loop {
            tokio::select! {
                biased;
                done = &mut wanted => return Ok(done),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let topics = self.client.topics();
            // What is wanted goes on meanwhile.
            tokio::select! {
                biased;
                done = &mut wanted => return Ok(done),
                described = topics.describe(&self.topic) => self.judge(described.ok())?,
            }
        }
    }

    fn judge(&mut self, described: Option<TopicDescription>) -> Result<(), Failure> {
        let Some(why) = described.and_then(|described| ownerless(&described, self.partition)) else {
            self.since = None;
            return Ok(());
        };
        let first = self.since.is_none();
        let waits = self.since.get_or_insert_with(Instant::now).elapsed() + LOOK_EVERY;
        if self.ends && waits >= PATIENCE {
            return Err(Failure::no_owner(why));
        }
        if first && !super::wants_json() {
            eprintln!("weft: waits: {why}");
        }
        Ok(())
    }
}

/// Which partitions have no owner, if some have none.
fn ownerless(described: &TopicDescription, wanted: Option<u32>) -> Option<String> {
    let asked = described.partitions.iter().filter(|it| wanted.is_none_or(|wanted| wanted == it.partition));
    let without: Vec<String> = asked.filter(|it| it.owner.is_empty()).map(|it| it.partition.to_string()).collect();
    let name = described.topic.as_ref().map_or("", |topic| &topic.name);
    (!without.is_empty()).then(|| {
        format!(
            "no node owns {name}'s partitions {}: an election is under way, or a majority of their replicas is down \
             (see `weft cluster members`)",
            without.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{PartitionDescription, Topic};

    use super::*;

    #[test]
    fn partitions_without_an_owner_are_named() {
        let place =
            |partition, owner: &str| PartitionDescription { partition, owner: owner.into(), ..Default::default() };
        let described = TopicDescription {
            topic: Some(Topic { name: "t".into(), ..Default::default() }),
            partitions: vec![place(0, "n1"), place(1, ""), place(2, "")],
            ..Default::default()
        };
        assert!(ownerless(&described, None).expect("two have none").contains("t's partitions 1, 2"));
        assert!(ownerless(&described, Some(2)).expect("it has none").contains("partitions 2:"));
        assert_eq!(ownerless(&described, Some(0)), None);
    }
}
