//! What the tables of a server hold, in a few bytes: how many rows, and a hash over all of them.
//!
//! What must hold: two servers with equal rows in equal tables have equal fingerprints, whatever order the rows have and
//! wherever the server runs; and a fingerprint of a running server is that of one moment, which is known as a position in
//! the log. For that moment all tables are locked against writers, for some milliseconds; who writes for longer than the
//! limit is not disturbed, and the backup then goes without a fingerprint.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::position::Lsn;
use crate::error::{Context, Error, Result};
use crate::pg::{self, Login};

/// How long the locks are waited for. Writers queue behind us meanwhile.
const LOCK_LIMIT: &str = "2s";

/// How often that is tried.
const ATTEMPTS: usize = 3;

/// Settings under which a row has the same text everywhere.
const SETTINGS: &str = "SET search_path = pg_catalog; SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; \
    SET intervalstyle = 'postgres'; SET extra_float_digits = 1; SET bytea_output = 'hex'; SET statement_timeout = 0; \
    SET lc_monetary = 'C'; SET xmlbinary = 'base64'";

/// The tables whose rows are looked at, with their columns and what is hashed of a row: those tables that a backup has, and
/// neither an extension's own nor ours, which a restore changes. `$1`: whether those that a crash empties count.
///
/// A value is hashed as PostgreSQL has it where equal bits are equal texts and the other way round, which is three times as
/// fast as its text; all else is hashed as text. Enumerations have other bits in another database, and `1.0` and `1.00`
/// the same hash.
const TABLES: &str = "
    SELECT format('%I.%I', nspname, relname) AS name, coalesce(columns, '') AS columns, coalesce(hashed, '') AS hashed
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    LEFT JOIN LATERAL (
        SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) AS columns,
               string_agg(CASE
                   WHEN atttypid IN ('bool'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype,
                        'uuid'::regtype, 'bytea'::regtype, 'date'::regtype, 'timestamp'::regtype,
                        'timestamptz'::regtype) THEN format('tfdev_row.%I', attname)
                   ELSE format('tfdev_row.%I::text COLLATE \"C\"', attname) END, ', ' ORDER BY attnum) AS hashed
        FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) a ON true
    WHERE relkind = 'r' AND (relpersistence = 'p' OR $1 AND relpersistence = 'u')
      AND nspname NOT IN ('information_schema', 'tfdev') AND nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND deptype = 'e')
    ORDER BY 1";

/// What one table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its columns with their types.
    pub columns: String,
    /// How many rows it has.
    pub rows: i64,
    /// The sum of the hashes of all rows.
    pub hash: String,
}

/// What the tables of each database hold, by database and table.
pub type Fingerprint = BTreeMap<String, BTreeMap<String, Table>>;

/// How many tables there are.
pub fn count(fingerprint: &Fingerprint) -> usize {
    fingerprint.values().map(BTreeMap::len).sum()
}

/// In what `found` differs from `expected`, in words; nothing if it does not.
pub fn differences(expected: &Fingerprint, found: &Fingerprint) -> Vec<String> {
    let mut problems = Vec::new();
    for (database, tables) in expected {
        let Some(others) = found.get(database) else {
            problems.push(format!("the database `{database}` is missing"));
            continue;
        };
        for (name, table) in tables {
            match others.get(name) {
                None => problems.push(format!("the table {name} of `{database}` is missing")),
                Some(other) if other.columns != table.columns => {
                    problems.push(format!("the table {name} of `{database}` has other columns: {}", other.columns));
                }
                Some(other) if other.rows != table.rows => problems
                    .push(format!("the table {name} of `{database}` has {} rows, and had {}", other.rows, table.rows)),
                Some(other) if other.hash != table.hash => {
                    problems.push(format!("the table {name} of `{database}` has other contents"));
                }
                Some(_) => {}
            }
        }
    }
    problems
}

/// A session with fixed settings.
async fn open(login: &Login, limit: Duration) -> Result<PgConnection> {
    let connected = pg::connect(login, Instant::now() + limit).await;
    let mut connection = connected.map_err(|error| error.into_error(login))?;
    sqlx::raw_sql(SETTINGS).execute(&mut connection).await.or_failed(|| "cannot prepare a look at the tables")?;
    Ok(connection)
}

