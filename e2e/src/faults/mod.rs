//! Odd faults, each on a cluster of real processes of its own: what must stay true, what must go on, what must be said.
//!
//! One check per file: `check` returns figures for the report's JSON line, or says what went wrong. A new check is a
//! file, a `mod` line and a row of `CHECKS`.

mod damaged_folder;
mod descriptors;
mod load;
mod old_folder;

use std::pin::Pin;

use anyhow::Result;
use serde_json::Value;

use crate::report::Report;

type Checking = Pin<Box<dyn Future<Output = Result<Value>>>>;

/// The checks, by name, in the order in which they run.
const CHECKS: &[(&str, fn() -> Checking)] = &[
    ("old-folder", || Box::pin(old_folder::check())),
    ("damaged-folder", || Box::pin(damaged_folder::check())),
    ("descriptors", || Box::pin(descriptors::check())),
];

/// Checks that run only by name: too long for every day.
const LONG: &[(&str, fn() -> Checking)] = &[("damaged-folder-all", || Box::pin(damaged_folder::check_all()))];

/// What the command line says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs only these checks.
    #[arg(long = "only", value_name = "NAME", value_parser = named())]
    only: Vec<String>,
}

fn named() -> clap::builder::PossibleValuesParser {
    CHECKS.iter().chain(LONG).map(|(name, _)| *name).collect::<Vec<_>>().into()
}

/// Runs the checks one after another; one that fails does not hold up the rest.
pub(crate) async fn run(args: Args) -> Report {
    let mut report = Report::new("faults");
    let named = |name: &str| args.only.iter().any(|only| only == name);
    let short = CHECKS.iter().filter(|(name, _)| args.only.is_empty() || named(name));
    for (name, check) in short.chain(LONG.iter().filter(|(name, _)| named(name))) {
        let began = std::time::Instant::now();
        match check().await {
            Ok(figures) => report.figure(name, figures),
            Err(error) => report.fail(format!("{name}: {error:#}")),
        }
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    }
    report
}
