//! Databases that were given back as they were handed out go back into the pool, which costs a rename and a look into the
//! write-ahead log in place of a copy and a drop.
//!
//! What must hold: a database goes back only if it is proven that nothing in it was changed; a doubt means that it is
//! dropped. The proof, step by step:
//!
//! 1. Nobody is in it, and nobody comes in any more: it gets a new name. `ALTER DATABASE … RENAME` holds a lock for which new
//!    sessions wait, and fails if there is a session or a prepared transaction; whoever knows the old name finds nothing
//!    afterwards. That also keeps a program of the last test from the database of the next one.
//! 2. What belongs to it beside its contents is what it was when the copy was made: its row in `pg_database`, the settings of
//!    `ALTER DATABASE` and `ALTER ROLE … IN DATABASE`, comment, security labels, subscriptions, replication slots.
//! 3. From the position at which the log was when it was handed out, to the one after the new name, no record speaks of it
//!    ([`crate::pg::wal`]). That covers rows, sequences (a copy's first `nextval` is always logged, because the copy is
//!    younger than the last checkpoint), large objects, every kind of DDL, `VACUUM` and `ANALYZE`, by whomever, what was
//!    rolled back, and what autovacuum does.
//!    (Before a database is handed out, autovacuum may leave its estimates of catalogs that all databases share in it, as it
//!    does in any database.)
//! 4. Not logged is what is in unlogged tables and sequences: a template with one of them is not [provable](Template).
//! 5. Positions count in one [life](LIFE_QUESTION) of the server only, because a crash may take back what was not written.
//!
//! The server's counters (`pg_stat_database`) prove nothing: they know no sequences, no `VACUUM` and no prepared transactions.
//! They only spare the work where they show too many changes.
//!
//! If the log speaks only of what is empty in the template, that can be [emptied](super::emptied) again.
//!
//! A reader leaves a mark as well if it is the first one to see a row after it was written (hint bits, which are logged where
//! pages have checksums). So a template is [settled](settle) before it is closed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokio::sync::Semaphore;

use super::emptied::{Emptiable, Index};
use super::functions::CLOSE_LIMIT;
use super::pool::{Pool, unique};
use super::session;
use crate::error::{Context, Error, Result};
use crate::pg::Login;
use crate::pg::clone::Admin;
use crate::pg::wal::{self, Mention, Position, Stretch};

/// How long the sessions of a database that was given back may take to end. A client does not wait for its server process.
const LINGER: Duration = Duration::from_millis(150);

/// The pause between two looks whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How many are emptied at once by one sweep, each in a session of its own.
const EMPTIED_AT_ONCE: usize = 2;

/// Of how many templates is remembered what can be emptied.
const MOST_KNOWN: usize = 32;

/// How much of the log is read at most, in bytes: reading more takes longer than a copy.
const LONGEST_STRETCH: u64 = 4 << 20;

/// What tells one life of a server from the next: each crash and each start gives it another checkpointer. A session that goes
/// on is in one life.
pub(super) const LIFE_QUESTION: &str =
    "SELECT max(backend_start)::text FROM pg_stat_get_activity(NULL) WHERE backend_type = 'checkpointer'";

/// How many rows were changed in the database with this number, as far as the server has counted.
pub(super) fn changes(number: &str) -> String {
    format!(
        "pg_stat_get_db_tuples_inserted({number}) + pg_stat_get_db_tuples_updated({number}) \
         + pg_stat_get_db_tuples_deleted({number})"
    )
}

/// What belongs to the database that the expression `name` names, beside its contents and its name, as a hash.
pub(super) fn traits(name: &str) -> String {
    format!(
        "(SELECT md5(concat_ws('|', to_jsonb(d) - '{{datname,datfrozenxid,datminmxid}}'::text[], \
         (SELECT jsonb_agg(to_jsonb(s) ORDER BY s.setrole) FROM pg_db_role_setting s WHERE s.setdatabase = d.oid), \
         (SELECT jsonb_agg(to_jsonb(c)) FROM pg_shdescription c WHERE c.objoid = d.oid AND c.classoid = 1262), \
         (SELECT jsonb_agg(to_jsonb(l) ORDER BY l.provider) FROM pg_shseclabel l \
         WHERE l.objoid = d.oid AND l.classoid = 1262), \
         (SELECT count(*) FROM pg_subscription u WHERE u.subdbid = d.oid), \
         (SELECT count(*) FROM pg_get_replication_slots() r WHERE r.datoid = d.oid))) FROM pg_database d WHERE d.datname = {name})"
    )
}

/// A database that was given back; its row's lock is ours.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) id: i64,
    pub(super) template: i64,
    /// Its name, which is a new one if it was renamed.
    pub(super) name: String,
}

