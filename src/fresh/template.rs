//! Templates: databases that were migrated, filled and closed, of which fresh ones are copies.
//!
//! What must hold: a template is known by all that decides what is in it; it is made by one process while the others wait;
//! it counts as ready only when it is whole and nobody can log in to it. If making it fails, everyone who waited gets the
//! same error, and the next one to come tries again.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::pool::Pool;
use super::registry::TEMPLATE_LOCK;
use super::session;
use super::untouched::{self, Settled};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::{self, Source};
use crate::pg::clone::{self, Admin, Properties};
use crate::pg::{Login, quote};
use crate::seed::{self, DataSet};

/// Counts up when templates are made in another way.
const FORMAT: u32 = 3;

/// The pause between two looks at a template that someone else makes. A session that waited inside the server would hold a
/// snapshot, for which `CREATE INDEX CONCURRENTLY` in a migration would wait.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// Templates beyond this number, of one project's database, are dropped, those first that were used longest ago.
const KEPT_TEMPLATES: i64 = 16;

/// An error of a template function.
pub type TemplateFunctionError = Box<dyn std::error::Error + Send + Sync>;

/// What fills a template in Rust: it gets a connection of the role that will own the fresh databases.
pub type TemplateFunction =
    Arc<dyn for<'a> Fn(&'a mut PgConnection) -> BoxFuture<'a, Result<(), TemplateFunctionError>> + Send + Sync>;

/// What a template is made of, in the order in which it is put in.
#[derive(Clone)]
pub struct Recipe {
    /// Extensions, made by the role that manages databases.
    pub extensions: Vec<String>,
    /// The migrations.
    pub migrations: Source,
    /// The data set; `None` for empty tables.
    pub dataset: Option<DataSet>,
    /// SQL of the caller's own.
    pub scripts: Vec<String>,
    /// A function of the caller's own, with a name that changes when what it does changes.
    pub function: Option<(String, TemplateFunction)>,
}

impl fmt::Debug for Recipe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Recipe({})", self.migrations.place())
    }
}

impl Recipe {
    /// Migrations and nothing else.
    pub fn of(migrations: Source) -> Self {
        Self { extensions: Vec::new(), migrations, dataset: None, scripts: Vec::new(), function: None }
    }

    /// A hash of all that decides what is in the template; `surroundings` are the settings of the server that matter.
    pub(super) fn key(&self, user: &str, surroundings: &str) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            // Lengths keep the end of one part from passing for the beginning of the next.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(&FORMAT.to_string());
        add(user);
        add(surroundings);
        add(&migrate::fingerprint(&self.migrations));
        add(&self.dataset.as_ref().map_or_else(|| "none".to_owned(), DataSet::fingerprint));
        for (kind, parts) in [("extensions", &self.extensions), ("scripts", &self.scripts)] {
            add(kind);
            add(&parts.len().to_string());
            for part in parts {
                add(&part.replace('\r', ""));
            }
        }
        add(self.function.as_ref().map_or("", |(name, _)| name));
        crate::spec::hexadecimal(&hash.finalize())
    }
}

/// A template that is ready.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// Its number.
    pub id: i64,
    /// What it was made of, as a hash, or the name that a client gave it.
    pub key: String,
    /// The database's name.
    pub database: String,
    /// Bytes of the database.
    pub size_bytes: u64,
    /// What a copy of it lacks; `None` if that is nothing.
    pub(super) properties: Option<Properties>,
    /// Whether a copy can be proven to be untouched ([`super::untouched`]).
    pub(super) provable: bool,
}

/// What there is of a template that somebody wants to make.
#[derive(Debug)]
pub enum Begun {
    /// It is the caller's to fill and to finish.
    Draft(Box<Draft>),
    /// It is there.
    Ready(Template),
    /// Someone else is making it.
    InProgress,
}

/// A template that is being made. The session that holds its lock ends with this value, and then the next one may try.
pub struct Draft {
    session: Admin,
    pool: Pool,
    id: i64,
    key: String,
    database: String,
}

impl fmt::Debug for Draft {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Draft({})", self.database)
    }
}

/// A row of the table.
pub(super) struct TemplateRow {
    pub(super) id: i64,
    database: Option<String>,
    pub(super) stage: String,
    error: Option<String>,
    properties: Option<String>,
    size: i64,
    provable: bool,
}

