//! What is printed to stdout: tables for people, JSON for machines. A reader that goes away ends the command.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::failure::Failure;

/// Output is flushed when nothing came for this long.
pub(super) const QUIET: Duration = Duration::from_millis(20);

/// How often it is looked whether anybody reads.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Buffered stdout.
pub(crate) struct Output {
    /// Whether `--json` was given.
    pub(crate) json: bool,
    stdout: BufWriter<Stdout>,
    live: bool,
    dirty: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Output {
        let stdout = io::stdout();
        let live = stdout.is_terminal();
        Output { json, stdout: BufWriter::with_capacity(64 << 10, stdout), live, dirty: false }
    }

    /// Prints one line.
    pub(crate) fn line(&mut self, text: impl std::fmt::Display) -> Result<(), Failure> {
        writeln!(self.stdout, "{text}")?;
        self.dirty = true;
        if self.live { self.flush() } else { Ok(()) }
    }

    /// Prints bytes as they are, and a newline.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(bytes)?;
        self.stdout.write_all(b"\n")?;
        self.dirty = true;
        if self.live { self.flush() } else { Ok(()) }
    }

    /// Prints an object with `--json`, else a sentence.
    pub(crate) fn say(&mut self, object: &Value, sentence: impl std::fmt::Display) -> Result<(), Failure> {
        if self.json { self.line(object) } else { self.line(sentence) }
    }

    /// Prints rows as a table. `columns`: their names.
    pub(crate) fn table(&mut self, columns: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|name| name.to_uppercase()));
        table.add_rows(rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.to_string().lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Prints what this binary is.
    pub(crate) fn version(&mut self) -> Result<(), Failure> {
        let version = env!("CARGO_PKG_VERSION");
        self.say(&json!({"version": version}), format_args!("weft {version}"))
    }

    /// Writes out what is buffered.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.stdout.flush()?;
        self.dirty = false;
        Ok(())
    }

    /// Resolves when whoever reads stdout has gone. A command that waits for something to print would not notice.
    pub(crate) async fn reader_gone() {
        let stdout = io::stdout();
        loop {
            // Errors of the descriptor itself are always told.
            let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
            let polled = rustix::event::poll(&mut asked, Some(&Timespec::default()));
            if polled.is_ok() && asked[0].revents().intersects(PollFlags::ERR) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether something is buffered.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }
}
