//! Whole databases: copying one inside its server, renaming, closing the sessions that are in the way.
//!
//! What must hold: nobody is locked out by a setting that would outlive us. What keeps new sessions waiting is a lock of
//! a session of ours, which ends with that session. A new session waits for the lock and is not refused.
//!
//! How the server does it (PostgreSQL 15, `dbcommands.c`, `postinit.c`): `CREATE DATABASE … TEMPLATE` takes a share lock
//! on the template, for which each new session in it waits; then it looks up to 50 times, 100 ms apart, whether sessions
//! are left. `ALTER DATABASE … RENAME` does the same with an exclusive lock. So whoever is in is closed just before, and
//! whoever slipped in until the lock was there is closed by a second session of ours.

mod privileges;
pub mod properties;
mod sessions;

use std::future::pending;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection, Row};

pub use properties::Properties;
pub use sessions::{ClosedSession, close_sessions};

use super::{Login, connect, quote};
use crate::error::{Context, Error, ErrorKind, Result};

/// Up to this size a copy goes through the WAL. Measured on a native server: through the WAL it takes 0.35 times as long at
/// 8 MB, 0.8 at 40 and at 70 MB and as long at 130 MB, and it writes the whole database as WAL once.
const LARGEST_THROUGH_WAL: u64 = 64 * 1024 * 1024;

/// How often the second session looks for sessions that slipped in.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How a database is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Block by block through the WAL: no checkpoint, but as much WAL as there is data.
    WalLog,
    /// File by file between two checkpoints: hardly any WAL.
    FileCopy,
}

impl Strategy {
    /// The faster one for a database of this size that does not flood the WAL.
    pub fn for_size(bytes: u64) -> Self {
        if bytes <= LARGEST_THROUGH_WAL { Self::WalLog } else { Self::FileCopy }
    }

    fn sql(self) -> &'static str {
        match self {
            Self::WalLog => "WAL_LOG",
            Self::FileCopy => "FILE_COPY",
        }
    }
}

/// A session of ours in the database of the admin login.
pub struct Admin {
    /// The session.
    pub connection: PgConnection,
    /// Its process number in the server.
    pub pid: i32,
    /// Whether its role is a superuser. Without that there are no checkpoints on demand, only sessions of roles that it
    /// is a member of can be closed, and a rename may refuse a login once.
    pub superuser: bool,
}

/// What every session of ours begins with. Warnings of `pg_terminate_backend` for a session that is gone already are
/// what tells us so, and belong into no log.
const SETTINGS: &str = "SELECT pg_backend_pid(), rolsuper, \
     CASE WHEN rolsuper THEN set_config('log_min_messages', 'fatal', false) END, \
     set_config('client_min_messages', 'error', false), set_config('statement_timeout', '0', false), \
     set_config('lock_timeout', '0', false), set_config('search_path', 'pg_catalog', false) \
     FROM pg_catalog.pg_roles WHERE rolname = current_user";

impl Admin {
    /// Logs in.
    pub async fn open(login: &Login, limit: Duration) -> Result<Self> {
        let connection = connect(login, Instant::now() + limit).await.map_err(|error| error.into_error(login))?;
        Self::set_up(connection).await
    }

    /// Makes one of a session that was just opened with the admin login.
    pub async fn set_up(mut connection: PgConnection) -> Result<Self> {
        let what = || "cannot set up a session";
        let row = sqlx::raw_sql(SETTINGS).fetch_one(&mut connection).await.or_failed(what)?;
        let (pid, superuser) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
        Ok(Self { connection, pid, superuser })
    }

    /// Runs statements that give no rows; `what` reads after "cannot".
    pub async fn run(&mut self, statements: String, what: &str) -> Result<()> {
        let ran = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut self.connection).await;
        ran.map(drop).or_failed(|| format!("cannot {what}"))
    }

    /// Writes out what the server holds, so that the checkpoint of a file copy has little to do while sessions wait.
    pub async fn checkpoint(&mut self) -> Result<()> {
        if self.superuser {
            self.run("CHECKPOINT".to_owned(), "write a checkpoint").await?;
        }
        Ok(())
    }

    /// Lets the server end what this session does if this process is gone.
    pub async fn end_with_us(&mut self) {
        // Servers on some platforms cannot look, and then finish the statement, which the next command cleans up.
        let _ = self.run("SET client_connection_check_interval = '250ms'".to_owned(), "watch the client").await;
    }
}

