//! The pool: copies of templates that are made, handed out, taken back and counted.
//!
//! What must hold:
//! - A database is handed out to one process only. The statement that notes it takes the row's lock before the note can be
//!   seen, so whoever sees "in use" with a free lock sees a process that is gone.
//! - The lock is held by one session for all leases of a pool, the keeper, which does nothing that takes long: what does is
//!   done in the sessions of workers.
//! - There are never more databases, and never more leases, than the server and the settings allow; who comes too late
//!   waits, and is not refused before the deadline.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Row as _};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::keeper::{Answer, Keeper, Order};
use super::registry::{self, COUNT_LOCK, DATABASE_LOCK, FreshDatabase};
use super::session;
use super::template::Template;
use super::untouched;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{FileLock, InstanceRecord};
use crate::pg::clone::{Admin, Properties, Strategy};
use crate::pg::{Login, quote};
use crate::server::{Server, Tenancy};

/// The pause between two looks whether a database, or the right to one, has become free.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Connections that are left to logins of ours which come and go.
const SPARE_CONNECTIONS: i64 = 4;

/// Below this many connections sessions of ours that have nothing to do are closed.
const FEW_CONNECTIONS: i64 = 60;

/// How a pool is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many fresh databases may exist at once, in all processes together.
    pub max_databases: u64,
    /// How many bytes they may take together.
    pub storage_bytes: u64,
    /// How many connections each of them is made for. It bounds how many are in use at once.
    pub connections: u32,
    /// How many sessions make and drop databases at once.
    pub workers: usize,
    /// How long a call may wait.
    pub timeout: Duration,
    /// Who takes the databases, for people who look at the list.
    pub holder: String,
    /// A file that is locked by the process whose turn it is, where connections are few.
    pub queue: Option<PathBuf>,
}

/// The pool of one server, as one process uses it. A clone is the same pool.
#[derive(Clone)]
pub struct Pool(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) server: Server,
    pub(super) record: InstanceRecord,
    options: Options,
    events: Events,
    /// What the contents of a template may depend on: the server's version and settings.
    surroundings: String,
    strategy: Option<Strategy>,
    /// Whether databases that were given back can be proven to be untouched, and templates are made so that they can.
    pub(super) proves: bool,
    /// Bytes of a file of the write-ahead log.
    pub(super) segment_size: u64,
    few_connections: bool,
    pub(super) max_leases: i64,
    pub(super) keeper: tokio::sync::Mutex<Keeper>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Admin>>,
    /// Who waits for a database, in the order in which they came.
    line: tokio::sync::Mutex<()>,
    /// Something was given back or made.
    pub(super) news: Notify,
    pub(super) sweepers: AtomicUsize,
    /// How many things are done in the background that remove something.
    pub(super) background: AtomicUsize,
    /// Whether templates were let go here, so that who drops the last copy of one must drop that too.
    pub(super) lets_templates_go: AtomicBool,
    /// How many are to be ready.
    ahead: AtomicUsize,
    replenishing: AtomicBool,
    pub(super) watched: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Pool({})", self.0.server.admin_login())
    }
}

/// A fresh database that this process has, until it gives it back or ends. Dropping the value alone changes nothing.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Its number.
    pub id: i64,
    /// The database's name.
    pub database: String,
    /// The number of its template.
    pub template: i64,
    server: Server,
}

impl Lease {
    /// The connection URL with the ordinary role's password.
    pub fn url(&self) -> String {
        Server { database: self.database.clone(), ..self.server.clone() }.url()
    }

    /// The login of the ordinary role, which owns the database.
    pub fn login(&self) -> Login {
        Login { database: self.database.clone(), ..self.server.login() }
    }
}

/// A session that makes and drops databases. Unless it is [finished](Worker::finish) it is closed, with all its locks.
pub(super) struct Worker {
    pub(super) admin: Admin,
    permit: OwnedSemaphorePermit,
    pool: Pool,
}

impl Worker {
    /// Gives the session back for the next job. It holds no lock any more.
    pub(super) fn finish(self) {
        drop(self.permit);
        self.pool.keep_worker(self.admin);
    }

    /// The session alone.
    pub(super) fn into_session(self) -> Admin {
        self.admin
    }
}

/// What came of making a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// There is one more that is free.
    One,
    /// There are as many as there may be.
    Full,
}

/// What may be known of the server before anything is done with it.
const ABOUT: &str = "SELECT current_setting('fsync'), current_setting('max_connections')::bigint, \
                     current_setting('superuser_reserved_connections')::bigint, \
                     pg_size_bytes(current_setting('wal_segment_size'))";

