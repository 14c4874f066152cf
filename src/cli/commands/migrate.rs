//! `tfdev migrate`.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::Session;
use crate::cli::progress::seconds;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::{self, Source};
use crate::server::Running;

/// Apply migrations, list them, or begin a new one
///
/// The files follow sqlx's naming, and `sqlx migrate info` agrees with what tfdev did.
#[derive(Debug, Args)]
pub struct Migrate {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Apply what is pending (the default)
    Run {
        /// Refuse migrations that are older than one already applied
        #[arg(long)]
        strict: bool,
    },
    /// List the migrations and their states
    Status,
    /// Write an empty migration
    New {
        /// What it does, such as "add teams"
        name: String,
    },
}

pub(super) async fn run(command: Migrate, session: &Session) -> Result<()> {
    match command.action.unwrap_or(Action::Run { strict: false }) {
        Action::Run { strict } => apply(strict, session).await,
        Action::Status => status(session).await,
        Action::New { name } => new(&name, session),
    }
}

async fn apply(strict: bool, session: &Session) -> Result<()> {
    let source = Source::of(&session.settings)?;
    let running = Running::find(&session.settings, &session.events).await?;
    let timeout = Duration::from_secs(session.settings.timeout_seconds.value);
    let connection = running.connect(timeout).await?;
    crate::provision::close(connection).await;
    let options = migrate::Options { strict, lock_timeout: timeout };
    let outcome = migrate::run(&running.server.login(), &source, &options, &session.events).await?;
    session.output.result(&outcome, |out| {
        for migration in &outcome.applied_now {
            writeln!(out, "applied {} {}", migration.version, migration.description)?;
        }
        writeln!(out, "{} of {} applied, in {}", outcome.applied, outcome.total, seconds(outcome.elapsed))
    })
}

async fn status(session: &Session) -> Result<()> {
    let source = Source::of(&session.settings)?;
    let running = Running::find(&session.settings, &session.events).await?;
    let timeout = Duration::from_secs(session.settings.timeout_seconds.value);
    let mut connection = running.connect(timeout).await?;
    let status = migrate::status(&mut connection, &source).await?;
    crate::provision::close(connection).await;
    session.output.result(&status, |out| {
        for row in &status.rows {
            writeln!(out, "{:<14} {:<40} {}", row.version, row.description, row.state)?;
        }
        writeln!(out, "{} of {} applied", status.applied, status.total)
    })
}

fn new(name: &str, session: &Session) -> Result<()> {
    let Some(folder) = &session.settings.migrations_dir else {
        return Err(Error::new(ErrorKind::BadInput, "this project has no migrations of its own yet")
            .hint("set `dir = \"migrations\"` in the section `[migrations]` of tfdev.toml (`tfdev init` writes one)"));
    };
    let path = migrate::new_file(&folder.value, name, jiff::Timestamp::now())?;
    let shown = path.display().to_string();
    session.output.result(&serde_json::json!({ "file": shown }), |out| writeln!(out, "{shown}"))
}
