//! What is known of the databases that tfdev made in a server: one row each, in the schema `tfdev` of the admin login's
//! database, where it outlives the state folder of this machine.
//!
//! What must hold: a row is committed before its database is made, and goes after it; only a database that a row names is
//! ever dropped; every change is made by the holder of one lock. Whoever makes or drops a database holds the row's own
//! lock for as long, even if nobody waits for it any more. All locks end with their session.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use uuid::Uuid;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::pg::clone::Admin;
use crate::pg::quote;

/// Counts up when the form of the table changes.
const VERSION: i32 = 1;

/// The lock of whoever changes anything here: `tfd-snap` as a number.
const CHANGE_LOCK: i64 = i64::from_be_bytes(*b"tfd-snap");

/// The first half of the key of a row's own lock: `tfsn` as a number; the other half is the row's number.
const ROW_LOCK: i32 = i32::from_be_bytes(*b"tfsn");

/// The pause between two tries to get a lock. A session that waited inside the server would hold a snapshot.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// When waiting is worth a word.
const WORTH_A_NOTE: Duration = Duration::from_secs(1);

/// What a database was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A snapshot that somebody asked for.
    Snapshot,
    /// The state before a restore or reset.
    Auto,
    /// The migrated and seeded state that `reset` goes back to.
    Base,
    /// A copy of another one, ready to take its place.
    Standby,
    /// What is to become the project's database.
    Restore,
}

/// How far a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is being made.
    Building,
    /// It is whole.
    Ready,
    /// It is to go.
    Dropping,
}

macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),* }) => {
        impl $type {
            /// The word in the table.
            pub(super) fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            fn of(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}
words!(Kind { Snapshot = "snapshot", Auto = "auto", Base = "base", Standby = "standby", Restore = "restore" });
words!(Stage { Building = "building", Ready = "ready", Dropping = "dropping" });

/// What is noted of a state when it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Bytes of the database.
    pub size: u64,
    /// The last migration that was applied.
    pub migration: Option<i64>,
    /// The server's version as a number, such as 150018.
    pub server_version: i32,
    /// The hash of the schema.
    pub fingerprint: Option<String>,
    /// The branch of the checkout.
    pub git_branch: Option<String>,
    /// The commit of the checkout.
    pub git_commit: Option<String>,
}

/// One row: a database that tfdev made.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its number.
    pub id: i64,
    /// The database's name.
    pub database: String,
    /// What it is for.
    pub kind: Kind,
    /// How far it is.
    pub stage: Stage,
    /// The name that people gave it.
    pub name: Option<String>,
    /// What a base was made from.
    pub key: Option<String>,
    /// The row whose copy this is.
    pub parent: Option<i64>,
    /// What people noted.
    pub note: Option<String>,
    /// When the state was kept.
    pub created_at: Timestamp,
    /// What is known of it.
    pub details: Details,
    /// Whether there is such a database.
    pub exists: bool,
    /// The process in the server that makes or drops it now.
    pub worker: Option<i32>,
}

impl Row {
    /// Whether people can restore it.
    pub fn is_restorable(&self) -> bool {
        matches!(self.kind, Kind::Snapshot | Kind::Auto) && self.stage == Stage::Ready && self.exists
    }

    /// Whether nobody finishes what was begun with it.
    pub fn is_left_over(&self) -> bool {
        self.exists && self.worker.is_none() && (self.stage == Stage::Dropping || self.is_abandoned())
    }

    /// Whether it is half made, and what makes it, if anything does, does so for nobody.
    fn is_abandoned(&self) -> bool {
        self.stage == Stage::Building && self.kind != Kind::Standby
    }

    /// The name for messages.
    pub fn title(&self) -> String {
        let what = match self.kind {
            Kind::Snapshot | Kind::Auto => "the snapshot",
            Kind::Base => "the base",
            Kind::Standby => "a ready copy",
            Kind::Restore => "a copy for a restore",
        };
        self.name.as_ref().map_or_else(|| what.to_owned(), |name| format!("{what} `{name}`"))
    }
}

