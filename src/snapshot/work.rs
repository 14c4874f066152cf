//! The frame of each change: two sessions, the lock, the rows, what was left over, room for a copy, and what the server
//! is to do when we are gone.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use super::registry::{self, Kind, NewRow, Row, Stage};
use super::storage::Room;
use super::{Snapshots, not_found};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::pg::clone::{self, Admin, ClosedSession, Strategy};
use crate::pg::{Login, quote};

/// How many databases are dropped at the same time; each takes a session.
const DROPS_AT_ONCE: usize = 4;

/// How long a process in the server may take to end.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How often the server is asked whether it has begun what was sent.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A change in the making. It holds the lock until it is dropped.
pub(super) struct Work<'a> {
    pub(super) on: &'a Snapshots<'a>,
    /// Holds the lock, writes rows, swaps.
    pub(super) admin: Admin,
    /// Copies, and closes sessions while the other one swaps.
    pub(super) helper: Admin,
    pub(super) rows: Vec<Row>,
    /// Databases to be dropped once all else is done.
    drops: Vec<Row>,
    /// The room that is left by the copies of this change, if it was measured.
    room: Option<Room>,
    /// A session for what the server is to do when we are gone, opened while something else was waited for.
    spare: Option<Admin>,
}

impl<'a> Work<'a> {
    /// Logs in, takes the lock, and puts in order what an earlier command left.
    pub(super) async fn begin(on: &'a Snapshots<'a>) -> Result<Self> {
        let (mut admin, helper) = tokio::try_join!(on.open(), on.open())?;
        registry::lock(&mut admin, on.options.timeout, on.events).await?;
        fault::point("snapshot.locked").await;
        registry::create(&mut admin.connection).await?;
        let mut work = Self { on, admin, helper, rows: Vec::new(), drops: Vec::new(), room: None, spare: None };
        work.reload().await?;
        work.sweep().await?;
        work.sweep_transfers().await?;
        Ok(work)
    }

    pub(super) async fn reload(&mut self) -> Result<()> {
        self.rows = registry::rows(&mut self.admin.connection, self.on.database()).await?;
        Ok(())
    }

    /// The snapshot of that name.
    pub(super) fn find(&self, name: &str) -> Result<&Row> {
        let named = |row: &&Row| row.is_restorable() && row.name.as_deref() == Some(name);
        self.rows.iter().find(named).ok_or_else(|| not_found(name, &self.rows))
    }

