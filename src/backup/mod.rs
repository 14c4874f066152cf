//! Backups: full ones, the archived log, recovery to any point of it, and the proof that all of that works.
//!
//! A full backup is *logical* (a dump of the project's database by the server's own `pg_dump`) or *physical* (a copy of
//! the whole server by its own `pg_basebackup`). From a physical one the archived log ([`wal`]) leads to every later
//! moment. What the store has is all that a restore needs ([`catalogue`]): neither the instance nor this machine.
//!
//! ```text
//! <store>/<project>/<instance>/<system identifier>-<instance's identity>/     a cluster
//!     full/<time>-<kind>/dump.zst         what pg_dump wrote, in its custom format, or
//!     full/<time>-<kind>/base.tar.zst     what pg_basebackup wrote
//!     full/<time>-<kind>/manifest.json    checksum, position, settings, fingerprint; written last, so it makes the backup
//!     full/<time>-<kind>/verified.json    what came of the last restore of it
//!     wal/<begin of the name>/<segment>-<SHA-256>.zst
//!     wal/history/<timeline>.history-<SHA-256>.zst
//!     marks/<name>.json                   points with a name
//!     coverage.json                       up to when everything is here
//! ```
//!
//! With keys ([`keys`]) the names of what holds data end in `.age`: dumps, copies and segments, each encrypted before it
//! leaves this machine; and what a manifest or a proof says of tables, roles and settings is encrypted within it. In the
//! clear stay names of objects and points, the project's, the instance's, the database's and its owner's name, sizes, times,
//! positions and checksums of objects: so what is there, what is whole and what may go is known without a key.
//!
//! A restored instance has an identity of its own and so a folder of its own: it never writes into its parent's.
//!
//! - [`position`], [`plan`] and [`retention`] are pure data; [`store`], `codec`, `s3`, [`keys`] and `age` are the way to
//!   the objects.
//! - `base`, `logical` and [`wal`] make backups, [`fingerprint`] says what was in them.
//! - [`restore`] takes them back, with `folder` and `replay`, [`verify`] proves that, and [`replace`] puts what was restored in
//!   the place of what was there; [`agent`] does all of it by the clock, and [`mod@unit`] makes it a service; [`status`] says
//!   how things are, and [`gauges`] what of that is remembered.
//!
//! What must hold: a backup counts only when its manifest is there; whatever is killed leaves at most objects that do not
//! count; one process at a time works on the backups of an instance; and no good backup is removed for a bad one.

#[cfg_attr(not(feature = "encryption"), path = "no_age.rs")]
mod age;
pub mod agent;
mod base;
pub mod catalogue;
mod codec;
pub mod fingerprint;
mod folder;
mod full;
pub mod gauges;
pub mod keys;
mod logical;
pub mod manifest;
pub mod plan;
pub mod position;
pub mod replace;
mod replay;
pub mod restore;
pub mod retention;
#[cfg(test)]
mod retention_tests;
#[cfg(feature = "s3")]
mod s3;
pub mod state;
pub mod status;
pub mod store;
pub mod unit;
pub mod verify;
pub mod wal;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use sqlx::PgConnection;

use self::catalogue::{Catalogue, cluster_folder};
use self::manifest::{Kind, Manifest, Mark, Verification};
use self::plan::{Missing, Range};
use self::store::Store;
use crate::config::Settings;
use crate::engine::EngineKind;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::identity;
use crate::instance::{FileLock, Instance, InstanceLock, InstanceRecord};
use crate::pg;
use crate::profile;
use crate::server::Running;
use crate::spec::DATA_DIRECTORY;

/// The backups of a running instance.
pub struct Backups<'a> {
    running: &'a Running,
    settings: &'a Settings,
    store: Store,
    /// The folder of the cluster in the store.
    folder: String,
    events: &'a Events,
    limit: Duration,
}