/// The databases that can be logged in to, but for templates.
async fn databases(connection: &mut PgConnection) -> Result<Vec<String>> {
    let question = "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1";
    sqlx::query_scalar(question).fetch_all(connection).await.or_failed(|| "cannot list the databases")
}

/// A table that is to be read.
#[derive(Debug)]
pub(super) struct Listed {
    name: String,
    columns: String,
    /// What is hashed of a row, as expressions.
    hashed: String,
}

async fn tables(connection: &mut PgConnection, unlogged: bool) -> Result<Vec<Listed>> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(TABLES).bind(unlogged).fetch_all(connection).await.or_failed(|| "cannot list the tables")?;
    Ok(rows.into_iter().map(|(name, columns, hashed)| Listed { name, columns, hashed }).collect())
}

/// Reads the tables of the session's database, within its transaction.
pub(super) async fn read_in(connection: &mut PgConnection, listed: &[Listed]) -> Result<BTreeMap<String, Table>> {
    let mut found = BTreeMap::new();
    for Listed { name, columns, hashed } in listed {
        let what = || format!("cannot read the table {name}");
        let question = format!(
            "SELECT count(*), coalesce(sum(hash_record_extended(ROW({hashed}), 0)), 0)::text FROM ONLY {name} tfdev_row"
        );
        let row = sqlx::raw_sql(AssertSqlSafe(question)).fetch_one(&mut *connection).await.or_failed(what)?;
        let (rows, hash) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
        found.insert(name.clone(), Table { columns: columns.clone(), rows, hash });
    }
    Ok(found)
}

/// Reads all tables of a server that nobody else uses.
pub(super) async fn read_all(admin: &Login, limit: Duration) -> Result<Fingerprint> {
    let mut connection = open(admin, limit).await?;
    let names = databases(&mut connection).await?;
    crate::provision::close(connection).await;
    let mut found = Fingerprint::new();
    for database in names {
        found.insert(database.clone(), read_database(admin, &database, false, limit).await?);
    }
    Ok(found)
}

/// Reads all tables of a database that nobody else uses.
pub(super) async fn read_database(
    admin: &Login,
    database: &str,
    unlogged: bool,
    limit: Duration,
) -> Result<BTreeMap<String, Table>> {
    let mut connection = open(&Login { database: database.to_owned(), ..admin.clone() }, limit).await?;
    let listed = tables(&mut connection, unlogged).await?;
    let read = read_in(&mut connection, &listed).await;
    crate::provision::close(connection).await;
    read
}

/// A session whose transaction sees one state of its database, which others can see too.
pub(super) struct Exported {
    connection: PgConnection,
    /// The snapshot's name, for `pg_dump --snapshot`.
    pub(super) snapshot: String,
}

impl Exported {
    /// Begins the transaction.
    pub(super) async fn begin(login: &Login, limit: Duration) -> Result<Self> {
        let what = || "cannot hold a state of the database";
        let mut connection = open(login, limit).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        sqlx::raw_sql(begin).execute(&mut connection).await.or_failed(what)?;
        let row = sqlx::raw_sql("SELECT pg_export_snapshot()").fetch_one(&mut connection).await.or_failed(what)?;
        let snapshot = row.try_get(0).or_failed(what)?;
        Ok(Self { connection, snapshot })
    }

    /// Reads the tables of that state that our role may read.
    pub(super) async fn read(mut self) -> Result<BTreeMap<String, Table>> {
        let listed = tables(&mut self.connection, true).await?;
        let read = read_in(&mut self.connection, &listed).await;
        crate::provision::close(self.connection).await;
        read
    }
}

/// A named point in the log, and what all tables hold there if that can be told.
pub(super) struct Point {
    pub(super) lsn: Lsn,
    frozen: Result<Frozen>,
}

impl Point {
    /// Reads what all tables held there.
    pub(super) async fn read(self) -> Result<Fingerprint> {
        self.frozen?.read().await
    }
}

