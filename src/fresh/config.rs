//! What kind of fresh database is wanted, and finding or starting the server for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::PgConnection;

use super::guard::Fresh;
use super::home::Home;
use super::pool::{Lease, Options, Pool};
use super::template::{Recipe, Template, TemplateFunction, TemplateFunctionError};
use super::{idle, session};
use crate::config::{Environment, Flags, Setting, Settings};
use crate::error::{ErrorKind, Result};
use crate::event::Events;
use crate::instance::Instance;
use crate::migrate::Source;
use crate::profile;
use crate::seed::DataSet;
use crate::server::Running;

/// The instance for tests (`CLI.md` § Words).
pub const TEST_INSTANCE: &str = "test";

/// How many connections a test has unless it says otherwise.
const CONNECTIONS: u32 = 5;

/// Sessions that make and drop databases at once. More of them share their checkpoints: on two cores eight made and dropped
/// twice as many databases as one.
const WORKERS: usize = 4;

/// What kind of fresh database is wanted.
///
/// ```no_run
/// # async fn test() -> tfdev::Result<()> {
/// let db = tfdev::FreshConfig::new()
///     .seed("small")
///     .template_function("tariffs 1", |connection| {
///         Box::pin(async move {
///             sqlx::raw_sql("CREATE TABLE tariffs (id int PRIMARY KEY)").execute(connection).await?;
///             Ok(())
///         })
///     })
///     .database()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FreshConfig {
    project_dir: Option<PathBuf>,
    instance: Option<String>,
    engine: Option<String>,
    seed: Option<String>,
    extensions: Vec<String>,
    scripts: Vec<String>,
    function: Option<(String, TemplateFunction)>,
    pub(super) keep_on_failure: Option<bool>,
    connections: u32,
    timeout: Option<Duration>,
    pub(super) events: Events,
}

impl std::fmt::Debug for FreshConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "FreshConfig({})", self.identity())
    }
}

impl Default for FreshConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl FreshConfig {
    /// A migrated database without rows, of the instance `test` of the project that the current folder belongs to.
    /// Variables `TFDEV_…` and `tfdev.toml` count as they do for the command line.
    pub fn new() -> Self {
        Self {
            project_dir: None,
            instance: None,
            engine: None,
            seed: None,
            extensions: Vec::new(),
            scripts: Vec::new(),
            function: None,
            keep_on_failure: None,
            connections: CONNECTIONS,
            timeout: None,
            events: Events::none(),
        }
    }

    /// The project's folder.
    #[must_use]
    pub fn project_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.project_dir = Some(folder.into());
        self
    }

    /// Another instance than `test`.
    #[must_use]
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.instance = Some(name.into());
        self
    }

    /// What runs the server, if it is to be started: `auto`, `docker`, `native` or `external`.
    #[must_use]
    pub fn engine(mut self, name: impl Into<String>) -> Self {
        self.engine = Some(name.into());
        self
    }

    /// Fills it with a data set: `small`, `demo`, or a file or folder under `seeds/`.
    #[must_use]
    pub fn seed(mut self, dataset: impl Into<String>) -> Self {
        self.seed = Some(dataset.into());
        self
    }

    /// Makes an extension in it, which an ordinary role may not be able to do in a migration.
    #[must_use]
    pub fn extension(mut self, name: impl Into<String>) -> Self {
        self.extensions.push(name.into());
        self
    }

    /// Runs SQL in it, after the migrations and the data set.
    #[must_use]
    pub fn sql(mut self, script: impl Into<String>) -> Self {
        self.scripts.push(script.into());
        self
    }

    /// Fills it by a function, last of all and once for all tests. `name` stands for what it does: another name makes the
    /// template anew, and one of the same name does not.
    #[must_use]
    pub fn template_function<F>(mut self, name: impl Into<String>, function: F) -> Self
    where
        F: for<'a> Fn(&'a mut PgConnection) -> BoxFuture<'a, Result<(), TemplateFunctionError>> + Send + Sync + 'static,
    {
        self.function = Some((name.into(), Arc::new(function)));
        self
    }

    /// Whether the database stays for a day if the test panics; else `keep_on_failure` under `[fresh]` in `tfdev.toml`
    /// decides.
    #[must_use]
    pub fn keep_on_failure(mut self, keep: bool) -> Self {
        self.keep_on_failure = Some(keep);
        self
    }

    /// How many connections a test has at most [default: 5]. It bounds how many tests have a database at the same time on a
    /// server with few connections.
    #[must_use]
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// How long to wait for the server, the template and a database [default: 5 minutes].
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Where to tell what goes on, such as the first start of a server. By default nowhere.
    #[must_use]
    pub fn events(mut self, events: Events) -> Self {
        self.events = events;
        self
    }

    /// A fresh database. Whatever runtime calls, the session with the server is kept by a thread of its own.
    ///
    /// # Errors
    /// Those of starting a server and of making the template; [`ErrorKind::TimedOut`] if the pool is at its bound for too
    /// long.
    pub async fn database(&self) -> Result<Fresh> {
        Home::of_process()?.fresh(self.clone()).await
    }

    /// As [`FreshConfig::database`], for tests that are not asynchronous.
    pub fn database_blocking(&self) -> Result<Fresh> {
        Home::of_process()?.fresh_blocking(self.clone())
    }

    /// The settings that this means.
    pub(super) fn settings(&self) -> Result<Settings> {
        let mut flags = Flags::of_variables()?;
        let given = |name: &str, value: &Option<String>| value.clone().map(|value| Setting::flag(name, value));
        if let Some(folder) = &self.project_dir {
            flags.project_dir = Some(Setting::flag("project-dir", folder.display().to_string()));
        }
        flags.instance = given("instance", &self.instance).or(flags.instance);
        flags.instance.get_or_insert_with(|| Setting::default_value(TEST_INSTANCE.to_owned()));
        flags.engine = given("engine", &self.engine).or(flags.engine);
        let seconds = self.timeout.map(|limit| limit.as_secs().max(1).to_string());
        flags.timeout = given("timeout", &seconds).or(flags.timeout);
        Settings::resolve(&flags, &Environment::read()?)
    }

    /// What the template is made of.
    pub(super) fn recipe(&self, settings: &Settings) -> Result<Recipe> {
        let dataset = match &self.seed {
            Some(name) => DataSet::load(name, &settings.project_dir)?,
            None => None,
        };
        Ok(Recipe {
            extensions: self.extensions.clone(),
            dataset,
            scripts: self.scripts.clone(),
            function: self.function.clone(),
            ..Recipe::of(Source::of(settings)?)
        })
    }

    /// What tells two configurations apart that want different servers or sessions.
    pub(super) fn pool_identity(&self) -> String {
        format!("{:?}", (&self.project_dir, &self.instance, &self.engine, self.connections, self.timeout))
    }

    /// What tells two configurations apart.
    pub(super) fn identity(&self) -> String {
        let function = self.function.as_ref().map(|(name, _)| name);
        format!("{:?}", (self.pool_identity(), &self.seed, &self.extensions, &self.scripts, function))
    }

    pub(super) fn connections_wanted(&self) -> u32 {
        self.connections
    }
}