/// A row to be written.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// What it is for.
    pub kind: Kind,
    /// The name that people gave it.
    pub name: Option<String>,
    /// What people noted.
    pub note: Option<String>,
    /// What a base is made from.
    pub key: Option<String>,
    /// The row whose copy this is.
    pub parent: Option<i64>,
    /// What is known of it.
    pub details: Details,
}

impl NewRow {
    /// A row of `kind` with nothing else.
    pub fn of(kind: Kind) -> Self {
        Self { kind, name: None, note: None, key: None, parent: None, details: Details::default() }
    }
}

/// Whether the table is there; fails if a newer tfdev made it.
pub async fn is_there(connection: &mut PgConnection) -> Result<bool> {
    let what = || "cannot look for the list of snapshots";
    let there: bool = sqlx::query_scalar("SELECT to_regclass('tfdev.snapshot_version') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .or_failed(what)?;
    if !there {
        return Ok(false);
    }
    let version: Option<i32> = sqlx::query_scalar("SELECT max(version) FROM tfdev.snapshot_version")
        .fetch_one(connection)
        .await
        .or_failed(what)?;
    match version {
        Some(version) if version > VERSION => Err(Error::new(
            ErrorKind::Refused,
            format!("the list of snapshots in this server has the form {version}, and this tfdev knows {VERSION}"),
        )
        .hint("use the newer tfdev that made it")),
        version => Ok(version.is_some()),
    }
}

/// Makes the table if it is not there. The caller holds the lock.
pub async fn create(connection: &mut PgConnection) -> Result<()> {
    if is_there(connection).await? {
        return Ok(());
    }
    let script = format!(
        "BEGIN;
         CREATE SCHEMA IF NOT EXISTS tfdev;
         CREATE TABLE IF NOT EXISTS tfdev.snapshot_version (version integer PRIMARY KEY);
         CREATE TABLE IF NOT EXISTS tfdev.snapshot (
             id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
             database text NOT NULL UNIQUE,
             source text NOT NULL,
             kind text NOT NULL,
             stage text NOT NULL,
             name text,
             key text,
             parent integer,
             note text,
             created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
             size bigint NOT NULL,
             migration bigint,
             server_version integer NOT NULL,
             fingerprint text,
             git_branch text,
             git_commit text
         );
         CREATE UNIQUE INDEX IF NOT EXISTS snapshot_name ON tfdev.snapshot (source, name) WHERE stage <> 'dropping';
         INSERT INTO tfdev.snapshot_version VALUES ({VERSION}) ON CONFLICT DO NOTHING;
         COMMIT"
    );
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(connection)
        .await
        .map(drop)
        .or_failed(|| "cannot make the list of snapshots in the server")
}

/// Takes the lock of whoever changes anything, to the end of the session.
pub async fn lock(admin: &mut Admin, limit: Duration, events: &Events) -> Result<()> {
    let what = || "cannot take the lock for snapshots";
    let begin = Instant::now();
    let mut told = false;
    loop {
        let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(CHANGE_LOCK)
            .fetch_one(&mut admin.connection)
            .await
            .or_failed(what)?;
        if taken {
            return Ok(());
        }
        if begin.elapsed() >= limit {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("another tfdev is still changing snapshots after {:.1} s", limit.as_secs_f64()),
            )
            .hint("wait for it, or let this one wait longer: `--timeout SECONDS`"));
        }
        if !told && begin.elapsed() >= WORTH_A_NOTE {
            told = true;
            events.note("Waiting for another tfdev that is changing snapshots");
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

/// Takes the lock of a row, to the end of the session of whoever makes or drops its database.
pub async fn lock_row(connection: &mut PgConnection, id: i64) -> Result<()> {
    let statement = AssertSqlSafe(format!("SELECT pg_advisory_lock({ROW_LOCK}, {id})"));
    sqlx::raw_sql(statement).execute(connection).await.map(drop).or_failed(|| "cannot lock a snapshot")
}

/// Waits until nobody makes or drops the database of a row; false if that took longer than `limit`.
pub async fn wait_for_row(connection: &mut PgConnection, id: i64, limit: Duration) -> Result<bool> {
    let what = || "cannot look who makes a copy";
    let question = format!("SELECT EXISTS ({} AND objid = {id}::oid)", held_locks());
    let begin = Instant::now();
    loop {
        let held: bool = sqlx::raw_sql(AssertSqlSafe(question.clone()))
            .fetch_one(&mut *connection)
            .await
            .and_then(|row| row.try_get(0))
            .or_failed(what)?;
        if !held {
            return Ok(true);
        }
        if begin.elapsed() >= limit {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The question for the locks of rows that are held, and by which process of the server.
fn held_locks() -> String {
    format!(
        "SELECT objid::bigint, pid FROM pg_lock_status() WHERE locktype = 'advisory' AND granted AND objsubid = 2 \
         AND classid = {ROW_LOCK} AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
}

/// The databases that rows name, whatever project's database they are copies of.
pub async fn databases(connection: &mut PgConnection) -> Result<Vec<String>> {
    if !is_there(connection).await? {
        return Ok(Vec::new());
    }
    let names = sqlx::query_scalar("SELECT database FROM tfdev.snapshot ORDER BY id").fetch_all(connection).await;
    names.or_failed(|| "cannot read the list of snapshots")
}

/// All rows of the project's database `source`, oldest first; none if there is no table.
pub async fn rows(connection: &mut PgConnection, source: &str) -> Result<Vec<Row>> {
    if !is_there(connection).await? {
        return Ok(Vec::new());
    }
    let what = || "cannot read the list of snapshots";
    // Before the databases: who is at work no more when this is answered has committed what it made. In one statement
    // the list of databases is older than that of the locks, and what was finished in between looks as if it never was.
    let workers = workers(connection).await?;
    let question = AssertSqlSafe(format!(
        "SELECT s.id::bigint, s.database, kind, stage, name, key, parent::bigint, note, \
         (extract(epoch FROM created_at) * 1000)::bigint, size, migration, server_version, fingerprint, \
         git_branch, git_commit, d.oid IS NOT NULL \
         FROM tfdev.snapshot s LEFT JOIN pg_database d ON d.datname = s.database \
         WHERE source = {} ORDER BY s.id",
        quote::literal(source)?
    ));
    let rows = sqlx::raw_sql(question).fetch_all(connection).await.or_failed(what)?;
    rows.iter().map(|row| read(row, &workers).or_failed(what)?.ok_or_else(|| Error::failed(what()))).collect()
}

/// The processes in the server that make or drop the database of a row now, by the row's number.
async fn workers(connection: &mut PgConnection) -> Result<HashMap<i64, i32>> {
    let what = || "cannot look who makes a copy";
    let found = sqlx::raw_sql(AssertSqlSafe(held_locks())).fetch_all(connection).await.or_failed(what)?;
    found.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<sqlx::Result<_>>().or_failed(what)
}

fn read(row: &PgRow, workers: &HashMap<i64, i32>) -> sqlx::Result<Option<Row>> {
    let (kind, stage): (String, String) = (row.try_get(2)?, row.try_get(3)?);
    let (Some(kind), Some(stage)) = (Kind::of(&kind), Stage::of(&stage)) else { return Ok(None) };
    let Ok(created_at) = Timestamp::from_millisecond(row.try_get(8)?) else { return Ok(None) };
    let id = row.try_get(0)?;
    Ok(Some(Row {
        id,
        database: row.try_get(1)?,
        kind,
        stage,
        name: row.try_get(4)?,
        key: row.try_get(5)?,
        parent: row.try_get(6)?,
        note: row.try_get(7)?,
        created_at,
        details: Details {
            size: row.try_get::<i64, _>(9)?.unsigned_abs(),
            migration: row.try_get(10)?,
            server_version: row.try_get(11)?,
            fingerprint: row.try_get(12)?,
            git_branch: row.try_get(13)?,
            git_commit: row.try_get(14)?,
        },
        exists: row.try_get(15)?,
        worker: workers.get(&id).copied(),
    }))
}

/// Writes a row for a database of `source` that is to be made, under a name that no database has.
pub async fn insert(connection: &mut PgConnection, source: &str, new: &NewRow, stage: Stage) -> Result<Row> {
    let what = || "cannot note a new copy";
    let database = database_name(new.kind);
    let question = "INSERT INTO tfdev.snapshot (database, source, kind, stage, name, key, parent, note, size, migration, \
                    server_version, fingerprint, git_branch, git_commit) \
                    SELECT $1, $2, $3, $4, $5, $6, $7::integer, $8, $9, $10, $11, $12, $13, $14 \
                    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = $1) \
                    RETURNING id::bigint, (extract(epoch FROM created_at) * 1000)::bigint";
    let details = &new.details;
    let row = sqlx::query(question)
        .bind(&database)
        .bind(source)
        .bind(new.kind.word())
        .bind(stage.word())
        .bind(&new.name)
        .bind(&new.key)
        .bind(new.parent)
        .bind(&new.note)
        .bind(i64::try_from(details.size).unwrap_or(i64::MAX))
        .bind(details.migration)
        .bind(details.server_version)
        .bind(&details.fingerprint)
        .bind(&details.git_branch)
        .bind(&details.git_commit)
        .fetch_one(connection)
        .await
        .or_failed(what)?;
    Ok(Row {
        id: row.try_get(0).or_failed(what)?,
        database,
        kind: new.kind,
        stage,
        name: new.name.clone(),
        key: new.key.clone(),
        parent: new.parent,
        note: new.note.clone(),
        created_at: Timestamp::from_millisecond(row.try_get(1).or_failed(what)?).or_failed(what)?,
        details: new.details.clone(),
        exists: false,
        worker: None,
    })
}

/// A name of our own for a database: short, and like no other.
fn database_name(kind: Kind) -> String {
    let unique = Uuid::new_v4().simple().to_string();
    format!("tfdev_{}_{}", &kind.word()[..1], &unique[..16])
}

/// Notes how far a database is.
pub async fn set_stage(connection: &mut PgConnection, ids: &[i64], stage: Stage) -> Result<()> {
    let question = "UPDATE tfdev.snapshot SET stage = $2 WHERE id = ANY($1)";
    let set = sqlx::query(question).bind(ids).bind(stage.word()).execute(connection).await;
    set.map(drop).or_failed(|| "cannot note how far a copy is")
}

/// Notes what is known of a state, but for where the checkout stood.
pub async fn set_details(connection: &mut PgConnection, id: i64, details: &Details) -> Result<()> {
    let question =
        "UPDATE tfdev.snapshot SET size = $2, migration = $3, server_version = $4, fingerprint = $5 WHERE id = $1";
    let set = sqlx::query(question)
        .bind(id)
        .bind(i64::try_from(details.size).unwrap_or(i64::MAX))
        .bind(details.migration)
        .bind(details.server_version)
        .bind(&details.fingerprint)
        .execute(connection)
        .await;
    set.map(drop).or_failed(|| "cannot note what is known of a snapshot")
}

/// Forgets rows whose databases are gone, or have become the project's own.
pub async fn forget(connection: &mut PgConnection, ids: &[i64]) -> Result<()> {
    let forgotten = sqlx::query("DELETE FROM tfdev.snapshot WHERE id = ANY($1)").bind(ids).execute(connection).await;
    forgotten.map(drop).or_failed(|| "cannot forget a copy")
}
