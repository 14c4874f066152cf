//! `tfdev logs`.

use std::io::Write;

use clap::Args;

use crate::cli::Session;
use crate::cli::output::write_stdout;
use crate::engine;
use crate::error::{Context, Result};
use crate::instance::Instance;
use crate::server_log::{self, Entry, Errors, Kind, Slow, Statements};

/// Show the server's log
///
/// As it is; or what is in it: with --slow, --errors or --statements each group of entries on a line, the ones that matter
/// most first. With --follow these are shown one by one, as they come, and --json writes a document for each.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on showing what is logged
    #[arg(long, short)]
    follow: bool,
    /// Begin with the last N lines
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u32>,
    /// Statements that took longer than log_min_duration_statement, by the time they took together
    #[arg(long, group = "view")]
    slow: bool,
    /// Errors, by how many there were
    #[arg(long, group = "view")]
    errors: bool,
    /// Statements that were logged, by how many there were
    #[arg(long, group = "view")]
    statements: bool,
}

pub(super) async fn run(command: &Logs, session: &Session) -> Result<()> {
    let entries = command.slow || command.errors || command.statements || (command.follow && session.output.json);
    match (entries, command.follow) {
        (false, _) => show(command, session).await,
        (true, true) => follow(command, session).await,
        (true, false) => report(command, session).await,
    }
}

/// The log as it is.
async fn show(command: &Logs, session: &Session) -> Result<()> {
    let instance = Instance::of(&session.settings);
    let engine = engine::choose(&session.settings, &instance, &session.events).await?.engine;
    let output = &session.output;
    if !output.json {
        return engine.logs(command.tail, command.follow, &mut |bytes| write_stdout(bytes)).await;
    }
    let mut log = Vec::new();
    engine
        .logs(command.tail, false, &mut |bytes| {
            log.extend_from_slice(bytes);
            Ok(())
        })
        .await?;
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<_> = text.lines().collect();
    output.result(&serde_json::json!({ "lines": lines }), |_| Ok(()))
}

/// Entries one by one.
async fn follow(command: &Logs, session: &Session) -> Result<()> {
    let json = session.output.json;
    let wanted = |entry: &Entry| match (command.slow, command.errors, command.statements) {
        (true, ..) => entry.kind == Kind::Duration,
        (_, true, _) => entry.kind == Kind::Error,
        (.., true) => entry.kind == Kind::Statement,
        _ => true,
    };
    let show = &mut |entry: Entry| {
        if !wanted(&entry) {
            return Ok(());
        }
        let text = if json {
            serde_json::to_string(&entry).or_failed(|| "cannot write an entry as JSON")?
        } else {
            line(&entry)
        };
        write_stdout((text + "\n").as_bytes())
    };
    server_log::read(&session.settings, command.tail, true, &session.events, show).await
}

fn line(entry: &Entry) -> String {
    let at = entry.at.as_deref().unwrap_or_default();
    let statement = entry.statement.as_deref().map(one_line).unwrap_or_default();
    match entry.kind {
        Kind::Duration => format!("{at}  {:>9.1} ms  {statement}", entry.duration_ms.unwrap_or_default()),
        Kind::Statement => format!("{at}  {statement}"),
        _ if statement.is_empty() => format!("{at}  {}", one_line(&entry.message)),
        _ => format!("{at}  {}: {statement}", one_line(&entry.message)),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Groups of entries.
async fn report(command: &Logs, session: &Session) -> Result<()> {
    let (mut slow, mut errors, mut statements) = (Slow::default(), Errors::default(), Statements::default());
    let take = &mut |entry: Entry| {
        match (command.slow, command.errors) {
            (true, _) => slow.add(&entry),
            (_, true) => errors.add(&entry),
            _ => statements.add(&entry),
        }
        Ok(())
    };
    server_log::read(&session.settings, command.tail, false, &session.events, take).await?;
    let output = &session.output;
    match (command.slow, command.errors) {
        (true, _) => {
            let slow = slow.ranked();
            output.result(&slow, |out| write_slow(&slow, out))
        }
        (_, true) => {
            let errors = errors.ranked();
            output.result(&errors, |out| write_errors(&errors, out))
        }
        _ => {
            let statements = statements.ranked();
            output.result(&statements, |out| write_statements(&statements, out))
        }
    }
}

fn write_slow(slow: &Slow, out: &mut dyn Write) -> std::io::Result<()> {
    if slow.groups.is_empty() {
        return writeln!(out, "no slow statement is in the log");
    }
    writeln!(out, "{:>11} {:>6} {:>11} {:>11}  statement", "total ms", "count", "mean ms", "max ms")?;
    for group in &slow.groups {
        let (total, mean, max) = (group.total_ms, group.mean_ms, group.max_ms);
        writeln!(out, "{total:>11.1} {:>6} {mean:>11.1} {max:>11.1}  {}", group.count, group.statement)?;
    }
    Ok(())
}

fn write_errors(errors: &Errors, out: &mut dyn Write) -> std::io::Result<()> {
    if errors.groups.is_empty() {
        return writeln!(out, "no error is in the log");
    }
    for group in &errors.groups {
        writeln!(out, "{:>6}  {}", group.count, one_line(&group.message))?;
        let more = [
            ("last", &group.last_at),
            ("statement", &group.statement),
            ("detail", &group.detail),
            ("hint", &group.hint),
        ];
        for (name, text) in more {
            if let Some(text) = text {
                writeln!(out, "        {name}: {}", one_line(text))?;
            }
        }
    }
    Ok(())
}

fn write_statements(statements: &Statements, out: &mut dyn Write) -> std::io::Result<()> {
    if statements.groups.is_empty() {
        return writeln!(out, "no statement is in the log; `log_statement` of the profile says which are written");
    }
    let commands = statements.commands.iter().map(|(command, count)| format!("{command} {count}"));
    writeln!(out, "{} statements: {}", statements.total, commands.collect::<Vec<_>>().join(", "))?;
    for group in &statements.groups {
        writeln!(out, "{:>6}  {}", group.count, group.statement)?;
    }
    Ok(())
}