/// One that has its new name.
struct Closed {
    id: i64,
    /// Its place among those that were given back.
    place: usize,
    oid: u32,
    from: Position,
    until: Position,
    /// The first eight letters of the names of the log's files.
    timeline: u32,
}

/// What the server says of one that is to be closed.
struct Answer {
    busy: bool,
    closed: bool,
    problem: Option<String>,
    oid: Option<i64>,
    from: Option<String>,
    same: Option<bool>,
    until: Option<String>,
    file: Option<String>,
}

impl Answer {
    fn read(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            busy: row.try_get::<Option<bool>, _>(1)?.unwrap_or(false),
            closed: row.try_get(2)?,
            problem: row.try_get(3)?,
            oid: row.try_get(4)?,
            from: row.try_get(5)?,
            same: row.try_get(6)?,
            until: row.try_get(7)?,
            file: row.try_get(8)?,
        })
    }

    /// What there is to read of the log; `None` if what belongs to the database is not known to be what it was.
    fn found(&self, id: i64, place: usize) -> Option<Closed> {
        let timeline = self.file.as_deref()?.get(..8)?;
        self.same.filter(|same| *same)?;
        Some(Closed {
            id,
            place,
            oid: u32::try_from(self.oid?).ok()?,
            from: wal::position(self.from.as_deref()?)?,
            until: wal::position(self.until.as_deref()?)?,
            timeline: u32::from_str_radix(timeline, 16).ok()?,
        })
    }
}

impl Pool {
    /// Puts those of `returned` back into the pool that are proven to be untouched, or could be emptied, and gives their
    /// numbers. The others are to be dropped.
    pub(super) async fn reuse(&self, admin: &mut Admin, returned: &mut [Returned]) -> Result<Vec<i64>> {
        let mut freed = Vec::new();
        let done = self.look_and_reuse(admin, returned, &mut freed).await;
        self.0.reuses.store(!freed.is_empty(), Ordering::Relaxed);
        match done {
            Err(error) if session::is_lost(&error) => return Err(error),
            Err(error) => {
                self.events().detail(format!("fresh databases that were given back are made anew: {error}"));
            }
            Ok(()) => {}
        }
        Ok(freed)
    }

