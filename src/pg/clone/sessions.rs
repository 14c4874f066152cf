//! Closing the sessions in a database, and knowing that they are gone.
//!
//! What must hold: nothing here reads the catalog of databases, because a session of ours may have it locked; and a
//! session counts as gone when the server no longer has it in its list of processes, which is what a copy or a rename
//! looks at. Its entry among the activities goes a little earlier.

use std::time::{Duration, Instant};

use sqlx::{PgConnection, Row};

use crate::error::{Context, Error, ErrorKind, Result};

/// How long a session may take to end before we give up.
const LIMIT: Duration = Duration::from_secs(5);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// A session that was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedSession {
    /// Its process number in the server.
    pub pid: i32,
    /// What it called itself; empty if it has no name or was still logging in.
    pub application: String,
    /// Its role; empty if it has none or was still logging in.
    pub role: String,
}

/// What one round of closing met.
pub(super) struct Round {
    /// Sessions that were there.
    pub(super) closed: Vec<ClosedSession>,
    /// Whether the statement for which they are closed has its lock on the database, so that no one can come in.
    pub(super) worker_has_lock: bool,
}

/// The sessions in the database `$1` but our own (`$2` and the one that asks): those that run, and those that log in and
/// have it locked for that moment. 1262 is the catalog of databases, `pg_database`.
///
/// A role that may not signal others' sessions leaves autovacuum (it has no role) to the server, which ends it by itself
/// for a copy or a rename; and, unless `$3`, those that log in, of which it cannot be told whether they are autovacuum.
const SESSIONS: &str = "SELECT pid, max(application), coalesce(max(role), '') FROM (\
     SELECT pid, coalesce(application_name, '') AS application, pg_get_userbyid(usesysid)::text AS role \
     FROM pg_stat_get_activity(NULL) WHERE datid = $1::oid \
     AND (usesysid IS NOT NULL OR pg_has_role('pg_signal_backend', 'USAGE')) \
     UNION ALL SELECT pid, '', NULL FROM pg_lock_status() WHERE locktype = 'object' AND classid = 1262 \
     AND objid = $1::oid AND mode = 'RowExclusiveLock' AND ($3 OR pg_has_role('pg_signal_backend', 'USAGE')) \
     ) s WHERE pid NOT IN (pg_backend_pid(), $2) GROUP BY pid";

/// Whether `$2` has its lock on the database `$1`.
const HAS_LOCK: &str = "SELECT EXISTS (SELECT FROM pg_lock_status() WHERE locktype = 'object' AND classid = 1262 \
     AND objid = $1::oid AND pid = $2 AND granted AND mode IN ('ShareLock', 'AccessExclusiveLock'))";

/// Tells all sessions in the database `oid`, but `worker`'s, to end.
pub(super) async fn close_now(connection: &mut PgConnection, oid: i64, worker: i32) -> sqlx::Result<Round> {
    // Asked first: who is there after the lock was granted is all that can be there.
    let worker_has_lock = sqlx::query_scalar(HAS_LOCK).bind(oid).bind(worker).fetch_one(&mut *connection).await?;
    let mut closed = Vec::new();
    for session in list(connection, oid, worker, true).await? {
        match signal(connection, session.pid).await {
            Ok(true) => closed.push(session),
            Ok(false) => {}
            // Another role's: the statement waits some seconds for it, and then says that somebody is still in.
            Err(error) if is_denied(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Round { closed, worker_has_lock })
}

/// Closes all sessions in the database `oid` and waits until the last one is gone. Returns who they were.
pub async fn close_sessions(connection: &mut PgConnection, oid: i64) -> Result<Vec<ClosedSession>> {
    let begin = Instant::now();
    let mut closed: Vec<ClosedSession> = Vec::new();
    let mut waiting = list(connection, oid, 0, false).await.or_failed(what)?;
    while !waiting.is_empty() {
        for session in waiting {
            while signal(connection, session.pid).await.map_err(|error| cannot_close(error, &session))? {
                if begin.elapsed() > LIMIT {
                    return Err(stuck(&session));
                }
                tokio::time::sleep(PAUSE).await;
            }
            closed.push(session);
        }
        waiting = list(connection, oid, 0, false).await.or_failed(what)?;
        if begin.elapsed() > LIMIT {
            // They come back faster than they can be closed; the caller's lock, or its helper, keeps them out.
            break;
        }
    }
    Ok(closed)
}

fn what() -> &'static str {
    "cannot close the sessions in the database"
}

async fn list(
    connection: &mut PgConnection,
    oid: i64,
    worker: i32,
    logging_in: bool,
) -> sqlx::Result<Vec<ClosedSession>> {
    // Within a transaction the list of activities stays as it was first read.
    sqlx::raw_sql("SELECT pg_stat_clear_snapshot()").execute(&mut *connection).await?;
    let rows = sqlx::query(SESSIONS).bind(oid).bind(worker).bind(logging_in).fetch_all(connection).await?;
    let session = |row: &sqlx::postgres::PgRow| {
        Ok(ClosedSession { pid: row.try_get(0)?, application: row.try_get(1)?, role: row.try_get(2)? })
    };
    rows.iter().map(session).collect()
}

/// Tells a session to end; false if it is gone already.
async fn signal(connection: &mut PgConnection, pid: i32) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_terminate_backend($1)").bind(pid).fetch_one(connection).await
}

fn is_denied(error: &sqlx::Error) -> bool {
    crate::pg::connect::server_error(error).is_some_and(|error| error.code() == "42501")
}

fn cannot_close(error: sqlx::Error, session: &ClosedSession) -> Error {
    let message = format!("cannot close {}", title(session));
    if !is_denied(&error) {
        return Error::failed(message).caused_by(error);
    }
    Error::new(ErrorKind::Refused, message).caused_by(error).hint(
        "close it yourself, or have tfdev's role made a member of that role, or of `pg_signal_backend` if that role is no \
         superuser",
    )
}

fn stuck(session: &ClosedSession) -> Error {
    Error::new(ErrorKind::TimedOut, format!("{} did not end within {} s", title(session), LIMIT.as_secs()))
        .hint("close the program that has it open, then try again")
}

/// A session, for messages.
fn title(session: &ClosedSession) -> String {
    let ClosedSession { pid, application, role } = session;
    format!("the session {pid} of `{application}` (role `{role}`) in the database")
}
