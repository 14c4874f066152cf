//! Snapshots: named copies of the project's database inside its server, and going back to one.
//!
//! ```text
//! registry    which databases we made, and for what: one row each, in the server itself
//! work        the frame of each change: the lock, what was left over, room, what goes on in the background
//! create      the project's database → a snapshot
//! restore     a snapshot, a base or the state before → the project's database
//! export      the project's database or a snapshot → one file; outside: what a dump omits
//! import      one file → a snapshot
//! base        the migrated and seeded state that `reset` goes back to
//! details     what is noted of a state; name: what people may call it; storage: whether a copy fits
//! ```
//!
//! What must hold:
//! - There is a whole database of the project's name at every moment. What is to take the name is made and checked under
//!   another one; then one transaction renames both, and notes it.
//! - The state before a restore or reset is kept (unless `snapshots.auto` is 0), by that rename: it costs nothing.
//! - A kill at any instruction, of us or of the server, leaves the state before or the state after, and rows that say
//!   what was begun. The next command cleans up.
//! - A program that logs in during the swap waits for some milliseconds, and is not refused where our role is a superuser.
//! - Ready copies and the dropping of old ones are left to the server: a statement that was sent goes on when we are gone.

mod base;
mod create;
mod details;
mod export;
mod import;
pub mod name;
mod outside;
pub mod registry;
mod restore;
mod storage;
mod swap;
mod work;

#[cfg(test)]
mod model_tests;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use sqlx::{PgConnection, Row as _};

use self::registry::{Kind, Row, Stage};
use self::storage::Room;
use self::work::Work;
use crate::config::Settings;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::InstanceRecord;
use crate::pg::clone::Admin;
use crate::profile::{self, Limits};
use crate::server::{Running, Server};

pub(crate) use base::SETTINGS;
pub use base::reset;
pub use create::Created;
pub use export::{ExportOptions, Exported};
pub(crate) use export::{Told, dump_command};
pub use import::{ImportOptions, Imported};
pub use restore::{Restored, Way};

/// How snapshots are kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many automatic snapshots are kept.
    pub auto: u64,
    /// Whether a ready copy is kept of the snapshot that was used last and of the base.
    pub standby: bool,
    /// The instance's limit of storage, in bytes.
    pub limit_bytes: u64,
    /// How long to wait for a login or for another tfdev.
    pub timeout: Duration,
    /// The checkout, whose branch and commit are noted.
    pub project_dir: Option<PathBuf>,
}

/// The snapshots of one server's project database.
pub struct Snapshots<'a> {
    server: &'a Server,
    record: &'a InstanceRecord,
    options: Options,
    events: &'a Events,
}

/// A snapshot as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Whether it was made before a restore or reset.
    pub automatic: bool,
    /// What was noted.
    pub note: Option<String>,
    /// When the state was kept: UTC.
    pub created_at: Timestamp,
    /// Bytes of the database.
    pub size_bytes: u64,
    /// The last migration that was applied.
    pub migration: Option<i64>,
    /// The version of PostgreSQL.
    pub postgres_version: String,
    /// The branch of the checkout.
    pub git_branch: Option<String>,
    /// The commit of the checkout.
    pub git_commit: Option<String>,
    /// The hash of the schema.
    pub fingerprint: Option<String>,
    /// Whether a copy of it stands ready, so that restoring it is a rename.
    pub standby: bool,
}

/// A database that nobody needs any more and that the next command removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOver {
    /// What it was for, in words.
    pub what: String,
    /// The database's name.
    pub database: String,
    /// Bytes of the database when it was noted.
    pub size_bytes: u64,
}

/// Everything that is kept, and what is left over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// The snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Databases that nobody needs any more.
    pub left_overs: Vec<LeftOver>,
    /// Bytes in folders of the data folder that belong to no database: left by a server that was killed in mid-copy.
    pub leaked_bytes: u64,
}

