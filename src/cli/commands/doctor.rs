//! `tfdev doctor`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use crate::cli::{Session, exit};
use crate::doctor::{self, DoctorReport, Finding, LeftOver, Level, Removed};
use crate::error::{ErrorKind, Result};

/// Look at this machine, and say what is in the way and how to mend it
///
/// Docker, PostgreSQL's programs, the port, file locks, clocks, certificates, what projects that are gone have left, and
/// what was configured where. It changes nothing and needs no project. Exit status 1 if something does not work until it
/// is mended.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Remove what instances have left whose checkout is gone; lists it and asks first
    #[arg(long)]
    clean: bool,
}

pub(super) async fn run(command: &Doctor, session: &Session) -> Result<ExitCode> {
    let report = doctor::doctor(&session.settings, session.wrong.as_ref(), &session.events).await;
    if command.clean {
        return clean(&report, session).await;
    }
    session.output.result(&report, |out| write_report(&report, out))?;
    Ok(if report.problems == 0 { ExitCode::SUCCESS } else { exit::code(ErrorKind::Failed) })
}

fn write_report(report: &DoctorReport, out: &mut dyn Write) -> std::io::Result<()> {
    for finding in &report.findings {
        write_finding(finding, out)?;
    }
    if !report.configuration.is_empty() {
        writeln!(out, "\nconfigured")?;
        for one in &report.configuration {
            writeln!(out, "  {} = {}  # {}", one.key, one.value, one.origin)?;
        }
    }
    writeln!(out, "\n{} problems, {} warnings", report.problems, report.warnings)
}

fn write_finding(finding: &Finding, out: &mut dyn Write) -> std::io::Result<()> {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Warning => "warning",
        Level::Problem => "PROBLEM",
    };
    writeln!(out, "{level:<8} {:<14} {}", finding.area.word(), finding.what)?;
    if let Some(why) = &finding.why {
        writeln!(out, "{:24}why: {why}", "")?;
    }
    for mend in &finding.mend {
        writeln!(out, "{:24}mend: {mend}", "")?;
    }
    Ok(())
}

async fn clean(report: &DoctorReport, session: &Session) -> Result<ExitCode> {
    let output = &session.output;
    if !report.left_over.is_empty() {
        let listed: Vec<_> = report.left_over.iter().map(described).collect();
        output.warning(&format!("of checkouts that are gone, this is left:\n{}", listed.join("\n")));
        output.confirm("Remove all of it, data included?")?;
    }
    let removed = doctor::clean(&session.settings, &report.left_over, &session.events).await?;
    output.result(&serde_json::json!({ "removed": removed }), |out| write_removed(&removed, out))?;
    Ok(ExitCode::SUCCESS)
}

fn described(left: &LeftOver) -> String {
    let parts = left.parts.join("\n    ");
    format!("  {} of {}, made in {}\n    {parts}", left.instance, left.project, left.project_dir.display())
}

fn write_removed(removed: &[Removed], out: &mut dyn Write) -> std::io::Result<()> {
    if removed.is_empty() {
        return writeln!(out, "nothing is left over");
    }
    for one in removed {
        writeln!(out, "{} of {} is gone: {}", one.instance, one.project, one.removed.join(", "))?;
    }
    Ok(())
}