/// The pool of the settled instance, which is started if it does not run. `holder` is who the list says has a database.
pub async fn open(settings: &Settings, connections: Option<u32>, holder: String, events: &Events) -> Result<Pool> {
    let running = find_or_start(settings, events).await?;
    let pool = of_running(&running, settings, connections, holder, events).await?;
    idle::see_that_it_is_watched(&running, settings);
    Ok(pool)
}

/// A fresh database of the template that `recipe` makes, with its pool. A server that ends in the meantime, for want of use,
/// is started again.
pub async fn lease(
    settings: &Settings,
    recipe: &Recipe,
    holder: &str,
    events: &Events,
) -> Result<(Pool, Template, Lease)> {
    let attempt = async || {
        let pool = open(settings, None, holder.to_owned(), events).await?;
        let template = pool.template(recipe).await?;
        let lease = pool.take(&template).await?;
        Ok((pool, template, lease))
    };
    match attempt().await {
        Err(error) if session::is_lost(&error) => attempt().await,
        other => other,
    }
}

/// The pool of an instance that runs.
pub async fn of_running(
    running: &Running,
    settings: &Settings,
    connections: Option<u32>,
    holder: String,
    events: &Events,
) -> Result<Pool> {
    let profile = running.record.profile_name();
    let profile = profile.unwrap_or_else(|| settings.profile_name());
    let limits = profile::resolve(profile, &settings.profiles)?.limits;
    let instance = &running.instance;
    let options = Options {
        max_databases: settings.fresh.max_databases.value,
        // The rest is for templates, the project's own database and the write-ahead log.
        storage_bytes: limits.storage_bytes / 4 * 3,
        connections: connections.unwrap_or(CONNECTIONS),
        workers: WORKERS,
        timeout: Duration::from_secs(settings.timeout_seconds.value),
        holder,
        queue: Some(instance.state_dir.with_file_name(format!("{}.fresh.lock", instance.name))),
    };
    Pool::open(running.server.clone(), running.record.clone(), options, events).await
}

/// The running instance. One that is not there, or was never finished, is started; its own database gets no data then.
async fn find_or_start(settings: &Settings, events: &Events) -> Result<Running> {
    match Running::find(settings, events).await {
        Ok(running) if running.record.initialised => return Ok(running),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut settings = settings.clone();
    "none".clone_into(&mut settings.dataset.value);
    let instance = Instance::of(&settings);
    events.started(format!("Starting the instance `{}`", instance.name));
    crate::up::up(&settings, events).await?;
    Running::find(&settings, events).await
}
