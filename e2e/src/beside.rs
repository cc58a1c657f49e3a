//! The frame of checks in which Python's gRPC programs run beside three nodes.

use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;
use weft_e2e::cluster::Cluster;

use crate::python::Python;
use crate::report::Report;

/// Runs the check `name`, spoiled if `how` says so, and reports. The folders of nodes and programs stay with `keep`, and
/// when it fails.
pub(crate) async fn python(
    name: &'static str,
    how: Option<&str>,
    keep: bool,
    check: impl AsyncFnOnce(&Python, &Path, &mut Cluster, &mut Report) -> Result<()>,
) -> Report {
    let mut report = Report::new(name);
    report.figure("seed", 0);
    report.figure("break", how);
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
    let Some(python) = Python::find()? else {
        report.skip("there is no Python with grpcio; with CI=true it is installed");
        return Ok(());
    };
    let folder = TempDir::with_prefix(format!("weft-e2e-{name}-")).context("make a folder for the servers")?;
    let mut cluster = Cluster::start(3).await?;
    let checked = check(&python, folder.path(), &mut cluster, report).await;
    if let Err(error) = checked.and_then(|()| cluster.check_alive()) {
        report.fail(format!("{error:#}"));
    }
    if keep || !report.passed() {
        eprintln!("the nodes' folders and logs stay in {}", cluster.keep().display());
        eprintln!("the servers' notes and logs stay in {}", folder.keep().display());
    }
    Ok(())
}
