//! Weft from Rust: publish and handle events through any node of a cluster.
//!
//! A [`Client`] connects to one of the nodes it is given, learns the others from it, and goes on through
//! another one when that fails. From it come:
//!
//! - [`Producer`]: idempotent, ordered per partition, packs the final bytes of each batch itself;
//! - [`Observer`]: every event of a topic, from now, from the earliest or from an offset;
//! - [`Consumer`]: a member of a durable group, with explicit acks;
//! - [`Services`]: registers instances and keeps them registered (calls need no SDK);
//! - [`Topics`] and [`Cluster`]: what there is, and where.
//!
//! ```no_run
//! # async fn example() -> Result<(), weft_sdk::Error> {
//! use weft_sdk::{Client, event};
//!
//! let client = Client::connect(["127.0.0.1:7400"]).await?;
//! client.topics().create("orders", 8).await?;
//! let producer = client.producer("orders").open().await?;
//! let receipt = producer.send(event("customer-7", "one espresso")).await?.await?;
//! println!("partition {} offset {:?}", receipt.partition, receipt.offset);
//! producer.close().await?;
//! # Ok(())
//! # }
//! ```

mod client;
mod connect;
mod error;
mod keeper;

pub mod cluster;
pub mod groups;
pub mod producer;
pub mod services;
pub mod subscriber;
pub mod topics;

pub use client::{Builder, Client};
pub use cluster::Cluster;
pub use connect::{Connector, Io, explain, server_address};
pub use error::{Error, ErrorCode, Retry};
pub use groups::Groups;
pub use producer::{EventReceipt, Pending, Producer, ProducerBuilder, Published};
pub use services::{InstanceBuilder, Registration, Services};
pub use subscriber::{Consumer, Delivery, Handle, Observed, ObservedBatch, Observer, StartAt, SubscriberBuilder};
pub use topics::Topics;
pub use weft_proto::v1::health_check;
pub use weft_proto::v1::{
    Ack, Balance, ClusterStatus, Event, Group, GroupCursor, GroupDescription, HealthCheck, Instance, Member,
    MemberState, PartitionDescription, Receipt, RegisterInstanceResponse, Service, ServiceDescription, Shard, Topic,
    TopicDescription, Version,
};

/// An event with a key and data, all else empty.
pub fn event(key: impl Into<bytes::Bytes>, data: impl Into<bytes::Bytes>) -> Event {
    Event { key: key.into(), data: data.into(), ..Event::default() }
}
