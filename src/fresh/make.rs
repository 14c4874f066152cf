//! Making copies of templates: when asked for, or ahead.
//!
//! What must hold: the row is written before the copy is begun, under its own lock, and counted with all others by one
//! process at a time; a copy that comes to nothing, or whose template was let go meanwhile, is swept, and no copy is cut off
//! by another one's failure.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sqlx::{AssertSqlSafe, Row as _};

use super::keeper::{Answer, Order, Stock};
use super::pool::{Pool, unique};
use super::reap;
use super::registry::{COUNT_LOCK, DATABASE_LOCK};
use super::template::Template;
use super::untouched;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::clone::{Admin, Properties, Strategy};
use crate::pg::quote;

/// Twice as many as this process has are kept ready while databases come back, but no more than this.
const MOST_AHEAD: usize = 16;

/// What came of making a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// There is one more that is free.
    One,
    /// There are as many as there may be.
    Full,
}

impl Pool {
    /// Makes a database and leaves it free. For a caller who is waiting it is done in the keeper's session if nothing else
    /// is open, which saves a login.
    pub(super) async fn make(&self, template: &Template, waiting: bool) -> Result<Made> {
        let alone = waiting && self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if let Ok(mut keeper) = self.0.keeper.try_lock()
            && alone
            && !keeper.has_leases()
            && let Some(admin) = keeper.session()
        {
            let made = self.make_in(admin, template).await;
            if made.is_err() {
                // It may still hold the row's lock.
                keeper.forget_session();
            }
            return made;
        }
        let mut worker = self.worker().await?;
        let made = self.make_in(&mut worker.admin, template).await?;
        worker.finish();
        Ok(made)
    }

    async fn make_in(&self, admin: &mut Admin, template: &Template) -> Result<Made> {
        let what = || "cannot note a fresh database";
        let name = format!("tfdev_f_{}", unique());
        let rows = sqlx::raw_sql(AssertSqlSafe(self.note_statement(&name, template)?));
        let rows = rows.fetch_all(&mut admin.connection).await.or_failed(what)?;
        // The first row is that of the lock.
        let Some(row) = rows.get(1) else {
            self.make_room(admin, template).await?;
            return Ok(Made::Full);
        };
        let id: i64 = row.try_get(0).or_failed(what)?;
        crate::fault::point("fresh.make.intent").await;
        let made = self.copy(admin, template, &name).await;
        crate::fault::point("fresh.make.copied").await;
        let traits = if self.0.proves { untouched::traits("database") } else { "NULL".to_owned() };
        // A template may be let go while it is copied.
        let note = format!(
            "UPDATE tfdev.fresh_database d SET stage = CASE WHEN $2 AND EXISTS (SELECT FROM tfdev.fresh_template t \
             WHERE t.id = d.template AND t.stage = 'ready') THEN 'free' ELSE 'dropping' END, traits = {traits} \
             WHERE id = $1 AND stage = 'building' RETURNING stage = 'free', pg_advisory_unlock($3, id)"
        );
        let noted = sqlx::query(AssertSqlSafe(note)).bind(id).bind(made.is_ok()).bind(DATABASE_LOCK);
        let noted = noted.fetch_optional(&mut admin.connection).await.or_failed(what)?;
        let is_free = noted.map(|row| row.try_get(0)).transpose().or_failed(what)?;
        if is_free == Some(false) {
            self.collect_soon();
            made?;
            return Err(Error::new(ErrorKind::NotFound, format!("the template `{}` is gone", template.database)));
        }
        self.0.news.notify_one();
        Ok(Made::One)
    }

    /// Counts what is there and writes the row, one process at a time.
    fn note_statement(&self, name: &str, template: &Template) -> Result<String> {
        let source = quote::literal(&self.server().database)?;
        let (id, size) = (template.id, template.size_bytes);
        Ok(format!(
            "BEGIN; SELECT pg_advisory_xact_lock({COUNT_LOCK});
             INSERT INTO tfdev.fresh_database (source, template, template_database, size, database, stage)
             SELECT {source}, {id}, {template}, {size}, {name}, 'building'
             WHERE (SELECT {room} AND count(*) FILTER (WHERE stage IN ('leased', 'building')) < {leases}
                    FROM tfdev.fresh_database WHERE source = {source})
             RETURNING id::bigint, pg_advisory_lock({DATABASE_LOCK}, id);
             COMMIT",
            template = quote::literal(&template.database)?,
            name = quote::literal(name)?,
            room = self.room_for(template),
            leases = self.0.max_leases,
        ))
    }

    /// The condition that all rows leave room for one more copy of the template.
    pub(super) fn room_for(&self, template: &Template) -> String {
        let (options, size) = (self.options(), template.size_bytes);
        format!(
            "count(*) < {} AND coalesce(sum(size), 0) + {size} <= greatest({}, {size})",
            options.max_databases, options.storage_bytes
        )
    }

