//! The rows, and the ways to spoil what is published of them.

use std::io::Read;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::ValueEnum;
use sha2::{Digest, Sha256};

use weft_e2e::cluster::repository_file;

/// Column of the tail number, the key.
const KEY_COLUMN: usize = 11;
/// Rows that the file must have.
pub(super) const ROWS: usize = 336_776;

/// One row of the file.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its place in the file, from 0.
    pub(super) number: u32,
    /// The tail number.
    pub(super) key: Bytes,
    /// The line, without its end.
    pub(super) line: Bytes,
}

impl Row {
    /// What `weft topic dump` prints of its data.
    pub(super) fn sha256(&self) -> String {
        Sha256::digest(&self.line).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// How to spoil what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Break {
    /// Leaves a row out.
    Drop,
    /// Changes the places of two rows of one key.
    Swap,
    /// Publishes a row twice.
    Duplicate,
}

/// Reads all rows, in the order of the file.
pub(super) fn rows() -> Result<Vec<Row>> {
    let mut text = String::new();
    let file = repository_file("examples/flights/flights.csv.xz")?;
    lzma_rust2::XzReader::new(std::io::BufReader::new(file), true).read_to_string(&mut text).context("decode")?;
    let text = Bytes::from(text);
    let mut rows = Vec::with_capacity(ROWS);
    for (number, line) in text.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty()).enumerate() {
        let key = line.split(|byte| *byte == b',').nth(KEY_COLUMN).context("a row has a tail number")?;
        rows.push(Row { number: number as u32, key: text.slice_ref(key), line: text.slice_ref(line) });
    }
    Ok(rows)
}

/// What is to be published: the rows, unless they are to be spoiled.
pub(super) fn spoil(rows: &[Row], how: Option<Break>) -> Vec<Row> {
    let mut published = rows.to_vec();
    let middle = rows.len() / 2;
    match how {
        None => {}
        Some(Break::Drop) => drop(published.remove(middle)),
        Some(Break::Duplicate) => published.insert(middle, rows[middle].clone()),
        Some(Break::Swap) => {
            let same = (middle + 1..rows.len()).find(|other| rows[*other].key == rows[middle].key);
            published.swap(middle, same.unwrap_or(middle + 1));
        }
    }
    published
}
