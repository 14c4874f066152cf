//! `tfdev completions`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::args::Arguments;
use crate::cli::output::Output;
use crate::error::Result;

/// Print shell completion
///
/// bash: tfdev completions bash > ~/.local/share/bash-completion/completions/tfdev
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

pub(in crate::cli) fn run(command: &Completions, output: &Output) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(command.shell, &mut Arguments::command(), "tfdev", &mut text);
    let object = serde_json::json!({ "completions": String::from_utf8_lossy(&text) });
    output.result(&object, |out| out.write_all(&text))?;
    Ok(ExitCode::SUCCESS)
}
