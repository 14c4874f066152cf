//! Schema migrations: sqlx's table, lock, names and checksums, with care of our own around them.
//!
//! What must hold:
//! - `sqlx migrate info` and an application's own `Migrator` agree with what was done here, and the other way round.
//! - Each migration is applied once, however many run at the same time: all of them, sqlx's own included, share one
//!   advisory lock. It is polled, because a session that waits inside the server for it holds a snapshot, and
//!   `CREATE INDEX CONCURRENTLY` in the session that has the lock would wait for that: a deadlock.
//! - The lock cannot outlive a run: it lives in a connection of the run's own, which is closed at its end. If the run is
//!   dropped in the middle the server notices within half a second and undoes what was not committed.
//! - A migration and the note that it was applied are one transaction, so nothing is ever half applied, except for
//!   `-- no-transaction` files, whose failure names what is left.

mod failure;
mod lock;
mod new_file;
mod source;
mod state;

use std::time::{Duration, Instant};

use sqlx::migrate::Migrate;
use sqlx::{Connection, PgConnection};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::pg::{Login, connect};

pub use new_file::new_file;
pub use source::{Source, fingerprint};
pub use state::{MigrationRow, MigrationState, MigrationStatus};

/// The table that sqlx notes applied migrations in.
const TABLE: &str = "_sqlx_migrations";

/// How long the login of a run may take; whoever calls has waited for the server before.
const LOGIN_LIMIT: Duration = Duration::from_secs(30);

/// How often the server looks whether we are still there while a statement runs, as it writes it.
const CLIENT_CHECK: &str = "500ms";

/// The line that keeps git from changing line endings.
const GIT_ATTRIBUTES: &str = "*.sql text eol=lf";

/// How to run migrations.
#[derive(Debug, Clone)]
pub struct Options {
    /// Refuse a pending migration that is older than one that was applied, instead of applying it with a warning.
    pub strict: bool,
    /// How long to wait while someone else migrates the same database.
    pub lock_timeout: Duration,
}

impl Default for Options {
    /// Not strict, and one minute for the lock.
    fn default() -> Self {
        Self { strict: false, lock_timeout: Duration::from_mins(1) }
    }
}

/// A migration that a run applied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AppliedNow {
    /// Its version.
    pub version: i64,
    /// Its description: the words of the file's name.
    pub description: String,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a run did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct MigrateOutcome {
    /// The migrations that this run applied, in order.
    pub applied_now: Vec<AppliedNow>,
    /// How many of the source's migrations the database has now.
    pub applied: usize,
    /// How many migrations the source has.
    pub total: usize,
    /// How long it took, login included.
    pub elapsed: Duration,
}

/// Applies what is pending of `source` to the database of `login`, on a connection of its own.
///
/// Dropping the future is safe at any moment. When nothing is pending it takes a login and two short queries, and no lock.
pub async fn run(login: &Login, source: &Source, options: &Options, events: &Events) -> Result<MigrateOutcome> {
    let began = Instant::now();
    let mut connection = connect(login, began + LOGIN_LIMIT).await.map_err(|error| error.into_error(login))?;
    let result = run_on(&mut connection, login, source, options, events).await;
    // Closed also after a failure: the server lets go of the lock with the session. An error here has nothing to add.
    let _ = connection.close().await;
    let applied_now = result?;
    Ok(MigrateOutcome { applied_now, applied: source.len(), total: source.len(), elapsed: began.elapsed() })
}

/// As [`run`], and makes no login if nothing is pending, which it finds out on `connection`.
pub async fn run_if_pending(
    connection: &mut PgConnection,
    login: &Login,
    source: &Source,
    options: &Options,
    events: &Events,
) -> Result<MigrateOutcome> {
    let began = Instant::now();
    let rows = current(connection, source, options).await?;
    if is_pending(&rows) {
        return run(login, source, options, events).await;
    }
    warn_of_line_endings(source, &rows, events);
    let total = source.len();
    Ok(MigrateOutcome { applied_now: Vec::new(), applied: total, total, elapsed: began.elapsed() })
}

/// Compares `source` with what the database of `connection` has. Changes nothing and takes no lock.
pub async fn status(connection: &mut PgConnection, source: &Source) -> Result<MigrationStatus> {
    let applied = state::applied(connection).await?;
    Ok(MigrationStatus::new(state::compare(source, applied.as_deref().unwrap_or_default())))
}

async fn run_on(
    connection: &mut PgConnection,
    login: &Login,
    source: &Source,
    options: &Options,
    events: &Events,
) -> Result<Vec<AppliedNow>> {
    let rows = current(connection, source, options).await?;
    if !is_pending(&rows) {
        warn_of_line_endings(source, &rows, events);
        return Ok(Vec::new());
    }
    lock::acquire(connection, &login.database, options.lock_timeout, events).await?;
    // Someone else may have applied some or all while we waited.
    if state::applied(connection).await?.is_none() {
        create_table(connection, login).await?;
    }
    let rows = current(connection, source, options).await?;
    warn_of_line_endings(source, &rows, events);
    warn_of_order(&rows, events);
    apply(connection, source, &rows, events).await
}

fn is_pending(rows: &[MigrationRow]) -> bool {
    rows.iter().any(|row| row.state == MigrationState::Pending)
}

