//! Applies a data set to a database.
//!
//! What must hold: all in one transaction, so that a kill at any instruction leaves the database as it was; whoever seeds
//! holds an advisory lock to the end of its transaction, and looks whether there are rows only after it got the lock.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{Acquire as _, AssertSqlSafe};

use super::blocks::{BLOCK_ROWS, Blocks, THREADS, Table};
use super::copy_format::{COPY_TASKS, COPY_USERS, HEADER, TRAILER};
use super::dataset::{Content, DataSet};
use super::plan::Plan;
use super::rows::Rows;
use super::run_script;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::event::{Event, Events, Progress, Unit};

/// The advisory lock that keeps seeders of one database apart.
const SEED_LOCK: i64 = i64::from_be_bytes(*b"tfd-seed");
/// How long a seeder that waits for another one pauses between two looks. It polls, because a statement that waits would
/// hold a snapshot, for which `CREATE INDEX CONCURRENTLY` elsewhere would wait in turn.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Keeps the trigger on `tasks` from telling listeners of each row, to the end of the transaction.
pub(super) const SILENCE: &str = "SET LOCAL taskflow.silent = 'on'";

/// What to do about rows that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Leave everything as it is, without an error: what `up` does.
    OnlyIfEmpty,
    /// Refuse, and say how to append or replace: what `seed` does.
    RefuseIfNotEmpty,
    /// Add to them. Generated users continue the sequence after the highest number in use.
    Append,
    /// Delete them first, in the same transaction.
    Replace,
}

/// What applying a data set did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SeedOutcome {
    /// The data set's name.
    pub dataset: String,
    /// Users of the data set; 0 for SQL files.
    pub users: u64,
    /// Tasks of the data set; 0 for SQL files.
    pub tasks: u64,
    /// Rows that were added; 0 if it was not applied.
    pub rows: u64,
    /// Whether rows were added now.
    pub applied: bool,
    /// How long it took, with locking and `ANALYZE`.
    pub elapsed: Duration,
    /// `rows` by `elapsed`.
    pub rows_per_second: f64,
}

/// Fills the database of `connection` with `dataset`, in one transaction.
///
/// Listeners on `task_changes` hear nothing of it. `connection` is that of the ordinary role that owns the tables; if this
/// future is dropped before its end, the connection must be closed, not used again.
///
/// # Errors
/// [`ErrorKind::Refused`] if there are rows and `mode` is [`Mode::RefuseIfNotEmpty`], or if [`Mode::Replace`] would have to
/// empty a table that another one refers to. [`ErrorKind::BadInput`] with file and line for a SQL file that fails, and if
/// the database lacks the tables that a generated data set fills.
pub async fn apply(
    connection: &mut PgConnection,
    dataset: &DataSet,
    mode: Mode,
    events: &Events,
) -> Result<SeedOutcome> {
    let start = Instant::now();
    // `up` asks this each time, so it is asked before anything is locked; a "no rows" is asked again under the lock.
    if mode == Mode::OnlyIfEmpty && table_with_rows(connection, dataset).await?.is_some() {
        return Ok(outcome(dataset, None, start));
    }
    let mut transaction = connection.begin().await.or_failed(|| "cannot begin the transaction for the data set")?;
    wait_for_lock(&mut transaction, events).await?;
    match mode {
        Mode::OnlyIfEmpty | Mode::RefuseIfNotEmpty => {
            if let Some(table) = table_with_rows(&mut transaction, dataset).await? {
                transaction.rollback().await.or_failed(|| "cannot end the transaction for the data set")?;
                return if mode == Mode::OnlyIfEmpty {
                    Ok(outcome(dataset, None, start))
                } else {
                    Err(not_empty(dataset, &table))
                };
            }
        }
        Mode::Append => {}
        Mode::Replace => delete_rows(&mut transaction, dataset).await?,
    }
    let rows = match dataset.content() {
        Content::Generated(plan) => fill(&mut transaction, plan, dataset.name(), mode, events).await?,
        Content::Scripts(scripts) => run_script::run_all(&mut transaction, scripts, events).await?,
    };
    transaction.commit().await.or_failed(|| format!("cannot commit the data set `{}`", dataset.name()))?;
    Ok(outcome(dataset, Some(rows), start))
}

fn outcome(dataset: &DataSet, rows: Option<u64>, start: Instant) -> SeedOutcome {
    let elapsed = start.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "a rate that is shown to people needs no more than 52 bits")]
    let rows_per_second = rows.unwrap_or(0) as f64 / elapsed.as_secs_f64();
    SeedOutcome {
        dataset: dataset.name().to_owned(),
        users: dataset.users(),
        tasks: dataset.tasks(),
        rows: rows.unwrap_or(0),
        applied: rows.is_some(),
        elapsed,
        rows_per_second,
    }
}

