//! Removing what nobody needs: databases that were given back, those of processes that are gone, those that expired.
//!
//! What must hold: a database is dropped only by whoever holds its row's lock, which a living process has for each of its
//! databases, and only after the row was looked at again under that lock. One whose sessions will not end keeps nobody from
//! the others.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::Row as _;

use super::pool::Pool;
use super::registry::{self, DATABASE_LOCK, FreshDatabase, Stage};
use super::template::drop_database;
use super::untouched::Returned;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::clone::Admin;

/// How long after a start of the server a lease from before it may have lost its lock: its process comes back for it.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// How many databases one session drops before it notes that they are gone.
const BATCH: usize = 8;

/// From how many databases in use on it saves time to look at several that were given back at once.
pub(super) const MANY: usize = 4;

/// How long what was given back may lie until it is looked at.
const GATHERING: Duration = Duration::from_millis(20);

/// How many sessions drop databases at once, of [`super::pool::Options::workers`].
const SWEEPERS: usize = 2;

/// How long one drop may take. A process of the server that stands still keeps all drops waiting (PostgreSQL 15 waits for
/// every process to close its files), and then it is tried again later.
const DROP_LIMIT: &str = "15s";

/// How often is looked whether others are through with what was given back.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Which rows may be swept: those that are to go, those that expired, those whose process may be gone.
pub(super) fn candidates() -> String {
    format!(
        "(stage IN ('returned', 'dropping') OR (stage = 'kept' AND expires_at < clock_timestamp()) \
         OR (stage IN ('building', 'leased') AND (coalesce(leased_at, created_at) > pg_postmaster_start_time() \
         OR pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => {}))))",
        GRACE.as_secs()
    )
}

