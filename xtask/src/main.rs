//! `cargo xtask`: one command for every check of the workspace. It only starts other programs.

mod bans;
mod stages;
mod walls;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Checks, simulations and benchmarks of Weft")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What CI runs: format, clippy, walls, tests, 20 seeds, the meta-test, the end-to-end checks.
    Test,
    /// The walls of the house: who may import whom, and what is named where.
    Walls,
    /// Simulated clusters: `--seed N` or `--seeds A..B`, and whatever `weft-sim run --help` lists.
    Sim {
        /// Passed on to weft-sim.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// One end-to-end check with real processes, for example `e2e flights --break drop`.
    E2e {
        /// Passed on to weft-e2e.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        rest: Vec<String>,
    },
    /// One benchmark on a release build, for example `bench spine`.
    Bench {
        /// Passed on to weft-bench.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        rest: Vec<String>,
    },
    /// The long versions, by hand: 500 seeds, every way to break an end-to-end check.
    Proof,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Test => stages::test(),
        Command::Walls => walls::check(),
        Command::Sim { rest } => stages::sim(&rest),
        Command::E2e { rest } => stages::e2e(&rest),
        Command::Bench { rest } => stages::bench(&rest),
        Command::Proof => stages::proof(),
    }
}
