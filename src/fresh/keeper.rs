//! The session that holds the locks of all leases of a pool, and what is done in it.
//!
//! What must hold: a lease's lock is taken again when the session was lost; everything here takes a round trip or two, so
//! that nobody waits long for his turn.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::pool::{Inner, Lease, Pool};
use super::registry::DATABASE_LOCK;
use super::{session, untouched};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::clone::Admin;

/// How often the keeper looks whether its session is still there while it holds leases. After a restart of the server
/// nobody takes leases for dead before [`super::reap::GRACE`] has passed.
const WATCH_EVERY: Duration = Duration::from_secs(3);

/// How long the locks of a session that was lost may still be held by it, as the server sees it.
const LOST_LIMIT: Duration = Duration::from_secs(2);

/// What is to be done in the keeper's session.
#[derive(Debug)]
pub(super) enum Order {
    /// Hand out a free database of the template.
    HandOut {
        template: i64,
        /// Whether it can be proven later that the database is untouched.
        provable: bool,
        /// Is set as soon as there is one: whatever is asked of the keeper afterwards knows it.
        served: Arc<AtomicBool>,
    },
    /// Ask a question whose answer is yes or no.
    Ask(String),
    /// Count what there is of the template.
    Count(i64),
    /// End leases, and let their databases stay for so many seconds, or go.
    GiveBack(Vec<i64>, Option<f64>),
    /// See that the session is there.
    Look,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// Number and name of the database that was handed out, if one was, and what is left.
    HandedOut(Option<(i64, String)>, Stock),
    /// What there is.
    Stock(Stock),
    /// The answer.
    Is(bool),
    /// It is done.
    Done,
}

/// How many databases of a template there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stock {
    pub(super) free: usize,
    /// Those that were given back and are still looked at.
    pub(super) returned: usize,
    /// How many databases this process has, of whatever template.
    pub(super) leased: usize,
}

impl Stock {
    /// Reads it from the column `first` on, for a process with so many databases.
    fn read(row: &PgRow, first: usize, leased: usize) -> sqlx::Result<Self> {
        let number = |column| row.try_get::<i64, _>(column).map(|number| usize::try_from(number).unwrap_or(0));
        Ok(Self { free: number(first)?, returned: number(first + 1)?, leased })
    }
}

/// The session, and what it holds.
#[derive(Default)]
pub(super) struct Keeper {
    session: Option<Admin>,
    /// In which life of the server the session is; `None` if it may not know.
    life: Option<String>,
    /// The leases by their numbers.
    leases: BTreeMap<i64, Held>,
}

/// A lease.
#[derive(Debug, Clone, Copy)]
struct Held {
    template: i64,
    /// Whether it can be proven that its database is untouched.
    provable: bool,
}

impl Keeper {
    pub(super) fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    pub(super) fn session(&mut self) -> Option<&mut Admin> {
        self.session.as_mut()
    }

    pub(super) fn forget_session(&mut self) {
        self.session = None;
    }

    /// The session, to be closed, if nothing is lost with it.
    pub(super) fn give_up_session(&mut self) -> Option<Admin> {
        if self.has_leases() { None } else { self.session.take() }
    }

    fn open_session(&mut self) -> Result<&mut Admin> {
        self.session.as_mut().ok_or_else(|| Error::failed("the session is not open"))
    }

    async fn run(&mut self, pool: &Pool, order: &Order) -> Result<Answer> {
        match order {
            Order::HandOut { template, provable, served } => {
                let answer = self.hand_out(pool, Held { template: *template, provable: *provable }).await?;
                served.store(matches!(answer, Answer::HandedOut(Some(_), _)), Ordering::Release);
                Ok(answer)
            }
            Order::Ask(question) => {
                let asked =
                    sqlx::raw_sql(AssertSqlSafe(question.clone())).fetch_one(&mut self.open_session()?.connection);
                let what = || "cannot count the fresh databases";
                asked.await.or_failed(what)?.try_get(0).or_failed(what).map(Answer::Is)
            }
            Order::Count(template) => self.count(*template).await.map(Answer::Stock),
            Order::GiveBack(ids, keep) => self.give_back(ids, *keep).await.map(|()| Answer::Done),
            Order::Look => {
                let asked = sqlx::raw_sql("SELECT 1").execute(&mut self.open_session()?.connection).await;
                asked.map(|_| Answer::Done).or_failed(|| "the session for fresh databases is lost")
            }
        }
    }

