//! Databases that a test has written to go back into the pool if all that it wrote is in tables which are empty in the
//! template, and in sequences: the rows are taken out again, which costs a login and a `VACUUM` in place of a copy and a drop.
//!
//! What must hold: afterwards the database is to every query what it was before, in its results and in how it is planned.
//!
//! 1. The log ([`super::untouched`]) says which files were written to, and that nothing else was. They must be those of
//!    relations that the template's [list](Emptiable) has: a table of no pages with its indexes and its TOAST table, or a
//!    sequence.
//! 2. The rows are deleted, with triggers and rules off, and `VACUUM` cuts the table to no pages, so that later rows
//!    come to lie where they would lie in a copy. No entry in a catalog moves: `VACUUM` changes estimates in place, and
//!    the template has been vacuumed, so they are the same again.
//! 3. An empty B-tree or GiST index keeps its first page, which a copy gets with its first row; one that has grown beyond
//!    that is not taken back. Other kinds of index keep more, so tables with one of them are not on the list.
//! 4. A sequence is set to the value that it has in the template.
//! 5. Then it is looked whether all that is so, and whether autovacuum, which may come at any moment, has left statistics.
//!
//! What is different afterwards: the age of the oldest transaction of the tables (`relfrozenxid`), the size of those indexes
//! (16 kB in place of 8), and how many values a sequence has logged ahead (`log_cnt`).
//!
//! A table that has rows in the template cannot be brought back like this: new rows would leave traces in the order of later
//! ones, and changed rows are gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::pool::Pool;
use super::session;
use crate::error::{Context, Result};
use crate::pg::wal::Mention;
use crate::pg::{Login, quote};

/// More pages of a table than this are not emptied: deleting so many rows takes longer than a copy.
const MOST_PAGES: u32 = 64;

/// See [`Index::most_changes`].
const MOST_CHANGES: i64 = 2_000;

/// The number of the table space `pg_default`, from `pg_tablespace.dat`.
const DEFAULT_TABLESPACE: u32 = 1663;

/// How long emptying one database may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What of a template is empty, so that what is written there can be taken out again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Emptiable {
    page_bytes: i64,
    tables: Vec<EmptyTable>,
    sequences: Vec<Sequence>,
}

/// A table without rows, by its name as SQL has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct EmptyTable {
    name: String,
    parts: Vec<Part>,
}

/// The table itself, its TOAST table, or an index of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Part {
    /// Its number in `pg_class`.
    relation: u32,
    file: u32,
    /// How many pages it may have when it is empty again.
    pages: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sequence {
    name: String,
    file: u32,
    value: i64,
    /// Whether the value was handed out.
    called: bool,
}

/// The tables that can be emptied, and their parts, one a row.
const PARTS: &str = "
    WITH empty AS (
        SELECT c.oid, c.reltoastrelid FROM pg_class c JOIN pg_am a ON a.oid = c.relam
        WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384 AND a.amname = 'heap'
        AND pg_relation_size(c.oid) = 0
        -- What is not off in a session of replication, and happens when rows are deleted.
        AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgenabled IN ('A', 'R') AND g.tgtype & 8 <> 0)
        AND NOT EXISTS (SELECT FROM pg_statistic_ext s WHERE s.stxrelid = c.oid)
        AND NOT EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_enabled IN ('A', 'R') AND r.ev_type = '4')
    ), heap AS (
        SELECT oid AS owner, oid FROM empty UNION ALL SELECT oid, reltoastrelid FROM empty WHERE reltoastrelid <> 0
    ), part AS (
        SELECT owner, oid, 'heap' AS kind FROM heap
        UNION ALL
        SELECT owner, i.indexrelid, a.amname FROM heap JOIN pg_index i ON i.indrelid = heap.oid
        JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    )
    SELECT owner::bigint, owner::regclass::text, part.oid::bigint, c.relfilenode::bigint,
    CASE kind WHEN 'heap' THEN 0 WHEN 'btree' THEN greatest(pages, 2) ELSE pages END,
    c.reltablespace = 0 AND c.relfilenode <> 0 AND kind IN ('heap', 'btree', 'gist') AND (kind <> 'heap' OR pages = 0)
    FROM part JOIN pg_class c USING (oid),
    LATERAL (SELECT pg_relation_size(c.oid) / current_setting('block_size')::bigint) AS size (pages)
    ORDER BY part.owner, kind <> 'heap', part.oid";

