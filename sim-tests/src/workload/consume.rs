//! Consumers of the group, and observers.

use std::time::Duration;

use rand::RngExt as _;
use weft_sdk::{Delivery, StartAt};

use super::{AGAIN, Phase, Shared, TOPIC, identify};
use crate::history::What;

/// The group's name.
pub(super) const GROUP: &str = "workers";

/// A member of the group. It handles each event for a while, and now and then forgets one, gives one back or
/// leaves and joins again.
pub(super) async fn consumer(shared: Shared, number: usize) {
    let who = format!("consumer-{number}");
    let mut dice = shared.dice(20 + number as u64);
    let habits = shared.habits;
    let forgets = habits.forgets_per_mille;
    let nacks = forgets + habits.nacks_per_mille;
    let leaves = nacks + habits.leaves_per_mille;
    loop {
        let client = shared.connect_surely(number).await;
        let subscriber = client.subscriber(TOPIC).start(StartAt::Earliest).ack_deadline(habits.ack_deadline).credit(64);
        let Ok(mut consumer) = subscriber.group(GROUP).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        if number < habits.slow {
            // It takes what it may take, and does nothing with it.
            std::future::pending::<()>().await;
        }
        while let Ok(delivery) = consumer.next().await {
            let clumsy = shared.phase() == Phase::Storm;
            if !delivery.handle.is_valid() {
                continue;
            }
            note(&shared, &who, &delivery);
            let work = Duration::from_millis(dice.random_range(0..15));
            match dice.random_range(0..1000u32) {
                dice if clumsy && dice < forgets => continue,
                dice if clumsy && dice < nacks => delivery.handle.nack(work),
                dice if clumsy && dice < leaves => {
                    shared.history.add(&who, What::Left);
                    drop(consumer);
                    break;
                }
                _ => drop(tokio::spawn(handle(shared.clone(), who.clone(), delivery, work))),
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn note(shared: &Shared, who: &str, delivery: &Delivery) {
    let Delivery { partition, offset, epoch, dispatch, attempt, .. } = *delivery;
    let (id, key, intact) = identify(&delivery.event);
    shared.history.add(who, What::Delivered { partition, offset, epoch, given: (dispatch, attempt), id, key, intact });
}

async fn handle(shared: Shared, who: String, delivery: Delivery, work: Duration) {
    tokio::time::sleep(work).await;
    let Delivery { partition, offset, epoch, .. } = delivery;
    shared.history.add(&who, What::AckInvoke { partition, offset, epoch });
    let what = match delivery.handle.ack_confirmed().await {
        Ok(()) => What::AckOk { partition, offset, epoch },
        Err(error) => What::AckFail { partition, offset, epoch, error: error.to_string() },
    };
    shared.history.add(&who, what);
}

/// Sees every event from the first on.
pub(super) async fn observer(shared: Shared, number: usize) {
    let who = format!("observer-{number}");
    loop {
        let client = shared.connect_surely(number + 1).await;
        if let Ok(mut observer) = client.subscriber(TOPIC).start(StartAt::Earliest).observe().await {
            while let Ok(Some(observed)) = observer.next().await {
                let Ok(event) = observed.event() else { continue };
                let (id, _, intact) = identify(&event);
                let (partition, offset, epoch) = (observed.partition, observed.offset, observed.epoch);
                shared.history.add(&who, What::Observed { partition, offset, epoch, id, intact });
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
