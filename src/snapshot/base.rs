//! `reset`: back to the base, a database that was migrated and seeded once and never used.
//!
//! What must hold: a base is known by what it was made from, and it counts as ready only when it is whole.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use sqlx::Row as _;

use super::create::milliseconds;
use super::registry::{self, Kind, NewRow, Row, Stage};
use super::restore::Restored;
use super::work::Work;
use super::{Snapshots, details};
use crate::config::Settings;
use crate::error::{Context, Result};
use crate::event::Events;
use crate::fault;
use crate::migrate::{self, Source};
use crate::pg::clone::{self, Properties};
use crate::pg::{self, Login, quote};
use crate::seed::{self, DataSet};
use crate::server::Running;
use crate::up::SeedReport;

/// Counts up when bases are made in another way.
const FORMAT: u32 = 1;

/// What the schema and rows may depend on beside migrations and data set.
pub(crate) const SETTINGS: &str = "SELECT string_agg(name || '=' || setting, E'\\n' ORDER BY name) FROM pg_settings WHERE name IN (\
     'server_version_num', 'server_encoding', 'lc_collate', 'lc_ctype', 'lc_messages', 'lc_monetary', 'lc_numeric', \
     'lc_time', 'TimeZone', 'DateStyle', 'IntervalStyle', 'default_text_search_config', 'default_toast_compression', \
     'default_table_access_method', 'default_tablespace', 'standard_conforming_strings', 'extra_float_digits')";

/// What a new database takes, before anything is in it: the size of `template0` with room for the first tables.
const EMPTY_SIZE: u64 = 16 * 1024 * 1024;

impl Snapshots<'_> {
    /// Makes the project's database what it was when it was fresh: migrated, and filled with `dataset`. The state before
    /// is kept as an automatic snapshot. Owner, privileges and settings of the database stay as they are.
    ///
    /// # Errors
    /// Those of a migration or data set that fails, which leave everything as it was; else as
    /// [`Snapshots::restore`].
    pub async fn reset(&self, migrations: &Source, dataset: Option<&DataSet>) -> Result<Restored> {
        let begin = Instant::now();
        let mut work = Work::begin(self).await?;
        work.source().await?;
        clone::check_obstacles(&mut work.admin.connection, self.database(), true).await?;
        let key = work.base_key(migrations, dataset).await?;
        let is_base = |row: &&Row| row.kind == Kind::Base && row.stage == Stage::Ready && row.exists;
        let found = work.rows.iter().filter(is_base).find(|row| row.key.as_deref() == Some(&key)).cloned();
        let base_built = found.is_none();
        let base = match found {
            Some(base) => base,
            None => work.build_base(&key, migrations, dataset).await?,
        };
        let properties = Properties::read(&mut work.admin.connection, self.database()).await?;
        let (way, kept_as) = work.put_in_place(&base, "before a reset".to_owned(), Some(properties)).await?;
        work.collect_bases(&base).await?;
        work.keep_standby_of(&base).await;
        work.finish().await;
        Ok(Restored { name: None, way, base_built, kept_as, elapsed_ms: milliseconds(begin) })
    }
}

/// Makes the running instance's database what it was when it was fresh.
pub async fn reset(settings: &Settings, events: &Events) -> Result<Restored> {
    let migrations = Source::of(settings)?;
    let dataset = DataSet::load(&settings.dataset.value, &settings.project_dir)?;
    let running = Running::find(settings, events).await?;
    let restored = Snapshots::of(&running, settings, events)?.reset(&migrations, dataset.as_ref()).await?;
    if let Some(dataset) = dataset {
        let (users, tasks) = (dataset.users(), dataset.tasks());
        running.remember_data(&SeedReport { dataset: dataset.name().to_owned(), users, tasks, applied: true })?;
    }
    Ok(restored)
}

