//! Load generators. Each figure is one line of JSON, so that two runs can be compared by a program.

mod process;
mod spine;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Benchmarks of Weft")]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Three nodes on this machine: publish, consume, idle and kill.
    Spine(spine::Args),
}

#[tokio::main]
async fn main() -> Result<()> {
    match Args::parse().bench {
        Bench::Spine(args) => spine::run(args).await,
    }
}