    /// As [`Pool::reuse`]; whatever stops it, those in `freed` are free.
    async fn look_and_reuse(&self, admin: &mut Admin, returned: &mut [Returned], freed: &mut Vec<i64>) -> Result<()> {
        let connection = &mut admin.connection;
        let mut emptiable = Vec::with_capacity(returned.len());
        for one in &*returned {
            emptiable.push(self.emptiable(connection, one.template).await?);
        }
        let mut left: Vec<usize> = (0..returned.len()).collect();
        let begin = Instant::now();
        loop {
            let (closed, busy) = self.close(connection, returned, &emptiable, &left).await?;
            crate::fault::point("fresh.reuse.closed").await;
            self.free_what_is_clean(connection, returned, &emptiable, &closed, freed).await?;
            if busy.is_empty() || begin.elapsed() > LINGER {
                return Ok(());
            }
            left = busy;
            tokio::time::sleep(LOOK_EVERY).await;
            // Freeing one has ended the limit.
            let limit = format!("SET statement_timeout = '{CLOSE_LIMIT}'");
            let limited = sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *connection).await;
            limited.or_failed(|| "cannot close fresh databases that were given back")?;
        }
    }

    /// Gives those of `returned` at the places `left` new names in which nobody is and of which the counters show no change, or
    /// not too many where they can be emptied. One is left out if what belongs to it was changed, or if it was never noted
    /// what that was. Also returns the places of those in which somebody is.
    async fn close(
        &self,
        connection: &mut PgConnection,
        returned: &mut [Returned],
        emptiable: &[Arc<Index>],
        left: &[usize],
    ) -> Result<(Vec<Closed>, Vec<usize>)> {
        let what = || "cannot close fresh databases that were given back";
        let ids: Vec<i64> = left.iter().map(|place| returned[*place].id).collect();
        let names: Vec<&str> = left.iter().map(|place| returned[*place].name.as_str()).collect();
        let new_names: Vec<String> = left.iter().map(|_| format!("tfdev_f_{}", unique())).collect();
        let most: Vec<i64> = left.iter().map(|place| emptiable[*place].most_changes()).collect();
        let rows = sqlx::query("SELECT * FROM tfdev.fresh_close($1, $2, $3, $4)")
            .bind(&ids)
            .bind(&names)
            .bind(&new_names)
            .bind(&most)
            .fetch_all(&mut *connection)
            .await
            .or_failed(what)?;
        let (mut closed, mut busy) = (Vec::new(), Vec::new());
        for ((row, &place), new_name) in rows.iter().zip(left).zip(new_names) {
            let answer = Answer::read(row).or_failed(what)?;
            let one = &mut returned[place];
            if answer.closed {
                one.name = new_name;
                match answer.found(one.id, place) {
                    Some(found) => closed.push(found),
                    None => self.events().detail(format!("`{}` is made anew: its settings changed", one.name)),
                }
            } else if answer.busy {
                busy.push(place);
            } else if let Some(problem) = answer.problem {
                self.events().detail(format!("`{}` is not looked at: {problem}", one.name));
            } else {
                self.events().detail(format!("`{}` is made anew: too many rows were changed", one.name));
            }
        }
        Ok((closed, busy))
    }

    /// Frees those of `closed` that are untouched, and those that are when they have been emptied.
    async fn free_what_is_clean(
        &self,
        connection: &mut PgConnection,
        returned: &[Returned],
        emptiable: &[Arc<Index>],
        closed: &[Closed],
        freed: &mut Vec<i64>,
    ) -> Result<()> {
        if closed.is_empty() {
            return Ok(());
        }
        let mentions = self.mentions(connection, closed).await?;
        let (untouched, touched): (Vec<_>, Vec<_>) =
            closed.iter().zip(mentions).partition(|(_, mention)| mention.is_none());
        let ids: Vec<i64> = untouched.iter().map(|(one, _)| one.id).collect();
        freed.extend(self.free(connection, &ids).await?);
        let turns = Semaphore::new(EMPTIED_AT_ONCE);
        let mut emptied = FuturesUnordered::new();
        for (one, mention) in touched {
            let index = &emptiable[one.place];
            let (name, turns) = (&returned[one.place].name, &turns);
            let work = match index.work_for(&mention) {
                Ok(work) => work,
                Err(why) => {
                    self.events().detail(format!("`{name}` is made anew: {why}"));
                    continue;
                }
            };
            emptied.push(async move {
                let _turn = turns.acquire().await;
                (one.id, name, self.empty(name, index, &work).await)
            });
        }
        while let Some((id, name, emptied)) = emptied.next().await {
            match emptied {
                Ok(true) => freed.extend(self.free(connection, &[id]).await?),
                Ok(false) => self.events().detail(format!("`{name}` is not what it was after it was emptied")),
                Err(error) => self.events().detail(format!("`{name}` is made anew: {error}")),
            }
        }
        Ok(())
    }

    /// What the log says of each of `closed`.
    async fn mentions(&self, connection: &mut PgConnection, closed: &[Closed]) -> Result<Vec<Mention>> {
        let from = closed.iter().map(|one| one.from).min().unwrap_or_default();
        let until = closed.iter().map(|one| one.until).max().unwrap_or_default();
        let segment_size = self.0.segment_size;
        if until < from || until - from > LONGEST_STRETCH {
            return Err(Error::failed("the write-ahead log has grown by too much since it was handed out"));
        }
        let bytes = read_log(connection, closed[0].timeline, from - from % wal::PAGE, until, segment_size).await?;
        let databases: Vec<_> = closed.iter().map(|one| (one.oid, one.from)).collect();
        let stretch = Stretch { from, until, segment_size, bytes: &bytes };
        stretch.mentions(&databases).or_failed(|| "cannot read the write-ahead log")
    }

    /// Notes that they are free, and lets go of their locks.
    async fn free(&self, connection: &mut PgConnection, ids: &[i64]) -> Result<Vec<i64>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let statement = "UPDATE tfdev.fresh_database f SET stage = 'free', holder = NULL, leased_at = NULL, \
                         clean_from = NULL, tried_at = NULL, freed_at = clock_timestamp() \
                         WHERE id = ANY($1) AND stage = 'returned' AND EXISTS \
                         (SELECT FROM tfdev.fresh_template t WHERE t.id = f.template AND t.stage = 'ready') \
                         RETURNING id::bigint, pg_advisory_unlock($2, id), set_config('statement_timeout', '0', false)";
        let freed = sqlx::query_scalar(statement).bind(ids).bind(super::registry::DATABASE_LOCK).fetch_all(connection);
        let freed = freed.await.or_failed(|| "cannot note that a fresh database is free again")?;
        self.0.news.notify_one();
        Ok(freed)
    }

    /// What can be emptied in copies of the template.
    async fn emptiable(&self, connection: &mut PgConnection, template: i64) -> Result<Arc<Index>> {
        let what = || "cannot read what is noted of the template";
        let known = || self.0.emptiable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = known().get(&template) {
            return Ok(index.clone());
        }
        let question = "SELECT emptiable FROM tfdev.fresh_template WHERE id = $1";
        let noted: Option<Option<String>> =
            sqlx::query_scalar(question).bind(template).fetch_optional(connection).await.or_failed(what)?;
        let list: Option<Emptiable> =
            noted.flatten().map(|text| serde_json::from_str(&text)).transpose().or_failed(what)?;
        let index = Arc::new(list.unwrap_or_default().index());
        let mut known = known();
        // A service sees many templates in its life.
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(template, index.clone());
        Ok(index)
    }
}

