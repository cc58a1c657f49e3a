//! `weft-sim`: runs seeds, each in a process of its own.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use weft_sim::plan::Plan;
use weft_sim::run::{Outputs, Verdict, run};

/// A run takes seconds; one that has worked for this long will not end. It says little, so its pipes do not fill.
const WORK_MAX: Duration = Duration::from_secs(120);
/// A run that has not worked at all for this long waits for what will not come. However loaded the machine is, a run
/// that can go on gets its turn.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Clock ticks per second in /proc: the same on every Linux.
const TICKS_PER_S: f64 = 100.0;

#[derive(Parser)]
#[command(about = "Simulated Weft clusters")]
struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Runs one seed, or a range of them.
    Run(RunArgs),
    /// Runs one seed twice, in separate processes, and compares the hashes of their traffic.
    Meta {
        /// Which.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[derive(clap::Args)]
struct RunArgs {
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// A range, A..B without B.
    #[arg(long, value_parser = range)]
    seeds: Option<std::ops::Range<u64>>,
    /// Seeds at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Without faults.
    #[arg(long)]
    calm: bool,
    /// Writes the history of one seed here, as JSON lines.
    #[arg(long)]
    history: Option<PathBuf>,
    /// Writes every message of one seed here, one per line.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Logs of the simulated nodes on stderr, for example `info` or `weft_node=debug`.
    #[arg(long)]
    log: Option<String>,
}

fn range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write a range as A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("`{text}`: {error}"));
    Ok(number(from)?..number(to)?)
}

fn main() -> Result<ExitCode> {
    match Args::parse().command {
        Action::Run(args) => match args.seeds.clone() {
            Some(seeds) => many(seeds, &args),
            None => one(args.seed.unwrap_or(0), &args),
        },
        Action::Meta { seed } => meta(seed),
    }
}

fn one(seed: u64, args: &RunArgs) -> Result<ExitCode> {
    eprintln!("seed {seed}: again with `cargo xtask sim --seed {seed}`");
    if let Some(filter) = &args.log {
        let filter = tracing_subscriber::EnvFilter::try_new(filter).context("--log")?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .without_time()
            .with_ansi(false)
            .init();
    }
    let plan = if args.calm { Plan::calm(seed) } else { Plan::of(seed) };
    let verdict = run(&plan, &Outputs { history: args.history.clone(), trace: args.trace.clone() })?;
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(code(&verdict))
}

fn code(verdict: &Verdict) -> ExitCode {
    if verdict.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How long a process has worked: the processor's time, which a loaded machine does not stretch.
fn cpu_time(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = |field: usize| fields.split_whitespace().nth(field)?.parse::<f64>().ok();
    Some(Duration::from_secs_f64((ticks(11)? + ticks(12)?) / TICKS_PER_S))
}

/// Runs one seed in a process of its own; returns whether it passed, and its line of JSON.
fn child(seed: u64, calm: bool) -> Result<(bool, String)> {
    let mut command = Command::new(std::env::current_exe().context("find this executable")?);
    command.args(["run", "--seed", &seed.to_string()]).stdin(Stdio::null()).stderr(Stdio::piped());
    if calm {
        command.arg("--calm");
    }
    let mut process = command.stdout(Stdio::piped()).spawn().context("start a run")?;
    let (mut worked, mut since) = (Duration::ZERO, Instant::now());
    while process.try_wait().context("wait for a run")?.is_none() {
        // It may have ended since it was looked at.
        let now = cpu_time(process.id()).unwrap_or(worked);
        if now > worked {
            (worked, since) = (now, Instant::now());
        }
        if worked > WORK_MAX || since.elapsed() > IDLE_MAX {
            process.kill().context("end a run")?;
            process.wait().context("end a run")?;
            return Ok((false, format!("no end after {worked:?} of work: the simulation loops or waits for a lock")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = process.wait_with_output().context("read a run")?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if line.is_empty() {
        return Ok((false, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok((output.status.success(), line))
}

fn many(seeds: std::ops::Range<u64>, args: &RunArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let (next, passed) = (AtomicU64::new(seeds.start), AtomicUsize::new(0));
    let failed: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match child(seed, args.calm) {
                        Ok((true, line)) => {
                            println!("{line}");
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok((false, line)) => {
                            println!("FAILED seed {seed}: again with `cargo xtask sim --seed {seed}`\n{line}");
                            failed.lock().expect("no thread panics").push(seed);
                        }
                        Err(error) => {
                            println!("FAILED seed {seed}: {error:#}");
                            failed.lock().expect("no thread panics").push(seed);
                        }
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("no thread panics");
    failed.sort_unstable();
    let seconds = started.elapsed().as_secs_f64();
    println!("sim: {} seeds passed, {} failed {failed:?} in {seconds:.1} s", passed.into_inner(), failed.len());
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn meta(seed: u64) -> Result<ExitCode> {
    let hash = || -> Result<serde_json::Value> {
        let (_, line) = child(seed, false)?;
        let verdict: serde_json::Value = serde_json::from_str(&line).with_context(|| format!("read `{line}`"))?;
        Ok(serde_json::json!([verdict["hash"], verdict["messages"], verdict["stored"]]))
    };
    let (first, second) = (hash()?, hash()?);
    println!("seed {seed}: hash, messages, stored: {first} and {second}");
    ensure!(first == second, "one seed was two runs: compare two files of --trace");
    Ok(ExitCode::SUCCESS)
}