impl Emptiable {
    /// Reads it in the template, in a session whose search path is `pg_catalog`. It is empty where nothing can be emptied.
    pub(super) async fn read(connection: &mut PgConnection) -> Result<Self> {
        let what = || "cannot look which tables of the template are empty";
        let question = "SELECT current_setting('block_size')::bigint FROM pg_database \
                        WHERE datname = current_database() AND dattablespace = $1::bigint::oid";
        let asked = sqlx::query_scalar(question).bind(i64::from(DEFAULT_TABLESPACE)).fetch_optional(&mut *connection);
        let Some(page_bytes) = asked.await.or_failed(what)? else { return Ok(Self::default()) };
        let mut tables: BTreeMap<i64, Option<EmptyTable>> = BTreeMap::new();
        for row in sqlx::query(PARTS).fetch_all(&mut *connection).await.or_failed(what)? {
            let (owner, name): (i64, String) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
            let number = |column: usize| -> Result<u32> {
                u32::try_from(row.try_get::<i64, _>(column).or_failed(what)?).or_failed(what)
            };
            let part = Part { relation: number(2)?, file: number(3)?, pages: number(4)? };
            let table = tables.entry(owner).or_insert_with(|| Some(EmptyTable { name, parts: Vec::new() }));
            if !row.try_get(5).or_failed(what)? {
                *table = None;
            } else if let Some(table) = table {
                table.parts.push(part);
            }
        }
        let tables = tables.into_values().flatten().collect();
        Ok(Self { page_bytes, tables, sequences: sequences(connection).await? })
    }

    /// Whether there is anything that could be taken back.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.sequences.is_empty()
    }

    /// Where the files belong.
    pub(super) fn index(self) -> Index {
        let mut places = HashMap::new();
        for (number, table) in self.tables.iter().enumerate() {
            for part in &table.parts {
                places.insert(part.file, Place::Table(number, *part));
            }
        }
        for (number, sequence) in self.sequences.iter().enumerate() {
            places.insert(sequence.file, Place::Sequence(number));
        }
        Index { list: self, places }
    }
}

/// The sequences and their values.
async fn sequences(connection: &mut PgConnection) -> Result<Vec<Sequence>> {
    let what = || "cannot look at the template's sequences";
    let question = "SELECT oid::regclass::text, relfilenode::bigint FROM pg_class WHERE relkind = 'S' \
                    AND relpersistence = 'p' AND reltablespace = 0 AND oid >= 16384 ORDER BY oid";
    let rows: Vec<(String, i64)> = sqlx::query_as(question).fetch_all(&mut *connection).await.or_failed(what)?;
    let mut sequences = Vec::with_capacity(rows.len());
    for (name, file) in rows {
        let question = AssertSqlSafe(format!("SELECT last_value, is_called FROM {name}"));
        let row = sqlx::raw_sql(question).fetch_one(&mut *connection).await.or_failed(what)?;
        let (value, called) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
        sequences.push(Sequence { name, file: u32::try_from(file).or_failed(what)?, value, called });
    }
    Ok(sequences)
}

/// What can be emptied, by the numbers of the files.
#[derive(Debug, Default)]
pub(super) struct Index {
    list: Emptiable,
    places: HashMap<u32, Place>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// A part of the table with this place in the list.
    Table(usize, Part),
    /// The sequence with this place in the list.
    Sequence(usize),
}

/// What is to be emptied in one database.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Work {
    tables: BTreeSet<usize>,
    sequences: BTreeSet<usize>,
}

impl Index {
    /// After how many changed rows it is not worthwhile to look at a copy.
    pub(super) fn most_changes(&self) -> i64 {
        if self.places.is_empty() { 0 } else { MOST_CHANGES }
    }

    /// What takes back all that the log says was written.
    ///
    /// # Errors
    /// Why that cannot be done, or is not worthwhile.
    pub(super) fn work_for(&self, mention: &Mention) -> std::result::Result<Work, String> {
        if mention.more {
            return Err("more than rows was changed".to_owned());
        }
        let mut work = Work::default();
        for (file, &last_page) in &mention.files {
            let place = self.places.get(&file.number).filter(|_| file.tablespace == DEFAULT_TABLESPACE);
            match *place.ok_or_else(|| format!("the file {} is not one of an empty table", file.number))? {
                Place::Table(number, part) => {
                    let most = if part.pages == 0 { MOST_PAGES } else { part.pages };
                    if last_page >= most {
                        return Err(format!("too much was written to `{}`", self.list.tables[number].name));
                    }
                    work.tables.insert(number);
                }
                Place::Sequence(number) => drop(work.sequences.insert(number)),
            }
        }
        Ok(work)
    }

