//! A node that comes back with an earlier state of its disk has forgotten votes and acknowledgements.

use weft_sim::plan::{Fault, Plan};

use crate::scenarios::{ms, noted, plan, play, sound};

/// n3's disk is copied; it starts anew, and takes part while n1 hears nothing; then n2 dies, and n3 comes back as it was
/// copied. n1 alone must tell that it is an old copy, and wait for n2.
fn alone_with_an_old_copy(seed: u64, forged: bool) -> Plan {
    let faults = vec![
        (ms(1_000), Fault::OldDisk { node: 2, later: ms(7_000), away: ms(500), forged }),
        (ms(2_500), Fault::Kill { node: 2, away: ms(300) }),
        (ms(4_500), Fault::Partition { side: vec![0], clients: true, lasts: ms(4_000) }),
        (ms(7_900), Fault::Kill { node: 1, away: ms(12_000) }),
    ];
    plan(seed, ms(30_000), faults)
}

#[test]
fn an_old_copy_is_refused_also_by_a_node_that_is_alone_with_it() {
    for seed in [71, 72] {
        let verdict = sound(alone_with_an_old_copy(seed, false));
        assert!(noted(&verdict, "n3 is given an empty folder").is_some(), "n3 says that its folder is an old copy");
    }
}

/// As it must: nobody can tell, and what n2 and n3 have confirmed is not there.
#[test]
fn p1_breaks_when_an_old_copy_cannot_be_told() {
    let verdict = play(alone_with_an_old_copy(71, true));
    let confirmed = |line: &String| line.starts_with("P1: ") && line.contains("has a receipt for");
    assert!(verdict.broken.iter().any(confirmed), "{:#?}", verdict.broken);
}

/// The node has not started in between, so its number of starts is new. The leaders know what it has acknowledged.
#[test]
fn a_replica_that_lacks_what_it_acknowledged_is_filled_anew() {
    for seed in [73, 74] {
        sound(plan(
            seed,
            ms(20_000),
            vec![(ms(1_000), Fault::OldDisk { node: 2, later: ms(4_000), away: ms(500), forged: false })],
        ));
    }
}