/// The bytes of the log from `begin` to `until`.
async fn read_log(
    connection: &mut PgConnection,
    timeline: u32,
    begin: Position,
    until: Position,
    segment_size: u64,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut position = begin;
    while position < until {
        let end = until.min(position - position % segment_size + segment_size);
        let file = format!("pg_wal/{}", wal::file_name(timeline, position, segment_size));
        let piece: Option<Vec<u8>> = sqlx::query_scalar("SELECT pg_read_binary_file($1, $2, $3, true)")
            .bind(file)
            .bind((position % segment_size).cast_signed())
            .bind((end - position).cast_signed())
            .fetch_one(&mut *connection)
            .await
            .or_failed(|| "cannot read the write-ahead log")?;
        let piece = piece.filter(|piece| piece.len() as u64 == end - position);
        bytes.extend(piece.ok_or_else(|| Error::failed("a part of the write-ahead log is gone"))?);
        position = end;
    }
    Ok(bytes)
}

/// What a template is after it was settled.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Whether all that is done in its copies is logged.
    pub(super) provable: bool,
    /// What can be emptied in them.
    pub(super) emptiable: Emptiable,
}

/// Leaves nothing in a template that its first readers would write: rows are frozen, the catalogs are packed, which makes a
/// copy a quarter faster, and the file that speeds up logins is there. Autovacuum, which enters closed databases as well,
/// finds nothing to do, so all copies are alike.
pub(super) async fn settle(login: &Login, deadline: Instant) -> Result<Settled> {
    let mut connection = session::connect(login, deadline).await?;
    let settled = pack(&mut connection).await;
    let _ = connection.close().await;
    settled?;
    // A login after the packing writes the file that the copies take with them.
    let mut connection = session::connect(login, deadline).await?;
    let settled = look_and_forget(&mut connection).await;
    let _ = connection.close().await;
    settled
}

/// Looks whether all is logged, and what is empty, and makes the server forget what was done in the template.
async fn look_and_forget(connection: &mut PgConnection) -> Result<Settled> {
    let what = || "cannot look at the template";
    sqlx::raw_sql("SET search_path = pg_catalog").execute(&mut *connection).await.or_failed(what)?;
    let alone = "SELECT NOT EXISTS (SELECT FROM pg_stat_get_activity(NULL) WHERE pid <> pg_backend_pid() \
                 AND datid = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    let begin = Instant::now();
    // A session adds what it has counted when it ends.
    while !sqlx::query_scalar::<_, bool>(alone).fetch_one(&mut *connection).await.or_failed(what)? {
        if begin.elapsed() > LINGER {
            return Ok(Settled::default());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let question = "SELECT NOT EXISTS (SELECT FROM pg_class WHERE relpersistence <> 'p')";
    let provable: bool = sqlx::query_scalar(question).fetch_one(&mut *connection).await.or_failed(what)?;
    let emptiable = if provable { Emptiable::read(connection).await? } else { Emptiable::default() };
    sqlx::raw_sql("SELECT pg_stat_reset()").execute(connection).await.or_failed(what)?;
    Ok(Settled { provable, emptiable })
}

async fn pack(connection: &mut PgConnection) -> Result<()> {
    let what = || "cannot settle the template";
    // A session of a template function may still hold a lock.
    let begin = "SET search_path = pg_catalog; SET lock_timeout = '2s'; SET statement_timeout = '1min'";
    sqlx::raw_sql(begin).execute(&mut *connection).await.or_failed(what)?;
    // Empty tables, too: they get the estimates that they will have when they are emptied again.
    let question = "SELECT CASE WHEN oid < 16384 THEN 'VACUUM (FULL, FREEZE) ' ELSE 'VACUUM (FREEZE) ' END || oid::regclass \
                    FROM pg_class WHERE relkind IN ('r', 'm') AND NOT relisshared AND relpersistence <> 't' ORDER BY oid";
    let statements: Vec<String> = sqlx::query_scalar(question).fetch_all(&mut *connection).await.or_failed(what)?;
    // What noting the new files has left in the catalogs themselves goes last.
    let last = "VACUUM (FREEZE) pg_class, pg_type, pg_attribute, pg_index, pg_depend";
    for statement in statements.into_iter().chain([last.to_owned()]) {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await.or_failed(what)?;
    }
    Ok(())
}