impl Pool {
    /// Opens the pool of a server. What dead processes have left is removed in the background.
    pub async fn open(server: Server, record: InstanceRecord, options: Options, events: &Events) -> Result<Self> {
        let what = || "cannot look at the server";
        let deadline = Instant::now() + options.timeout;
        let mut admin = session::open(&server, &record, deadline).await?;
        let about = sqlx::raw_sql(ABOUT).fetch_one(&mut admin.connection).await.or_failed(what)?;
        let row = sqlx::raw_sql(crate::snapshot::SETTINGS).fetch_one(&mut admin.connection).await.or_failed(what)?;
        let surroundings: String = row.try_get(0).or_failed(what)?;
        registry::create(&mut admin.connection).await?;
        let fsync: String = about.try_get(0).or_failed(what)?;
        let (max, reserved): (i64, i64) = (about.try_get(1).or_failed(what)?, about.try_get(2).or_failed(what)?);
        let segment_size: i64 = about.try_get(3).or_failed(what)?;
        let few_connections = max < FEW_CONNECTIONS;
        // Each process that uses databases has a session of ours as well.
        let each = i64::from(options.connections) + 1;
        let max_leases = ((max - reserved - SPARE_CONNECTIONS) / each).max(1);
        // One that drops must not keep another one from making.
        let workers = if few_connections { 2 } else { options.workers.max(2) };
        // Only a superuser reads the log, and only copies of files have their first change logged whatever it is.
        let proves = fsync == "off" && admin.superuser && server.tenancy == Tenancy::Whole;
        let inner = Inner {
            server,
            record,
            options,
            events: events.clone(),
            surroundings,
            // Without fsync a checkpoint costs next to nothing.
            strategy: (fsync == "off").then_some(Strategy::FileCopy),
            proves,
            segment_size: segment_size.unsigned_abs(),
            few_connections,
            max_leases,
            keeper: tokio::sync::Mutex::default(),
            permits: Arc::new(Semaphore::new(workers)),
            idle: Mutex::new(vec![admin]),
            line: tokio::sync::Mutex::new(()),
            news: Notify::new(),
            sweepers: AtomicUsize::new(0),
            background: AtomicUsize::new(0),
            lets_templates_go: AtomicBool::new(false),
            ahead: AtomicUsize::new(0),
            replenishing: AtomicBool::new(false),
            watched: AtomicBool::new(false),
        };
        let pool = Self(Arc::new(inner));
        pool.sweep_if_needed().await?;
        Ok(pool)
    }

    /// From the next [`Pool::take`] on keeps `count` databases ready for the template that was taken last. Without this each
    /// one is made when it is asked for.
    pub fn make_ahead(&self, count: usize) {
        self.0.ahead.store(count, Ordering::Relaxed);
    }

    /// As [`Pool::make_ahead`] for this template, at once.
    pub fn keep_ready(&self, template: &Template, count: usize) {
        self.make_ahead(count);
        self.replenish_soon(template);
    }

    pub(super) fn server(&self) -> &Server {
        &self.0.server
    }

    pub(super) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(super) fn events(&self) -> &Events {
        &self.0.events
    }

    pub(super) fn surroundings(&self) -> &str {
        &self.0.surroundings
    }

    pub(super) fn has_few_connections(&self) -> bool {
        self.0.few_connections
    }

    /// Hands out a fresh database; makes one if none is ready, and waits if there may be no more.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if none came free in time, [`ErrorKind::NotFound`] if the template is gone.
    pub async fn take(&self, template: &Template) -> Result<Lease> {
        self.take_by(template, Instant::now() + self.options().timeout, &Arc::default()).await
    }

    /// As [`Pool::take`], gives up at `deadline`, and sets `served` as soon as it has one. What is begun must be awaited: a
    /// database that was just handed out would else be nobody's.
    pub async fn take_by(&self, template: &Template, deadline: Instant, served: &Arc<AtomicBool>) -> Result<Lease> {
        let begin = Instant::now();
        let _turn = self.queue().await?;
        if let Some(lease) = self.attempt(template, deadline, served).await? {
            return Ok(lease);
        }
        let Ok(_place) = tokio::time::timeout_at(deadline.into(), self.0.line.lock()).await else {
            return Err(self.none_came_free(begin, deadline).await);
        };
        loop {
            if let Some(lease) = self.attempt(template, deadline, served).await? {
                return Ok(lease);
            }
            if Instant::now() >= deadline {
                return Err(self.none_came_free(begin, deadline).await);
            }
            // What is given back by another process is found by looking.
            let _ = tokio::time::timeout(LOOK_EVERY, self.0.news.notified()).await;
        }
    }

    /// Waits for its turn where connections are few, so that not all who wait have a session open.
    async fn queue(&self) -> Result<Option<FileLock>> {
        let Some(path) = self.options().queue.as_deref().filter(|_| self.has_few_connections()) else {
            return Ok(None);
        };
        if self.has_leases().await {
            return Ok(None);
        }
        self.rest().await;
        let events = Events::none();
        FileLock::acquire(path, "fresh databases", "fresh", self.options().timeout, &events).await.map(Some)
    }

