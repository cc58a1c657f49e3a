//! Who is a member, as SWIM sees it: the identity that travels, the settings, and what counts as down.
//!
//! Pure: the protocol machine (foca) is driven by `node`'s gossip driver.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams, State};

use crate::ids::{Generation, NodeId};

/// The largest SWIM packet: it fits a QUIC datagram at the least MTU (1,200) with a byte before it.
pub const PACKET_BYTES_MAX: usize = 1_150;
/// How often one piece of news is passed on by each node.
const TRANSMISSIONS_MAX: u8 = 10;
/// Whom a probe that got no answer is handed to.
const INDIRECT_PROBES: usize = 3;
/// How many members each round of news goes to.
const GOSSIP_FANOUT: usize = 3;

/// A node as SWIM names it. A start with a newer generation, or a renewal after it was declared down by
/// mistake (`bump`), replaces the older identity at the same address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// Store id; 0 in the stand-in for a seed whose node is not known yet.
    pub node: NodeId,
    /// Where links reach it. Seeds are matched on it.
    pub address: SocketAddr,
    /// Its zone.
    pub zone: String,
    /// Grows at each of its starts.
    pub generation: Generation,
    /// Grows when it finds itself declared down while it lives.
    pub bump: u32,
}

impl Identity {
    /// A stand-in for whoever is at `address`, to announce to.
    pub fn seed(address: SocketAddr) -> Self {
        Identity { node: NodeId(0), address, zone: String::new(), generation: Generation(0), bump: 0 }
    }

    /// What decides between two identities of one node: the greater wins.
    fn age(&self) -> (Generation, u32) {
        (self.generation, self.bump)
    }
}

impl foca::Identity for Identity {
    type Addr = SocketAddr;

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn renew(&self) -> Option<Self> {
        Some(Identity { bump: self.bump.wrapping_add(1), ..self.clone() })
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        if self.node == other.node {
            return self.age() > other.age();
        }
        // Another folder is at the address, and the starts of two folders say nothing of which is newer. Only the node that
        // lives renews itself: that outbids the other. Else any order will do that is the same everywhere.
        let bid = |it: &Self| (it.bump, it.generation, it.node);
        bid(self) > bid(other)
    }
}

/// The times that can be set; the rest of SWIM's settings follow.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often a member is probed.
    pub probe_period: Duration,
    /// How long a direct probe may take.
    pub probe_timeout: Duration,
    /// How long a suspected member may defend itself.
    pub suspect_to_down: Duration,
    /// How often news travel.
    pub gossip_period: Duration,
    /// How often a member is asked for the others it knows.
    pub announce_period: Duration,
    /// How often members that are down are tried.
    pub announce_to_down_period: Duration,
    /// How long a member that is down is remembered.
    pub forget_down_after: Duration,
}

/// SWIM's settings. Without `notify_down_members`, periodic news and announcing to members that are down, a
/// healed partition never heals (simulated: 1.2 to 7.3 s with them).
pub fn config(timing: &Timing) -> Config {
    let some = |count| NonZeroUsize::new(count).expect("a constant above 0");
    let every = |frequency, count| Some(PeriodicParams { frequency, num_members: some(count) });
    Config {
        probe_period: timing.probe_period,
        probe_rtt: timing.probe_timeout,
        num_indirect_probes: some(INDIRECT_PROBES),
        max_transmissions: NonZeroU8::new(TRANSMISSIONS_MAX).expect("a constant above 0"),
        suspect_to_down_after: timing.suspect_to_down,
        remove_down_after: Some(timing.forget_down_after),
        max_packet_size: some(PACKET_BYTES_MAX),
        notify_down_members: true,
        periodic_announce: every(timing.announce_period, 1),
        periodic_announce_to_down_members: every(timing.announce_to_down_period, 2),
        periodic_gossip: every(timing.gossip_period, GOSSIP_FANOUT),
    }
}

/// What SWIM says of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The newest identity known.
    pub identity: Identity,
    /// Suspected members count as up: they may still defend themselves. Only a confirmed one is down.
    pub up: bool,
}

/// One standing per node. A node may be known at an old address too (it moved): its newest identity counts,
/// and among equals the one that is up.
pub fn standings<'a>(known: impl Iterator<Item = &'a foca::Member<Identity>>) -> BTreeMap<NodeId, Standing> {
    let mut newest: BTreeMap<NodeId, Standing> = BTreeMap::new();
    for member in known.filter(|member| member.id().node != NodeId(0)) {
        let found = Standing { identity: member.id().clone(), up: member.state() != State::Down };
        let rank = |standing: &Standing| (standing.identity.age(), standing.up, standing.identity.address);
        match newest.get_mut(&found.identity.node) {
            Some(have) if rank(have) >= rank(&found) => {}
            Some(have) => *have = found,
            None => drop(newest.insert(found.identity.node, found)),
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use foca::{Identity as _, Member};

    use super::*;

    fn identity(node: u64, port: u16, generation: u64, bump: u32) -> Identity {
        Identity {
            node: NodeId(node),
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            zone: "a".into(),
            generation: Generation(generation),
            bump,
        }
    }

    #[test]
    fn newer_identity_wins_its_address() {
        assert!(identity(1, 1, 2, 0).win_addr_conflict(&identity(1, 1, 1, 9)));
        assert!(identity(1, 1, 2, 1).win_addr_conflict(&identity(1, 1, 2, 0)));
        assert!(!identity(1, 1, 2, 1).win_addr_conflict(&identity(1, 1, 2, 1)));
        assert!(identity(2, 1, 2, 1).win_addr_conflict(&identity(1, 1, 2, 1)));
        let renewed = identity(1, 1, 2, 0).renew().expect("identities renew");
        assert!(renewed.win_addr_conflict(&identity(1, 1, 2, 0)));
    }

    #[test]
    fn a_new_folder_at_an_old_address_outbids_the_former() {
        let former = identity(9, 1, 40, 2);
        let mut new = identity(3, 1, 1, 0);
        let mut renewals = 0;
        while !new.win_addr_conflict(&former) {
            assert!(former.win_addr_conflict(&new), "one of them wins");
            new = new.renew().expect("identities renew");
            renewals += 1;
        }
        assert!(renewals <= 3 && !former.win_addr_conflict(&new), "{renewals}");
        assert!(identity(1, 1, 1, 0).win_addr_conflict(&Identity::seed(new.address)));
    }

    #[test]
    fn a_node_that_moved_stands_once() {
        let known = [Member::down(identity(1, 1, 1, 0)), Member::alive(identity(1, 2, 2, 0))];
        let standings = standings(known.iter());
        assert_eq!(standings.len(), 1);
        assert_eq!(standings[&NodeId(1)], Standing { identity: identity(1, 2, 2, 0), up: true });
    }

    #[test]
    fn the_newest_counts_even_if_it_is_down() {
        let known = [Member::alive(identity(1, 1, 1, 0)), Member::down(identity(1, 2, 2, 0))];
        assert!(!standings(known.iter())[&NodeId(1)].up);
        assert!(standings([Member::alive(Identity::seed(([127, 0, 0, 1], 1).into()))].iter()).is_empty());
    }
}