    pub(super) fn is_taken(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.stage != Stage::Dropping && row.name.as_deref() == Some(name))
    }

    pub(super) fn check_name_is_free(&self, name: &str) -> Result<()> {
        if !self.is_taken(name) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, format!("there is a snapshot `{name}` already")).hint(format!(
            "choose another name, or remove that one: `tfdev snapshot delete {}`",
            shlex::try_quote(name).unwrap_or(name.into())
        )))
    }

    /// Cleans up after commands that did not come to their end. The lock is ours, so whoever began something is gone.
    async fn sweep(&mut self) -> Result<()> {
        let (mut gone, mut doomed, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for row in &mut self.rows {
            if row.stage == Stage::Building && row.kind != Kind::Standby && row.worker.is_some() {
                end_worker(&mut self.helper.connection, row).await?;
                row.exists = clone::find(&mut self.helper.connection, &row.database).await?.is_some();
            }
            match (row.stage, row.exists, row.worker) {
                (Stage::Building, false, Some(_)) | (Stage::Ready | Stage::Dropping, true, _) => {}
                (Stage::Building, true, _) if row.kind == Kind::Standby => whole.push(row.id),
                (Stage::Building, true, _) => doomed.push(row.id),
                (Stage::Ready, false, _) => {
                    if row.is_named() {
                        self.on.events.warning(format!("{} is gone: something dropped its database", row.title()));
                    }
                    gone.push(row.id);
                }
                (Stage::Building, false, None) | (Stage::Dropping, false, _) => gone.push(row.id),
            }
        }
        let is_there = |id: i64| self.rows.iter().any(|row| row.id == id && row.stage == Stage::Ready && row.exists);
        let orphans = self.rows.iter().filter(|row| row.parent.is_some_and(|parent| !is_there(parent)));
        doomed.extend(orphans.filter(|row| row.exists && row.stage != Stage::Dropping).map(|row| row.id));
        if !(gone.is_empty() && doomed.is_empty() && whole.is_empty()) {
            registry::forget(&mut self.admin.connection, &gone).await?;
            registry::set_stage(&mut self.admin.connection, &whole, Stage::Ready).await?;
            registry::set_stage(&mut self.admin.connection, &doomed, Stage::Dropping).await?;
            self.reload().await?;
        }
        fault::point("snapshot.sweep.marked").await;
        self.drops = self.rows.iter().filter(|row| row.stage == Stage::Dropping).cloned().collect();
        Ok(())
    }

    /// Measures how much room there is.
    pub(super) async fn measure(&mut self) -> Result<Room> {
        let on = self.on;
        Room::measure(&mut self.admin, on.server.tenancy, on.database(), on.options.limit_bytes).await
    }

    /// Makes sure that a copy of `needed` bytes fits. What nobody asked for goes first: left-overs, then ready copies.
    pub(super) async fn make_room(&mut self, needed: u64, keep: Option<i64>) -> Result<()> {
        let mut room = self.measure().await?;
        if room.missing(needed) == 0 {
            self.room = Some(room.without(needed));
            return Ok(());
        }
        let standbys = self.rows.iter().filter(|row| row.kind == Kind::Standby && Some(row.id) != keep);
        let expendable: Vec<Row> = self.drops.iter().chain(standbys).cloned().collect();
        for row in expendable {
            registry::set_stage(&mut self.admin.connection, &[row.id], Stage::Dropping).await?;
            self.drop_now(&row).await?;
            room = self.measure().await?;
            if room.missing(needed) == 0 {
                self.room = Some(room.without(needed));
                return Ok(());
            }
        }
        Err(room.refuse(needed, &self.rows))
    }

    /// Copies the project's database into that of `row`, while its sessions are closed and new ones wait.
    pub(super) async fn copy_live(&mut self, row: &Row, source: clone::Database) -> Result<()> {
        let database = self.on.database();
        let strategy = Strategy::for_size(source.size);
        self.helper.end_with_us().await;
        registry::lock_row(&mut self.helper.connection, row.id).await?;
        if strategy == Strategy::FileCopy {
            self.admin.checkpoint().await?;
        }
        let statement = clone::copy_statement(database, &row.database, strategy, false)?;
        let mut closed = clone::close_sessions(&mut self.admin.connection, source.oid).await?;
        fault::point("snapshot.create.closing").await;
        let (on, spare) = (self.on, &mut self.spare);
        let log_in = async { *spare = Box::pin(open_spare(on)).await };
        let helper = &mut self.helper;
        let copied =
            clone::run_without_sessions(helper, &mut self.admin.connection, source.oid, statement, log_in).await;
        closed.extend(copied.map_err(|error| copy_failed(database, error))?);
        self.tell_closed(&closed);
        self.unlock_rows().await
    }

    /// Copies a database that nobody can be in.
    pub(super) async fn copy_quiet(&mut self, source: &Row, row: &Row) -> Result<()> {
        self.helper.end_with_us().await;
        registry::lock_row(&mut self.helper.connection, row.id).await?;
        let strategy = Strategy::for_size(source.details.size);
        let statement = AssertSqlSafe(clone::copy_statement(&source.database, &row.database, strategy, false)?);
        let copying = sqlx::raw_sql(statement).execute(&mut self.helper.connection);
        let (copied, spare) = tokio::join!(copying, open_spare(self.on));
        self.spare = spare;
        copied.map_err(|error| copy_failed(&source.title(), error))?;
        self.unlock_rows().await
    }

    pub(super) async fn unlock_rows(&mut self) -> Result<()> {
        self.helper.run("SELECT pg_advisory_unlock_all()".to_owned(), "unlock a copy").await
    }

    /// Says whose sessions were closed.
    pub(super) fn tell_closed(&self, closed: &[ClosedSession]) {
        if closed.is_empty() {
            return;
        }
        let mut names: Vec<&str> = closed.iter().map(|session| session.application.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let programs: Vec<_> =
            names.into_iter().filter(|name| !name.is_empty()).map(|name| format!("`{name}`")).collect();
        let whose = if programs.is_empty() { String::new() } else { format!(" of {}", programs.join(", ")) };
        let sessions = if closed.len() == 1 { "session" } else { "sessions" };
        self.on.events.note(format!("Closed {} {sessions}{whose} in `{}`", closed.len(), self.on.database()));
    }

    /// Removes the database of a row that could not be finished. A failure is left to the next command.
    pub(super) async fn give_up(&mut self, row: &Row) {
        // A copy that failed or that was cut off has removed itself, and what is left is a row.
        let _ = self.unlock_rows().await;
        let _ = self.drop_now(row).await;
    }

    /// Drops the database of a row, waits for it, and forgets the row.
    pub(super) async fn drop_now(&mut self, row: &Row) -> Result<()> {
        let mut row = row.clone();
        end_worker(&mut self.helper.connection, &mut row).await?;
        self.helper.run(drop_statement(&row)?, &format!("remove the database of {}", row.title())).await?;
        registry::forget(&mut self.admin.connection, &[row.id]).await?;
        self.rows.retain(|other| other.id != row.id);
        self.drops.retain(|other| other.id != row.id);
        Ok(())
    }

    /// Takes rows that are marked to go from the others; [`Work::finish`] has their databases dropped. A copy that the
    /// server is still making ends here.
    pub(super) async fn drop_later(&mut self, ids: &[i64]) {
        let (mut doomed, kept): (Vec<Row>, Vec<Row>) =
            std::mem::take(&mut self.rows).into_iter().partition(|row| ids.contains(&row.id));
        self.rows = kept;
        for row in &mut doomed {
            if let Err(error) = end_worker(&mut self.helper.connection, row).await {
                self.on.events.detail(format!("left to the next command: {error}"));
            }
        }
        self.drops.extend(doomed);
    }

    /// Has a ready copy made of `parent`, if there are to be any, in the place of that of another one.
    pub(super) async fn keep_standby_of(&mut self, parent: &Row) {
        if let Err(error) = self.try_keep_standby(parent).await {
            self.on.events.warning(format!("no ready copy is kept: {error}"));
        }
    }

    async fn try_keep_standby(&mut self, parent: &Row) -> Result<()> {
        let is_base = |id: Option<i64>| {
            self.rows.iter().any(|row| Some(row.id) == id && row.kind == Kind::Base) == (parent.kind == Kind::Base)
        };
        let standbys = self.rows.iter().filter(|row| row.kind == Kind::Standby && row.stage != Stage::Dropping);
        let (same, other): (Vec<&Row>, Vec<&Row>) =
            standbys.filter(|row| is_base(row.parent)).partition(|row| row.parent == Some(parent.id));
        let wanted = self.on.options.standby && same.is_empty();
        let outdated: Vec<i64> =
            if self.on.options.standby { other } else { [same, other].concat() }.iter().map(|row| row.id).collect();
        registry::set_stage(&mut self.admin.connection, &outdated, Stage::Dropping).await?;
        self.drop_later(&outdated).await;
        if !wanted {
            return Ok(());
        }
        let room = match self.room {
            Some(room) => room,
            None => self.measure().await?,
        };
        if room.missing(parent.details.size) > 0 {
            self.on.events.detail("there is no room for a ready copy, so the next restore copies first");
            return Ok(());
        }
        let new = NewRow { parent: Some(parent.id), details: parent.details.clone(), ..NewRow::of(Kind::Standby) };
        let row = registry::insert(&mut self.admin.connection, self.on.database(), &new, Stage::Building).await?;
        fault::point("snapshot.background.intent").await;
        let strategy = Strategy::for_size(parent.details.size);
        let statement = clone::copy_statement(&parent.database, &row.database, strategy, false)?;
        self.in_background(row.id, statement).await
    }

    /// Has the server drop what is to go, and lets go of the lock. The work itself is done, so nothing here fails it.
    pub(super) async fn finish(mut self) {
        let drops: Vec<Row> = self.drops.iter().filter(|row| row.worker.is_none()).cloned().collect();
        for row in drops.iter().take(DROPS_AT_ONCE) {
            let sent = match drop_statement(row) {
                Ok(statement) => self.in_background(row.id, statement).await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                self.on.events.detail(format!("{} is not removed yet: {error}", row.title()));
            }
        }
        for session in [Some(self.helper), self.spare, Some(self.admin)].into_iter().flatten() {
            crate::provision::close(session.connection).await;
        }
    }

    /// Sends a statement for the database of the row `id` in a session of its own, and leaves it to the server once it is
    /// at work. It goes on when this process is gone; only one statement can be left behind like that.
    async fn in_background(&mut self, id: i64, statement: String) -> Result<()> {
        let mut session = match self.spare.take() {
            Some(session) => session,
            None => Admin::open(&background_login(self.on), self.on.options.timeout).await?,
        };
        registry::lock_row(&mut session.connection, id).await?;
        session.run("SET client_connection_check_interval = 0".to_owned(), "set up a session").await?;
        let work = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut session.connection);
        tokio::select! {
            biased;
            done = work => { done.or_failed(|| format!("the server could not do `{statement}`"))?; }
            seen = until_active(&mut self.helper.connection, session.pid, &statement) => { seen?; }
        }
        fault::point("snapshot.background.sent").await;
        Ok(())
    }
}