impl Pool {
    /// The template that `recipe` makes; it is made if it is not there, and waited for if someone else makes it.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] with what went wrong in making it, for whoever made it and for all who waited;
    /// [`ErrorKind::TimedOut`].
    pub async fn template(&self, recipe: &Recipe) -> Result<Template> {
        let key = recipe.key(&self.server().user.name, self.surroundings());
        let deadline = Instant::now() + self.options().timeout;
        let mut waited = false;
        loop {
            match self.begin(&key, waited).await? {
                Begun::Ready(template) => return Ok(template),
                Begun::Draft(draft) => return draft.make(recipe).await,
                Begun::InProgress => waited = true,
            }
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::TimedOut, "the template database was not made in time")
                    .hint("another process is still at it; `--timeout SECONDS` waits longer"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Begins a template under a name of the caller's own, of at most 200 bytes; what is in it is the caller's to say.
    pub async fn begin_template(&self, key: &str) -> Result<Begun> {
        if key.is_empty() || key.len() > 200 {
            return Err(Error::bad_input("the name of a template has 1 to 200 bytes"));
        }
        self.begin(key, false).await
    }

    /// The template of that name, if it is ready.
    pub async fn find_template(&self, key: &str) -> Result<Option<Template>> {
        let mut worker = self.worker().await?;
        let row = find(&mut worker.admin.connection, &self.server().database, key).await?;
        worker.finish();
        row.filter(|row| row.stage == "ready").map(|row| row.into_template(key)).transpose()
    }

    /// Lets a template go, with the databases made of it that no other process has.
    pub async fn discard_template(&self, template: &Template) -> Result<()> {
        let mut worker = self.worker().await?;
        let statement = "WITH t AS (UPDATE tfdev.fresh_template SET stage = 'dropping', key = key || ' dropped ' || id \
                         WHERE id = $1 AND stage = 'ready') \
                         UPDATE tfdev.fresh_database SET stage = 'dropping' WHERE template = $1 AND stage = 'free'";
        let marked = sqlx::query(statement).bind(template.id).execute(&mut worker.admin.connection).await;
        marked.or_failed(|| "cannot discard the template")?;
        worker.finish();
        self.give_back_all_of(template.id).await?;
        self.collect_soon();
        Ok(())
    }

    /// Looks for the template, and takes its lock if it is to be made. Who `waited` for another one to make it gets that
    /// one's error.
    async fn begin(&self, key: &str, waited: bool) -> Result<Begun> {
        let source = &self.server().database;
        let mut worker = self.worker().await?;
        let row = loop {
            match find(&mut worker.admin.connection, source, key).await? {
                Some(row) => break row,
                None => insert(&mut worker.admin.connection, source, key).await?,
            }
        };
        if row.stage == "ready" {
            touch(&mut worker.admin.connection, row.id).await?;
            worker.finish();
            return row.into_template(key).map(Begun::Ready);
        }
        let admin = &mut worker.admin;
        let what = || "cannot lock the template";
        let locked: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, $2::integer)")
            .bind(TEMPLATE_LOCK)
            .bind(row.id)
            .fetch_one(&mut admin.connection)
            .await
            .or_failed(what)?;
        if !locked {
            worker.finish();
            return Ok(Begun::InProgress);
        }
        // Someone may have finished it, or failed, or let it go, since we looked.
        let Some(row) = find(&mut admin.connection, source, key).await?.filter(|again| again.id == row.id) else {
            return Ok(Begun::InProgress);
        };
        if row.stage == "ready" {
            return row.into_template(key).map(Begun::Ready);
        }
        if let Some(error) = row.error.filter(|_| waited) {
            return Err(Error::bad_input(error).hint("another process made the template; the next call tries again"));
        }
        // The session goes with the draft, so the workers get another one.
        let mut draft = Draft {
            session: worker.into_session(),
            pool: self.clone(),
            id: row.id,
            key: key.to_owned(),
            database: format!("tfdev_t_{}", super::pool::unique()),
        };
        draft.create(row.database.as_deref()).await?;
        Ok(Begun::Draft(Box::new(draft)))
    }

    /// Lets go of the templates that were used longest ago, and of what is left of others that are to go.
    pub(super) async fn retire_templates(&self, admin: &mut Admin) -> Result<()> {
        let statement = "WITH old AS (SELECT id FROM tfdev.fresh_template t WHERE source = $1 AND stage = 'ready' \
                         AND NOT EXISTS (SELECT FROM tfdev.fresh_database d WHERE d.template = t.id \
                         AND stage IN ('leased', 'kept', 'building')) ORDER BY used_at DESC OFFSET $2), \
                         marked AS (UPDATE tfdev.fresh_template SET stage = 'dropping', key = key || ' dropped ' || id \
                         WHERE id IN (SELECT id FROM old) RETURNING id) \
                         UPDATE tfdev.fresh_database SET stage = 'dropping' \
                         WHERE stage = 'free' AND template IN (SELECT id FROM marked UNION ALL \
                         SELECT id FROM tfdev.fresh_template WHERE source = $1 AND stage = 'dropping')";
        let marked = sqlx::query(statement).bind(&self.server().database).bind(KEPT_TEMPLATES);
        marked.execute(&mut admin.connection).await.or_failed(|| "cannot let old templates go").map(drop)
    }

    /// Drops templates that are to go once they have no copies, and those whose making nobody goes on with.
    pub(super) async fn drop_templates(&self) -> Result<()> {
        let mut worker = self.worker().await?;
        let admin = &mut worker.admin;
        let what = || "cannot look for templates that are left over";
        let question = "WITH c AS MATERIALIZED (SELECT id, database FROM tfdev.fresh_template t WHERE source = $1 \
                        AND (stage = 'dropping' OR (stage IN ('building', 'failed') AND database IS NOT NULL)) \
                        AND NOT EXISTS (SELECT FROM tfdev.fresh_database d WHERE d.template = t.id)) \
                        SELECT id::bigint, database FROM c WHERE pg_try_advisory_lock($2, id)";
        let rows = sqlx::query(question)
            .bind(&self.server().database)
            .bind(TEMPLATE_LOCK)
            .fetch_all(&mut admin.connection)
            .await
            .or_failed(what)?;
        for row in rows {
            let (id, database): (i64, Option<String>) =
                (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
            let dropped = match &database {
                Some(name) => drop_database(admin, name).await,
                None => Ok(()),
            };
            if let Err(error) = dropped {
                self.events().detail(format!("a template is not removed yet: {error}"));
            } else {
                let forget = "DELETE FROM tfdev.fresh_template WHERE id = $1 AND stage <> 'ready'";
                sqlx::query(forget).bind(id).execute(&mut admin.connection).await.or_failed(what)?;
            }
            let unlock = "SELECT pg_advisory_unlock($1, $2::integer)";
            sqlx::query(unlock).bind(TEMPLATE_LOCK).bind(id).execute(&mut admin.connection).await.or_failed(what)?;
        }
        worker.finish();
        Ok(())
    }
}

impl Draft {
    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The login of the role that owns it.
    pub fn login(&self) -> Login {
        Login { database: self.database.clone(), ..self.pool.server().login() }
    }

    /// Makes the empty database, in place of what an earlier try has left.
    async fn create(&mut self, old: Option<&str>) -> Result<()> {
        if let Some(old) = old {
            drop_database(&mut self.session, old).await?;
        }
        let note = "UPDATE tfdev.fresh_template SET stage = 'building', database = $2, error = NULL, \
                    used_at = clock_timestamp() WHERE id = $1";
        let noted = sqlx::query(note).bind(self.id).bind(&self.database).execute(&mut self.session.connection).await;
        noted.or_failed(|| "cannot note the template")?;
        crate::fault::point("fresh.template.intent").await;
        let create = format!(
            "CREATE DATABASE {} OWNER {} TEMPLATE template0",
            quote::identifier(&self.database)?,
            quote::identifier(&self.pool.server().user.name)?
        );
        self.session.run(create, "create the template database").await?;
        crate::fault::point("fresh.template.made").await;
        Ok(())
    }

    /// Fills and finishes it.
    async fn make(mut self: Box<Self>, recipe: &Recipe) -> Result<Template> {
        let begin = Instant::now();
        let events = self.pool.events().clone();
        events.started("Making the template database");
        let limit = self.pool.options().timeout;
        let filled = match tokio::time::timeout(limit, self.fill(recipe)).await {
            Ok(filled) => filled,
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("migrations, data and own code took more than {} s", limit.as_secs()),
            )
            .hint("`--timeout SECONDS` gives them longer")),
        };
        match filled {
            Ok(()) => {
                crate::fault::point("fresh.template.filled").await;
                let template = self.finish().await?;
                events.finished("Made the template database", begin.elapsed());
                Ok(template)
            }
            Err(error) => {
                self.fail(&error).await;
                Err(error)
            }
        }
    }

