//! The frame of every check: its report, and what becomes of its nodes.

use std::fmt::Debug;

use anyhow::Result;
use weft_e2e::cluster::Cluster;

use crate::report::Report;

/// The report of the check `name`, spoiled if `how` says so.
pub(crate) fn report(name: &'static str, how: Option<impl Debug>) -> Report {
    let mut report = Report::new(name);
    report.figure("seed", 0);
    report.figure("break", how.map(|how| format!("{how:?}").to_lowercase()));
    report
}

/// Runs a check on nodes that must all be alive at its end. Their folders and logs stay with `keep`, and when it fails.
pub(crate) async fn on(
    mut cluster: Cluster,
    keep: bool,
    report: &mut Report,
    check: impl AsyncFnOnce(&mut Cluster, &mut Report) -> Result<()>,
) {
    let checked = check(&mut cluster, report).await;
    for failed in [checked, cluster.check_alive()] {
        if let Err(error) = failed {
            report.fail(format!("{error:#}"));
        }
    }
    if keep || !report.passed() {
        eprintln!("the nodes' folders and logs stay in {}", cluster.keep().display());
    }
}
