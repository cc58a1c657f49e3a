//! What a check says at its end.

use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Map, Value};

/// Collects the figures and the failures of one check.
pub(crate) struct Report {
    check: &'static str,
    started: Instant,
    figures: Map<String, Value>,
    failures: Vec<String>,
    skipped: bool,
}

/// The exit code of a check that could not run: neither passed nor failed.
const SKIPPED: u8 = 77;
/// Failures that are printed; the rest is only counted.
const FAILURES_SHOWN_MAX: usize = 10;

impl Report {
    pub(crate) fn new(check: &'static str) -> Report {
        Report { check, started: Instant::now(), figures: Map::new(), failures: Vec::new(), skipped: false }
    }

    /// Adds a figure to the JSON line.
    pub(crate) fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Notes a failure.
    pub(crate) fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    /// Notes a failure unless `holds`.
    pub(crate) fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what());
        }
    }

    /// Notes that the check could not run, and why: it is not called passed then.
    pub(crate) fn skip(&mut self, why: &str) {
        eprintln!("SKIPPED: {why}");
        self.figure("skipped", why);
        self.skipped = true;
    }

    /// Whether nothing has failed so far.
    pub(crate) fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// Prints the failures, then the JSON line.
    pub(crate) fn print(mut self) -> ExitCode {
        for failure in self.failures.iter().take(FAILURES_SHOWN_MAX) {
            eprintln!("FAILED: {failure}");
        }
        self.figure("check", self.check);
        self.figure("seconds", (self.started.elapsed().as_secs_f64() * 10.0).round() / 10.0);
        self.figure("failures", self.failures.len());
        self.figure("passed", self.passed() && !self.skipped);
        println!("{}", Value::Object(self.figures));
        match (self.failures.is_empty(), self.skipped) {
            (false, _) => ExitCode::FAILURE,
            (true, true) => ExitCode::from(SKIPPED),
            (true, false) => ExitCode::SUCCESS,
        }
    }
}
