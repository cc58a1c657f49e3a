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

/// The client's clock begins when it has started, which is later than when it was told to.
const CLOCKS_DIFFER_MS: u64 = 2_000;
/// The calls that are in flight at a time: one of each of the client's workers.
const UNNOTED_MAX: usize = 16;

/// What the servers have noted of calls: by id, the names of the servers.
pub(super) struct Noted {
    /// Those that it came to.
    came: BTreeMap<String, Vec<String>>,
    /// Those that began it.
    began: BTreeMap<String, Vec<String>>,
}

impl Noted {
    /// Reads the notes of all servers.
    pub(super) fn read(folder: &Path) -> Result<Noted> {
        #[derive(Deserialize)]
        struct Line {
            id: String,
            event: String,
        }
        let mut noted = Noted { came: BTreeMap::new(), began: BTreeMap::new() };
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(server) = name.strip_prefix("calls-") else { continue };
            // A server that was killed may leave half a line.
            for line in fs::read_to_string(&path)?.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
                let servers = match line.event.as_str() {
                    "came" => &mut noted.came,
                    "began" => &mut noted.began,
                    _ => continue,
                };
                servers.entry(line.id).or_default().push(server.to_owned());
            }
        }
        Ok(noted)
    }

    fn began(&self, call: &Call) -> &[String] {
        self.began.get(&call.id).map_or(&[], Vec::as_slice)
    }

    fn came(&self, call: &Call) -> &[String] {
        self.came.get(&call.id).map_or(&[], Vec::as_slice)
    }

    /// Every call has one outcome, none ran twice, and none that was answered ran nowhere.
    pub(super) fn check(&self, calls: &[Call], report: &mut Report) {
        let mut seen = BTreeMap::<&str, usize>::new();
        for call in calls {
            *seen.entry(&call.id).or_default() += 1;
            let ran = self.began(call).len();
            report.check(ran <= 1, || format!("call {} ran {ran} times", call.id));
            report.check(call.status != "OK" || ran == 1, || format!("call {} was answered and never ran", call.id));
        }
        report.check(seen.values().all(|count| *count == 1), || "a call has two outcomes".to_owned());
    }
}

/// An instance was killed: a call that had reached it may fail with an unknown outcome, no other may fail. What lay in its
/// socket when it died had reached it too, and it could not note that: such a call was under way at the kill, and there are
/// no more than were in flight.
pub(super) fn check_instance_killed(calls: &[Call], noted: &Noted, killed_ms: u64, report: &mut Report) {
    let mut unnoted = 0;
    for call in calls.iter().filter(|call| call.status != "OK") {
        let at_the_kill = call.at_ms.abs_diff(killed_ms) < CLOCKS_DIFFER_MS;
        let lost = noted.came(call).is_empty() && at_the_kill;
        unnoted += usize::from(lost);
        report.check(lost || noted.came(call) == ["first"], || {
            format!("call {} failed ({} {}) and had not reached the dead instance", call.id, call.status, call.detail)
        });
        report.check(call.status == "UNKNOWN" && call.detail == "OUTCOME_UNKNOWN", || {
            format!("call {} failed with {} {}: OUTCOME_UNKNOWN is documented", call.id, call.status, call.detail)
        });
    }
    report.check(unnoted <= UNNOTED_MAX, || format!("{unnoted} calls failed that the dead instance had not noted"));
    let after = calls.iter().filter(|call| call.at_ms > killed_ms && call.status == "OK").count();
    report.check(after > 100, || format!("only {after} calls were answered after the kill"));
    let (outcomes, longest_ms) = (outcomes(calls), longest(calls));
    report.figure("instance_killed", json!({"outcomes": outcomes, "unnoted": unnoted, "longest_ms": longest_ms}));
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
