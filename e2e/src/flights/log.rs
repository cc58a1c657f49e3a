//! What the log holds at the end, against the file.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::data::Row;
use crate::report::Report;

/// One line of `weft topic dump --json`.
#[derive(Deserialize)]
pub(super) struct Stored {
    partition: u32,
    offset: u64,
    epoch: u64,
    key: String,
    sha256: String,
}

/// Reads a dump: one JSON object a line.
pub(super) fn parse(dump: &str) -> Result<Vec<Stored>> {
    let lines = dump.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("read the dump's line {line}"))).collect()
}

/// Exactly the rows of the file, each once, per key in the order of the file, at dense offsets of growing epochs.
pub(super) fn check(rows: &[Row], stored: &[Stored], report: &mut Report) {
    report.figure("stored", stored.len());
    report.check(stored.len() == rows.len(), || format!("the log holds {} rows, not {}", stored.len(), rows.len()));
    let numbers: HashMap<String, &Row> = rows.iter().map(|row| (row.sha256(), row)).collect();
    let mut times = vec![0u32; rows.len()];
    let mut next: HashMap<u32, (u64, u64)> = HashMap::new();
    let mut newest: HashMap<&str, u32> = HashMap::new();
    for event in stored {
        let (offset, epoch) = next.entry(event.partition).or_default();
        let place = format!("partition {} offset {}", event.partition, event.offset);
        report.check(event.offset == *offset, || format!("{place}: expected offset {offset}"));
        report.check(event.epoch >= *epoch, || format!("{place}: epoch {} after {epoch}", event.epoch));
        (*offset, *epoch) = (event.offset + 1, event.epoch);
        let Some(row) = numbers.get(&event.sha256) else {
            report.fail(format!("{place} is none of the rows"));
            continue;
        };
        times[row.number as usize] += 1;
        report.check(row.key == event.key.as_bytes(), || format!("{place} has the key {}", event.key));
        let before = newest.insert(&event.key, row.number);
        report.check(before.is_none_or(|before| before < row.number), || {
            format!("{place}: row {} follows row {before:?} of the same key", row.number)
        });
    }
    for (number, times) in times.into_iter().enumerate().filter(|(_, times)| *times != 1) {
        report.fail(format!("row {number} is stored {times} times"));
    }
}
