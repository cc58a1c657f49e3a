use std::collections::{BTreeMap, BTreeSet};

use super::dice::Dice;
use super::{CREDIT_MAX, ConsumerId, Delivery, Effect};

/// The consumers of a group here: what they may still get, and what they get now.
///
/// An event goes to whoever has the fewest unsettled, so that a slow consumer gets less; of those, to the one that has
/// waited longest for its turn, so that consumers with nothing to do take turns.
#[derive(Debug)]
pub(super) struct Consumers {
    all: BTreeMap<ConsumerId, Consumer>,
    /// Those with free credit, by unsettled events and turn: the first is next.
    line: BTreeSet<(u64, u64, ConsumerId)>,
    /// Free credit of all together.
    free: u64,
    /// Those with something in their outbox, in the order they got it.
    due: Vec<ConsumerId>,
    /// The turn of who is given an event last.
    turn: u64,
    dice: Dice,
}

#[derive(Debug, Default)]
struct Consumer {
    credit: u64,
    /// Given to it, and neither acked nor nacked. What it let expire counts on.
    unanswered: u64,
    /// Given to it, and their credit has not come back.
    uncredited: u64,
    turn: u64,
    outbox: Vec<Delivery>,
}

impl Consumer {
    /// Events that it has not settled. An ack and the credit of the same event may come in any order, and a client may
    /// do without either: whoever says more is believed.
    fn unsettled(&self) -> u64 {
        self.unanswered.min(self.uncredited)
    }
}

/// Turns of those that were given something begin here. Newcomers draw theirs below: they come first, and not in the
/// same order on all shards.
const FIRST_TURN: u64 = 1 << 32;

impl Consumers {
    /// `seed`: for the order of newcomers.
    pub(super) fn new(seed: u64) -> Consumers {
        let (all, line, due) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Consumers { all, line, free: 0, due, turn: FIRST_TURN, dice: Dice::new(seed) }
    }

    pub(super) fn add(&mut self, id: ConsumerId, credit: u64) {
        let turn = self.dice.below(FIRST_TURN);
        self.all.insert(id, Consumer { turn, ..Consumer::default() });
        self.grant(id, credit);
    }

    pub(super) fn remove(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.all.remove(&id) {
            self.line.remove(&(consumer.unsettled(), consumer.turn, id));
            self.free -= consumer.credit;
            self.due.retain(|due| *due != id);
        }
    }

    /// Adds to a consumer's credit; of no effect if it is not there.
    pub(super) fn grant(&mut self, id: ConsumerId, events: u64) {
        self.change(id, |consumer| {
            consumer.credit = consumer.credit.saturating_add(events).min(CREDIT_MAX);
            consumer.uncredited = consumer.uncredited.saturating_sub(events);
        });
    }

    /// A consumer has acked or nacked so many of what it was given.
    pub(super) fn answered(&mut self, id: ConsumerId, events: u64) {
        self.change(id, |consumer| consumer.unanswered -= events);
    }

    /// Free credit of all together.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// The next in line; the preferred one instead if it has credit, and nobody in line has less to do.
    pub(super) fn choose(&self, preferred: Option<ConsumerId>) -> Option<ConsumerId> {
        let (fewest, _, next) = *self.line.first()?;
        let ready = |id: &ConsumerId| {
            self.all.get(id).is_some_and(|consumer| consumer.credit > 0 && consumer.unsettled() <= fewest)
        };
        preferred.filter(ready).or(Some(next))
    }

    /// Gives an event to a consumer that `choose` chose.
    pub(super) fn give(&mut self, id: ConsumerId, delivery: Delivery) {
        self.turn += 1;
        let turn = self.turn;
        let mut first = false;
        self.change(id, |consumer| {
            first = consumer.outbox.is_empty();
            consumer.outbox.push(delivery);
            consumer.credit -= 1;
            consumer.unanswered += 1;
            consumer.uncredited += 1;
            consumer.turn = turn;
        });
        if first {
            self.due.push(id);
        }
    }

    /// Sends off what was given.
    pub(super) fn flush(&mut self, effects: &mut Vec<Effect>) {
        for id in self.due.drain(..) {
            let consumer = self.all.get_mut(&id).expect("`remove` takes it from the list");
            let deliveries = std::mem::take(&mut consumer.outbox);
            effects.push(Effect::Deliver { consumer: id, deliveries });
        }
    }

    /// Changes a consumer, if it is there, and its place in the line.
    fn change(&mut self, id: ConsumerId, change: impl FnOnce(&mut Consumer)) {
        let Some(consumer) = self.all.get_mut(&id) else { return };
        self.line.remove(&(consumer.unsettled(), consumer.turn, id));
        self.free -= consumer.credit;
        change(consumer);
        self.free += consumer.credit;
        if consumer.credit > 0 {
            self.line.insert((consumer.unsettled(), consumer.turn, id));
        }
    }
}
