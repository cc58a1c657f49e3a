//! Publishers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt as _;
use weft_sdk::producer::EventReceipt;
use weft_sdk::{Ack, Error, Receipt, Retry};

use super::{AGAIN, Phase, Shared, TOPIC, event};
use crate::history::What;

/// How long a producer tries; longer than any fault lasts.
const PATIENCE: Duration = Duration::from_secs(60);

/// A producer with a session: in order, once, through failovers.
pub(super) async fn idempotent(shared: Shared, number: usize) {
    let who = format!("producer-{number}");
    let mut dice = shared.dice(number as u64);
    let client = shared.connect_surely(number).await;
    let producer = loop {
        match client.producer(TOPIC).patience(PATIENCE).linger(Duration::from_millis(5)).open().await {
            Ok(producer) => break producer,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    while shared.phase() == Phase::Storm {
        for _ in 0..dice.random_range(1..6) {
            let id = shared.next_id();
            let event = event(id, &mut dice);
            let key = String::from_utf8_lossy(&event.key).into_owned();
            invoke(&shared, &who, id, key, true);
            match producer.send(event).await {
                Ok(pending) => {
                    let (shared, who) = (shared.clone(), who.clone());
                    tokio::spawn(
                        async move { answer(&shared, &who, id, pending.await.map(|receipt| of_event(&receipt))) },
                    );
                }
                Err(error) => answer(&shared, &who, id, Err(error)),
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.random_range(5..80))).await;
    }
    let _ = producer.close().await;
    std::future::pending().await
}

/// Single requests through any node, sent once.
pub(super) async fn plain(shared: Shared, number: usize) {
    let who = format!("plain-{number}");
    let mut dice = shared.dice(10 + number as u64);
    let mut client = shared.connect_surely(number).await;
    while shared.phase() == Phase::Storm {
        if dice.random_bool(0.05) {
            client = shared.connect_surely(dice.random_range(0..7)).await;
        }
        let ids: Vec<u64> = (0..dice.random_range(1..4)).map(|_| shared.next_id()).collect();
        let events: Vec<_> = ids.iter().map(|id| event(*id, &mut dice)).collect();
        for (id, event) in ids.iter().zip(&events) {
            let key = String::from_utf8_lossy(&event.key).into_owned();
            invoke(&shared, &who, *id, key, false);
        }
        match client.publish(TOPIC, events, Ack::Committed).await {
            Ok(results) => ids.iter().zip(results).for_each(|(id, result)| answer(&shared, &who, *id, result)),
            Err(error) => ids.iter().for_each(|id| answer(&shared, &who, *id, Err(error.clone()))),
        }
        tokio::time::sleep(Duration::from_millis(dice.random_range(10..120))).await;
    }
    std::future::pending().await
}

/// The receipt of one event of a batch, as if it had come alone.
fn of_event(receipt: &EventReceipt) -> Receipt {
    Receipt { offset: receipt.offset, count: 1, ..Receipt::clone(&receipt.batch) }
}

fn invoke(shared: &Shared, who: &str, id: u64, key: String, idempotent: bool) {
    shared.open.fetch_add(1, Ordering::Relaxed);
    shared.history.add(who, What::PublishInvoke { id, key, idempotent });
}

fn answer(shared: &Shared, who: &str, id: u64, result: Result<Receipt, Error>) {
    let what = match result {
        Ok(Receipt { partition, offset: Some(offset), epoch, fsynced_nodes: fsynced, duplicate, .. }) => {
            What::PublishOk { id, partition, offset, epoch, fsynced, duplicate }
        }
        Ok(receipt) => What::PublishUnknown { id, error: format!("a receipt without an offset: {receipt:?}") },
        Err(error) if matches!(error.retry(), Retry::Never | Retry::Same) && who.starts_with("plain") => {
            What::PublishFail { id, error: error.to_string() }
        }
        Err(error) => What::PublishUnknown { id, error: error.to_string() },
    };
    shared.history.add(who, what);
    shared.open.fetch_sub(1, Ordering::Relaxed);
}
