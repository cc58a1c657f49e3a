//! P9: whatever becomes of one node's files while it is down, it comes back by itself: nothing is lost, no node ends,
//! and the others go on meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::cluster::Cluster;

use super::load::Load;
use super::old_folder::copy_folder;

/// How long the node may take until all is as it should be, damage or not.
const HEALED_MAX: Duration = Duration::from_secs(30);
/// How long it runs between two damages: a checkpoint comes in this time.
const BETWEEN: Duration = Duration::from_secs(2);
/// The node whose files suffer.
const VICTIM: usize = 2;
/// The node whose files are taken in their place.
const OTHER: usize = 1;

/// What becomes of a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// A bit in its middle is another.
    Flipped,
    /// Its second half is gone.
    Cut,
    /// Nothing but zeros.
    Zeroed,
    Deleted,
    /// As it was some time ago.
    Older,
    /// Another node's file of the same name, or of the same kind if it has none.
    Swapped,
}

/// Which files, all of the kind at once.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The journal's newest file.
    JournalEnd,
    /// All files of the journal.
    Journal,
    Manifest,
    Current,
    /// What checkpoints write per group.
    State,
    Segments,
    Identity,
    Starts,
}

/// One after another on the same cluster. Every kind, and every damage, at least once.
const ROUNDS: &[(Kind, Damage)] = &[
    (Kind::JournalEnd, Damage::Deleted),
    (Kind::JournalEnd, Damage::Older),
    (Kind::State, Damage::Deleted),
    (Kind::Current, Damage::Flipped),
    (Kind::Manifest, Damage::Cut),
    (Kind::Identity, Damage::Zeroed),
    (Kind::Segments, Damage::Swapped),
    (Kind::Starts, Damage::Cut),
    (Kind::Journal, Damage::Flipped),
];
const KINDS: [Kind; 8] = [
    Kind::JournalEnd,
    Kind::Journal,
    Kind::Manifest,
    Kind::Current,
    Kind::State,
    Kind::Segments,
    Kind::Identity,
    Kind::Starts,
];
const DAMAGES: [Damage; 6] =
    [Damage::Flipped, Damage::Cut, Damage::Zeroed, Damage::Deleted, Damage::Older, Damage::Swapped];

/// Some rounds of the table.
pub(super) async fn check() -> Result<Value> {
    rounds(ROUNDS).await
}

/// The whole table: each kind of file, each damage.
pub(super) async fn check_all() -> Result<Value> {
    // One file of an identity that is another node's is for a person to judge: it is refused, and says so.
    let judged = |kind, damage| matches!((kind, damage), (Kind::Identity, Damage::Swapped));
    let all = KINDS.into_iter().flat_map(|kind| DAMAGES.map(|damage| (kind, damage)));
    rounds(&all.filter(|(kind, damage)| !judged(*kind, *damage)).collect::<Vec<_>>()).await
}

async fn rounds(rounds: &[(Kind, Damage)]) -> Result<Value> {
    let mut cluster = Cluster::start_with(3, &[("WEFT_STORAGE__CHECKPOINT_INTERVAL", "1s")]).await?;
    let load = Load::start(cluster.addresses(), "damaged-folder", 8).await?;
    let mut healed = Vec::new();
    for (kind, damage) in rounds {
        let name = format!("{kind:?} {damage:?}");
        let earlier = cluster.folder(VICTIM).with_extension("earlier");
        copy_folder(&cluster.folder(VICTIM), &earlier).context("copy the folder of a node that runs")?;
        tokio::time::sleep(BETWEEN).await;
        cluster.kill(VICTIM)?;
        let files = apply(&cluster, *kind, *damage, &earlier).with_context(|| name.clone())?;
        fs::remove_dir_all(&earlier)?;
        let began = Instant::now();
        let fenced = |cluster: &Cluster| anyhow::Ok(cluster.log(VICTIM)?.matches("the replica is fenced").count());
        let before = fenced(&cluster)?;
        cluster.start_node(VICTIM)?;
        healed_by(&mut cluster, began + HEALED_MAX).await.with_context(|| format!("{files} files: {name}"))?;
        let took = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let fenced = fenced(&cluster)? - before;
        eprintln!("  {name}: {files} files, fenced {fenced} times, {took} s");
        healed.push(json!([name, fenced, took]));
    }
    let published = load.finish().await?;
    let gap = u64::try_from(published.longest_gap.as_millis())?;
    Ok(json!({"healed_s": healed, "events": published.events, "longest_gap_ms": gap}))
}

/// Waits until all nodes say that all is well, and the victim has no replica that is out of use.
async fn healed_by(cluster: &mut Cluster, deadline: Instant) -> Result<()> {
    loop {
        cluster.wait_healthy(deadline.saturating_duration_since(Instant::now())).await?;
        let metrics = cluster.metrics(VICTIM).await?;
        let fenced = metrics.lines().find(|line| line.starts_with("weft_raft_fenced_groups"));
        if fenced.context("the node counts its fenced groups")?.ends_with(" 0") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "status says healthy, but the node's replicas are not all in use");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Does the damage and says to how many files.
fn apply(cluster: &Cluster, kind: Kind, damage: Damage, earlier: &Path) -> Result<usize> {
    let folder = cluster.folder(VICTIM);
    let files = files_of(&folder, kind)?;
    ensure!(!files.is_empty(), "there is no such file");
    let others = files_of(&cluster.folder(OTHER), kind)?;
    for (number, path) in files.iter().enumerate() {
        let bytes = fs::read(path)?;
        let damaged = match damage {
            Damage::Flipped => {
                let mut bytes = bytes;
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 1;
                }
                bytes
            }
            Damage::Cut => bytes[..bytes.len() / 2].to_vec(),
            Damage::Zeroed => vec![0; bytes.len()],
            Damage::Older => match fs::read(earlier.join(path.strip_prefix(&folder)?)) {
                Ok(bytes) => bytes,
                // It is younger than that.
                Err(_) => {
                    fs::remove_file(path)?;
                    continue;
                }
            },
            Damage::Swapped => fs::read(others.get(number).or(others.last()).context("the other node's file")?)?,
            Damage::Deleted => {
                fs::remove_file(path)?;
                continue;
            }
        };
        fs::write(path, damaged)?;
    }
    Ok(files.len())
}

/// The files of a kind, oldest first where they have an order.
fn files_of(folder: &Path, kind: Kind) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    walk(folder, &mut files)?;
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let in_folder = |path: &Path, prefix: &str| {
        path.parent().and_then(Path::file_name).is_some_and(|parent| parent.to_string_lossy().starts_with(prefix))
    };
    files.retain(|path| match kind {
        Kind::Journal | Kind::JournalEnd => in_folder(path, "journal"),
        Kind::Manifest => name(path).starts_with("MANIFEST-"),
        Kind::Current => name(path) == "CURRENT",
        Kind::State => name(path).starts_with("meta-"),
        Kind::Segments => in_folder(path, "t"),
        Kind::Identity => name(path) == "FORMAT",
        Kind::Starts => name(path) == "STARTS",
    });
    if matches!(kind, Kind::JournalEnd) {
        let written = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
        files = files.into_iter().max_by_key(written).into_iter().collect();
    }
    files.sort();
    Ok(files)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { walk(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
