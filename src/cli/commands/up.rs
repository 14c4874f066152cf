//! `tfdev up`.

use std::io::Write;

use clap::Args;

use crate::cli::Session;
use crate::cli::progress::seconds;
use crate::error::Result;
use crate::up::{self, UpReport};

/// Start the database, migrate it, seed it if it is empty, and say how to connect
///
/// Gets the image if it is missing, makes the container and its volume, waits for a real login, applies the migrations
/// and loads the data set into an empty database. Running it again changes nothing and takes a blink.
#[derive(Debug, Args)]
pub struct Up {
    /// The server's image [default: postgres:15-alpine, else the offline image]
    #[arg(long, value_name = "IMAGE", env = "TFDEV_IMAGE", hide_env = true)]
    image: Option<String>,
    /// The port on this machine: a number, or `auto` for 5432 or else a free one that is kept
    #[arg(long, value_name = "PORT", env = "TFDEV_PORT", hide_env = true)]
    port: Option<String>,
    /// What an empty database is filled with: small, demo, load, none, or a file under seeds/ [default: demo]
    #[arg(long, value_name = "NAME", env = "TFDEV_DATASET", hide_env = true)]
    dataset: Option<String>,
}

pub(super) async fn run(_: &Up, session: &Session) -> Result<()> {
    let report = up::up(&session.settings, &session.events).await?;
    session.output.result(&report, |out| write_report(&report, out))
}

fn write_report(report: &UpReport, out: &mut dyn Write) -> std::io::Result<()> {
    let elapsed = seconds(std::time::Duration::from_millis(report.elapsed_ms));
    let verb = if report.created {
        "created and running"
    } else if report.started {
        "started"
    } else if report.changes.is_empty() {
        "running"
    } else {
        "running with new settings"
    };
    writeln!(out, "{} is {verb} ({}, profile {}) after {elapsed}", report.instance, report.engine, report.profile)?;
    writeln!(out)?;
    writeln!(out, "  url         {}", report.url)?;
    let parts = &report.parts;
    if let (Some(container), Some(image)) = (&parts.container, &parts.image) {
        writeln!(out, "  container   {container} from {image}")?;
    }
    if let Some(volume) = &parts.volume {
        writeln!(out, "  volume      {volume}")?;
    }
    if let Some(folder) = &parts.data_dir {
        writeln!(out, "  data folder {}", folder.display())?;
    }
    if let Some(registry) = &parts.registry {
        writeln!(out, "  registry    database {registry}")?;
    }
    for (index, change) in report.changes.iter().enumerate() {
        writeln!(out, "  {:<12}{change}", if index == 0 { "settings" } else { "" })?;
    }
    writeln!(out, "  migrations  {} of {} applied", report.migrations.applied, report.migrations.total)?;
    if let Some(seed) = &report.seed {
        let what = if seed.applied { "loaded now" } else { "not loaded: the database has rows" };
        match (seed.users, seed.tasks) {
            (0, 0) => writeln!(out, "  data set    {} ({what})", seed.dataset)?,
            (users, tasks) => {
                writeln!(out, "  data set    {}: {users} users, {tasks} tasks ({what})", seed.dataset)?;
            }
        }
    }
    writeln!(out)?;
    let end = if parts.registry.is_some() { "destroy` drops what it made" } else { "down` stops it" };
    writeln!(out, "Next: `tfdev psql`, or `eval \"$(tfdev env)\"` for DATABASE_URL; `tfdev {end}")
}