    /// What puts rows and values back, as one message. It runs no code of the template's own.
    fn taking_back(&self, work: &Work) -> Result<String> {
        let mut statements = vec![
            "SET search_path = pg_catalog; SET session_replication_role = replica; SET lock_timeout = '2s'; \
             SET statement_timeout = '4s'; SET default_transaction_read_only = off; SET transaction_read_only = off"
                .to_owned(),
        ];
        statements.extend(self.tables(work).map(|table| format!("DELETE FROM ONLY {}", table.name)));
        for number in &work.sequences {
            let Sequence { name, value, called, .. } = &self.list.sequences[*number];
            statements.push(format!("SELECT setval({}::regclass, {value}, {called})", quote::literal(name)?));
        }
        // Counters that are still to come would be added after they are reset.
        statements.push("SELECT pg_stat_force_next_flush()".to_owned());
        Ok(statements.join("; "))
    }

    /// Asks whether the tables are empty again and nothing is known of their contents, and resets the counters.
    fn question(&self, work: &Work) -> String {
        let parts: Vec<Part> = self.tables(work).flat_map(|table| table.parts.iter().copied()).collect();
        let list = |value: fn(&Part) -> u32| {
            let values: Vec<String> = parts.iter().map(|part| value(part).to_string()).collect();
            format!("'{{{}}}'", values.join(","))
        };
        let (relations, pages) = (list(|part| part.relation), list(|part| part.pages));
        format!(
            "SELECT coalesce(bool_and(pg_relation_size(relation) <= pages * {block}), true), \
             count(pg_stat_reset_single_table_counters(relation)) \
             FROM unnest({relations}::oid[], {pages}::bigint[]) AS part (relation, pages); \
             SELECT NOT EXISTS (SELECT FROM pg_statistic WHERE starelid = ANY({relations}::oid[]))",
            block = self.list.page_bytes,
        )
    }

    fn tables(&self, work: &Work) -> impl Iterator<Item = &EmptyTable> {
        work.tables.iter().map(|number| &self.list.tables[*number])
    }
}

impl Pool {
    /// Takes back what was written to the database `name`, which nobody else knows. Returns whether it is empty again.
    pub(super) async fn empty(&self, name: &str, index: &Index, work: &Work) -> Result<bool> {
        let login = Login {
            database: name.to_owned(),
            application_name: "tfdev fresh".to_owned(),
            ..self.server().admin_login()
        };
        let emptied = async {
            let mut connection = session::connect(&login, Instant::now() + LIMIT).await?;
            let is_empty = empty_in(&mut connection, index, work).await?;
            // The server notices the end of the connection, too.
            let _ = connection.close().await;
            Ok(is_empty)
        };
        tokio::time::timeout(LIMIT, emptied).await.or_failed(|| "emptying a fresh database took too long")?
    }
}

async fn empty_in(connection: &mut PgConnection, index: &Index, work: &Work) -> Result<bool> {
    let what = || "cannot empty a fresh database";
    let taken_back = sqlx::raw_sql(AssertSqlSafe(index.taking_back(work)?)).execute(&mut *connection).await;
    taken_back.or_failed(what)?;
    crate::fault::point("fresh.empty.deleted").await;
    let names: Vec<&str> = index.tables(work).map(|table| table.name.as_str()).collect();
    if !names.is_empty() {
        let vacuum = format!("VACUUM (FREEZE, INDEX_CLEANUP ON, TRUNCATE ON) {}", names.join(", "));
        sqlx::raw_sql(AssertSqlSafe(vacuum)).execute(&mut *connection).await.or_failed(what)?;
    }
    crate::fault::point("fresh.empty.vacuumed").await;
    let looked = sqlx::raw_sql(AssertSqlSafe(index.question(work))).fetch_all(connection).await.or_failed(what)?;
    let answers: Vec<Option<bool>> =
        looked.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>().or_failed(what)?;
    Ok(answers == [Some(true), Some(true)])
}