impl Options {
    /// What the settings say, within these limits.
    pub fn of(settings: &Settings, limits: Limits) -> Self {
        Self {
            auto: settings.snapshots.auto.value,
            standby: settings.snapshots.standby.value,
            limit_bytes: limits.storage_bytes,
            timeout: Duration::from_secs(settings.timeout_seconds.value),
            project_dir: Some(settings.project_dir.clone()),
        }
    }
}

impl<'a> Snapshots<'a> {
    /// The snapshots of a server, which is proven to be the one on `record` before anything is written.
    pub fn new(server: &'a Server, record: &'a InstanceRecord, options: Options, events: &'a Events) -> Self {
        Self { server, record, options, events }
    }

    /// Those of a running instance.
    pub fn of(running: &'a Running, settings: &Settings, events: &'a Events) -> Result<Self> {
        let name = running.record.profile_name();
        let name = name.unwrap_or_else(|| settings.profile_name());
        let options = Options::of(settings, profile::resolve(name, &settings.profiles)?.limits);
        Ok(Self::new(&running.server, &running.record, options, events))
    }

    /// The project's database.
    fn database(&self) -> &str {
        &self.server.database
    }

    /// Fails if `what`, which needs so many bytes in the project's database, exceeds the limit or the disk.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`], with the snapshots that could go.
    pub async fn check_room(&self, what: &str, needed: u64) -> Result<()> {
        let mut admin = self.open().await?;
        let measured = Room::measure(&mut admin, self.server.tenancy, self.database(), self.options.limit_bytes).await;
        let rows = registry::rows(&mut admin.connection, self.database()).await;
        crate::provision::close(admin.connection).await;
        let room = measured?;
        if room.missing(needed) == 0 { Ok(()) } else { Err(room.refuse_what(what, needed, &rows?)) }
    }

    /// A session that is proven to be with the right server.
    async fn open(&self) -> Result<Admin> {
        let mut admin = Admin::open(&self.server.admin_login(), self.options.timeout).await?;
        self.server.prove(&mut admin.connection, self.record).await?;
        Ok(admin)
    }

    /// Whether the state before a restore is kept by itself.
    pub fn keeps_automatic(&self) -> bool {
        self.options.auto > 0
    }

    /// The number of the project's database, which is another one after a restore or reset.
    pub async fn database_number(&self) -> Result<i64> {
        let mut admin = self.open().await?;
        let found = crate::pg::clone::find(&mut admin.connection, self.database()).await;
        crate::provision::close(admin.connection).await;
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no database `{}`", self.database()));
        Ok(found?.ok_or_else(missing)?.oid)
    }

    /// What is kept, and what is left over. Changes nothing and waits for nobody.
    pub async fn overview(&self) -> Result<Overview> {
        let mut admin = self.open().await?;
        let overview = overview(&mut admin.connection, self.database()).await;
        crate::provision::close(admin.connection).await;
        overview
    }

    /// Gives a snapshot another name; an automatic one is then kept like any other.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Conflict`] if the new name is taken, [`ErrorKind::BadInput`] for a bad one.
    pub async fn rename(&self, from: &str, to: &str) -> Result<Snapshot> {
        name::check(to)?;
        let mut work = Work::begin(self).await?;
        let id = work.find(from)?.id;
        if from != to {
            work.check_name_is_free(to)?;
        }
        crate::fault::point("snapshot.rename.begin").await;
        let question = "UPDATE tfdev.snapshot SET name = $2, kind = $3 WHERE id = $1";
        let renamed = sqlx::query(question).bind(id).bind(to).bind(Kind::Snapshot.word());
        renamed
            .execute(&mut work.admin.connection)
            .await
            .or_failed(|| format!("cannot rename the snapshot `{from}`"))?;
        work.reload().await?;
        let snapshot = shown(work.find(to)?, &work.rows);
        work.finish().await;
        Ok(snapshot)
    }

