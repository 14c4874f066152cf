//! `tfdev env`.

use clap::{Args, ValueEnum};

use crate::cli::Session;
use crate::cli::output::write_stdout;
use crate::error::{Context, Result};
use crate::server::Running;

/// Print variables for a shell: eval "$(tfdev env)"
#[derive(Debug, Args)]
pub struct Env {
    /// How the variables are written
    #[arg(long, value_enum, default_value_t = Format::Shell)]
    format: Format,
}

/// How variables are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For `eval` in sh, bash or zsh.
    Shell,
    /// For a `.env` file.
    Dotenv,
    /// One JSON object.
    Json,
}

pub(super) async fn run(command: &Env, session: &Session) -> Result<()> {
    let running = Running::find(&session.settings, &session.events).await?;
    let variables = running.server.variables(running.password_file()?.lasting());
    let object: serde_json::Map<_, _> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
    if command.format == Format::Json && !session.output.json {
        let mut text = serde_json::to_vec_pretty(&object).or_failed(|| "cannot write the variables as JSON")?;
        text.push(b'\n');
        return write_stdout(&text);
    }
    session.output.result(&object, |out| {
        for (name, value) in &variables {
            match command.format {
                Format::Shell => writeln!(out, "export {name}={}", shell_quoted(value))?,
                Format::Dotenv | Format::Json => writeln!(out, "{name}={}", dotenv_quoted(value))?,
            }
        }
        Ok(())
    })
}

fn shell_quoted(value: &str) -> String {
    // Only a NUL character cannot be quoted, and no setting may contain one.
    shlex::try_quote(value).map_or_else(|_| String::new(), std::borrow::Cow::into_owned)
}

fn dotenv_quoted(value: &str) -> String {
    if value.chars().all(|character| character.is_ascii_alphanumeric() || "-_./:@%?=&".contains(character)) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$").replace('\n', "\\n"))
}
