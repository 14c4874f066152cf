//! `tfdev verify`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::cli::{Session, exit};
use crate::error::{Context, ErrorKind, Result};
use crate::verify::{self, Outcome, Row, VerifyReport, junit};

/// Prove on the running server what the source document promises
///
/// Every row of the document: what it asks, what the server has, and how that was proven. Features are proven by using
/// them; nothing is left behind. Exit status 1 if a row fails. What this engine or profile cannot have, and what is not
/// set up, is told and counts as neither. With --profile NAME the rows are those of that profile.
#[derive(Debug, Args)]
pub struct Verify {
    /// Write the rows as test cases of JUnit's XML, too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

pub(super) async fn run(command: &Verify, session: &Session) -> Result<ExitCode> {
    let report = verify::verify(&session.settings, &session.events).await?;
    if let Some(file) = &command.junit {
        std::fs::write(file, junit::xml(&report))
            .context(ErrorKind::Failed, || format!("cannot write `{}`", file.display()))
            .map_err(|error| error.hint("name a file in a folder that you may write to"))?;
    }
    session.output.result(&report, |out| write_report(&report, out))?;
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { exit::code(ErrorKind::Failed) })
}

fn write_report(report: &VerifyReport, out: &mut dyn Write) -> std::io::Result<()> {
    let width =
        |text: fn(&Row) -> &str| report.rows.iter().map(|row| text(row).chars().count()).max().unwrap_or_default();
    let (names, asked) = (width(|row| &row.name), width(|row| &row.asks));
    let mut section = None;
    for row in &report.rows {
        if section != Some(row.section) {
            writeln!(out, "{}{}", if section.is_some() { "\n" } else { "" }, row.section.heading())?;
            section = Some(row.section);
        }
        let proof = if row.proof.is_empty() { String::new() } else { format!("  [{}]", row.proof) };
        let line =
            format!("  {:<4}  {:<names$}  {:<asked$}  {}{proof}", word(row.outcome), row.name, row.asks, row.has);
        writeln!(out, "{}", line.trim_end())?;
        if let Some(because) = &row.because {
            writeln!(out, "        {because}")?;
        }
    }
    writeln!(
        out,
        "\n{} of {} with the profile {}: {} pass, {} fail, {} not applicable, {} not set up, in {} ms",
        report.instance,
        report.project,
        report.profile,
        report.passed,
        report.failed,
        report.not_applicable,
        report.not_set_up,
        report.elapsed_ms
    )
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::NotApplicable => "n/a",
        Outcome::NotSetUp => "none",
    }
}
