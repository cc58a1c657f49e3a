//! The frame of checks in which Python's gRPC programs run beside three nodes.

use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;
use weft_e2e::cluster::Cluster;

use crate::frame;
use crate::python::{Python, in_ci};
use crate::report::Report;

/// Runs the check `name`, spoiled if `how` says so, and reports. The folders of nodes and programs stay with `keep`, and
/// when it fails.
pub(crate) async fn python(
    name: &'static str,
    how: Option<impl std::fmt::Debug>,
    keep: bool,
    check: impl AsyncFnOnce(&Python, &Path, &mut Cluster, &mut Report) -> Result<()>,
) -> Report {
    let mut report = frame::report(name, how);
    if let Err(error) = run(name, keep, check, &mut report).await {
        report.fail(format!("{error:#}"));
    }
    report
}

async fn run(
    name: &str,
    keep: bool,
    check: impl AsyncFnOnce(&Python, &Path, &mut Cluster, &mut Report) -> Result<()>,
    report: &mut Report,
) -> Result<()> {
    let python = match Python::find() {
        Ok(python) => python,
        // Where nothing may be missing, a check that cannot run has failed.
        Err(error) if in_ci() => return Err(error),
        Err(error) => {
            report.skip(&format!("there is no Python with gRPC, and none can be made: {error:#}"));
            return Ok(());
        }
    };
    let folder = TempDir::with_prefix(format!("weft-e2e-{name}-")).context("make a folder for the servers")?;
    let check = async |cluster: &mut Cluster, report: &mut Report| check(&python, folder.path(), cluster, report).await;
    frame::on(Cluster::start(3).await?, keep, report, check).await;
    if keep || !report.passed() {
        eprintln!("the servers' notes and logs stay in {}", folder.keep().display());
    }
    Ok(())
}
