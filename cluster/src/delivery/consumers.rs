use std::collections::{BTreeMap, BTreeSet};

use super::{CREDIT_MAX, ConsumerId, Delivery, Effect};

/// The consumers of a group here: what they may still get, and what they get now.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    all: BTreeMap<ConsumerId, Consumer>,
    /// Those with free credit, by it.
    by_credit: BTreeSet<(u64, ConsumerId)>,
    /// Of all together.
    free: u64,
    /// Those with something in their outbox, in the order they got it.
    due: Vec<ConsumerId>,
}

#[derive(Debug, Default)]
struct Consumer {
    credit: u64,
    outbox: Vec<Delivery>,
}

impl Consumers {
    pub(super) fn add(&mut self, id: ConsumerId, credit: u64) {
        self.all.insert(id, Consumer::default());
        self.grant(id, credit);
    }

    pub(super) fn remove(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.all.remove(&id) {
            self.by_credit.remove(&(consumer.credit, id));
            self.free -= consumer.credit;
            self.due.retain(|due| *due != id);
        }
    }

    /// Adds to a consumer's credit; of no effect if it is not there.
    pub(super) fn grant(&mut self, id: ConsumerId, events: u64) {
        let Some(consumer) = self.all.get(&id) else { return };
        let credit = consumer.credit.saturating_add(events).min(CREDIT_MAX);
        self.set_credit(id, credit);
    }

    /// Free credit of all together.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// The preferred consumer if it has credit, else the one with the most.
    pub(super) fn choose(&self, preferred: Option<ConsumerId>) -> Option<ConsumerId> {
        let has_credit = |id: &ConsumerId| self.all.get(id).is_some_and(|consumer| consumer.credit > 0);
        preferred.filter(has_credit).or_else(|| self.by_credit.last().map(|(_, id)| *id))
    }

    /// Gives an event to a consumer that `choose` chose.
    pub(super) fn give(&mut self, id: ConsumerId, delivery: Delivery) {
        let consumer = self.all.get_mut(&id).expect("chosen among those that are there");
        if consumer.outbox.is_empty() {
            self.due.push(id);
        }
        consumer.outbox.push(delivery);
        let credit = consumer.credit - 1;
        self.set_credit(id, credit);
    }

    /// Sends off what was given.
    pub(super) fn flush(&mut self, effects: &mut Vec<Effect>) {
        for id in self.due.drain(..) {
            let consumer = self.all.get_mut(&id).expect("`remove` takes it from the list");
            let deliveries = std::mem::take(&mut consumer.outbox);
            effects.push(Effect::Deliver { consumer: id, deliveries });
        }
    }

    fn set_credit(&mut self, id: ConsumerId, credit: u64) {
        let consumer = self.all.get_mut(&id).expect("looked up before");
        self.by_credit.remove(&(consumer.credit, id));
        self.free = self.free - consumer.credit + credit;
        consumer.credit = credit;
        if credit > 0 {
            self.by_credit.insert((credit, id));
        }
    }
}
