//! End-to-end checks: real processes, real sockets, real disks, kill -9.
//!
//! Each check prints one JSON line at its end and exits with 1 if it failed. `--break NAME` spoils its input; a
//! check that passes then is itself broken.

mod beside;
mod drain;
mod faults;
mod flights;
mod frame;
mod full;
mod grpc;
mod python;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "End-to-end checks of Weft")]
struct Args {
    #[command(subcommand)]
    check: Check,
}

#[derive(Subcommand)]
enum Check {
    /// 336,776 events through three nodes, two of which are killed on the way.
    Flights(flights::Args),
    /// Python's gRPC client and server through three nodes, while an instance and a node are killed.
    Grpc(grpc::Args),
    /// All three nodes restarted in turn under calls and events: no error.
    Drain(drain::Args),
    /// Odd faults, one after another: old and damaged data folders, clients that take all descriptors.
    Faults(faults::Args),
    /// Disks that fill at once, one and then all: no node ends, nothing is lost, and all goes on when there is room.
    Full(full::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    // What the SDK warns of, beside what the checks say.
    let levels = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(levels).with_writer(std::io::stderr).init();
    match Args::parse().check {
        Check::Flights(args) => flights::run(args).await.print(),
        Check::Grpc(args) => grpc::run(args).await.print(),
        Check::Drain(args) => drain::run(args).await.print(),
        Check::Faults(args) => faults::run(args).await.print(),
        Check::Full(args) => full::run(args).await.print(),
    }
}
