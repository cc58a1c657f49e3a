//! `weft shard`.

use std::io;
use std::path::Path;

use super::args::Shard as Command;
use super::failure::Failure;
use super::output::Output;
use crate::drivers::storage::{DumpReport, dump};
use crate::host::Disk;
use crate::host::disk::OsDisk;

pub(crate) fn run(command: Command, output: &mut Output) -> Result<(), Failure> {
    let Command::Dump { dir } = command;
    // What a node is writing would look damaged.
    let _held = hold(&dir)?;
    let report = dump(&OsDisk, &dir)?;
    if output.json {
        let object = serde_json::to_value(&report);
        return output.line(object.map_err(|error| Failure::failed(format!("print the report: {error}")))?);
    }
    print(&report, output)
}

/// Keeps nodes out of the folder, if there is a lock to hold.
///
/// # Errors
/// A node runs on it.
fn hold(dir: &Path) -> Result<Option<Box<dyn Send + Sync>>, Failure> {
    let path = dir.join("LOCK");
    if !OsDisk.exists(&path) {
        return Ok(None);
    }
    match OsDisk.lock(&path) {
        Ok(held) => Ok(Some(held)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Failure::failed(format!(
            "a node runs on {}: stop it first, or dump a copy of the folder",
            dir.display()
        ))),
        // A copy that may only be read is nobody's to run on.
        Err(_) => Ok(None),
    }
}

fn print(report: &DumpReport, output: &mut Output) -> Result<(), Failure> {
    let cluster = report.cluster.as_deref().unwrap_or("none yet");
    output.line(format_args!("node {}, cluster {cluster}, opened {} times", report.node, report.generation))?;
    let (first, last) = report.journal_frames;
    output.line(format_args!(
        "journal: frames {first} to {last} in {} files of {} together, {} torn; manifest {}",
        report.journal_files,
        bytesize::ByteSize(report.journal_bytes),
        report.journal_torn,
        report.manifest,
    ))?;
    output.line("")?;
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let rows = report.groups.iter().map(|group| {
        vec![
            group.shard.map_or_else(|| "registry".to_owned(), |shard| format!("shard {shard}")),
            group.replica.to_string(),
            group.vote_term.map_or_else(|| "-".to_owned(), |term| term.to_string()),
            known(&group.committed),
            known(&group.checkpoint),
            group.log_first.map_or_else(|| "-".to_owned(), |index| index.to_string()),
            known(&group.log_last),
            known(&group.fenced),
        ]
    });
    let columns = ["group", "replica", "term", "committed", "checkpoint", "log from", "log to", "fenced"];
    output.table(&columns, rows.collect())?;
    output.line("")?;
    let partitions = report.groups.iter().flat_map(|group| &group.partitions);
    let rows = partitions.map(|place| {
        vec![
            place.topic.to_string(),
            place.partition.to_string(),
            place.start.to_string(),
            place.end.to_string(),
            place.segments.to_string(),
            bytesize::ByteSize(place.bytes).to_string(),
            place.damage.join("; "),
        ]
    });
    output.table(&["topic", "partition", "start", "end", "segments", "size", "damage"], rows.collect())?;
    for problem in &report.problems {
        output.line(format_args!("problem: {problem}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_node_that_runs_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(hold(folder.path()).is_ok_and(|held| held.is_none()), "a folder without a lock is no node's");
        let node = OsDisk.lock(&folder.path().join("LOCK")).expect("lock");
        let refused = hold(folder.path()).err().expect("it is held");
        assert!(refused.message.starts_with("a node runs on "), "{}", refused.message);
        drop(node);
        assert!(hold(folder.path()).is_ok_and(|held| held.is_some()));
    }
}
