//! The advisory lock that all who migrate one database share, sqlx's own migrator included.

use std::fmt;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::CLIENT_CHECK;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;

/// The longest pause between two tries, in milliseconds. Each try is a transaction of its own: a session that waited
/// inside the server would hold a snapshot that `CREATE INDEX CONCURRENTLY` in the lock's holder waits for.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// When waiting is worth a word.
const WORTH_A_NOTE: Duration = Duration::from_secs(1);

/// Computes the lock's key as sqlx's `generate_lock_id` does.
pub(super) fn key(database: &str) -> i64 {
    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    0x3d32_ad9e * i64::from(CRC.checksum(database.as_bytes()))
}

/// Takes the lock for the rest of the session.
pub(super) async fn acquire(
    connection: &mut PgConnection,
    database: &str,
    limit: Duration,
    events: &Events,
) -> Result<()> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(5);
    let mut noted = false;
    loop {
        if try_acquire(connection, key(database)).await.or_failed(|| "cannot take the lock for migrations")? {
            notice_a_lost_client(connection).await;
            return Ok(());
        }
        if began.elapsed() >= limit {
            return Err(timed_out(connection, database, limit).await);
        }
        if !noted && began.elapsed() >= WORTH_A_NOTE {
            noted = true;
            let holder = holder(connection, database).await;
            events.note(format!("waiting for {} to finish its migrations", described(holder.as_ref())));
        }
        tokio::time::sleep(pause.min(limit.saturating_sub(began.elapsed()))).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn try_acquire(connection: &mut PgConnection, key: i64) -> sqlx::Result<bool> {
    let statement = AssertSqlSafe(format!("SELECT pg_try_advisory_lock({key})"));
    sqlx::raw_sql(statement).fetch_one(connection).await?.try_get(0)
}

/// Makes the server look for us while a statement runs, so that a run that was dropped does not keep the lock until its
/// statement ends. Servers on some platforms cannot, and do without.
async fn notice_a_lost_client(connection: &mut PgConnection) {
    let statement = format!("SELECT set_config('client_connection_check_interval', '{CLIENT_CHECK}', false)");
    let _ = sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await;
}

async fn timed_out(connection: &mut PgConnection, database: &str, limit: Duration) -> Error {
    let holder = holder(connection, database).await;
    let error = Error::new(
        ErrorKind::TimedOut,
        format!(
            "the database `{database}` is still being migrated by {} after {:.1} s",
            described(holder.as_ref()),
            limit.as_secs_f64()
        ),
    );
    match holder {
        Some(holder) => error.hint(format!(
            "wait for it to finish, or end it: `tfdev psql -- -c 'SELECT pg_terminate_backend({})'`",
            holder.pid
        )),
        None => error.hint("it may have just finished: run it again"),
    }
}

/// The session that has the lock. An ordinary role sees less of another role's session.
struct Holder {
    pid: i32,
    application: Option<String>,
    role: Option<String>,
    since: Option<String>,
    query: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "process {}", self.pid)?;
        let shown = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(application) = shown(&self.application) {
            write!(formatter, " of `{application}`")?;
        }
        if let Some(role) = shown(&self.role) {
            write!(formatter, " (role `{role}`)")?;
        }
        if let Some(since) = shown(&self.since) {
            write!(formatter, ", connected since {since}")?;
        }
        if let Some(query) = shown(&self.query) {
            write!(formatter, ", last statement `{query}`,")?;
        }
        Ok(())
    }
}

fn described(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another session".to_owned(), Holder::to_string)
}

async fn holder(connection: &mut PgConnection, database: &str) -> Option<Holder> {
    // A key of 64 bits is shown in two halves, with 1 in objsubid.
    let question = "SELECT l.pid, a.application_name, a.usename::text, \
                    to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"'), \
                    left(split_part(btrim(a.query, E' \\n'), E'\\n', 1), 60) \
                    FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) \
                    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
                    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                    AND l.classid::bigint = ($1::bigint >> 32) AND l.objid::bigint = ($1::bigint & 4294967295) LIMIT 1";
    let row = sqlx::query(question).bind(key(database)).fetch_optional(connection).await.ok()??;
    Some(Holder {
        pid: row.try_get(0).ok()?,
        application: row.try_get(1).ok()?,
        role: row.try_get(2).ok()?,
        since: row.try_get(3).ok()?,
        query: row.try_get(4).ok()?,
    })
}
