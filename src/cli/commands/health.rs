//! `tfdev health`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::cli::output::{Output, write_stdout};
use crate::cli::{Session, exit};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::health::{self, Check, Checks, HealthReport, Readiness};

/// Say whether the server lives and is ready
///
/// Live: it answers. Ready: fewer than 90 % of its connections are at work. Exit status 0 if all that was asked is so, 1
/// if not, 4 if there is no such instance or it is not running, 7 if there was no answer in time (5 seconds, or
/// `--timeout`).
#[derive(Debug, Args)]
pub struct Health {
    /// Ask only whether it lives
    #[arg(long, conflicts_with = "ready")]
    live: bool,
    /// Ask only whether it is ready
    #[arg(long)]
    ready: bool,
    /// Ask again and again, a line each time; with --json a document on each line
    #[arg(long)]
    watch: bool,
    /// How long to wait between two looks of --watch
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds, requires = "watch")]
    interval: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "a number of seconds is expected".to_owned())?;
    if (0.01..=86_400.0).contains(&number) { Ok(number) } else { Err("it must be from 0.01 to 86400".to_owned()) }
}

pub(super) async fn run(command: &Health, session: &Session) -> Result<ExitCode> {
    let checks = match (command.live, command.ready) {
        (true, _) => Checks::Live,
        (_, true) => Checks::Ready,
        _ => Checks::All,
    };
    let output = &session.output;
    if command.watch {
        let pause = Duration::from_secs_f64(command.interval);
        let tell = &mut |outcome| write_stdout(line(&outcome, output)?.as_bytes());
        health::watch(&session.settings, checks, pause, &session.events, tell).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = health::health(&session.settings, checks, &session.events).await?;
    output.result(&report, |out| write_report(&report, out))?;
    Ok(match (report.healthy, report.timed_out) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => exit::code(ErrorKind::TimedOut),
        (false, false) => exit::code(ErrorKind::Failed),
    })
}

fn write_report(report: &HealthReport, out: &mut dyn Write) -> std::io::Result<()> {
    for (name, check, told) in told(report) {
        writeln!(out, "{name:<8}{:<5}{told}", if check.ok { "yes" } else { "no" })?;
    }
    Ok(())
}

/// What there is to tell of each check that was made.
fn told(report: &HealthReport) -> Vec<(&'static str, &Check, String)> {
    let login = report.login_ms.map(|login| format!(", login {login:.1} ms")).unwrap_or_default();
    let latency = |check: &Check| check.latency_ms.map(|latency| format!("{latency:.1} ms")).unwrap_or_default();
    let live = report.live.iter().map(|live| {
        let answered = || format!("answered after {}{login}", latency(live));
        ("live", live, live.reason.clone().unwrap_or_else(answered))
    });
    let ready = report.ready.iter().map(|ready| {
        let counted = || format!("{}, counted in {}", counts(ready), latency(&ready.check));
        ("ready", &ready.check, ready.check.reason.clone().unwrap_or_else(counted))
    });
    live.chain(ready).collect()
}

fn counts(ready: &Readiness) -> String {
    let Some(counts) = &ready.counts else { return String::new() };
    let hidden =
        if counts.hidden > 0 { format!(", {} of others cannot be told", counts.hidden) } else { String::new() };
    format!(
        "{} connections at work (fewer than {} may be), {} of {} open{hidden}",
        counts.busy, counts.limit, counts.open, counts.max_connections
    )
}

/// One look, on one line.
fn line(outcome: &Result<HealthReport, Error>, output: &Output) -> Result<String> {
    if output.json {
        let line = match outcome {
            Ok(report) => serde_json::to_string(report),
            Err(error) => serde_json::to_string(&serde_json::json!({
                "at": jiff::Timestamp::now(), "healthy": false,
                "error": { "kind": error.kind(), "message": error.to_string(), "hints": error.hints() },
            })),
        };
        return Ok(line.or_failed(|| "cannot write the result as JSON")? + "\n");
    }
    let (at, text) = match outcome {
        Ok(report) => {
            let told = told(report);
            let parts =
                told.iter().map(|(name, check, told)| format!("{}{name}: {told}", if check.ok { "" } else { "not " }));
            (report.at, parts.collect::<Vec<_>>().join("; "))
        }
        Err(error) => (jiff::Timestamp::now(), format!("down: {error}")),
    };
    Ok(format!("{at:.3}  {text}\n"))
}