    async fn fill(&mut self, recipe: &Recipe) -> Result<()> {
        let login = self.login();
        let deadline = Instant::now() + self.pool.options().timeout;
        if !recipe.extensions.is_empty() {
            let admin_login = Login { database: self.database.clone(), ..self.pool.server().admin_login() };
            let mut admin = session::connect(&admin_login, deadline).await?;
            for extension in &recipe.extensions {
                let statement = format!("CREATE EXTENSION IF NOT EXISTS {} CASCADE", quote::identifier(extension)?);
                run(&mut admin, &statement, || format!("cannot make the extension `{extension}`")).await?;
            }
            crate::provision::close(admin).await;
        }
        let options = migrate::Options { strict: false, lock_timeout: Duration::from_mins(1) };
        if !recipe.migrations.is_empty() {
            migrate::run(&login, &recipe.migrations, &options, self.pool.events()).await?;
        }
        let mut connection = session::connect(&login, deadline).await?;
        if let Some(dataset) = &recipe.dataset {
            seed::apply(&mut connection, dataset, seed::Mode::OnlyIfEmpty, self.pool.events()).await?;
        }
        for script in &recipe.scripts {
            run(&mut connection, script, || "the template's own SQL failed".to_owned()).await?;
        }
        if let Some((name, function)) = &recipe.function {
            function(&mut connection).await.map_err(|error| {
                Error::bad_input(format!("the template function `{name}` failed: {error}")).caused_by(error)
            })?;
        }
        // A function may have left a transaction open, and then this is what undoes it.
        let _ = connection.close().await;
        Ok(())
    }

