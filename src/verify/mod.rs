//! `verify`: every row of the source document (`CON-003-postgres.md`), what it asks, what the running server has, and how
//! that was proven.
//!
//! ```text
//! source      the document's tables, as data         settings    the two tables of settings, the engine
//! features    the five features, by using them       schema      the diagram
//! health      the two checks                         deployment  image, limits, volume
//! backup      recovery                               junit       the report for CI
//! ```
//!
//! What must hold: a row passes only if something was looked at that fails when the promise is broken; what an engine or a
//! profile cannot have is told with the reason and is no pass; and nothing is left behind, also if the process is killed
//! at any moment. So whatever is written is either rolled back, or gone again by the end of the very transaction that
//! writes it, and the replication slot is a temporary one, which ends with its session. Other programs that listen on
//! `task_changes` see three notifications of a task that no longer is.

mod backup;
mod deployment;
mod features;
mod health;
pub mod junit;
mod schema;
mod settings;
mod source;

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::PgConnection;

use crate::config::Settings;
use crate::engine::{EngineKind, Resources};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::migrate;
use crate::pg::{self, Login};
use crate::profile::{self, BuiltIn, Profile};
use crate::provision;
use crate::server::{Running, Tenancy};
use crate::up;

/// How long a login may take.
const LOGIN_LIMIT: Duration = Duration::from_secs(15);

/// What our sessions begin with: no statement of ours may hold up anyone, or be held up, for long.
const SESSION: &str = "SET statement_timeout = '5s'; SET lock_timeout = '2s'; SET client_min_messages = 'error'";

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The server has what the row asks.
    Pass,
    /// It has not.
    Fail,
    /// This engine or profile cannot have it, for the reason that is told.
    NotApplicable,
    /// It is not set up yet.
    NotSetUp,
}

/// A section of the source document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// § Engine.
    Engine,
    /// § Configuration.
    Configuration,
    /// § Development vs Production.
    DevelopmentVsProduction,
    /// § Features Provided.
    Features,
    /// § Schema Overview.
    Schema,
    /// § Backup & Recovery.
    Backup,
    /// § Health Checks.
    Health,
    /// § Deployment.
    Deployment,
}

impl Section {
    /// Its heading in the document.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Engine => "Engine",
            Self::Configuration => "Configuration",
            Self::DevelopmentVsProduction => "Development vs Production",
            Self::Features => "Features Provided",
            Self::Schema => "Schema Overview",
            Self::Backup => "Backup & Recovery",
            Self::Health => "Health Checks",
            Self::Deployment => "Deployment",
        }
    }
}

/// A row of the source document, and what the server has of it.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The section that it stands in.
    pub section: Section,
    /// Its name there.
    pub name: String,
    /// What it asks.
    pub asks: String,
    /// What the server has.
    pub has: String,
    /// How that was found out.
    pub proof: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it is no pass; `None` for a pass.
    pub because: Option<String>,
    /// How long it took to find out, in milliseconds.
    pub elapsed_ms: u64,
}

/// What `verify` found.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
    /// What runs the server.
    pub engine: EngineKind,
    /// The profile whose rows were compared.
    pub profile: String,
    /// How many rows passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many cannot be had here.
    pub not_applicable: usize,
    /// How many are not set up.
    pub not_set_up: usize,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// All rows, in the document's order.
    pub rows: Vec<Row>,
}

/// What is known of a row once it was looked at.
#[derive(Debug, Clone)]
struct Verdict {
    outcome: Outcome,
    has: String,
    proof: String,
    because: Option<String>,
}

impl Verdict {
    fn pass(has: impl Into<String>, proof: impl Into<String>) -> Self {
        Self { outcome: Outcome::Pass, has: has.into(), proof: proof.into(), because: None }
    }

    fn fail(has: impl Into<String>, proof: impl Into<String>, because: impl Into<String>) -> Self {
        Self { outcome: Outcome::Fail, because: Some(because.into()), ..Self::pass(has, proof) }
    }

    fn not_applicable(has: impl Into<String>, proof: impl Into<String>, because: impl Into<String>) -> Self {
        Self { outcome: Outcome::NotApplicable, because: Some(because.into()), ..Self::pass(has, proof) }
    }

