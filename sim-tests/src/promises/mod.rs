//! One file per promise: each reads the history and says what broke it.

pub mod p1_durable;
pub mod p2_identical;
pub mod p3_once_in;
pub mod p4_at_least_once_out;
pub mod p5_ordered;
pub mod p6_one_owner;
pub mod p7_registry;
pub mod p8_honest_calls;
pub mod p9_no_silent_rot;

use crate::history::Entry;

/// Checks all promises; each line names the promise that is broken, and how.
pub fn check(entries: &[Entry]) -> Vec<String> {
    type Checker = fn(&[Entry]) -> Vec<String>;
    let checkers: [(&str, Checker); 9] = [
        ("P1", p1_durable::check),
        ("P2", p2_identical::check),
        ("P3", p3_once_in::check),
        ("P4", p4_at_least_once_out::check),
        ("P5", p5_ordered::check),
        ("P6", p6_one_owner::check),
        ("P7", p7_registry::check),
        ("P8", p8_honest_calls::check),
        ("P9", p9_no_silent_rot::check),
    ];
    let broken = checkers
        .iter()
        .flat_map(|(promise, checker)| checker(entries).into_iter().map(move |what| format!("{promise}: {what}")));
    broken.collect()
}

/// Builds histories for the checkers' own tests.
#[cfg(test)]
pub(crate) mod testing {
    use crate::history::{Entry, What};

    /// The entries, one millisecond apart.
    pub(crate) fn history(what: Vec<What>) -> Vec<Entry> {
        let entry = |(at, what)| Entry { at_us: at as u64 * 1000, who: "test".to_owned(), what };
        what.into_iter().enumerate().map(entry).collect()
    }

    pub(crate) fn publish(id: u64) -> What {
        What::PublishInvoke { id, key: "k".to_owned(), idempotent: true }
    }

    pub(crate) fn receipt(id: u64, offset: u64) -> What {
        What::PublishOk {
            id,
            partition: 0,
            offset,
            epoch: 1,
            fsynced: vec!["n1".into(), "n2".into()],
            duplicate: false,
        }
    }

    pub(crate) fn stored(id: u64, offset: u64) -> What {
        What::Final { partition: 0, offset, epoch: 1, id, key: "k".to_owned(), intact: true }
    }

    pub(crate) fn delivered(id: u64, offset: u64, epoch: u64) -> What {
        What::Delivered { partition: 0, offset, epoch, given: (1, 1), id, key: "k".to_owned(), intact: true }
    }

    pub(crate) fn ack(offset: u64, epoch: u64) -> What {
        What::AckInvoke { partition: 0, offset, epoch }
    }

    pub(crate) fn acked(offset: u64, epoch: u64) -> What {
        What::AckOk { partition: 0, offset, epoch }
    }
}