    /// Closes the database to everyone and marks it ready.
    pub async fn finish(mut self) -> Result<Template> {
        match self.close_and_note().await {
            Ok(template) => {
                self.pool.keep_worker(self.session);
                Ok(template)
            }
            Err(error) => {
                self.fail(&error).await;
                Err(error)
            }
        }
    }

    /// Settles it where that makes copies quicker; returns what of them is provable. One that is not settled will do.
    async fn settle(&self) -> Settled {
        if !self.pool.0.proves {
            return Settled::default();
        }
        let login = Login { database: self.database.clone(), ..self.pool.server().admin_login() };
        let deadline = Instant::now() + self.pool.options().timeout;
        let settled = untouched::settle(&login, deadline).await;
        settled.unwrap_or_else(|error| {
            self.pool.events().detail(format!("the template stays as it is: {error}"));
            Settled::default()
        })
    }

    async fn close_and_note(&mut self) -> Result<Template> {
        let Settled { provable, emptiable } = self.settle().await;
        let close = format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false", quote::identifier(&self.database)?);
        self.session.run(close, "close the template").await?;
        let connection = &mut self.session.connection;
        let found = clone::find(connection, &self.database).await?;
        let found = found.ok_or_else(|| Error::new(ErrorKind::NotFound, "the template's database is gone"))?;
        let closed = clone::close_sessions(connection, found.oid).await?;
        if !closed.is_empty() {
            let note = format!("{} sessions were still open in the template database, and were closed", closed.len());
            self.pool.events().detail(note);
        }
        // The database may have grown by what a session wrote last.
        let found = clone::find(connection, &self.database).await?.unwrap_or(found);
        let properties = Properties::read(connection, &self.database).await?;
        let own =
            properties.privileges.is_some() || !properties.settings.is_empty() || properties.connection_limit >= 0;
        let properties = own.then_some(properties);
        let what = || "cannot note the template";
        let text = properties.as_ref().map(serde_json::to_string).transpose().or_failed(what)?;
        let emptiable =
            (!emptiable.is_empty()).then(|| serde_json::to_string(&emptiable)).transpose().or_failed(what)?;
        crate::fault::point("fresh.template.closed").await;
        let note = "UPDATE tfdev.fresh_template SET stage = 'ready', error = NULL, size = $2, properties = $3, \
                    provable = $5, emptiable = $6, used_at = clock_timestamp() WHERE id = $1 RETURNING pg_advisory_unlock($4, id)";
        let noted = sqlx::query(note)
            .bind(self.id)
            .bind(i64::try_from(found.size).unwrap_or(i64::MAX))
            .bind(text)
            .bind(TEMPLATE_LOCK)
            .bind(provable)
            .bind(emptiable)
            .fetch_optional(connection)
            .await
            .or_failed(what)?;
        noted.ok_or_else(|| Error::new(ErrorKind::NotFound, "the template was discarded while it was made"))?;
        Ok(Template {
            id: self.id,
            key: self.key.clone(),
            database: self.database.clone(),
            size_bytes: found.size,
            properties,
            provable,
        })
    }