    /// Copies the template to the new database `name`.
    async fn copy(&self, admin: &mut Admin, template: &Template, name: &str) -> Result<()> {
        let strategy = self.0.strategy.unwrap_or_else(|| Strategy::for_size(template.size_bytes));
        let owner = &self.server().user.name;
        let statement = format!(
            "{} OWNER {}",
            crate::pg::clone::copy_statement(&template.database, name, strategy, true)?,
            quote::identifier(owner)?
        );
        let copied = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut admin.connection).await;
        copied.map_err(|error| copy_failed(template, error))?;
        if let Some(properties) = &template.properties {
            let properties = Properties { owner: owner.clone(), ..properties.clone() };
            properties.apply(&mut admin.connection, name).await?;
        }
        Ok(())
    }

    /// Lets the oldest free database of another template go, unless one is going already, so that the next try finds room.
    async fn make_room(&self, admin: &mut Admin, template: &Template) -> Result<()> {
        let room = self.room_for(template);
        let statement = format!(
            "UPDATE tfdev.fresh_database SET stage = 'dropping' WHERE id = (SELECT id FROM tfdev.fresh_database \
             WHERE source = $1 AND template <> $2 AND stage = 'free' \
             AND NOT EXISTS (SELECT FROM tfdev.fresh_database WHERE source = $1 AND stage = 'dropping' \
             AND coalesce(tried_at > clock_timestamp() - interval '5 s', true)) \
             AND NOT (SELECT {room} FROM tfdev.fresh_database WHERE source = $1) \
             ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)"
        );
        let marked = sqlx::query(AssertSqlSafe(statement)).bind(&self.server().database).bind(template.id);
        marked.execute(&mut admin.connection).await.or_failed(|| "cannot make room for a fresh database")?;
        self.sweep_soon();
        Ok(())
    }

    /// How many are ready, or will soon be.
    fn ready(&self, stock: Stock) -> usize {
        stock.free + self.coming_back(stock)
    }

    /// How many that were given back are expected to be free again soon, as the last one was.
    pub(super) fn coming_back(&self, stock: Stock) -> usize {
        if self.0.reuses.load(Ordering::Relaxed) { stock.returned } else { 0 }
    }

    /// Makes, in the background, what is missing of those that are to be ready. `stock` is what is known to be there.
    pub(super) fn replenish_soon(&self, template: &Template, stock: Option<Stock>) {
        let mut wanted = self.0.ahead.load(Ordering::Relaxed);
        if let Some(stock) = stock
            && wanted > 0
            && stock.leased >= reap::MANY
            && self.0.reuses.load(Ordering::Relaxed)
        {
            // Enough that those that come back can be looked at together while others are handed out.
            wanted = wanted.max((2 * stock.leased).min(MOST_AHEAD));
        }
        wanted = wanted.min(usize::try_from(self.0.max_leases).unwrap_or(usize::MAX));
        if stock.map_or(0, |stock| self.ready(stock)) >= wanted || self.0.replenishing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (pool, template) = (self.clone(), template.clone());
        tokio::spawn(async move {
            let replenished = pool.replenish(&template, wanted).await;
            pool.0.replenishing.store(false, Ordering::Release);
            if let Err(error) = replenished {
                pool.events().detail(format!("no database is made ahead: {error}"));
            }
        });
    }

    /// Makes databases until `wanted` are free, or there may be no more.
    pub async fn replenish(&self, template: &Template, wanted: usize) -> Result<()> {
        let deadline = Instant::now() + self.options().timeout;
        loop {
            let Answer::Stock(stock) = self.in_keeper(deadline, &Order::Count(template.id)).await? else {
                return Ok(());
            };
            let missing = wanted.saturating_sub(self.ready(stock)).min(self.options().workers.max(1));
            if missing == 0 {
                return Ok(());
            }
            let mut makes = tokio::task::JoinSet::new();
            for _ in 0..missing {
                let (pool, template) = (self.clone(), template.clone());
                makes.spawn(async move { pool.make(&template, false).await });
            }
            // All of them to their end: one that is cut off leaves what the next sweep must find.
            let made = makes.join_all().await.into_iter().collect::<Result<Vec<Made>>>()?;
            if made.contains(&Made::Full) {
                return Ok(());
            }
        }
    }
}

/// What a copy that failed means.
fn copy_failed(template: &Template, error: sqlx::Error) -> Error {
    let code = crate::pg::connect::server_error(&error).map(|error| error.code().to_owned());
    match code.as_deref() {
        Some("3D000") => Error::new(ErrorKind::NotFound, format!("the template `{}` is gone", template.database)),
        Some("53100") => Error::new(ErrorKind::Refused, "cannot make a fresh database: the server's disk is full")
            .hint("lower `max_databases` under `[fresh]` in `tfdev.toml`, or `tfdev fresh gc`"),
        _ => Error::failed(format!("cannot copy the template `{}`", template.database)),
    }
    .caused_by(error)
}
