//! Where text goes, and how it looks.

use std::io::{IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::args::Global;
use crate::config;
use crate::error::{Context, Error, ErrorKind, Result};

/// Error labels.
const RED: Style = AnsiColor::Red.on_default().bold();
/// Warnings.
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
/// Hints.
const CYAN: Style = AnsiColor::Cyan.on_default().bold();

/// Where text goes: settled once from the flags and the terminal.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line or a fact about a stream")]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
    pub(crate) terminal: bool,
    color: bool,
    assume_yes: bool,
}

impl Output {
    pub(super) fn new(global: &Global) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            terminal,
            color: terminal && !global.no_color && !config::no_color(),
            assume_yes: global.yes,
        }
    }

    /// Writes a command's result: `value` as JSON with `--json`, else what `human` writes.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<()> {
        let mut text = Vec::new();
        if self.json {
            serde_json::to_writer(&mut text, value).or_failed(|| "cannot write the result as JSON")?;
            text.push(b'\n');
        } else {
            human(&mut text).or_failed(|| "cannot write the result")?;
        }
        write_stdout(&text)
    }

    /// Writes a line to standard error.
    pub(crate) fn line(&self, label: &str, style: Style, text: &str) {
        let mut stderr = std::io::stderr().lock();
        let written = if self.color {
            writeln!(stderr, "{style}{label}{style:#} {text}")
        } else {
            writeln!(stderr, "{label} {text}")
        };
        // Nobody is left to tell if standard error is closed.
        drop(written);
    }

    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            self.line("note:", CYAN, text);
        }
    }

    pub(crate) fn warning(&self, text: &str) {
        if !self.json {
            self.line("warning:", YELLOW, text);
        }
    }

    pub(crate) fn detail(&self, text: &str) {
        if self.verbose && !self.json {
            self.line("detail:", Style::new().dimmed(), text);
        }
    }

    pub(super) fn error(&self, error: &Error) {
        if self.json {
            json_error(error);
            return;
        }
        self.line("error:", RED, error.to_string().as_str());
        for cause in error.causes() {
            self.line("  cause:", Style::new().dimmed(), &cause.replace('\n', "\n         "));
        }
        for hint in error.hints() {
            self.line("  hint:", CYAN, hint);
        }
    }

    /// Says on one line that a hook did not do its work.
    pub(super) fn failed_hook(&self, error: &Error) {
        let text = format!("the database was not switched with the branch: {error}");
        self.line("tfdev:", YELLOW, &text.replace(['\n', '\r'], " "));
    }

    /// Asks before something is removed. Without a terminal, and without `--yes`, the answer is a refusal.
    pub(crate) fn confirm(&self, question: &str) -> Result<()> {
        if self.assume_yes {
            return Ok(());
        }
        let refused = || Error::new(ErrorKind::Refused, "not confirmed, so nothing was changed");
        if self.json || !self.terminal || !std::io::stdin().is_terminal() {
            return Err(refused().hint("add `--yes` to do it without a question"));
        }
        let mut stderr = std::io::stderr().lock();
        write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).or_failed(|| "cannot ask")?;
        drop(stderr);
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).or_failed(|| "cannot read the answer")?;
        if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") { Ok(()) } else { Err(refused()) }
    }
}

/// Writes an error as one JSON object to standard error (`CLI.md` § Output).
pub(super) fn json_error(error: &Error) {
    let object = serde_json::json!({ "error": {
        "kind": error.kind(), "message": error.to_string(), "causes": error.causes(), "hints": error.hints(),
    }});
    // Nobody is left to tell if standard error is closed.
    drop(writeln!(std::io::stderr().lock(), "{object}"));
}

/// Writes to standard output. A reader that closed the pipe has seen enough.
pub(super) fn write_stdout(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.or_failed(|| "cannot write to standard output"),
    }
}
