//! The command line: a client of the cluster (through weft-sdk), and the way to start nodes.
//!
//! Results go to stdout, everything else to stderr. Exit code 0, or 1 with one line on stderr that says why, also where
//! the command line itself is wrong; with `--json` that line is an object `{"code", "message", "retry"}`.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the command line is no simulated node")]

mod args;
mod ca;
mod call;
mod cluster;
mod completion;
mod config;
mod demo;
mod dev;
mod encode;
mod failure;
mod group;
mod input;
mod output;
mod owners;
mod publish;
mod server;
mod service;
mod shard;
mod signals;
mod start;
mod subscribe;
mod topic;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

pub use self::args::Cli;
use self::args::Command;
use self::failure::Failure;
use self::output::Output;
use self::server::Target;

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = match command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return help_or_usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::from(error).report(cli.json.is_some()),
    };
    let json = cli.json.is_some();
    let outcome = runtime.block_on(run(cli));
    // Reads of stdin cannot be cancelled; they must not hold up the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

/// Whether a machine reads what is printed.
fn wants_json() -> bool {
    std::env::args_os().any(|argument| argument == "--json")
}

/// All commands. Those that ask no node do not show `--server` in their help; given all the same, it does no harm.
fn command() -> clap::Command {
    let command = without_empty_variables(Cli::command());
    let server = command.get_arguments().find(|argument| argument.get_id() == "server").cloned();
    let hidden = server.map(|server| server.hide(true).required(false));
    ["dev", "start", "ca", "config", "shard", "completion", "version"]
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, |subcommand| subcommand.args(hidden.clone())))
}

/// A variable that is set to nothing is as good as none: the default holds.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|text| text.is_empty());
    let command = command.mut_args(|arg| {
        let unset = arg.get_env().is_some_and(empty);
        if unset { arg.env(None::<&'static str>) } else { arg }
    });
    command.mut_subcommands(without_empty_variables)
}

/// Help and version were asked for, or a bare command is answered by its help; all else is one line.
fn help_or_usage(error: &clap::Error) -> ExitCode {
    let bare = error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if error.use_stderr() && !bare {
        return Failure::usage(error).report(wants_json());
    }
    // A reader that has gone away has seen enough.
    let _ = error.print();
    if bare { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let mut output = Output::new(cli.json.is_some());
    let target = Target { servers: cli.server, namespace: cli.namespace };
    match cli.command {
        Command::Dev(dev) => dev::run(dev).await?,
        Command::Start(start) => start::run(*start).await?,
        Command::Topic(command) => topic::run(command, &target, &mut output).await?,
        Command::Group(command) => group::run(command, &target, &mut output).await?,
        Command::Publish(publish) => publish::run(*publish, &target, &mut output).await?,
        Command::Subscribe(subscribe) => subscribe::run(subscribe, &target, &mut output).await?,
        Command::Service(command) => service::run(command, &target, &mut output).await?,
        Command::Call(call) => call::run(call, &target, &mut output).await?,
        Command::Cluster(command) => cluster::run(command, &target.servers, &mut output).await?,
        Command::Ca(command) => ca::run(command, &mut output)?,
        Command::Config(command) => config::run(command, &mut output)?,
        Command::Shard(command) => shard::run(command, &mut output)?,
        Command::Completion { shell } => completion::run(shell)?,
        Command::Version => output.version()?,
    }
    output.flush()
}

#[cfg(test)]
mod tests;
