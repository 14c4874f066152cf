//! `restore`: a kept state becomes the project's database again.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::Connection;

use super::create::milliseconds;
use super::registry::{self, Kind, NewRow, Row, Stage};
use super::work::Work;
use super::{Snapshots, details};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::pg::clone::{self, Properties};

/// How long to wait for a ready copy that the server is making: as long as making another one may take.
const STANDBY_LIMIT: Duration = Duration::from_mins(10);

/// How a state got back into its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// A ready copy was renamed.
    Standby,
    /// A copy was made, then renamed.
    Copy,
    /// The state itself was renamed: it is no snapshot any more.
    Rename,
}

/// What a restore, an undo or a reset did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The snapshot that the project's database now equals; `None` after a reset.
    pub name: Option<String>,
    /// How it got there.
    pub way: Way,
    /// Whether the base had to be made first; always false but for a reset.
    pub base_built: bool,
    /// The automatic snapshot of the state before; `None` if none are kept.
    pub kept_as: Option<String>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

impl Snapshots<'_> {
    /// Makes the project's database equal to a snapshot, which stays. The state before is kept as an automatic snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such snapshot; [`ErrorKind::Refused`] if a prepared transaction or a
    /// replication slot is in the way, or if the copy would not fit.
    pub async fn restore(&self, name: &str) -> Result<Restored> {
        let begin = Instant::now();
        let mut work = Work::begin(self).await?;
        let parent = work.find(name)?.clone();
        let note = format!("before the restore of `{name}`");
        let (way, kept_as) = work.put_in_place(&parent, note, None).await?;
        work.keep_standby_of(&parent).await;
        work.finish().await;
        Ok(Restored { name: Some(name.to_owned()), way, base_built: false, kept_as, elapsed_ms: milliseconds(begin) })
    }

    /// Goes back to the state before the last restore or reset. Done twice it changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no automatic snapshot.
    pub async fn undo(&self) -> Result<Restored> {
        let begin = Instant::now();
        let mut work = Work::begin(self).await?;
        let automatic = work.rows.iter().filter(|row| row.kind == Kind::Auto && row.is_restorable());
        let newest = automatic.max_by_key(|row| row.id).cloned();
        let Some(newest) = newest else {
            return Err(Error::new(ErrorKind::NotFound, "there is no automatic snapshot to go back to")
                .hint("restore and reset keep the state before, unless `snapshots.auto` in `tfdev.toml` is 0"));
        };
        fault::point("snapshot.undo.begin").await;
        clone::check_obstacles(&mut work.admin.connection, self.database(), true).await?;
        let present = work.present().await?;
        let outgoing = work.outgoing("before an undo".to_owned(), present, Some(newest.id));
        let kept = work.swap(&newest, &outgoing).await?;
        let kept_as = kept.name.filter(|_| outgoing.stage == Stage::Ready);
        // Copies of the snapshot that is the project's database now are of no use.
        let copies: Vec<i64> = work.rows.iter().filter(|row| row.parent == Some(newest.id)).map(|row| row.id).collect();
        registry::set_stage(&mut work.admin.connection, &copies, Stage::Dropping).await?;
        work.drop_later(&copies).await;
        work.finish().await;
        Ok(Restored {
            name: newest.name,
            way: Way::Rename,
            base_built: false,
            kept_as,
            elapsed_ms: milliseconds(begin),
        })
    }
}

