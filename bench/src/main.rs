//! Load generators. Each figure is one line of JSON, so that two runs can be compared by a program.

mod calls;
mod figure;
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
    /// An echo called directly, through one node, through two, and through nginx and HAProxy where they are installed.
    Calls(calls::Args),
    /// The echo that `calls` starts.
    #[command(hide = true)]
    Echo,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Args::parse().bench {
        Bench::Spine(args) => spine::run(args).await,
        Bench::Calls(args) => calls::run(args).await,
        Bench::Echo => calls::echo::serve().await,
    }
}