/// Counts what is done in the background.
struct AtWork(Pool);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.0.background.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    /// Removes, in the background, what is to go.
    pub(super) fn sweep_soon(&self) {
        self.0.given_back.store(true, Ordering::Release);
        let most = if self.has_few_connections() { 1 } else { SWEEPERS };
        if self.0.sweepers.fetch_add(1, Ordering::AcqRel) >= most {
            self.0.sweepers.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let pool = self.clone();
        self.in_background(async move {
            pool.gather().await;
            let swept = pool.sweep_all(false).await;
            pool.0.sweepers.fetch_sub(1, Ordering::AcqRel);
            swept?;
            // Given back after the last look, and before another sweeper could begin.
            if pool.0.given_back.load(Ordering::Acquire) {
                pool.sweep_soon();
            }
            // The last copy of a template that is to go may be gone now.
            if pool.0.lets_templates_go.load(Ordering::Acquire) { pool.drop_templates().await } else { Ok(()) }
        });
    }

    /// Lets what is given back come together, so that it is looked at together, if many are in use and nobody waits.
    async fn gather(&self) {
        let many = !self.has_few_connections() && self.leases().await >= MANY;
        if many && self.0.waiting.load(Ordering::Acquire) == 0 {
            let _ = tokio::time::timeout(GATHERING, self.0.wanted.notified()).await;
        }
    }

    /// As [`Pool::collect`], in the background.
    pub(super) fn collect_soon(&self) {
        self.0.lets_templates_go.store(true, Ordering::Release);
        let pool = self.clone();
        self.in_background(async move { pool.collect().await.map(drop) });
    }

    /// Does what nobody waits for but [`Pool::settle`].
    fn in_background(&self, work: impl Future<Output = Result<()>> + Send + 'static) {
        self.0.background.fetch_add(1, Ordering::AcqRel);
        let at_work = AtWork(self.clone());
        tokio::spawn(async move {
            if let Err(error) = work.await {
                let events = at_work.0.events();
                events.detail(format!("fresh databases that are to go are left to the next call: {error}"));
            }
        });
    }

    /// Begins to sweep if there is anything that a process which is gone has left.
    pub(super) async fn sweep_if_needed(&self) -> Result<()> {
        let found = self.list().await?;
        let expired = |one: &FreshDatabase| one.expires_at.is_some_and(|at| at < jiff::Timestamp::now());
        if found.iter().any(|one| one.is_left_over() || expired(one)) {
            self.sweep_soon();
        }
        Ok(())
    }

    /// Removes now what nobody needs, and templates that were not used for long. Returns the names of the databases.
    pub async fn collect(&self) -> Result<Vec<String>> {
        let mut worker = self.worker().await?;
        self.retire_templates(&mut worker.admin).await?;
        worker.finish();
        let swept = self.sweep_all(true).await?;
        self.drop_templates().await?;
        Ok(swept)
    }

    /// As [`Pool::collect`], and waits for what this process has given back and sessions that began before are still looking
    /// at or dropping.
    pub async fn settle(&self) -> Result<()> {
        let is_on_its_way = |one: &FreshDatabase| matches!(one.stage, Stage::Returned | Stage::Dropping);
        loop {
            self.collect().await?;
            let is_at_work = self.0.background.load(Ordering::Acquire) > 0;
            let ours = self.list().await?.into_iter().filter(|one| one.holder.as_ref() == Some(&self.options().holder));
            if !is_at_work && !ours.into_iter().any(|one| is_on_its_way(&one)) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn sweep_all(&self, again: bool) -> Result<Vec<String>> {
        let mut swept = Vec::new();
        let mut first = again;
        loop {
            self.0.given_back.store(false, Ordering::Release);
            let mut worker = self.worker().await?;
            let (found, mut dropped) = self.sweep(&mut worker.admin, first).await?;
            worker.finish();
            swept.append(&mut dropped);
            self.0.news.notify_one();
            // A batch that is not full was the rest.
            if found == 0 || (!first && found < BATCH) {
                return Ok(swept);
            }
            // What would not go is not tried twice by one call.
            first = false;
        }
    }

    /// Removes a few. Returns how many there were, and the names of those that are gone.
    async fn sweep(&self, admin: &mut Admin, again: bool) -> Result<(usize, Vec<String>)> {
        let what = || "cannot look for fresh databases that are left over";
        let claimed = sqlx::query("SELECT * FROM tfdev.fresh_claim($1, $2, $3)")
            .bind(&self.server().database)
            .bind(again)
            .bind(i64::try_from(BATCH).expect("a few"))
            .fetch_all(&mut admin.connection)
            .await
            .or_failed(what)?;
        if claimed.is_empty() {
            return Ok((0, Vec::new()));
        }
        let (mut ids, mut returned, mut to_go) = (Vec::new(), Vec::new(), Vec::new());
        for row in claimed {
            let id = row.try_get(0).or_failed(what)?;
            ids.push(id);
            let (name, is_returned): (Option<String>, Option<bool>) =
                (row.try_get(1).or_failed(what)?, row.try_get(2).or_failed(what)?);
            let template: Option<i64> = row.try_get(3).or_failed(what)?;
            if let Some((name, template)) = name.zip(template) {
                let list = if is_returned == Some(true) { &mut returned } else { &mut to_go };
                list.push(Returned { id, template, name });
            }
        }
        crate::fault::point("fresh.sweep.marked").await;
        let free = if returned.is_empty() { Vec::new() } else { self.reuse(admin, &mut returned).await? };
        to_go.extend(returned.into_iter().filter(|one| !free.contains(&one.id)));
        let held: Vec<i64> = ids.iter().copied().filter(|id| !free.contains(id)).collect();
        let gone = self.drop_and_forget(admin, to_go, &held).await?;
        Ok((ids.len(), gone))
    }

    /// Drops databases, forgets those that are gone, and lets go of the locks of all in `held`. Returns the names.
    async fn drop_and_forget(&self, admin: &mut Admin, to_go: Vec<Returned>, held: &[i64]) -> Result<Vec<String>> {
        let what = || "cannot forget a fresh database";
        let ids: Vec<i64> = to_go.iter().map(|one| one.id).collect();
        let mark = "WITH marked AS (UPDATE tfdev.fresh_database SET stage = 'dropping' WHERE id = ANY($1)) \
                    SELECT set_config('statement_timeout', $2, false)";
        if !to_go.is_empty() {
            let marked = sqlx::query(mark).bind(&ids).bind(DROP_LIMIT).execute(&mut admin.connection).await;
            marked.or_failed(what)?;
        }
        let (mut gone, mut names) = (Vec::new(), Vec::new());
        for one in to_go {
            match drop_with_slots(admin, &one.name).await {
                Ok(()) => {
                    gone.push(one.id);
                    names.push(one.name);
                }
                Err(error) if super::session::is_lost(&error) => return Err(error),
                Err(error) => self.events().detail(format!("`{}` is not removed yet: {error}", one.name)),
            }
        }
        crate::fault::point("fresh.sweep.dropped").await;
        if !held.is_empty() {
            let forget = "WITH gone AS (DELETE FROM tfdev.fresh_database WHERE id = ANY($1)) SELECT \
                          pg_advisory_unlock($3, id::integer), set_config('statement_timeout', '0', false) FROM unnest($2) id";
            let forgotten = sqlx::query(forget).bind(&gone).bind(held).bind(DATABASE_LOCK);
            forgotten.fetch_all(&mut admin.connection).await.or_failed(what)?;
        }
        Ok(names)
    }

    /// Drops fresh databases by name, whoever has them: all of `names`, or none if one of them does not exist.
    pub async fn drop_named(&self, names: &[String]) -> Result<()> {
        let what = || "cannot mark fresh databases";
        let mut worker = self.worker().await?;
        let known = registry::list(&mut worker.admin.connection, &self.server().database).await?;
        if let Some(unknown) = names.iter().find(|name| !known.iter().any(|one| one.database == **name)) {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no fresh database `{unknown}`"))
                .hint("`tfdev fresh list` shows them"));
        }
        let mark = "UPDATE tfdev.fresh_database SET stage = 'dropping' WHERE database = ANY($1)";
        sqlx::query(mark).bind(names).execute(&mut worker.admin.connection).await.or_failed(what)?;
        for name in names {
            drop_database(&mut worker.admin, name).await?;
        }
        let forget = "DELETE FROM tfdev.fresh_database WHERE database = ANY($1)";
        sqlx::query(forget).bind(names).execute(&mut worker.admin.connection).await.or_failed(what)?;
        worker.finish();
        Ok(())
    }
}

/// Drops a database, and before that the replication slots that would forbid it.
async fn drop_with_slots(admin: &mut Admin, name: &str) -> Result<()> {
    let Err(refused) = drop_database(admin, name).await else { return Ok(()) };
    let statement =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT active";
    match sqlx::query(statement).bind(name).fetch_all(&mut admin.connection).await {
        Ok(slots) if !slots.is_empty() => drop_database(admin, name).await,
        _ => Err(refused),
    }
}
