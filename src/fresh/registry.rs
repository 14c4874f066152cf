//! What is known of fresh databases and their templates: one row each, in the schema `tfdev` of the admin login's database,
//! where all processes that use the server see it and where it outlives them.
//!
//! What must hold: a row is committed before its database is made, and goes after it; only a database that a row names is
//! ever dropped. Whoever makes, uses or drops the database of a row holds the row's own advisory lock, which ends with
//! the session. So a row that says "in use" and whose lock is free belongs to a process that is gone.

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::functions;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::quote;

/// Counts up when the form of the tables or of the functions changes.
const VERSION: i32 = 4;

/// The lock under which the tables are made and databases counted: `tfdfresh` as a number.
pub(super) const COUNT_LOCK: i64 = i64::from_be_bytes(*b"tfdfresh");

/// The first half of the key of a fresh database's lock; the other half is its number.
pub(super) const DATABASE_LOCK: i32 = i32::from_be_bytes(*b"tffd");

/// The first half of the key of a template's lock; the other half is its number.
pub(super) const TEMPLATE_LOCK: i32 = i32::from_be_bytes(*b"tfft");

/// What a fresh database is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is being made.
    Building,
    /// It is ready to be handed out.
    Free,
    /// A process has it.
    Leased,
    /// It stays until it expires, whoever is gone.
    Kept,
    /// It was given back, and is looked at: an untouched one becomes free again.
    Returned,
    /// It is to go.
    Dropping,
}

impl Stage {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "building" => Self::Building,
            "free" => Self::Free,
            "leased" => Self::Leased,
            "kept" => Self::Kept,
            "returned" => Self::Returned,
            "dropping" => Self::Dropping,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Building => "being made",
            Self::Free => "ready",
            Self::Leased => "in use",
            Self::Kept => "kept",
            Self::Returned => "given back",
            Self::Dropping => "to be dropped",
        })
    }
}

/// A fresh database as people see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FreshDatabase {
    /// Its number.
    pub id: i64,
    /// The database's name.
    pub database: String,
    /// What it is doing.
    pub stage: Stage,
    /// Whether the process that makes, uses or drops it is alive.
    pub held: bool,
    /// Who took it.
    pub holder: Option<String>,
    /// When it was made: UTC.
    pub created_at: Timestamp,
    /// When it goes, if it is kept: UTC.
    pub expires_at: Option<Timestamp>,
    /// The name of its template.
    pub template: String,
    /// Bytes of the template, which it began with.
    pub size_bytes: u64,
    /// The connection URL; the caller of the list fills it in.
    pub url: String,
}

impl FreshDatabase {
    /// Whether nobody needs it any more.
    pub fn is_left_over(&self) -> bool {
        !self.held && matches!(self.stage, Stage::Building | Stage::Leased | Stage::Returned | Stage::Dropping)
    }
}

/// The form of the tables, if they are there; fails if a newer tfdev made them.
async fn version(connection: &mut PgConnection) -> Result<Option<i32>> {
    let what = || "cannot look for the list of fresh databases";
    let there: bool = sqlx::query_scalar("SELECT to_regclass('tfdev.fresh_version') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .or_failed(what)?;
    if !there {
        return Ok(None);
    }
    let version: Option<i32> = sqlx::query_scalar("SELECT max(version) FROM tfdev.fresh_version")
        .fetch_one(connection)
        .await
        .or_failed(what)?;
    match version {
        Some(version) if version > VERSION => Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the list of fresh databases in this server has the form {version}, and this tfdev knows {VERSION}"
            ),
        )
        .hint("use the newer tfdev that made it")),
        version => Ok(version),
    }
}

