//! `tfdev man`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};

use crate::cli::args::Arguments;
use crate::cli::output::Output;
use crate::error::{Context, Result};

/// Print the manual pages
#[derive(Debug, Args)]
pub struct Man {
    /// Write one page a command into this folder, instead of the main page to standard output
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(in crate::cli) fn run(command: &Man, output: &Output) -> Result<ExitCode> {
    let Some(folder) = &command.out else {
        let mut text = Vec::new();
        let page = clap_mangen::Man::new(Arguments::command());
        page.render(&mut text).or_failed(|| "cannot write the manual page")?;
        output.result(&serde_json::json!({ "man": String::from_utf8_lossy(&text) }), |out| out.write_all(&text))?;
        return Ok(ExitCode::SUCCESS);
    };
    let failed = || format!("cannot write the manual pages into `{}`", folder.display());
    std::fs::create_dir_all(folder).or_failed(failed)?;
    clap_mangen::generate_to(Arguments::command(), folder).or_failed(failed)?;
    let shown = folder.display().to_string();
    output
        .result(&serde_json::json!({ "folder": shown }), |out| writeln!(out, "Wrote the manual pages into {shown}"))?;
    Ok(ExitCode::SUCCESS)
}
