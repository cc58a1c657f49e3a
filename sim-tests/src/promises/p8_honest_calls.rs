//! P8: a call has exactly one outcome; it runs at most once unless its policy allows more; one that "has certainly not
//! run" has not, and one that was answered has.

use std::collections::BTreeMap;

use crate::history::{Entry, What};

/// What is known of one call.
#[derive(Default)]
struct Call {
    idempotent: bool,
    ran: u32,
    answered: u32,
    /// Outcomes that say that it has not run.
    not_run: Vec<String>,
    unknown: u32,
}

/// What broke the promise.
pub fn check(entries: &[Entry]) -> Vec<String> {
    let mut calls: BTreeMap<u64, Call> = BTreeMap::new();
    for entry in entries {
        match &entry.what {
            What::CallInvoke { call, idempotent, .. } => calls.entry(*call).or_default().idempotent = *idempotent,
            What::CallRan { call, .. } => calls.entry(*call).or_default().ran += 1,
            What::CallOk { call } => calls.entry(*call).or_default().answered += 1,
            What::CallFail { call, error } => calls.entry(*call).or_default().not_run.push(error.clone()),
            What::CallUnknown { call, .. } => calls.entry(*call).or_default().unknown += 1,
            _ => {}
        }
    }
    calls.iter().flat_map(|(id, call)| broken(*id, call)).collect()
}

fn broken(id: u64, call: &Call) -> Vec<String> {
    let outcomes = call.answered + call.not_run.len() as u32 + call.unknown;
    let mut broken = Vec::new();
    if outcomes != 1 {
        broken.push(format!("call {id} has {outcomes} outcomes"));
    }
    if call.ran > 1 && !call.idempotent {
        broken.push(format!("call {id} ran {} times and is not idempotent", call.ran));
    }
    if call.ran == 0 && call.answered > 0 {
        broken.push(format!("call {id} was answered and has not run"));
    }
    if let Some(error) = call.not_run.first().filter(|_| call.ran > 0) {
        broken.push(format!("call {id} ran, and its client was told that it had not: {error}"));
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::history::What;
    use crate::promises::testing::history;

    fn invoke(idempotent: bool) -> What {
        What::CallInvoke { call: 1, idempotent, work_ms: 1, timeout_ms: 0 }
    }

    fn ran() -> What {
        What::CallRan { call: 1, instance: "i1".into() }
    }

    fn failed() -> What {
        What::CallFail { call: 1, error: "UNREACHABLE".into() }
    }

    fn unknown() -> What {
        What::CallUnknown { call: 1, error: "OUTCOME_UNKNOWN".into() }
    }

    #[test]
    fn dishonest_calls_are_noticed() {
        let ok = || What::CallOk { call: 1 };
        for honest in [
            vec![invoke(false), ran(), ok()],
            vec![invoke(false), failed()],
            vec![invoke(false), unknown()],
            vec![invoke(false), ran(), unknown()],
            vec![invoke(true), ran(), ran(), ok()],
        ] {
            assert_eq!(check(&history(honest)), Vec::<String>::new());
        }
        for dishonest in [
            vec![invoke(false)],
            vec![invoke(false), ran(), ok(), ok()],
            vec![invoke(false), ran(), ran(), ok()],
            vec![invoke(false), ran(), ran(), unknown()],
            vec![invoke(false), ok()],
            vec![invoke(false), ran(), failed()],
        ] {
            assert_eq!(check(&history(dishonest)).len(), 1);
        }
    }
}