impl Work<'_> {
    /// A hash of all that decides what is in the base.
    async fn base_key(&mut self, migrations: &Source, dataset: Option<&DataSet>) -> Result<String> {
        let what = || "cannot read the server's settings";
        let row = sqlx::raw_sql(SETTINGS).fetch_one(&mut self.admin.connection).await.or_failed(what)?;
        let settings: String = row.try_get(0).or_failed(what)?;
        let mut hash = Sha256::new();
        for part in [
            FORMAT.to_string(),
            migrate::fingerprint(migrations),
            dataset.map_or_else(|| "none".to_owned(), DataSet::fingerprint),
            self.on.server.user.name.clone(),
            settings,
        ] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(crate::spec::hexadecimal(&hash.finalize()))
    }

    async fn build_base(&mut self, key: &str, migrations: &Source, dataset: Option<&DataSet>) -> Result<Row> {
        let begin = Instant::now();
        self.on.events.started("Making the base");
        let rows = dataset.map_or(0, DataSet::estimated_bytes);
        self.make_room(EMPTY_SIZE + rows, None).await?;
        let new = NewRow { key: Some(key.to_owned()), ..NewRow::of(Kind::Base) };
        let row = registry::insert(&mut self.admin.connection, self.on.database(), &new, Stage::Building).await?;
        fault::point("snapshot.base.intent").await;
        match self.fill_base(&row, migrations, dataset).await {
            Ok(base) => {
                fault::point("snapshot.base.ready").await;
                self.on.events.finished("Made the base", begin.elapsed());
                self.rows.push(base.clone());
                Ok(base)
            }
            Err(error) => {
                self.give_up(&row).await;
                Err(error)
            }
        }
    }

    async fn fill_base(&mut self, row: &Row, migrations: &Source, dataset: Option<&DataSet>) -> Result<Row> {
        let on = self.on;
        registry::lock_row(&mut self.helper.connection, row.id).await?;
        let name = quote::identifier(&row.database)?;
        let owner = quote::identifier(&on.server.user.name)?;
        let create = format!("CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'");
        self.helper.run(create, "create the base").await?;
        fault::point("snapshot.base.made").await;
        let login = Login { database: row.database.clone(), ..on.server.login() };
        let options = migrate::Options { strict: false, lock_timeout: Duration::from_mins(1) };
        migrate::run(&login, migrations, &options, on.events).await?;
        fault::point("snapshot.base.migrated").await;
        if let Some(dataset) = dataset {
            let deadline = Instant::now() + on.options.timeout;
            let mut session = pg::connect(&login, deadline).await.map_err(|error| error.into_error(&login))?;
            seed::apply(&mut session, dataset, seed::Mode::OnlyIfEmpty, on.events).await?;
            crate::provision::close(session).await;
        }
        fault::point("snapshot.base.filled").await;
        let details = details::read(&on.server.admin_login(), &row.database, on.options.timeout).await?;
        let close = format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false");
        self.admin.run(close, "close the base").await?;
        let database = self.helper_find(&row.database).await?;
        clone::close_sessions(&mut self.admin.connection, database.oid).await?;
        sqlx::query("UPDATE tfdev.snapshot SET stage = $2, size = $3, server_version = $4, fingerprint = $5, migration = $6 WHERE id = $1")
            .bind(row.id)
            .bind(Stage::Ready.word())
            .bind(i64::try_from(details.size).unwrap_or(i64::MAX))
            .bind(details.server_version)
            .bind(&details.fingerprint)
            .bind(details.migration)
            .execute(&mut self.admin.connection)
            .await
            .or_failed(|| "cannot note the base")?;
        self.unlock_rows().await?;
        Ok(Row { stage: Stage::Ready, exists: true, details, ..row.clone() })
    }

    async fn helper_find(&mut self, database: &str) -> Result<clone::Database> {
        let found = clone::find(&mut self.helper.connection, database).await?;
        found.ok_or_else(|| crate::Error::failed(format!("the database `{database}` is gone")))
    }

    /// Lets bases of other migrations, data sets or settings go, with their copies.
    async fn collect_bases(&mut self, current: &Row) -> Result<()> {
        let old: Vec<i64> =
            self.rows.iter().filter(|row| row.kind == Kind::Base && row.id != current.id).map(|row| row.id).collect();
        let copies = self.rows.iter().filter(|row| row.parent.is_some_and(|parent| old.contains(&parent)));
        let all: Vec<i64> = copies.map(|row| row.id).chain(old.iter().copied()).collect();
        registry::set_stage(&mut self.admin.connection, &all, Stage::Dropping).await?;
        self.drop_later(&all).await;
        Ok(())
    }
}