impl Work<'_> {
    /// What is to be noted of the present state.
    async fn present(&self) -> Result<registry::Details> {
        let on = self.on;
        let login = on.server.admin_login();
        let (read, git) = tokio::join!(
            details::read(&login, on.database(), on.options.timeout),
            details::git(on.options.project_dir.as_deref())
        );
        let mut details = read?;
        (details.git_branch, details.git_commit) = git;
        Ok(details)
    }

    /// Puts a copy of `parent` in the place of the project's database, with the properties that are given, else with
    /// those of `parent`. Returns how, and the name of the automatic snapshot of the state before.
    pub(super) async fn put_in_place(
        &mut self,
        parent: &Row,
        note: String,
        properties: Option<Properties>,
    ) -> Result<(Way, Option<String>)> {
        self.source().await?;
        clone::check_obstacles(&mut self.admin.connection, self.on.database(), true).await?;
        let (copy, way) = self.copy_of(parent).await?;
        let present = match self.prepare(&copy, parent, properties).await {
            Ok(present) => present,
            Err(error) => {
                self.give_up(&copy).await;
                return Err(error);
            }
        };
        fault::point("snapshot.restore.prepared").await;
        let outgoing = self.outgoing(note, present, None);
        match self.swap(&copy, &outgoing).await {
            Ok(kept) => Ok((way, kept.name.filter(|_| outgoing.stage == Stage::Ready))),
            Err(error) => {
                self.give_up(&copy).await;
                Err(error)
            }
        }
    }

    /// A copy of `parent`: the ready one if there is one, else a new one.
    async fn copy_of(&mut self, parent: &Row) -> Result<(Row, Way)> {
        if let Some(standby) = self.standby_of(parent).await? {
            return Ok((standby, Way::Standby));
        }
        self.make_room(parent.details.size, None).await?;
        let new = NewRow { details: parent.details.clone(), ..NewRow::of(Kind::Restore) };
        let row = registry::insert(&mut self.admin.connection, self.on.database(), &new, Stage::Building).await?;
        fault::point("snapshot.restore.intent").await;
        if let Err(error) = self.copy_quiet(parent, &row).await {
            self.give_up(&row).await;
            return Err(error);
        }
        fault::point("snapshot.restore.copied").await;
        Ok((Row { exists: true, ..row }, Way::Copy))
    }

    /// The ready copy of `parent`, waiting for one that the server is making.
    async fn standby_of(&mut self, parent: &Row) -> Result<Option<Row>> {
        let is_standby = |row: &&Row| row.kind == Kind::Standby && row.parent == Some(parent.id);
        let found = self.rows.iter().filter(is_standby).find(|row| row.stage != Stage::Dropping).cloned();
        let Some(mut standby) = found else { return Ok(None) };
        if standby.worker.is_some() {
            self.on.events.detail("waiting for the copy that the server is making");
            if !registry::wait_for_row(&mut self.helper.connection, standby.id, STANDBY_LIMIT).await? {
                return Ok(None);
            }
            standby.exists = clone::find(&mut self.helper.connection, &standby.database).await?.is_some();
            standby.worker = None;
        }
        Ok(standby.exists.then_some(standby))
    }

    /// Looks whether the copy is what its source was, and gives it what belongs to a database beside its contents. Returns
    /// what is to be noted of the present state, which is looked at meanwhile.
    async fn prepare(&mut self, copy: &Row, parent: &Row, properties: Option<Properties>) -> Result<registry::Details> {
        let what = || "cannot prepare the copy";
        let name = crate::pg::quote::identifier(&copy.database)?;
        let allow = format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true");
        self.admin.run(allow, "open the copy").await?;
        let login = self.on.server.admin_login();
        let (found, present) =
            tokio::try_join!(details::read(&login, &copy.database, self.on.options.timeout), self.present())?;
        self.check_copy(parent, &found).await?;
        fault::point("snapshot.restore.checked").await;
        let database = clone::find(&mut self.admin.connection, &copy.database).await?;
        let database = database.ok_or_else(|| Error::failed("the copy is gone"))?;
        clone::close_sessions(&mut self.admin.connection, database.oid).await?;
        let mut transaction = self.admin.connection.begin().await.or_failed(what)?;
        let properties = match properties {
            Some(properties) => properties,
            None => Properties::read(&mut transaction, &parent.database).await?,
        };
        let gone = properties.apply(&mut transaction, &copy.database).await?;
        transaction.commit().await.or_failed(what)?;
        if !gone.is_empty() {
            let roles = gone.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(", ");
            self.on.events.warning(format!("the roles {roles} are gone, so their rights and settings are left out"));
        }
        Ok(present)
    }

    /// Fails if a copy of `parent`, of which `found` was read, is not what `parent` is.
    async fn check_copy(&mut self, parent: &Row, found: &registry::Details) -> Result<()> {
        let expected = &parent.details;
        let comparable = expected.fingerprint.is_some() && expected.server_version == found.server_version;
        if !comparable || expected.fingerprint == found.fingerprint {
            return Ok(());
        }
        // The note was made while others could change the schema, just before the state was kept. So what counts is the
        // state itself, which is looked at only then.
        let actual = self.details_of_closed(parent).await?;
        if actual.fingerprint != found.fingerprint {
            return Err(Error::failed(format!("the copy of {} is not what it was when it was made", parent.title()))
                .hint("nothing was changed; try again, and if it stays like this the snapshot is damaged"));
        }
        registry::set_details(&mut self.admin.connection, parent.id, &actual).await
    }

    /// Reads what can be told of a kept state, in which nobody can be.
    async fn details_of_closed(&mut self, row: &Row) -> Result<registry::Details> {
        let name = crate::pg::quote::identifier(&row.database)?;
        let allow = |allowed: bool| format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allowed}");
        self.admin.run(allow(true), "open a kept state").await?;
        let details = details::read(&self.on.server.admin_login(), &row.database, self.on.options.timeout).await;
        self.admin.run(allow(false), "close a kept state").await?;
        if let Some(database) = clone::find(&mut self.admin.connection, &row.database).await? {
            clone::close_sessions(&mut self.admin.connection, database.oid).await?;
        }
        details
    }
}