    /// Notes and locks a free database of the template.
    async fn hand_out(&mut self, pool: &Pool, wanted: Held) -> Result<Answer> {
        let what = || "cannot take a fresh database";
        let holder = &pool.options().holder;
        let is_limited = pool.0.max_leases < i64::try_from(pool.options().max_databases).unwrap_or(i64::MAX);
        let life = self.life.clone();
        let row = sqlx::query("SELECT * FROM tfdev.fresh_hand_out($1, $2, $3, $4, $5)")
            .bind(&pool.server().database)
            .bind(wanted.template)
            .bind(holder)
            .bind(life)
            .bind(is_limited.then_some(pool.0.max_leases));
        let row = row.fetch_one(&mut self.open_session()?.connection).await.or_failed(what)?;
        let (id, database): (Option<i64>, Option<String>) =
            (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
        let locked: Option<bool> = row.try_get(2).or_failed(what)?;
        // One that is not locked someone looks after at this moment, and will find it abandoned.
        let taken = id.zip(database).filter(|_| locked == Some(true));
        if let Some((id, _)) = &taken {
            self.leases.insert(*id, wanted);
        }
        Ok(Answer::HandedOut(taken, Stock::read(&row, 3, self.leases.len()).or_failed(what)?))
    }

    async fn count(&mut self, template: i64) -> Result<Stock> {
        let what = || "cannot count the fresh databases";
        let leased = self.leases.len();
        let question = "SELECT count(*) FILTER (WHERE stage = 'free'), count(*) FILTER (WHERE stage = 'returned') \
                        FROM tfdev.fresh_database WHERE template = $1";
        let asked = sqlx::query(question).bind(template).fetch_one(&mut self.open_session()?.connection);
        Stock::read(&asked.await.or_failed(what)?, 0, leased).or_failed(what)
    }

    /// Notes that leases are over, and lets go of their locks. `keep` is for how many seconds the databases stay.
    async fn give_back(&mut self, ids: &[i64], keep: Option<f64>) -> Result<()> {
        let what = || "cannot give a fresh database back";
        let is_provable = |id: &i64| self.leases.get(id).is_some_and(|held| held.provable);
        let provable: Vec<i64> = ids.iter().copied().filter(is_provable).collect();
        let statement = "UPDATE tfdev.fresh_database SET stage = CASE WHEN $2::float8 IS NOT NULL THEN 'kept' \
                         WHEN id = ANY($4) THEN 'returned' ELSE 'dropping' END, \
                         expires_at = clock_timestamp() + make_interval(secs => $2) \
                         WHERE id = ANY($1) AND stage = 'leased' RETURNING pg_advisory_unlock($3, id)";
        let done = sqlx::query(statement).bind(ids).bind(keep).bind(DATABASE_LOCK).bind(provable);
        done.fetch_all(&mut self.open_session()?.connection).await.or_failed(what)?;
        self.leases.retain(|id, _| !ids.contains(id));
        Ok(())
    }

    /// Opens the session if there is none, and takes the locks of the leases again.
    async fn ensure(&mut self, pool: &Pool, deadline: Instant) -> Result<()> {
        if self.session.is_some() {
            return Ok(());
        }
        let mut admin = match pool.idle_session() {
            Some(admin) if !self.has_leases() => admin,
            _ => session::open(pool.server(), &pool.0.record, deadline).await?,
        };
        let begin = Instant::now();
        let mut missing: Vec<i64> = self.leases.keys().copied().collect();
        while !missing.is_empty() {
            let question = "SELECT id::bigint FROM tfdev.fresh_database WHERE id = ANY($1) AND stage = 'leased' \
                            AND pg_try_advisory_lock($2, id)";
            let locked: Vec<i64> = sqlx::query_scalar(question)
                .bind(&missing)
                .bind(DATABASE_LOCK)
                .fetch_all(&mut admin.connection)
                .await
                .or_failed(|| "cannot lock the fresh databases again")?;
            missing.retain(|id| !locked.contains(id));
            if !missing.is_empty() && begin.elapsed() > LOST_LIMIT {
                pool.events().warning("the server was away for so long that fresh databases in use were lost");
                self.leases.retain(|id, _| !missing.contains(id));
                break;
            }
            if !missing.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let life = sqlx::query_scalar(untouched::LIFE_QUESTION).fetch_one(&mut admin.connection).await;
        self.life = life.or_failed(|| "cannot look at the server")?;
        self.session = Some(admin);
        Ok(())
    }
}

impl Pool {
    /// Does something in the keeper's session, in a new one if the old one is lost.
    pub(super) async fn in_keeper(&self, deadline: Instant, order: &Order) -> Result<Answer> {
        let Ok(mut keeper) = tokio::time::timeout_at(deadline.into(), self.0.keeper.lock()).await else {
            return Err(Error::new(ErrorKind::TimedOut, "the session for fresh databases did not come free in time"));
        };
        loop {
            let done = match keeper.ensure(self, deadline).await {
                Ok(()) => keeper.run(self, order).await,
                Err(error) => Err(error),
            };
            match done {
                Err(error) if session::is_lost(&error) && Instant::now() < deadline => {
                    self.events()
                        .detail(format!("the session for fresh databases is lost, another one is opened: {error}"));
                    keeper.forget_session();
                }
                other => return other,
            }
        }
    }

    pub(super) async fn has_leases(&self) -> bool {
        self.0.keeper.lock().await.has_leases()
    }

    /// How many databases this process has.
    pub(super) async fn leases(&self) -> usize {
        self.0.keeper.lock().await.leases.len()
    }

    /// Takes a database back. It is dropped in the background.
    pub async fn give_back(&self, lease: Lease) -> Result<()> {
        self.give_back_ids(vec![lease.id], None).await?;
        self.sweep_soon();
        Ok(())
    }

    /// Ends a lease and lets its database stay for so long.
    pub async fn keep(&self, lease: Lease, time: Duration) -> Result<()> {
        self.give_back_ids(vec![lease.id], Some(time.as_secs_f64())).await
    }

    /// Takes back all databases that this process has.
    pub async fn give_back_all(&self) -> Result<()> {
        let ids: Vec<i64> = self.0.keeper.lock().await.leases.keys().copied().collect();
        self.give_back_ids(ids, None).await
    }

    /// Takes back all databases of a template that this process has.
    pub(super) async fn give_back_all_of(&self, template: i64) -> Result<()> {
        let keeper = self.0.keeper.lock().await;
        let ids: Vec<i64> =
            keeper.leases.iter().filter(|(_, held)| held.template == template).map(|(id, _)| *id).collect();
        drop(keeper);
        self.give_back_ids(ids, None).await
    }

    async fn give_back_ids(&self, ids: Vec<i64>, keep: Option<f64>) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + self.options().timeout;
        self.in_keeper(deadline, &Order::GiveBack(ids, keep)).await?;
        if !self.0.reuses.load(Ordering::Relaxed) {
            self.0.news.notify_one();
        }
        Ok(())
    }

    /// Looks after the keeper's session for as long as the pool is in use.
    pub(super) fn watch(&self) {
        if !self.0.watched.swap(true, Ordering::AcqRel) {
            tokio::spawn(watch(Arc::downgrade(&self.0)));
        }
    }
}

async fn watch(pool: Weak<Inner>) {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let Some(inner) = pool.upgrade() else { return };
        let pool = Pool(inner);
        if !pool.has_leases().await {
            continue;
        }
        let deadline = Instant::now() + pool.options().timeout;
        if let Err(error) = pool.in_keeper(deadline, &Order::Look).await {
            pool.events().warning(format!("fresh databases in use may be lost: {error}"));
        }
    }
}