/// A backup as people see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Its name.
    pub id: String,
    /// How it was made.
    pub kind: Kind,
    /// When it was begun.
    pub created: Timestamp,
    /// When all of it was there.
    pub finished: Timestamp,
    /// The size of what is in it, in bytes.
    pub bytes: u64,
    /// Its size in the store, in bytes.
    pub stored_bytes: u64,
    /// How many tables a restore of it is held against.
    pub tables: usize,
    /// What came of the last restore of it.
    pub verified: Option<Verification>,
    /// Where it is consistent in the log.
    pub lsn: Option<position::Lsn>,
    /// The public key of the one that opens it; `None` if it is not encrypted.
    pub recipient: Option<String>,
}

impl Summary {
    fn of(manifest: &Manifest, verified: Option<&Verification>) -> Self {
        Self {
            id: manifest.id.clone(),
            kind: manifest.kind,
            created: manifest.created,
            finished: manifest.finished,
            bytes: manifest.payload.bytes,
            stored_bytes: manifest.payload.compressed_bytes,
            tables: manifest.fingerprint.as_ref().map_or(0, fingerprint::count),
            verified: verified.cloned(),
            lsn: manifest.physical.as_ref().map(|physical| physical.stop),
            recipient: manifest.payload.recipient.clone(),
        }
    }
}

/// What `backup list` shows of one cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listing {
    /// The folder of the cluster in the store.
    pub cluster: String,
    /// Whether it is that of the instance as it is now.
    pub current: bool,
    /// The backups, oldest first.
    pub backups: Vec<Summary>,
    /// From when to when every second can be recovered.
    pub recoverable: Option<Range>,
    /// What of that cannot be.
    pub gaps: Vec<Missing>,
    /// Named points.
    pub marks: Vec<Mark>,
    /// What cannot be understood, in words.
    pub damaged: Vec<String>,
}

/// The time. Tests move it on, in debug builds.
fn now() -> Timestamp {
    #[cfg(debug_assertions)]
    {
        Timestamp::now() + jiff::SignedDuration::from_secs(crate::config::fault_clock())
    }
    #[cfg(not(debug_assertions))]
    {
        Timestamp::now()
    }
}

/// An error and its causes in one line.
fn words(error: &Error) -> String {
    std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ")
}

impl<'a> Backups<'a> {
    /// The backups of `running`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if no store is configured.
    pub fn of(running: &'a Running, settings: &'a Settings, events: &'a Events) -> Result<Self> {
        let store = Store::of(settings)?;
        let record = &running.record;
        let Some(id) = record.id().filter(|_| record.initialised) else {
            return Err(identity::unknown(&running.instance));
        };
        let instance = &running.instance;
        let folder = cluster_folder(&instance.project, &instance.name, record.system_identifier(), id);
        let limit = Duration::from_secs(settings.timeout_seconds.value);
        Ok(Self { running, settings, store, folder, events, limit })
    }

    /// The data folder, as programs beside the server know it.
    fn data_dir(&self) -> String {
        let folder = self.running.observed.parts.data_dir.as_ref();
        folder.map_or_else(|| DATA_DIRECTORY.to_owned(), |folder| folder.display().to_string())
    }

    /// One process at a time works on the backups of an instance.
    async fn lock(&self, command: &str) -> Result<FileLock> {
        let instance = &self.running.instance;
        let what = format!("the backups of the instance `{}` of `{}`", instance.name, instance.project);
        FileLock::acquire(&lock_file(instance), &what, command, self.limit, self.events).await
    }

    /// A session of the superuser with the server, which is proven to be ours.
    async fn session(&self) -> Result<PgConnection> {
        let login = self.running.server.admin_login();
        let connected = pg::connect(&login, Instant::now() + self.limit).await;
        let mut connection = connected.map_err(|error| identity::login_failed(error, &login))?;
        self.running.server.prove(&mut connection, &self.running.record).await?;
        Ok(connection)
    }