    /// Removes the database and notes why, for those who wait.
    pub async fn fail(mut self, error: &Error) {
        let why = error.causes().into_iter().fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        let note = "UPDATE tfdev.fresh_template SET stage = 'failed', error = $2 WHERE id = $1";
        let noted = sqlx::query(note).bind(self.id).bind(why).execute(&mut self.session.connection).await;
        if noted.is_ok() && drop_database(&mut self.session, &self.database).await.is_ok() {
            let forget = "UPDATE tfdev.fresh_template SET database = NULL WHERE id = $1";
            // What is not done here, the next one to come does.
            let _ = sqlx::query(forget).bind(self.id).execute(&mut self.session.connection).await;
        }
        crate::provision::close(self.session.connection).await;
    }

    /// Gives it up on request: nobody is told of an error.
    pub async fn discard(mut self) -> Result<()> {
        drop_database(&mut self.session, &self.database).await?;
        let forget = "DELETE FROM tfdev.fresh_template WHERE id = $1";
        let forgotten = sqlx::query(forget).bind(self.id).execute(&mut self.session.connection).await;
        forgotten.or_failed(|| "cannot forget the template")?;
        crate::provision::close(self.session.connection).await;
        Ok(())
    }
}

impl TemplateRow {
    pub(super) fn into_template(self, key: &str) -> Result<Template> {
        let what = || "cannot read what is noted of the template";
        let properties = self.properties.as_deref().map(serde_json::from_str).transpose().or_failed(what)?;
        Ok(Template {
            id: self.id,
            key: key.to_owned(),
            database: self.database.unwrap_or_default(),
            size_bytes: self.size.unsigned_abs(),
            properties,
            provable: self.provable,
        })
    }
}

pub(super) async fn find(connection: &mut PgConnection, source: &str, key: &str) -> Result<Option<TemplateRow>> {
    let what = || "cannot look for the template";
    let question = "SELECT id::bigint, database, stage, error, properties, size, provable FROM tfdev.fresh_template \
                    WHERE source = $1 AND key = $2";
    let row = sqlx::query(question).bind(source).bind(key).fetch_optional(connection).await.or_failed(what)?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(TemplateRow {
        id: row.try_get(0).or_failed(what)?,
        database: row.try_get(1).or_failed(what)?,
        stage: row.try_get(2).or_failed(what)?,
        error: row.try_get(3).or_failed(what)?,
        properties: row.try_get(4).or_failed(what)?,
        size: row.try_get(5).or_failed(what)?,
        provable: row.try_get(6).or_failed(what)?,
    }))
}

async fn insert(connection: &mut PgConnection, source: &str, key: &str) -> Result<()> {
    let statement =
        "INSERT INTO tfdev.fresh_template (source, key, stage) VALUES ($1, $2, 'building') ON CONFLICT DO NOTHING";
    let inserted = sqlx::query(statement).bind(source).bind(key).execute(connection).await;
    inserted.map(drop).or_failed(|| "cannot note a template")
}

async fn touch(connection: &mut PgConnection, id: i64) -> Result<()> {
    let statement = "UPDATE tfdev.fresh_template SET used_at = clock_timestamp() WHERE id = $1";
    sqlx::query(statement)
        .bind(id)
        .execute(connection)
        .await
        .map(drop)
        .or_failed(|| "cannot note the use of a template")
}

async fn run(connection: &mut PgConnection, sql: &str, message: impl FnOnce() -> String) -> Result<()> {
    let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    ran.map(drop).map_err(|error| Error::bad_input(format!("{}: {error}", message())).caused_by(error))
}

/// Drops a database of ours with all sessions in it, if there is one.
pub(super) async fn drop_database(admin: &mut Admin, name: &str) -> Result<()> {
    let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote::identifier(name)?);
    admin.run(statement, &format!("drop the database `{name}`")).await
}