    async fn attempt(&self, template: &Template, deadline: Instant, served: &Arc<AtomicBool>) -> Result<Option<Lease>> {
        let mut lease = self.hand_out(template, deadline, served).await?;
        if lease.is_none() && self.make(template, true).await? == Made::One {
            lease = self.hand_out(template, deadline, served).await?;
        }
        if lease.is_some() {
            self.replenish_soon(template);
        }
        Ok(lease)
    }

    fn lease(&self, id: i64, database: String, template: &Template) -> Lease {
        Lease { id, database, template: template.id, server: self.server().clone() }
    }

    /// Hands out one that is ready: one round trip.
    async fn hand_out(
        &self,
        template: &Template,
        deadline: Instant,
        served: &Arc<AtomicBool>,
    ) -> Result<Option<Lease>> {
        let (id, provable, served) = (template.id, template.provable, served.clone());
        let answer = self.in_keeper(deadline, &Order::HandOut { template: id, provable, served }).await?;
        let Answer::HandedOut(id, database) = answer else { return Ok(None) };
        self.watch();
        Ok(Some(self.lease(id, database, template)))
    }

    /// Makes a database and leaves it free. For a caller who is waiting it is done in the keeper's session if nothing else
    /// is open, which saves a login.
    async fn make(&self, template: &Template, waiting: bool) -> Result<Made> {
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

    /// Makes, in the background, what is missing of those that are to be ready.
    fn replenish_soon(&self, template: &Template) {
        let wanted = self.0.ahead.load(Ordering::Relaxed).min(usize::try_from(self.0.max_leases).unwrap_or(usize::MAX));
        if wanted == 0 || self.0.replenishing.swap(true, Ordering::AcqRel) {
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
            let Answer::Free(free) = self.in_keeper(deadline, &Order::CountFree(template.id)).await? else {
                return Ok(());
            };
            let missing = wanted.saturating_sub(free).min(self.options().workers.max(1));
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

    /// A session for what takes long.
    pub(super) async fn worker(&self) -> Result<Worker> {
        let deadline = Instant::now() + self.options().timeout;
        let permit = tokio::time::timeout_at(deadline.into(), self.0.permits.clone().acquire_owned()).await;
        let permit = permit.or_failed(|| "no session to make databases came free in time")?;
        let permit = permit.expect("the semaphore is never closed");
        let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let alive = match idle {
            Some(mut admin) => is_alive(&mut admin).await.then_some(admin),
            None => None,
        };
        let admin = match alive {
            Some(admin) => admin,
            None => session::open(self.server(), &self.0.record, deadline).await?,
        };
        Ok(Worker { admin, permit, pool: self.clone() })
    }

    /// Keeps a session that holds no lock for the next job.
    pub(super) fn keep_worker(&self, admin: Admin) {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(admin);
    }

    /// A session that is open and has nothing to do.
    pub(super) fn idle_session(&self) -> Option<Admin> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Closes, where connections are few, the sessions that have nothing to do.
    async fn rest(&self) {
        if !self.has_few_connections() {
            return;
        }
        while let Some(admin) = self.idle_session() {
            crate::provision::close(admin.connection).await;
        }
        if let Some(admin) = self.0.keeper.lock().await.give_up_session() {
            crate::provision::close(admin.connection).await;
        }
    }

    /// All fresh databases, oldest first.
    pub async fn list(&self) -> Result<Vec<FreshDatabase>> {
        let mut worker = self.worker().await?;
        let mut found = registry::list(&mut worker.admin.connection, &self.server().database).await?;
        worker.finish();
        for one in &mut found {
            one.url = Server { database: one.database.clone(), ..self.server().clone() }.url();
        }
        Ok(found)
    }

    /// The error for a time limit that passed.
    async fn none_came_free(&self, begin: Instant, deadline: Instant) -> Error {
        let waited = deadline.saturating_duration_since(begin).as_secs_f64().round();
        let message = format!("no fresh database came free within {waited} s");
        let error = Error::new(ErrorKind::TimedOut, message);
        // A last look, for which there may be no connection.
        let limit = deadline.max(Instant::now()) + Duration::from_secs(5);
        let Ok(Ok(found)) = tokio::time::timeout_at(limit.into(), self.list()).await else { return error };
        let leased = found.iter().filter(|one| one.stage == registry::Stage::Leased).count();
        let kept = found.iter().filter(|one| one.stage == registry::Stage::Kept).count();
        error
            .caused_by(format!(
                "of {} that may exist there are {}: {leased} in use, {kept} kept; the server has connections for {} in use",
                self.options().max_databases,
                found.len(),
                self.0.max_leases
            ))
            .hint("`tfdev fresh list` shows who has them; `max_databases` under `[fresh]` in `tfdev.toml` allows more")
    }
}

/// Whether a session that was idle still answers.
async fn is_alive(admin: &mut Admin) -> bool {
    sqlx::raw_sql("").execute(&mut admin.connection).await.is_ok()
}

/// A name's part that no other database has.
pub(super) fn unique() -> String {
    let unique = Uuid::new_v4().simple().to_string();
    unique[..16].to_owned()
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
