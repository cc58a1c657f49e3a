//! Writers of the registry: they create and delete the same few topics.

use std::time::Duration;

use rand::RngExt as _;
use weft_sdk::{Error, ErrorCode, Retry};

use super::{Phase, Shared};
use crate::history::What;

/// Topics that are created and deleted; few, so that calls meet.
const NAMES: [&str; 3] = ["reg-a", "reg-b", "reg-c"];

/// Creates and deletes until the storm is over.
pub(super) async fn writer(shared: Shared, number: usize) {
    let who = format!("registrar-{number}");
    let mut dice = shared.dice(30 + number as u64);
    while shared.phase() == Phase::Storm {
        // One connection to one node for each call: the SDK's own retries would hide a first try's effect.
        let node = dice.random_range(0..shared.servers.len());
        let (name, create) = (NAMES[dice.random_range(0..NAMES.len())], dice.random_bool(0.5));
        if let Ok(client) = shared.connect(node, true, Duration::from_secs(3)).await {
            let call = shared.next_id();
            shared.history.add(&who, What::RegistryInvoke { call, name: name.to_owned(), create });
            let outcome = match create {
                true => client.topics().create(name, 1).await.map(|topic| topic.id),
                false => client.topics().delete(name).await.map(|()| 0),
            };
            shared.history.add(&who, answer(call, outcome));
        }
        tokio::time::sleep(Duration::from_millis(dice.random_range(50..600))).await;
    }
    std::future::pending().await
}

fn answer(call: u64, outcome: Result<u32, Error>) -> What {
    match outcome {
        Ok(topic) => What::RegistryOk { call, topic },
        Err(error) => match (error.code(), error.retry()) {
            (ErrorCode::TopicExists | ErrorCode::UnknownTopic, _) => What::RegistryRefused { call },
            (_, Retry::Never | Retry::Same | Retry::IfIdempotent | Retry::Unspecified) => {
                What::RegistryUnknown { call, error: error.to_string() }
            }
        },
    }
}
