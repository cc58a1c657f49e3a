//! `weft completion`: the shell's completion script.

use std::io::{self, Write};

use super::failure::Failure;

pub(crate) fn run(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "weft", &mut script);
    Ok(io::stdout().write_all(&script)?)
}