/// The statement that copies `source` to `target`.
///
/// The copy has the encoding, locale and tablespace of its source, belongs to the role that runs the statement and has
/// none of the other [`Properties`]. Unless `connectable`, nobody can log in to it.
pub fn copy_statement(source: &str, target: &str, strategy: Strategy, connectable: bool) -> Result<String> {
    Ok(format!(
        "CREATE DATABASE {} TEMPLATE {} STRATEGY {} ALLOW_CONNECTIONS {connectable}",
        quote::identifier(target)?,
        quote::identifier(source)?,
        strategy.sql()
    ))
}

/// A database as the server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Database {
    /// Its number.
    pub oid: i64,
    /// Bytes on the disk.
    pub size: u64,
}

/// Finds a database.
pub async fn find(connection: &mut PgConnection, name: &str) -> Result<Option<Database>> {
    let what = || format!("cannot look for the database `{name}`");
    let question = "SELECT oid::bigint, pg_database_size(oid) FROM pg_database WHERE datname = $1";
    let row = sqlx::query(question).bind(name).fetch_optional(connection).await.or_failed(what)?;
    let Some(row) = row else { return Ok(None) };
    let size: i64 = row.try_get(1).or_failed(what)?;
    Ok(Some(Database { oid: row.try_get(0).or_failed(what)?, size: size.unsigned_abs() }))
}

/// Runs `statement`, which copies or renames the database `oid`, in `worker`, while `helper` closes all sessions in that
/// database until none is left, and then does what is to be done `meanwhile`, which is dropped if the statement ends before it.
/// Returns who was closed.
pub async fn run_without_sessions(
    worker: &mut Admin,
    helper: &mut PgConnection,
    oid: i64,
    statement: String,
    meanwhile: impl Future<Output = ()>,
) -> Result<Vec<ClosedSession>, sqlx::Error> {
    let mut closed = Vec::new();
    let pid = worker.pid;
    let work = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut worker.connection);
    tokio::select! {
        biased;
        result = work => { result?; }
        error = keep_closing(helper, oid, pid, &mut closed, meanwhile) => return Err(error),
    }
    Ok(closed)
}

/// Closes sessions until the statement of `worker` has its lock and none is left; ends only with an error.
async fn keep_closing(
    helper: &mut PgConnection,
    oid: i64,
    worker: i32,
    closed: &mut Vec<ClosedSession>,
    meanwhile: impl Future<Output = ()>,
) -> sqlx::Error {
    loop {
        match sessions::close_now(helper, oid, worker).await {
            Ok(round) => {
                let done = round.worker_has_lock && round.closed.is_empty();
                closed.extend(round.closed);
                if done {
                    crate::fault::point("clone.working").await;
                    meanwhile.await;
                    return pending().await;
                }
            }
            Err(error) => return error,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Fails if a transaction that was prepared for a two-phase commit, or a replication slot, stands in the way of copying
/// the database or, with `all_slots`, of putting another one into its place: a slot stays with the database that it was
/// made in.
pub async fn check_obstacles(connection: &mut PgConnection, database: &str, all_slots: bool) -> Result<()> {
    let what = || format!("cannot look for what forbids a copy of `{database}`");
    let question = "SELECT 'transaction', gid::text FROM pg_prepared_xacts WHERE database = $1 \
                    UNION ALL SELECT 'slot', slot_name::text FROM pg_replication_slots \
                    WHERE database = $1 AND (active OR $2) ORDER BY 1, 2";
    let rows = sqlx::query(question).bind(database).bind(all_slots).fetch_all(connection).await.or_failed(what)?;
    let mut found = Vec::new();
    for row in rows {
        found.push((row.try_get::<String, _>(0).or_failed(what)?, row.try_get::<String, _>(1).or_failed(what)?));
    }
    let Some((first, _)) = found.first() else { return Ok(()) };
    let names = |kind: &str| {
        let of_kind = found.iter().filter(|(found, _)| found == kind);
        of_kind.map(|(_, name)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let refused = |message: String| Err(Error::new(ErrorKind::Refused, message));
    if first == "slot" {
        let slots = names("slot");
        return refused(format!("the database `{database}` has the replication slot {slots}, which cannot follow it"))
            .map_err(|error: Error| {
                error.hint(format!(
                    "stop what reads from it, then drop it: `SELECT pg_drop_replication_slot('NAME')` for {slots}"
                ))
            });
    }
    let transactions = names("transaction");
    refused(format!("the database `{database}` has the prepared transaction {transactions}, which forbids a copy"))
        .map_err(|error: Error| {
            error.hint(format!("end it in that database: `COMMIT PREPARED` or `ROLLBACK PREPARED` {transactions}"))
        })
}
