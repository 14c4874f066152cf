//! `tfdev completions`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::args::Arguments;
use crate::cli::output::write_stdout;
use crate::error::Result;

/// Print shell completion
///
/// bash: tfdev completions bash > ~/.local/share/bash-completion/completions/tfdev
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

pub(in crate::cli) fn run(command: &Completions) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(command.shell, &mut Arguments::command(), "tfdev", &mut text);
    write_stdout(&text)?;
    Ok(ExitCode::SUCCESS)
}
