//! `tfdev status`.

use std::io::Write;

use clap::Args;

use crate::cli::Session;
use crate::error::Result;
use crate::status::{self, StatusReport};
use crate::storage::{Purpose, Storage};

/// Show what runs, and how full it is
#[derive(Debug, Args)]
pub struct Status {}

pub(super) async fn run(_: &Status, session: &Session) -> Result<()> {
    let report = status::status(&session.settings, &session.events).await?;
    session.output.result(&report, |out| write_report(&report, out))
}

fn write_report(report: &StatusReport, out: &mut dyn Write) -> std::io::Result<()> {
    let mut row = |name: &str, value: &str| writeln!(out, "{name:<12}{value}");
    row("instance", &format!("{} of {}", report.instance, report.project))?;
    let reason = report.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    row("state", &format!("{}{reason}", report.state))?;
    row("engine", &format!("{} ({})", report.engine, report.engine_reason))?;
    if !report.limits_enforced {
        let reason = report.limits_reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        row("limits", &format!("memory and processor time are not limited by this engine{reason}"))?;
    }
    if let Some(profile) = &report.profile {
        row("profile", profile)?;
    }
    if let Some(image) = &report.parts.image {
        row("image", image)?;
    }
    if let Some(folder) = &report.parts.data_dir {
        row("data folder", &folder.display().to_string())?;
    }
    if let (Some(host), Some(port)) = (&report.host, report.port) {
        row("endpoint", &format!("{host}:{port}, database {}, role {}", report.database, report.user))?;
    }
    if let Some(migrations) = &report.migrations {
        row("migrations", &format!("{} of {} applied", migrations.applied, migrations.total))?;
    }
    if let Some(seed) = &report.seed {
        row("data set", &seed.dataset)?;
    }
    if let Some(storage) = &report.storage {
        let mebibytes = |bytes: u64| bytes >> 20;
        row("storage", &format!("{} MB of {} MB", mebibytes(storage.used_bytes), mebibytes(storage.limit_bytes)))?;
        row("", &breakdown(storage))?;
    }
    if let [.., last] = &report.snapshots[..] {
        row("snapshots", &format!("{}, the last one `{}`", report.snapshots.len(), last.name))?;
    }
    for left in &report.left_overs {
        row(
            "left over",
            &format!("{}, {} MB; the next snapshot command removes it", left.what, left.size_bytes >> 20),
        )?;
    }
    if report.leaked_bytes > 0 {
        let lost = report.leaked_bytes >> 20;
        row("lost", &format!("{lost} MB in the data folder, by a server that was killed in mid-copy"))?;
    }
    if let Some(connections) = &report.connections {
        row("connections", &format!("{} of {}", connections.used, connections.max))?;
    }
    Ok(())
}

/// What takes the storage, in a line.
fn breakdown(storage: &Storage) -> String {
    let mebibytes = |bytes: u64| bytes >> 20;
    let grown = storage.growth.as_ref().map(|growth| {
        let word = if growth.bytes < 0 { "less" } else { "more" };
        format!(" ({} MB {word} than `{}`)", mebibytes(growth.bytes.unsigned_abs()), growth.since)
    });
    let mut parts =
        vec![format!("the database {} MB{}", mebibytes(storage.of(Purpose::Project).1), grown.unwrap_or_default())];
    for (purpose, what) in
        [(Purpose::Snapshot, "snapshots"), (Purpose::Copy, "ready copies"), (Purpose::Fresh, "fresh databases")]
    {
        let (count, bytes) = storage.of(purpose);
        if count > 0 {
            parts.push(format!("{count} {what} {} MB", mebibytes(bytes)));
        }
    }
    parts.push(format!("other {} MB", mebibytes(storage.of(Purpose::Other).1)));
    if storage.wal_bytes > 0 {
        parts.push(format!("WAL {} MB", mebibytes(storage.wal_bytes)));
    }
    parts.join(", ")
}
