//! The group of three consumers, and the ledger of what they were given and what they acked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use weft_sdk::{Client, Delivery};

/// Acks that a consumer awaits at a time.
const ACKS_MAX: usize = 1_024;

/// What happened to every row, in the order in which it happened.
pub(super) struct Ledger {
    state: Mutex<State>,
    confirmed: watch::Sender<usize>,
}

struct State {
    rows: Vec<Seen>,
    /// Per key, the last row delivered for the first time.
    newest: HashMap<Bytes, u32>,
    deliveries: usize,
    violations: Vec<String>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// The newest attempt delivered, as epoch, dispatch and number.
    newest: Option<(u64, u32, u32)>,
    /// The newest attempt when the ack was confirmed.
    acked: Option<(u64, u32, u32)>,
}

impl Ledger {
    pub(super) fn new(rows: usize) -> Arc<Ledger> {
        let state =
            State { rows: vec![Seen::default(); rows], newest: HashMap::new(), deliveries: 0, violations: Vec::new() };
        Arc::new(Ledger { state: Mutex::new(state), confirmed: watch::Sender::new(0) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a delivery. `None` if its event is none of the rows.
    fn delivered(&self, delivery: &Delivery) -> Option<u32> {
        let State { rows, newest, deliveries, violations } = &mut *self.state();
        *deliveries += 1;
        let number: u32 = delivery.event.id.parse().ok().filter(|number| (*number as usize) < rows.len())?;
        let this = (delivery.epoch, delivery.dispatch, delivery.attempt);
        let seen = &mut rows[number as usize];
        // An older attempt may have been on its way since before the ack.
        if let Some(acked) = seen.acked.filter(|acked| this > *acked) {
            violations.push(format!(
                "row {number} was delivered as {this:?} (epoch, dispatch, attempt) after the ack of {acked:?} was confirmed"
            ));
        }
        let first = seen.newest.is_none();
        seen.newest = seen.newest.max(Some(this));
        if first {
            let key = delivery.event.key.clone();
            if let Some(before) = newest.insert(key, number).filter(|before| *before > number) {
                violations.push(format!("row {number} was first delivered after row {before} of the same key"));
            }
        }
        Some(number)
    }

    fn acked(&self, number: u32) {
        let mut state = self.state();
        let seen = &mut state.rows[number as usize];
        if seen.acked.is_none() {
            seen.acked = seen.newest;
            self.confirmed.send_modify(|count| *count += 1);
        }
    }

    /// Rows whose ack is confirmed.
    pub(super) fn confirmed(&self) -> usize {
        *self.confirmed.borrow()
    }

    /// Deliveries, repeated ones too.
    pub(super) fn deliveries(&self) -> usize {
        self.state().deliveries
    }

    /// What broke P4 or P5.
    pub(super) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }
}

/// One consumer of the group; runs until it is aborted.
pub(super) async fn consume(client: Client, topic: String, group: &'static str, ledger: Arc<Ledger>) -> Result<()> {
    let mut consumer =
        client.subscriber(&topic).credit(ACKS_MAX as u64).group(group).await.context("join the group")?;
    let room = Arc::new(Semaphore::new(ACKS_MAX));
    loop {
        let delivery = consumer.next().await.context("next delivery")?;
        // A delivery that was void before anyone looked at it was not handled by anyone.
        if !delivery.handle.is_valid() {
            continue;
        }
        let number = ledger.delivered(&delivery);
        let permit = room.clone().acquire_owned().await.context("the semaphore stays open")?;
        let ledger = ledger.clone();
        tokio::spawn(async move {
            // A refused ack means that the event comes again.
            if delivery.handle.ack_confirmed().await.is_ok()
                && let Some(number) = number
            {
                ledger.acked(number);
            }
            drop(permit);
        });
    }
}