/// Compares the source with the database and refuses what must not be built on.
async fn current(connection: &mut PgConnection, source: &Source, options: &Options) -> Result<Vec<MigrationRow>> {
    let applied = state::applied(connection).await?.unwrap_or_default();
    let rows = state::compare(source, &applied);
    refuse(source, &rows)?;
    if options.strict {
        refuse_out_of_order(source, &rows)?;
    }
    Ok(rows)
}

async fn create_table(connection: &mut PgConnection, login: &Login) -> Result<()> {
    connection.ensure_migrations_table(TABLE).await.map_err(|error| {
        Error::failed(format!("cannot create the table `{TABLE}` in the database `{}`", login.database))
            .hint(format!(
                "the role `{}` must own the database, or have CREATE on its schema: `GRANT CREATE ON SCHEMA public TO …`",
                login.user
            ))
            .caused_by(error)
    })
}

async fn apply(
    connection: &mut PgConnection,
    source: &Source,
    rows: &[MigrationRow],
    events: &Events,
) -> Result<Vec<AppliedNow>> {
    let mut done = Vec::new();
    for row in rows.iter().filter(|row| row.state == MigrationState::Pending) {
        let file = source.find(row.version).expect("what is pending is in the source");
        events.detail(format!("applying the migration {}", file.place));
        match connection.apply(TABLE, &file.migration).await {
            Ok(elapsed) => {
                done.push(AppliedNow { version: row.version, description: row.description.clone(), elapsed });
            }
            Err(error) => return Err(failure::describe(connection, file, error, &done).await),
        }
        if file.migration.no_tx {
            // `CREATE INDEX CONCURRENTLY IF NOT EXISTS` is content with an invalid one.
            for index in failure::invalid_indexes(connection).await {
                events.warning(format!("after the migration {}: {index}, and create it again", file.place));
            }
        }
    }
    Ok(done)
}

/// Refuses a database that does not match the source.
fn refuse(source: &Source, rows: &[MigrationRow]) -> Result<()> {
    for row in rows {
        let file = source.find(row.version);
        match (row.state, file) {
            (MigrationState::Failed, _) => {
                return Err(Error::bad_input(format!(
                    "the migration {} is noted as failed in `{TABLE}`, so part of it may be in the database",
                    row.name()
                ))
                .hint(format!(
                    "undo what it left, then run `tfdev psql -- -c 'DELETE FROM {TABLE} WHERE version = {}'`",
                    row.version
                ))
                .hint("or start afresh: `tfdev destroy`, then `tfdev up`"));
            }
            (MigrationState::Missing, _) => {
                return Err(Error::bad_input(format!(
                    "the migration {} was applied to this database, but is not in {}",
                    row.name(),
                    source.place()
                ))
                .hint("get the file back: it may be on another branch, or not pulled yet")
                .hint("if it was dropped on purpose, start afresh: `tfdev destroy`, then `tfdev up`"));
            }
            (MigrationState::Changed, Some(file)) => {
                return Err(Error::bad_input(format!(
                    "the migration {} was changed after it was applied (version {})",
                    file.place, row.version
                ))
                .hint("restore the file as it was applied (`git log -p` shows its changes), and put the change into a new one: `tfdev migrate new NAME`")
                .hint("if this database holds nothing of worth, start afresh: `tfdev destroy`, then `tfdev up`"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The pending migrations that are older than the newest applied one, and that one's version.
fn out_of_order(rows: &[MigrationRow]) -> (Vec<&MigrationRow>, i64) {
    let newest = rows.iter().filter(|row| row.state.is_applied()).map(|row| row.version).max().unwrap_or(0);
    (rows.iter().filter(|row| row.state == MigrationState::Pending && row.version < newest).collect(), newest)
}

fn refuse_out_of_order(source: &Source, rows: &[MigrationRow]) -> Result<()> {
    let (late, newest) = out_of_order(rows);
    let Some(file) = late.first().and_then(|row| source.find(row.version)) else { return Ok(()) };
    Err(Error::new(
        ErrorKind::Refused,
        format!("the migration {} is older than {newest}, which was applied already", file.place),
    )
    .hint("rename the file to a version later than that, or run without the strict mode"))
}

fn warn_of_order(rows: &[MigrationRow], events: &Events) {
    let (late, newest) = out_of_order(rows);
    for row in late {
        events.warning(format!(
            "the migration {} is older than {newest}, which was applied already; databases made anew get them in the \
             other order",
            row.name()
        ));
    }
}

fn warn_of_line_endings(source: &Source, rows: &[MigrationRow], events: &Events) {
    let changed = rows.iter().filter(|row| row.state == MigrationState::LineEndings);
    for file in changed.filter_map(|row| source.find(row.version)) {
        events.warning(format!(
            "the migration {} has other line endings than when it was applied, which changes its checksum; tfdev \
             accepts it, sqlx will not: put `{GIT_ATTRIBUTES}` into `.gitattributes` and check the file out again",
            file.place
        ));
    }
}

/// Adds what was being done to an error of a query of our own.
fn while_reading<T>(result: sqlx::Result<T>) -> Result<T> {
    result.or_failed(|| format!("cannot read the applied migrations from `{TABLE}`"))
}

#[cfg(test)]
mod tests;
