//! Which messages get through: faults add blocks, which may overlap, and take them away again.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The state of the simulated network, on top of turmoil's.
#[derive(Default)]
pub(crate) struct Network {
    /// How many faults block messages from one host to another.
    blocks: BTreeMap<(IpAddr, IpAddr), u32>,
    /// Hosts whose messages are held.
    held: Vec<IpAddr>,
}

impl Network {
    /// Blocks messages from each of `from` to each of `to`.
    pub(crate) fn block(&mut self, sim: &turmoil::Sim<'_>, from: &[IpAddr], to: &[IpAddr]) {
        for pair in pairs(from, to) {
            let count = self.blocks.entry(pair).or_default();
            *count += 1;
            if *count == 1 {
                sim.partition_oneway(pair.0, pair.1);
            }
        }
    }

    /// Takes away what `block` with the same arguments added.
    pub(crate) fn unblock(&mut self, sim: &turmoil::Sim<'_>, from: &[IpAddr], to: &[IpAddr]) {
        for pair in pairs(from, to) {
            let count = self.blocks.entry(pair).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                sim.repair_oneway(pair.0, pair.1);
            }
        }
    }

    /// Holds all messages from and to `host`; false if the network is not whole, since turmoil cannot combine the
    /// two.
    pub(crate) fn hold(&mut self, sim: &turmoil::Sim<'_>, host: IpAddr, others: &[IpAddr]) -> bool {
        if self.blocks.values().any(|count| *count > 0) || !self.held.is_empty() {
            return false;
        }
        for other in others.iter().filter(|other| **other != host) {
            sim.hold(host, *other);
        }
        self.held.push(host);
        true
    }

    /// Delivers what was held.
    pub(crate) fn release(&mut self, sim: &turmoil::Sim<'_>, host: IpAddr, others: &[IpAddr]) {
        if let Some(at) = self.held.iter().position(|held| *held == host) {
            self.held.remove(at);
            for other in others.iter().filter(|other| **other != host) {
                sim.release(host, *other);
            }
        }
    }

    /// Whether messages are held at the moment: nothing may be blocked then.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

fn pairs<'a>(from: &'a [IpAddr], to: &'a [IpAddr]) -> impl Iterator<Item = (IpAddr, IpAddr)> + 'a {
    from.iter().flat_map(|a| to.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b)
}
