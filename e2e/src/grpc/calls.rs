//! What must hold of calls under load: one outcome each, none run twice, and only those may fail that had reached the
//! instance that died.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use serde_json::json;

use super::outcomes;
use crate::python::Call;
use crate::report::Report;

/// Which calls the servers have begun: by id, the names of the servers.
pub(super) struct Noted(BTreeMap<String, Vec<String>>);

impl Noted {
    /// Reads the notes of all servers.
    pub(super) fn read(folder: &Path) -> Result<Noted> {
        #[derive(Deserialize)]
        struct Line {
            id: String,
            event: String,
        }
        let mut noted = BTreeMap::<String, Vec<String>>::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(server) = name.strip_prefix("calls-") else { continue };
            // A server that was killed may leave half a line.
            for line in fs::read_to_string(&path)?.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
                if line.event == "began" {
                    noted.entry(line.id).or_default().push(server.to_owned());
                }
            }
        }
        Ok(Noted(noted))
    }

    fn of(&self, call: &Call) -> &[String] {
        self.0.get(&call.id).map_or(&[], Vec::as_slice)
    }

    /// Every call has one outcome, none ran twice, and none that was answered ran nowhere.
    pub(super) fn check(&self, calls: &[Call], report: &mut Report) {
        let mut seen = BTreeMap::<&str, usize>::new();
        for call in calls {
            *seen.entry(&call.id).or_default() += 1;
            let ran = self.of(call).len();
            report.check(ran <= 1, || format!("call {} ran {ran} times", call.id));
            report.check(call.status != "OK" || ran == 1, || format!("call {} was answered and never ran", call.id));
        }
        report.check(seen.values().all(|count| *count == 1), || "a call has two outcomes".to_owned());
    }
}

/// An instance was killed: a call that had reached it may fail with an unknown outcome, no other may fail.
pub(super) fn check_instance_killed(calls: &[Call], noted: &Noted, killed_ms: u64, report: &mut Report) {
    let failed: Vec<&Call> = calls.iter().filter(|call| call.status != "OK").collect();
    for call in &failed {
        report.check(noted.of(call) == ["first"], || {
            format!(
                "call {} failed ({} {}) without having reached the dead instance",
                call.id, call.status, call.detail
            )
        });
        report.check(call.status == "UNKNOWN" && call.detail == "OUTCOME_UNKNOWN", || {
            format!("call {} failed with {} {}: OUTCOME_UNKNOWN is documented", call.id, call.status, call.detail)
        });
    }
    let after = calls.iter().filter(|call| call.at_ms > killed_ms && call.status == "OK").count();
    report.check(after > 100, || format!("only {after} calls were answered after the kill"));
    report.figure("instance_killed", json!({"outcomes": outcomes(calls), "longest_ms": longest(calls)}));
}

/// The client's own node was killed: what was on its way may fail, and the client goes on through its other address.
pub(super) fn check_node_killed(calls: &[Call], killed_ms: u64, report: &mut Report) {
    let last_failure = calls.iter().filter(|call| call.status != "OK").map(|call| call.at_ms).max().unwrap_or(0);
    let after = calls.iter().filter(|call| call.at_ms > last_failure.max(killed_ms) && call.status == "OK").count();
    report.check(after > 100, || format!("only {after} calls were answered after the last that failed"));
    for call in calls.iter().filter(|call| call.status != "OK") {
        report.check(["UNAVAILABLE", "UNKNOWN"].contains(&call.status.as_str()), || {
            format!("call {} failed with {} {}", call.id, call.status, call.detail)
        });
    }
    report.figure("node_killed", json!({"outcomes": outcomes(calls), "longest_ms": longest(calls)}));
}

fn longest(calls: &[Call]) -> u64 {
    calls.iter().map(|call| call.took_ms as u64).max().unwrap_or(0)
}
