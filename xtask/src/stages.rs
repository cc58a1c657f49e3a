//! The stages of `cargo xtask test`, and the commands that share them.
//!
//! Executables are built with `--workspace`, so that every command shares one set of features and artifacts,
//! and are then started from the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::walls;

/// Seeds that CI runs.
const SEEDS_CI: &str = "0..20";
/// Seeds that `proof` runs.
const SEEDS_PROOF: &str = "0..500";
/// The end-to-end checks, each with the ways to break it; each of those must make it fail.
const CHECKS: [(&str, &[&str]); 5] = [
    ("flights", &["drop", "swap", "duplicate"]),
    ("grpc", &["twice", "metadata", "data"]),
    ("drain", &["abrupt"]),
    ("full", &["stay"]),
    ("faults", &[]),
];

/// What CI runs, stage by stage; stops at the first that fails.
pub(crate) fn test() -> Result<()> {
    let mut report = Report::default();
    report.stage("fmt", || cargo(&["fmt", "--all", "--check"]))?;
    report.stage("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    report.stage("walls", walls::check)?;
    report.stage("build", || cargo(&["build", "--workspace", "--all-targets"]))?;
    report.stage("test", || cargo(&["test", "--workspace"]))?;
    report.stage("sim seeds", || run_built("weft-sim", "debug", &["run", "--seeds", SEEDS_CI]))?;
    report.stage("sim meta", || run_built("weft-sim", "debug", &["meta", "--seed", "1"]))?;
    for (check, _) in CHECKS {
        report.check(&format!("e2e {check}"), || run_check(check, &[]))?;
    }
    report.print("test");
    Ok(())
}

/// The long versions of the checks.
pub(crate) fn proof() -> Result<()> {
    let mut report = Report::default();
    report.stage("build", build_bins)?;
    report.stage("sim seeds", || run_built("weft-sim", "debug", &["run", "--seeds", SEEDS_PROOF]))?;
    report.stage("sim meta", || run_built("weft-sim", "debug", &["meta", "--seed", "7"]))?;
    for (check, breaks) in CHECKS {
        report.check(&format!("e2e {check}"), || run_check(check, &[]))?;
        for name in breaks {
            report.check(&format!("e2e {check} --break {name}"), || match run_check(check, &["--break", name]) {
                Ok(Ended::Passed) => bail!("the check passed although its input was broken"),
                Ok(Ended::Skipped) => Ok(Ended::Skipped),
                Err(_) => Ok(Ended::Passed),
            })?;
        }
    }
    report
        .stage("e2e damaged folders", || run_built("weft-e2e", "debug", &["faults", "--only", "damaged-folder-all"]))?;
    report.print("proof");
    Ok(())
}

/// `weft-sim run` with `rest`.
pub(crate) fn sim(rest: &[String]) -> Result<()> {
    build_bins()?;
    let mut args = vec!["run"];
    args.extend(rest.iter().map(String::as_str));
    run_built("weft-sim", "debug", &args)
}

/// `weft-e2e` with `rest`.
pub(crate) fn e2e(rest: &[String]) -> Result<()> {
    build_bins()?;
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let (check, rest) = rest.split_first().context("name a check")?;
    run_check(check, rest).map(drop)
}

/// `weft-bench` with `rest`, on a release build.
pub(crate) fn bench(rest: &[String]) -> Result<()> {
    // Only what is measured: a release build of everything takes many minutes.
    cargo(&["build", "--release", "--bins", "--package", "weft-node", "--package", "weft-bench"])?;
    run_built("weft-bench", "release", &rest.iter().map(String::as_str).collect::<Vec<_>>())
}

fn build_bins() -> Result<()> {
    cargo(&["build", "--quiet", "--workspace", "--bins"])
}

fn run_built(name: &str, profile: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(target_folder().join(profile).join(name));
    run(command.args(args).current_dir(root()))
}

fn cargo(args: &[&str]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    if std::env::var_os("CI").is_some_and(|value| !value.is_empty()) {
        command.env("CARGO_INCREMENTAL", "0").env("CARGO_BUILD_JOBS", "2");
    }
    run(&mut command)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} {:?} ended with {status}", command.get_program(), command.get_args().collect::<Vec<_>>());
    }
    Ok(())
}

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// The exit code of a check that could not run on this machine.
const SKIPPED: i32 = 77;

/// How a stage that has not failed ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Passed,
    /// It could not run here, and has said why.
    Skipped,
}

/// `weft-e2e` with one check.
fn run_check(check: &str, rest: &[&str]) -> Result<Ended> {
    let mut command = Command::new(target_folder().join("debug").join("weft-e2e"));
    let status = command.arg(check).args(rest).current_dir(root()).status().context("start weft-e2e")?;
    match status.code() {
        Some(0) => Ok(Ended::Passed),
        Some(SKIPPED) => Ok(Ended::Skipped),
        _ => bail!("weft-e2e {check} {rest:?} ended with {status}"),
    }
}

/// Seconds per stage, printed as each ends and once more at the end.
#[derive(Default)]
struct Report {
    stages: Vec<(String, f64, Ended)>,
}

impl Report {
    fn stage(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.check(name, || work().map(|()| Ended::Passed))
    }

    /// A stage that this machine may not be able to run.
    fn check(&mut self, name: &str, work: impl FnOnce() -> Result<Ended>) -> Result<()> {
        println!("== {name}");
        let started = Instant::now();
        let result = work();
        let seconds = started.elapsed().as_secs_f64();
        let word = match &result {
            Ok(Ended::Passed) => "passed",
            Ok(Ended::Skipped) => "SKIPPED",
            Err(_) => "FAILED",
        };
        println!("== {name}: {word} in {seconds:.1} s");
        let ended = result.with_context(|| format!("stage {name}"))?;
        self.stages.push((name.to_owned(), seconds, ended));
        Ok(())
    }

    fn print(&self, what: &str) {
        println!("{}", self.summary(what));
    }

    /// One line: how many passed, how many could not run and which, and how long each took.
    fn summary(&self, what: &str) -> String {
        let total: f64 = self.stages.iter().map(|(_, seconds, _)| seconds).sum();
        let each: Vec<String> = self.stages.iter().map(|(name, seconds, _)| format!("{name} {seconds:.1} s")).collect();
        let skipped: Vec<&str> =
            self.stages.iter().filter(|(.., ended)| *ended == Ended::Skipped).map(|(name, ..)| name.as_str()).collect();
        let passed = self.stages.len() - skipped.len();
        let names = if skipped.is_empty() { String::new() } else { format!(" ({})", skipped.join(", ")) };
        let skipped = skipped.len();
        format!("{what}: {passed} stages passed, {skipped} skipped{names}, in {total:.1} s ({})", each.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_skipped_is_not_called_passed() {
        let mut report = Report::default();
        report.stage("fmt", || Ok(())).expect("it passes");
        report.check("e2e grpc", || Ok(Ended::Skipped)).expect("it is skipped");
        let summary = report.summary("test");
        assert!(summary.starts_with("test: 1 stages passed, 1 skipped (e2e grpc), in "), "{summary}");
        assert!(report.check("e2e full", || bail!("no")).is_err());
    }
}
