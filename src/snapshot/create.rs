//! `create`: the project's database as it is now, under a name.

use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;
use sqlx::Connection;

use super::registry::{self, Kind, NewRow, Row, Stage};
use super::work::Work;
use super::{Snapshot, Snapshots, details, name, shown};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::pg::clone::{self, Properties};

/// What `create` made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Created {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

impl Snapshots<'_> {
    /// Keeps the project's database as it is now. Without a name it gets one made of the time.
    ///
    /// Sessions in the database are closed; new ones wait until the copy is made.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] for a bad name, [`ErrorKind::Conflict`] for one that is taken, [`ErrorKind::Refused`] if a
    /// prepared transaction or a replication slot forbids it or if it would not fit.
    pub async fn create(&self, wanted: Option<&str>, note: Option<&str>) -> Result<Created> {
        let begin = Instant::now();
        wanted.map_or(Ok(()), name::check)?;
        note.map_or(Ok(()), name::check_note)?;
        let (work, git) = tokio::join!(Work::begin(self), details::git(self.options.project_dir.as_deref()));
        let mut work = work?;
        let name = match wanted {
            Some(name) => {
                work.check_name_is_free(name)?;
                name.to_owned()
            }
            None => name::free(name::of_time(Timestamp::now()), |name| work.is_taken(name)),
        };
        let login = self.server.admin_login();
        let details = details::read(&login, self.database(), self.options.timeout);
        let (details, source) = tokio::join!(details, work.source_with_room());
        // What stands in the way says more than a login that failed.
        let source = source?;
        let mut details = details?;
        (details.git_branch, details.git_commit) = git;
        let new = NewRow { name: Some(name), note: note.map(str::to_owned), details, ..NewRow::of(Kind::Snapshot) };
        let row = registry::insert(&mut work.admin.connection, self.database(), &new, Stage::Building).await?;
        fault::point("snapshot.create.intent").await;
        if let Err(error) = work.make_snapshot(&row, source).await {
            work.give_up(&row).await;
            return Err(error);
        }
        fault::point("snapshot.create.noted").await;
        let row = Row { stage: Stage::Ready, exists: true, ..row };
        work.rows.push(row.clone());
        work.keep_standby_of(&row).await;
        let snapshot = shown(&row, &work.rows);
        work.finish().await;
        Ok(Created { snapshot, elapsed_ms: milliseconds(begin) })
    }
}

impl Work<'_> {
    /// The project's database, which must be there and be ours.
    pub(super) async fn source(&mut self) -> Result<clone::Database> {
        let name = self.on.database();
        let found = clone::find(&mut self.admin.connection, name).await?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no database `{name}`")).hint("make it with `tfdev up`")
        })?;
        self.on.server.project_marker(&mut self.admin.connection, self.on.record).await?;
        Ok(found)
    }

    /// The same, once nothing forbids a copy of it and the copy fits.
    async fn source_with_room(&mut self) -> Result<clone::Database> {
        let source = self.source().await?;
        clone::check_obstacles(&mut self.admin.connection, self.on.database(), false).await?;
        self.make_room(source.size, None).await?;
        Ok(source)
    }

    async fn make_snapshot(&mut self, row: &Row, source: clone::Database) -> Result<()> {
        self.copy_live(row, source).await?;
        fault::point("snapshot.create.copied").await;
        let what = || "cannot note the snapshot";
        let mut transaction = self.admin.connection.begin().await.or_failed(what)?;
        let properties = Properties::read(&mut transaction, self.on.database()).await?;
        properties.apply(&mut transaction, &row.database).await?;
        registry::set_stage(&mut transaction, &[row.id], Stage::Ready).await?;
        transaction.commit().await.or_failed(what)
    }
}

/// Milliseconds since `begin`.
pub(super) fn milliseconds(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)
}
