use std::time::Instant;

use super::{Config, Effect, Input};
use crate::ids::Epoch;

/// Dispatch of one group on the partitions of one shard, for one epoch.
#[derive(Debug)]
pub struct Dispatcher {
    config: Config,
    epoch: Epoch,
}

impl Dispatcher {
    /// A dispatcher with no partitions and no consumers. `seed`: for the jitter of backoffs.
    pub fn new(epoch: Epoch, config: Config, _seed: u64) -> Dispatcher {
        Dispatcher { config, epoch }
    }

    /// Takes one input; what is to be done is added to `effects`. `now` never goes back.
    pub fn handle(&mut self, _now: Instant, _input: Input, _effects: &mut Vec<Effect>) {
        panic!("{:?} {:?}", self.epoch, self.config)
    }

    /// When to call with `Tick`, at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
