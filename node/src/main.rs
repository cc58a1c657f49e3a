//! The binary `weft`: arguments to configuration to `run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_node::cli::main()
}
