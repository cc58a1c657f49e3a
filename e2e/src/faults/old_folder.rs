//! P1: a node that is started on an earlier copy of its folder has forgotten what it acknowledged. It is refused, also by
//! a node that is alone with it, and comes back with an empty folder.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::cluster::Cluster;

use super::load::Load;

/// How long the nodes may take to agree again.
const HEALTHY_MAX: Duration = Duration::from_secs(30);
/// How long a node may take to stop.
const STOP_MAX: Duration = Duration::from_secs(40);
/// How long a node with an old folder may take to find out.
const REFUSED_MAX: Duration = Duration::from_secs(15);

pub(super) async fn check() -> Result<Value> {
    let mut cluster = Cluster::start(3).await?;
    let folder = cluster.folder(2);
    let copy = folder.with_extension("copy");
    cluster.terminate(2, STOP_MAX).await?;
    copy_folder(&folder, &copy)?;
    cluster.start_node(2)?;
    cluster.wait_healthy(HEALTHY_MAX).await?;
    // Only n2 and n3 have what is published now: n1 takes it over later.
    let load = Load::start(cluster.addresses(), "old-folder", 8).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.terminate(2, STOP_MAX).await?;
    cluster.kill(1)?;
    fs::remove_dir_all(&folder)?;
    copy_folder(&copy, &folder)?;
    // As many starts as the node had: of the same number, and still another.
    for _ in 0..2 {
        cluster.start_node(2)?;
        let code = cluster.ended(2, REFUSED_MAX).await.context("an old folder is refused")?;
        ensure!(code == 1, "a node with an old folder ended with code {code}");
        fs::remove_dir_all(&folder)?;
        copy_folder(&copy, &folder)?;
    }
    let log = cluster.log(2)?;
    let said = log.lines().rev().find(|line| line.contains("NODE_REFUSED")).context("the reason is logged")?;
    ensure!(said.contains("old copy") && said.contains("empty folder"), "it says how to come back: {said}");
    fs::remove_dir_all(&folder)?;
    cluster.start_node(2)?;
    cluster.start_node(1)?;
    cluster.wait_healthy(HEALTHY_MAX).await?;
    let published = load.finish().await?;
    Ok(json!({"events": published.events}))
}

/// Copies a folder with all that is in it.
pub(super) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &target)?,
            // Of a node that runs, files come and go.
            false => match fs::copy(entry.path(), target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            },
        }
    }
    Ok(())
}