/// Sets the point `name`, and holds on to what all tables hold there.
pub(super) async fn at_point(admin: &Login, name: &str, limit: Duration) -> Result<Point> {
    let mut main = open(admin, limit).await?;
    let mut refused = None;
    for _ in 0..ATTEMPTS {
        match Frozen::begin(admin, &mut main, limit).await {
            Ok(frozen) => {
                let lsn = create_point(&mut main, name).await?;
                crate::provision::close(main).await;
                return Ok(Point { lsn, frozen: Ok(frozen.release().await) });
            }
            Err(error) => refused = Some(error),
        }
    }
    let lsn = create_point(&mut main, name).await?;
    crate::provision::close(main).await;
    Ok(Point { lsn, frozen: Err(refused.unwrap_or_else(|| Error::failed("no attempt was made"))) })
}

/// Sets a named point in the log, and closes the segment that it is in.
pub(super) async fn create_point(connection: &mut PgConnection, name: &str) -> Result<Lsn> {
    let what = || format!("cannot set the point `{name}`");
    let created = sqlx::query_scalar("SELECT pg_create_restore_point($1)::text").bind(name).fetch_one(&mut *connection);
    let lsn: String = created.await.or_failed(what)?;
    sqlx::raw_sql("SELECT pg_switch_wal()").execute(connection).await.or_failed(what)?;
    lsn.parse().map_err(|why: String| Error::failed(what()).caused_by(why))
}

/// All databases, each with a session that sees one state, and one that keeps writers out until that is so everywhere.
struct Frozen {
    readers: Vec<Reader>,
    lockers: Vec<PgConnection>,
}

struct Reader {
    database: String,
    connection: PgConnection,
    tables: Vec<Listed>,
}

impl Frozen {
    async fn begin(admin: &Login, main: &mut PgConnection, limit: Duration) -> Result<Self> {
        let what = || "cannot keep writers out for a moment";
        let mut frozen = Self { readers: Vec::new(), lockers: Vec::new() };
        let names = databases(main).await?;
        // All sessions first: the locks are held for as short as can be.
        let mut sessions = Vec::new();
        for database in names {
            let login = Login { database: database.clone(), ..admin.clone() };
            sessions.push((database, open(&login, limit).await?, open(&login, limit).await?));
        }
        for (database, mut locker, connection) in sessions {
            let listed = tables(&mut locker, false).await?;
            let names: Vec<&str> = listed.iter().map(|one| one.name.as_str()).collect();
            if !names.is_empty() {
                let lock = format!(
                    "SET lock_timeout = '{LOCK_LIMIT}'; BEGIN; LOCK TABLE ONLY {} IN SHARE MODE",
                    names.join(", ONLY ")
                );
                sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut locker).await.or_failed(what)?;
            }
            frozen.lockers.push(locker);
            frozen.readers.push(Reader { database, connection, tables: listed });
        }
        for reader in &mut frozen.readers {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1";
            sqlx::raw_sql(begin).execute(&mut reader.connection).await.or_failed(what)?;
        }
        Ok(frozen)
    }

    /// Lets writers go on.
    async fn release(mut self) -> Self {
        for locker in self.lockers.drain(..) {
            // Its end is what counts; the locks go with the session.
            crate::provision::close(locker).await;
        }
        self
    }

    async fn read(self) -> Result<Fingerprint> {
        let mut found = Fingerprint::new();
        for Reader { database, mut connection, tables } in self.readers {
            let read = read_in(&mut connection, &tables).await;
            crate::provision::close(connection).await;
            found.insert(database, read?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(rows: i64, hash: &str) -> Fingerprint {
        let table = Table { columns: "id integer".into(), rows, hash: hash.into() };
        [("app".to_owned(), [("public.task".to_owned(), table)].into())].into()
    }

    #[test]
    fn what_differs_is_told() {
        let expected = fingerprint(3, "17");
        assert_eq!(differences(&expected, &fingerprint(3, "17")), Vec::<String>::new());
        let told = |found: Fingerprint| differences(&expected, &found).join("; ");
        assert_eq!(told(fingerprint(2, "17")), "the table public.task of `app` has 2 rows, and had 3");
        assert_eq!(told(fingerprint(3, "18")), "the table public.task of `app` has other contents");
        assert_eq!(told(Fingerprint::new()), "the database `app` is missing");
        assert_eq!(told([("app".to_owned(), BTreeMap::new())].into()), "the table public.task of `app` is missing");
    }
}
