//! The registry's voters follow the nodes, also while these come and go.

use weft_sim::plan::{Fault, Plan};

use crate::scenarios::{ms, plan, sound};

/// Three nodes become five; then two of the first three are away for a while, and another is killed after them.
#[test]
fn a_cluster_that_has_grown_loses_two_founders_and_goes_on() {
    for seed in [81, 82] {
        let faults = vec![
            (ms(1_000), Fault::Join { node: 3 }),
            (ms(3_000), Fault::Join { node: 4 }),
            (ms(14_000), Fault::Kill { node: 0, away: ms(6_000) }),
            (ms(14_100), Fault::Kill { node: 1, away: ms(6_000) }),
            (ms(24_000), Fault::Kill { node: 2, away: ms(1_000) }),
        ];
        sound(Plan { nodes: 5, late: 2, ..plan(seed, ms(30_000), faults) });
    }
}
