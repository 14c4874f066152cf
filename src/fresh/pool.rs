//! The pool: copies of templates that are handed out, taken back and counted.
//!
//! What must hold:
//! - A database is handed out to one process only. The statement that notes it takes the row's lock before the note can be
//!   seen, so whoever sees "in use" with a free lock sees a process that is gone.
//! - The lock is held by one session for all leases of a pool, the keeper, which does nothing that takes long: what does is
//!   done in the sessions of workers.
//! - There are never more databases, and never more leases, than the server and the settings allow; who comes too late
//!   waits, and is not refused before the deadline.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Row as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::emptied;
use super::keeper::{Answer, Keeper, Order, Stock};
use super::make::Made;
use super::registry::{self, FreshDatabase};
use super::session;
use super::template::Template;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{FileLock, InstanceRecord};
use crate::pg::Login;
use crate::pg::clone::{Admin, Strategy};
use crate::server::{Server, Tenancy};

/// The pause between two looks whether a database, or the right to one, has become free.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// How long the first in line waits for a database that was given back before another one is made: that costs twice as much
/// as waiting, for all who wait.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long a session may have been idle that is used without a question whether it is still there.
const FRESH_ENOUGH: Duration = Duration::from_millis(100);

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
    pub(super) strategy: Option<Strategy>,
    /// Whether databases that were given back can be proven to be untouched, and templates are made so that they can.
    pub(super) proves: bool,
    /// What can be emptied in copies of templates, by the templates' numbers, as far as it was asked for.
    pub(super) emptiable: Mutex<HashMap<i64, Arc<emptied::Index>>>,
    /// Bytes of a file of the write-ahead log.
    pub(super) segment_size: u64,
    few_connections: bool,
    pub(super) max_leases: i64,
    pub(super) keeper: tokio::sync::Mutex<Keeper>,
    permits: Arc<Semaphore>,
    /// Sessions that have nothing to do, and since when.
    pub(super) idle: Mutex<Vec<(Admin, Instant)>>,
    /// Who waits for a database, in the order in which they came.
    line: tokio::sync::Mutex<()>,
    /// Something was given back or made.
    pub(super) news: Notify,
    /// How many wait for a database, and that what was given back is needed soon.
    pub(super) waiting: AtomicUsize,
    pub(super) wanted: Notify,
    pub(super) sweepers: AtomicUsize,
    /// Whether something was given back since the last sweep began.
    pub(super) given_back: AtomicBool,
    /// Whether the database that was given back last went back into the pool.
    pub(super) reuses: AtomicBool,
    /// How many things are done in the background that remove something.
    pub(super) background: AtomicUsize,
    /// Whether templates were let go here, so that who drops the last copy of one must drop that too.
    pub(super) lets_templates_go: AtomicBool,
    /// How many are to be ready.
    pub(super) ahead: AtomicUsize,
    pub(super) replenishing: AtomicBool,
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
            emptiable: Mutex::default(),
            segment_size: segment_size.unsigned_abs(),
            few_connections,
            max_leases,
            keeper: tokio::sync::Mutex::default(),
            permits: Arc::new(Semaphore::new(workers)),
            idle: Mutex::new(vec![(admin, Instant::now())]),
            line: tokio::sync::Mutex::new(()),
            news: Notify::new(),
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
            sweepers: AtomicUsize::new(0),
            given_back: AtomicBool::new(false),
            reuses: AtomicBool::new(false),
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
        self.replenish_soon(template, None);
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
        if let Some(lease) = self.attempt(template, deadline, served, true).await? {
            return Ok(lease);
        }
        let _waiting = Waiting::begin(self);
        let Ok(_place) = tokio::time::timeout_at(deadline.into(), self.0.line.lock()).await else {
            return Err(self.none_came_free(begin, deadline).await);
        };
        let patient_until = Instant::now() + PATIENCE;
        loop {
            if let Some(lease) = self.attempt(template, deadline, served, Instant::now() < patient_until).await? {
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

    /// Hands one out, or makes one; who is `patient` makes none if one is coming back.
    async fn attempt(
        &self,
        template: &Template,
        deadline: Instant,
        served: &Arc<AtomicBool>,
        patient: bool,
    ) -> Result<Option<Lease>> {
        let (mut lease, mut stock) = self.hand_out(template, deadline, served).await?;
        if lease.is_none() && patient && self.coming_back(stock) > 0 {
            return Ok(None);
        }
        if lease.is_none() && self.make(template, true).await? == Made::One {
            (lease, stock) = self.hand_out(template, deadline, served).await?;
        }
        if lease.is_some() {
            self.replenish_soon(template, Some(stock));
            if stock.free <= stock.leased / 4 {
                self.0.wanted.notify_one();
            }
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
    ) -> Result<(Option<Lease>, Stock)> {
        let (id, provable, served) = (template.id, template.provable, served.clone());
        let answer = self.in_keeper(deadline, &Order::HandOut { template: id, provable, served }).await?;
        let Answer::HandedOut(taken, stock) = answer else {
            return Err(Error::failed("the session for fresh databases answered something else"));
        };
        if taken.is_some() {
            self.watch();
        }
        Ok((taken.map(|(id, database)| self.lease(id, database, template)), stock))
    }

    /// A session for what takes long.
    pub(super) async fn worker(&self) -> Result<Worker> {
        let deadline = Instant::now() + self.options().timeout;
        let permit = tokio::time::timeout_at(deadline.into(), self.0.permits.clone().acquire_owned()).await;
        let permit = permit.or_failed(|| "no session to make databases came free in time")?;
        let permit = permit.expect("the semaphore is never closed");
        let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let alive = match idle {
            Some((admin, since)) if since.elapsed() < FRESH_ENOUGH => Some(admin),
            Some((mut admin, _)) => is_alive(&mut admin).await.then_some(admin),
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
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push((admin, Instant::now()));
    }

    /// A session that is open and has nothing to do.
    pub(super) fn idle_session(&self) -> Option<Admin> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().map(|(admin, _)| admin)
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

/// Counts who waits for a database.
struct Waiting<'a>(&'a Pool);

impl<'a> Waiting<'a> {
    fn begin(pool: &'a Pool) -> Self {
        pool.0.waiting.fetch_add(1, Ordering::AcqRel);
        pool.0.wanted.notify_one();
        Self(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::AcqRel);
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