    /// Removes snapshots: all of `names`, or none if one of them does not exist.
    pub async fn delete(&self, names: &[String]) -> Result<Vec<Snapshot>> {
        let mut work = Work::begin(self).await?;
        let mut doomed: Vec<Row> = Vec::new();
        for name in names {
            let row = work.find(name)?.clone();
            if !doomed.iter().any(|other| other.id == row.id) {
                doomed.push(row);
            }
        }
        let deleted: Vec<_> = doomed.iter().map(|row| shown(row, &work.rows)).collect();
        let ids: Vec<i64> = doomed.iter().map(|row| row.id).collect();
        let copies = work.rows.iter().filter(|row| row.parent.is_some_and(|parent| ids.contains(&parent)));
        let doomed: Vec<Row> = copies.chain(&doomed).cloned().collect();
        let all: Vec<i64> = doomed.iter().map(|row| row.id).collect();
        registry::set_stage(&mut work.admin.connection, &all, Stage::Dropping).await?;
        crate::fault::point("snapshot.delete.marked").await;
        for row in &doomed {
            work.drop_now(row).await?;
            crate::fault::point("snapshot.delete.dropped").await;
        }
        work.finish().await;
        Ok(deleted)
    }
}

/// What is kept of the project's database `source`, and what is left over. `connection` is the admin login's.
pub async fn overview(connection: &mut PgConnection, source: &str) -> Result<Overview> {
    let rows = registry::rows(connection, source).await?;
    let snapshots = rows.iter().filter(|row| row.is_restorable()).map(|row| shown(row, &rows)).collect();
    let left_overs = rows.iter().filter(|row| row.is_left_over()).map(|row| LeftOver {
        what: row.title(),
        database: row.database.clone(),
        size_bytes: row.details.size,
    });
    Ok(Overview { snapshots, left_overs: left_overs.collect(), leaked_bytes: leaked_bytes(connection).await })
}

/// Bytes in folders that belong to no database; 0 also where our role may not look, or while a copy is being made.
async fn leaked_bytes(connection: &mut PgConnection) -> u64 {
    let question = "SELECT coalesce(sum((SELECT sum((pg_stat_file('base/' || f || '/' || g, true)).size) \
                    FROM pg_ls_dir('base/' || f, true, false) g)), 0)::bigint \
                    FROM pg_ls_dir('base') f WHERE f ~ '^[0-9]+$' AND f::oid NOT IN (SELECT oid FROM pg_database) \
                    AND NOT EXISTS (SELECT FROM pg_stat_get_activity(NULL) WHERE pid <> pg_backend_pid() \
                    AND state = 'active' AND query ~* '^(create|drop) database')";
    let row = sqlx::raw_sql(question).fetch_one(connection).await;
    row.and_then(|row| row.try_get::<i64, _>(0)).map_or(0, i64::unsigned_abs)
}

/// How a row looks to people.
fn shown(row: &Row, rows: &[Row]) -> Snapshot {
    let details = &row.details;
    let version = details.server_version;
    Snapshot {
        name: row.name.clone().unwrap_or_default(),
        automatic: row.kind == Kind::Auto,
        note: row.note.clone(),
        created_at: row.created_at,
        size_bytes: details.size,
        migration: details.migration,
        postgres_version: format!("{}.{}", version / 10_000, version % 10_000),
        git_branch: details.git_branch.clone(),
        git_commit: details.git_commit.clone(),
        fingerprint: details.fingerprint.clone(),
        standby: rows.iter().any(|other| {
            other.kind == Kind::Standby
                && other.parent == Some(row.id)
                && other.exists
                && other.worker.is_none()
                && other.stage != Stage::Dropping
        }),
    }
}

/// The error for a snapshot that does not exist.
fn not_found(name: &str, rows: &[Row]) -> Error {
    let names: Vec<&str> =
        rows.iter().filter(|row| row.is_restorable()).filter_map(|row| row.name.as_deref()).collect();
    let guess = crate::config::nearest(name, names.iter().copied());
    let guess = guess.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    let error = Error::new(ErrorKind::NotFound, format!("there is no snapshot `{name}`{guess}"));
    if names.is_empty() {
        return error.hint("there are none yet: `tfdev snapshot create NAME` makes one");
    }
    error.hint("`tfdev snapshot list` shows them")
}