impl Row {
    fn is_named(&self) -> bool {
        matches!(self.kind, Kind::Snapshot | Kind::Auto)
    }
}

fn background_login(on: &Snapshots<'_>) -> Login {
    Login { application_name: "tfdev background".to_owned(), ..on.server.admin_login() }
}

/// A session for a ready copy, if there are to be any. One that cannot be opened now is tried again when it is needed.
async fn open_spare(on: &Snapshots<'_>) -> Option<Admin> {
    if !on.options.standby {
        return None;
    }
    Admin::open(&background_login(on), on.options.timeout).await.ok()
}

fn drop_statement(row: &Row) -> Result<String> {
    Ok(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote::identifier(&row.database)?))
}

/// Waits until the session `pid` is at work on `statement`.
async fn until_active(connection: &mut PgConnection, pid: i32, statement: &str) -> Result<()> {
    let question = "SELECT EXISTS (SELECT FROM pg_stat_get_activity($1) WHERE state = 'active' AND query = $2)";
    loop {
        let active: bool = sqlx::query_scalar(question)
            .bind(pid)
            .bind(statement)
            .fetch_one(&mut *connection)
            .await
            .or_failed(|| "cannot see what the server does")?;
        if active {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ends what makes or drops the database of `row`, if anything does, and waits until it is gone.
async fn end_worker(connection: &mut PgConnection, row: &mut Row) -> Result<()> {
    let Some(pid) = row.worker.take() else { return Ok(()) };
    sqlx::query("SELECT pg_terminate_backend($1)")
        .bind(pid)
        .execute(&mut *connection)
        .await
        .or_failed(|| format!("cannot end the process {pid} in the server, which is at work on {}", row.title()))?;
    if registry::wait_for_row(connection, row.id, END_LIMIT).await? {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TimedOut,
        format!("the process {pid} in the server, which is at work on {}, did not end", row.title()),
    )
    .hint("try again in a moment"))
}

/// What a copy that failed means.
fn copy_failed(what: &str, error: sqlx::Error) -> Error {
    let code = crate::pg::connect::server_error(&error).map(|error| error.code().to_owned());
    let message = format!("cannot copy `{what}`");
    match code.as_deref() {
        Some("53100") => Error::new(ErrorKind::Refused, format!("{message}: the server's disk is full"))
            .hint("nothing was changed; `tfdev snapshot list` shows what could be deleted"),
        Some("55006") => Error::new(ErrorKind::Conflict, format!("{message}: somebody is still in it"))
            .hint("close what uses it, then try again"),
        Some("42501") => Error::new(ErrorKind::Refused, format!("{message}: the role may not"))
            .hint("the role of tfdev needs CREATEDB and must be a member of the role that owns the database"),
        _ => Error::failed(message),
    }
    .caused_by(error)
}