/// Makes the tables and functions if they are not there.
pub(super) async fn create(connection: &mut PgConnection) -> Result<()> {
    if version(connection).await? == Some(VERSION) {
        return Ok(());
    }
    let script = format!(
        "BEGIN;
         SELECT pg_advisory_xact_lock({COUNT_LOCK});
         CREATE SCHEMA IF NOT EXISTS tfdev;
         CREATE TABLE IF NOT EXISTS tfdev.fresh_version (version integer PRIMARY KEY);
         CREATE TABLE IF NOT EXISTS tfdev.fresh_template (
             id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
             source text NOT NULL,
             key text NOT NULL,
             database text UNIQUE,
             stage text NOT NULL,
             error text,
             properties text,
             size bigint NOT NULL DEFAULT 0,
             used_at timestamptz NOT NULL DEFAULT clock_timestamp(),
             UNIQUE (source, key)
         );
         CREATE TABLE IF NOT EXISTS tfdev.fresh_database (
             id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
             source text NOT NULL,
             template integer NOT NULL,
             template_database text NOT NULL,
             size bigint NOT NULL,
             database text NOT NULL,
             stage text NOT NULL,
             holder text,
             created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
             leased_at timestamptz,
             expires_at timestamptz,
             tried_at timestamptz
         );
         -- What is beside a database's contents when it is made; where the log was, and in which life of the server, when it
         -- was handed out; whether copies of a template can be proven to be untouched, and what of them can be emptied.
         ALTER TABLE tfdev.fresh_database ADD COLUMN IF NOT EXISTS traits text;
         ALTER TABLE tfdev.fresh_database ADD COLUMN IF NOT EXISTS clean_from pg_lsn;
         ALTER TABLE tfdev.fresh_database ADD COLUMN IF NOT EXISTS life text;
         ALTER TABLE tfdev.fresh_template ADD COLUMN IF NOT EXISTS provable boolean NOT NULL DEFAULT false;
         ALTER TABLE tfdev.fresh_template ADD COLUMN IF NOT EXISTS emptiable text;
         ALTER TABLE tfdev.fresh_database ADD COLUMN IF NOT EXISTS freed_at timestamptz;
         ALTER TABLE tfdev.fresh_database ADD COLUMN IF NOT EXISTS changes bigint;
         -- Each row is changed several times by each test. With room on its page, and no index on what changes, old versions of
         -- it are cleared away at once and not by the next autovacuum.
         ALTER TABLE tfdev.fresh_database SET (fillfactor = 40), DROP CONSTRAINT IF EXISTS fresh_database_database_key;
         DROP INDEX IF EXISTS tfdev.fresh_database_free;
         {functions}
         INSERT INTO tfdev.fresh_version VALUES ({VERSION}) ON CONFLICT DO NOTHING;
         COMMIT",
        functions = functions::script(),
    );
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(connection)
        .await
        .map(drop)
        .or_failed(|| "cannot make the list of fresh databases in the server")
}

/// The names of all databases that tfdev made here for tests, templates among them.
pub(crate) async fn databases(connection: &mut PgConnection) -> Result<Vec<String>> {
    if version(connection).await?.is_none() {
        return Ok(Vec::new());
    }
    let question = "SELECT database FROM tfdev.fresh_database \
                    UNION SELECT database FROM tfdev.fresh_template WHERE database IS NOT NULL";
    let names = sqlx::query_scalar(question).fetch_all(connection).await;
    names.or_failed(|| "cannot read the list of fresh databases")
}

/// All fresh databases of the project's database `source`, oldest first; none if there is no table.
pub(super) async fn list(connection: &mut PgConnection, source: &str) -> Result<Vec<FreshDatabase>> {
    if version(connection).await?.is_none() {
        return Ok(Vec::new());
    }
    let what = || "cannot read the list of fresh databases";
    let question = AssertSqlSafe(format!(
        "SELECT f.id::bigint, database, stage, holder, (extract(epoch FROM created_at) * 1000)::bigint, \
         (extract(epoch FROM expires_at) * 1000)::bigint, template_database, size, \
         EXISTS (SELECT FROM pg_lock_status() WHERE locktype = 'advisory' AND granted AND objsubid = 2 \
         AND classid = {DATABASE_LOCK} AND objid = f.id::oid \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) \
         FROM tfdev.fresh_database f WHERE source = {} ORDER BY f.id",
        quote::literal(source)?
    ));
    let rows = sqlx::raw_sql(question).fetch_all(connection).await.or_failed(what)?;
    rows.iter().map(|row| read(row).or_failed(what)?.ok_or_else(|| Error::failed(what()))).collect()
}

fn read(row: &PgRow) -> sqlx::Result<Option<FreshDatabase>> {
    let Some(stage) = Stage::of(&row.try_get::<String, _>(2)?) else { return Ok(None) };
    let Ok(created_at) = Timestamp::from_millisecond(row.try_get(4)?) else { return Ok(None) };
    let expires_at: Option<i64> = row.try_get(5)?;
    Ok(Some(FreshDatabase {
        id: row.try_get(0)?,
        database: row.try_get(1)?,
        stage,
        held: row.try_get(8)?,
        holder: row.try_get(3)?,
        created_at,
        expires_at: expires_at.and_then(|at| Timestamp::from_millisecond(at).ok()),
        template: row.try_get(6)?,
        size_bytes: row.try_get::<i64, _>(7)?.unsigned_abs(),
        url: String::new(),
    }))
}