    /// What the store has of this cluster.
    pub async fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::load(&self.store, &self.folder).await
    }

    /// The name of the profile that the server runs with.
    fn profile_name(&self) -> &str {
        let running = self.running;
        let name = running.record.profile_name();
        name.unwrap_or_else(|| self.settings.profile_name())
    }

    /// Why this instance has no physical backups and no archived log; `None` if it may have.
    fn no_physical(&self) -> Result<Option<String>> {
        if self.running.engine.kind() == EngineKind::External {
            return Ok(Some(
                "a physical backup of an external server is not tfdev's to make, because its data folder and its settings \
                 are someone else's"
                    .to_owned(),
            ));
        }
        let profile = profile::resolve(self.profile_name(), &self.settings.profiles)?;
        Ok(profile.no_archive())
    }

    /// Sets a named point in the log, and brings it into the store.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if there is one of that name; [`ErrorKind::BadInput`] for a name that cannot be one.
    pub async fn mark(&self, name: &str) -> Result<Mark> {
        check_mark(name)?;
        self.check_archiving().await?;
        let _lock = self.lock("backup mark").await?;
        let key = format!("{}/marks/{}.json", self.folder, percent_encoded(name));
        if self.store.get(&key).await?.is_some() {
            return Err(Error::new(ErrorKind::Conflict, format!("there is a point `{name}` already"))
                .hint("give this one another name"));
        }
        let mut connection = self.session().await?;
        let at = wal::sample(&mut connection).await?.at;
        let lsn = fingerprint::create_point(&mut connection, name).await?;
        let timeline = full::timeline(&mut connection).await?;
        self.ship_until(&mut connection, timeline, lsn).await?;
        crate::provision::close(connection).await;
        let mark = Mark { name: name.to_owned(), at, lsn, timeline };
        let text = serde_json::to_vec_pretty(&mark)
            .map_err(|error| Error::failed("cannot write the point").caused_by(error))?;
        self.store.put(&key, text.into()).await?;
        Ok(mark)
    }
}

/// The lock of those who work on the backups of an instance.
fn lock_file(instance: &Instance) -> std::path::PathBuf {
    instance.lock_file().with_file_name(format!("{}.backup.lock", instance.name))
}

/// Fails for a name that PostgreSQL would cut, or that could be one of ours.
fn check_mark(name: &str) -> Result<()> {
    let is_plain = !name.is_empty() && name.len() <= 63 && !name.chars().any(char::is_control);
    if is_plain && !name.starts_with(full::POINT) {
        return Ok(());
    }
    Err(Error::bad_input(format!("`{}` cannot be the name of a point", name.escape_debug()))
        .hint(format!("use 1 to 63 bytes that can be shown on a line, and do not begin with `{}`", full::POINT)))
}

fn percent_encoded(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string().replace('%', "_")
}

/// What the store has of an instance, whether it runs or not, or never was on this machine: a listing for each cluster,
/// the newest last.
pub async fn list(settings: &Settings, events: &Events) -> Result<Vec<Listing>> {
    let store = Store::of(settings)?;
    let instance = Instance::of(settings);
    let current = restore::current_folder(&instance, events)?;
    let mut listings = Vec::new();
    for folder in restore::clusters(&store, &instance, current.as_deref()).await? {
        let catalogue = Catalogue::load(&store, &folder).await?;
        listings.push(Listing {
            current: current.as_deref() == Some(&folder),
            backups: catalogue.backups.iter().map(|one| Summary::of(&one.manifest, one.verified.as_ref())).collect(),
            recoverable: plan::range(&catalogue),
            gaps: plan::missing(&catalogue),
            marks: catalogue.marks.values().cloned().collect(),
            damaged: catalogue.damaged.into_values().collect(),
            cluster: folder,
        });
    }
    Ok(listings)
}

/// Lets a restored instance archive its log from its next start on, in its own folder of the store.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such instance.
pub async fn enable(settings: &Settings, events: &Events) -> Result<()> {
    Store::of(settings)?;
    let instance = Instance::of(settings);
    let limit = Duration::from_secs(settings.timeout_seconds.value);
    let _lock = InstanceLock::acquire(&instance, "backup enable", limit, events).await?;
    let mut record = InstanceRecord::read(&instance, events)?.ok_or_else(|| instance.not_found())?;
    record.archive_off = false;
    record.write(&instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_points_are_checked() {
        check_mark("before the migration ü").unwrap();
        for wrong in ["", "tfdev_x", "a\nb", &"x".repeat(64)] {
            assert_eq!(check_mark(wrong).unwrap_err().kind(), ErrorKind::BadInput, "{wrong:?}");
        }
        assert_ne!(percent_encoded("a/b"), percent_encoded("a b"));
    }
}