/// Takes the seeders' lock to the end of the transaction, waiting while another seeder has it.
async fn wait_for_lock(transaction: &mut PgConnection, events: &Events) -> Result<()> {
    let mut told = false;
    loop {
        let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
            .bind(SEED_LOCK)
            .fetch_one(&mut *transaction)
            .await
            .or_failed(|| "cannot ask for the lock that keeps seeders apart")?;
        if taken {
            return Ok(());
        }
        if !told {
            events.note("Waiting for another process that is filling this database");
            told = true;
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

/// Names a table that holds rows, if any of those that matter to `dataset` does.
async fn table_with_rows(connection: &mut PgConnection, dataset: &DataSet) -> Result<Option<String>> {
    match dataset.content() {
        Content::Generated(_) => sqlx::query_scalar(
            "SELECT 'users' WHERE EXISTS (SELECT FROM users) UNION ALL SELECT 'tasks' WHERE EXISTS (SELECT FROM tasks)",
        )
        .fetch_optional(connection)
        .await
        .map_err(|error| explain_missing_table(error, dataset.name())),
        Content::Scripts(scripts) => run_script::table_with_rows(connection, scripts).await,
    }
}

fn not_empty(dataset: &DataSet, table: &str) -> Error {
    let name = dataset.name();
    Error::new(
        ErrorKind::Refused,
        format!("the data set `{name}` was not applied: the table `{table}` has rows already"),
    )
    .hint(format!("`tfdev seed --dataset {name} --append` adds to them"))
    .hint(format!("`tfdev seed --dataset {name} --replace` deletes them first"))
}

async fn delete_rows(transaction: &mut PgConnection, dataset: &DataSet) -> Result<()> {
    let statement = match dataset.content() {
        Content::Generated(_) => Some("TRUNCATE users, tasks".to_owned()),
        Content::Scripts(scripts) => run_script::truncation(transaction, scripts).await?,
    };
    let Some(statement) = statement else { return Ok(()) };
    run(transaction, &statement).await.map(drop).map_err(|error| {
        // 0A000 feature_not_supported: the rows of a table that is not to be emptied refer to one that is.
        if database_code(&error).as_deref() == Some("0A000") {
            Error::new(ErrorKind::Refused, "the rows that are there cannot be replaced: another table refers to them")
                .hint("delete the rows of that table first, or start over with `tfdev reset`")
                .caused_by(error)
        } else {
            explain_missing_table(error, dataset.name())
        }
    })
}

/// Fills `users` and `tasks` by `plan` and returns how many rows there were.
async fn fill(transaction: &mut PgConnection, plan: &Plan, name: &str, mode: Mode, events: &Events) -> Result<u64> {
    let first_user = if mode == Mode::Append { next_user(transaction, name).await? } else { 0 };
    let rows = Arc::new(Rows::new(plan.clone(), first_user));
    run(transaction, SILENCE).await.or_failed(|| "cannot silence notifications")?;
    let users = copy(transaction, &rows, Table::Users, events).await?;
    let tasks = copy(transaction, &rows, Table::Tasks, events).await?;
    // The planner would otherwise guess until autovacuum comes by, a minute later.
    run(transaction, "ANALYZE users, tasks").await.or_failed(|| "cannot analyze the new rows")?;
    Ok(users + tasks)
}

/// Finds where the sequence of users goes on: after the highest number in the addresses that are in use.
async fn next_user(transaction: &mut PgConnection, name: &str) -> Result<u64> {
    let highest: i64 = sqlx::query_scalar(
        r"SELECT coalesce(max(substring(email FROM '([0-9]{1,12})@example\.(?:com|org|net)$')::bigint), 0) FROM users",
    )
    .fetch_one(transaction)
    .await
    .map_err(|error| explain_missing_table(error, name))?;
    Ok(highest.unsigned_abs())
}

/// Streams the rows of `table` into the database while threads make the ones after.
async fn copy(transaction: &mut PgConnection, rows: &Arc<Rows>, table: Table, events: &Events) -> Result<u64> {
    let (statement, total) = match table {
        Table::Users => (COPY_USERS, rows.plan().users),
        Table::Tasks => (COPY_TASKS, rows.plan().tasks),
    };
    let lost = || format!("the rows of `{}` could not be sent", table.name());
    let mut blocks = Blocks::start(rows, table, THREADS, BLOCK_ROWS)?;
    let mut sink = transaction.copy_in_raw(statement).await.map_err(|error| refused_row(error, table))?;
    sink.send(HEADER).await.or_failed(lost)?;
    let mut sent = 0;
    while let Some(block) = blocks.next().await? {
        sink.send(block.bytes).await.or_failed(lost)?;
        sent += block.rows;
        tell_progress(events, table, sent, total);
    }
    sink.send(TRAILER).await.or_failed(lost)?;
    sink.finish().await.map_err(|error| refused_row(error, table))
}

fn tell_progress(events: &Events, table: Table, position: u64, total: u64) {
    events.send(Event::Progress(Progress {
        id: table.name().to_owned(),
        label: table.name().to_owned(),
        unit: Unit::Rows,
        position,
        total: Some(total),
        done: position == total,
    }));
}

/// Makes the error for rows that the server does not take, such as for a table with columns of the project's own.
fn refused_row(error: sqlx::Error, table: Table) -> Error {
    let kind = if database_code(&error).is_some() { ErrorKind::BadInput } else { ErrorKind::Failed };
    let error = Error::new(kind, format!("the server did not take the rows of `{}`", table.name())).caused_by(error);
    if kind == ErrorKind::Failed {
        return error;
    }
    error.hint("generated data sets fit the TaskFlow schema; for another one write SQL files under `seeds/`")
}

/// Makes the error for a query on `users` and `tasks`, which another schema may lack.
fn explain_missing_table(error: sqlx::Error, dataset: &str) -> Error {
    // 42P01 undefined_table, 42703 undefined_column.
    if matches!(database_code(&error).as_deref(), Some("42P01" | "42703")) {
        let message =
            format!("the data set `{dataset}` fills TaskFlow's tables `users` and `tasks`, which this database lacks");
        return Error::bad_input(message)
            .hint("run `tfdev migrate run` first")
            .hint("for another schema write SQL files under `seeds/`, or set `dataset = \"none\"` in `[seed]`")
            .caused_by(error);
    }
    Error::failed("cannot look at the tables `users` and `tasks`").caused_by(error)
}

pub(super) fn database_code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(Cow::into_owned)
}

/// Runs one statement of our own making by the simple protocol.
pub(super) async fn run(connection: &mut PgConnection, statement: &str) -> sqlx::Result<u64> {
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await?;
    Ok(done.rows_affected())
}