    fn not_set_up(because: impl Into<String>) -> Self {
        Self { outcome: Outcome::NotSetUp, because: Some(because.into()), ..Self::pass("", "") }
    }

    /// What could not be looked at is no pass.
    fn of(looked: Result<Self>) -> Self {
        looked.unwrap_or_else(|error| Self::fail("", "", full_text(&error)))
    }

    fn row(self, section: Section, name: impl Into<String>, asks: impl Into<String>, begin: Instant) -> Row {
        Row {
            section,
            name: name.into(),
            asks: asks.into(),
            has: self.has,
            proof: self.proof,
            outcome: self.outcome,
            because: self.because,
            elapsed_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// An error and all its causes on one line.
fn full_text(error: &Error) -> String {
    std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ")
}

/// Whose schema is in the project's database.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Schema {
    /// TaskFlow's, perhaps with more.
    TaskFlow,
    /// The project's own, from this place.
    Own(String),
}

/// What all rows are looked at with.
struct Bench<'a> {
    settings: &'a Settings,
    running: &'a Running,
    profile: Profile,
    schema: Schema,
    /// What the server has of its machine; an error where that is someone else's.
    resources: Result<Resources>,
}

impl Bench<'_> {
    /// Which column of the source's tables counts.
    fn base(&self) -> BuiltIn {
        self.profile.base
    }

    /// A session of the ordinary role in the project's database: what an application has.
    async fn user(&self) -> Result<PgConnection> {
        session(&self.running.server.login()).await
    }

    /// The login of the admin role to the project's database.
    fn admin_login(&self) -> Login {
        let server = &self.running.server;
        Login { database: server.database.clone(), ..server.admin_login() }
    }

    /// A session of the admin role in the project's database.
    async fn admin(&self) -> Result<PgConnection> {
        session(&self.admin_login()).await
    }

    /// Whether the server is someone else's.
    fn is_shared(&self) -> bool {
        self.running.server.tenancy == Tenancy::Shared
    }
}

async fn session(login: &Login) -> Result<PgConnection> {
    let connected = pg::connect(login, Instant::now() + LOGIN_LIMIT).await;
    let mut connection = connected.map_err(|error| error.into_error(login))?;
    sqlx::raw_sql(SESSION).execute(&mut connection).await.or_failed(|| "cannot set up a session")?;
    Ok(connection)
}

/// Looks at every row of the source document.
///
/// Fails only if there is no running instance, if another server answers, or if the engine cannot be asked: a promise that
/// is broken is a row.
pub async fn verify(settings: &Settings, events: &Events) -> Result<VerifyReport> {
    let begin = Instant::now();
    let running = Running::find(settings, events).await?;
    let name = up::profile_name(settings, Some(&running.record));
    let profile = profile::resolve(name, &settings.profiles)?;
    let source = migrate::Source::of(settings)?;
    let schema = if source.has_built_in() { Schema::TaskFlow } else { Schema::Own(source.place().to_owned()) };
    let admin = running.server.admin_login();
    let mut connection = session(&admin).await?;
    running.server.prove(&mut connection, &running.record).await?;
    provision::close(connection).await;

    let resources = match running.engine.resources().await {
        Err(error) if error.kind() != ErrorKind::Refused => return Err(error),
        found => found,
    };
    let bench = Bench { settings, running: &running, profile, schema, resources };
    let mut rows = Vec::new();
    events.started("Looking at the settings");
    rows.extend(settings::rows(&bench).await);
    events.started("Using the features");
    rows.extend(features::rows(&bench).await);
    events.started("Looking at the schema, the limits and the health");
    rows.extend(schema::rows(&bench).await);
    rows.extend(backup::rows(&bench).await);
    rows.extend(health::rows(&bench).await);
    rows.extend(deployment::rows(&bench).await);
    events.finished("Looked at every row", begin.elapsed());
    let count = |outcome| rows.iter().filter(|row| row.outcome == outcome).count();
    Ok(VerifyReport {
        project: running.instance.project.clone(),
        instance: running.instance.name.clone(),
        engine: running.engine.kind(),
        profile: bench.profile.name.clone(),
        passed: count(Outcome::Pass),
        failed: count(Outcome::Fail),
        not_applicable: count(Outcome::NotApplicable),
        not_set_up: count(Outcome::NotSetUp),
        elapsed_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        rows,
    })
}
