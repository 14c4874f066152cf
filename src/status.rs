//! `status`: what runs, and how full it is. It changes nothing.

use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::config::Settings;
use crate::engine::{self, EngineKind, Observed, Parts, State};
use crate::error::{Context, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{Instance, InstanceRecord};
use crate::migrate::{self, Source};
use crate::pg;
use crate::profile;
use crate::provision;
use crate::server::{Server, Tenancy};
use crate::snapshot::{self, LeftOver, Snapshot};
use crate::storage::Storage;
use crate::up::{MigrationCounts, SeedReport};

/// How long a login may take before the server counts as unhealthy.
const LOGIN_LIMIT: Duration = Duration::from_secs(5);

/// Open client connections but this one, and how many there may be.
const CONNECTIONS: &str = "\
    SELECT (SELECT count(*) FROM pg_stat_activity \
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()), \
           current_setting('max_connections')::bigint";

/// The same where others have databases too, whose sessions an ordinary role sees as numbers.
const ALL_CONNECTIONS: &str = "\
    SELECT (SELECT coalesce(sum(numbackends), 1) - 1 FROM pg_stat_database)::bigint, \
           current_setting('max_connections')::bigint";

/// What `status` found; the keys of [`crate::up::UpReport`] and more (`CLI.md` § Output).
#[derive(Debug, Serialize)]
pub struct StatusReport {
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
    /// What runs the server.
    pub engine: EngineKind,
    /// Why it is that engine.
    pub engine_reason: String,
    /// The settings that the server was made with.
    pub profile: Option<String>,
    /// What the server is doing.
    pub state: State,
    /// Why it is not running, where that is known.
    pub reason: Option<String>,
    /// Always false: `status` makes nothing.
    pub created: bool,
    /// Always false: `status` starts nothing.
    pub started: bool,
    /// What the instance is made of: the keys `container`, `volume`, `image` and `data_dir`.
    #[serde(flatten)]
    pub parts: Parts,
    /// Whether the engine holds the server to the profile's limits on memory and processor time.
    pub limits_enforced: bool,
    /// Why it does not.
    pub limits_reason: Option<String>,
    /// The host on which the server answers.
    pub host: Option<String>,
    /// The port on which the server answers.
    pub port: Option<u16>,
    /// The project's database.
    pub database: String,
    /// The ordinary role that owns it.
    pub user: String,
    /// The connection URL with the role's password.
    pub url: Option<String>,
    /// How many migrations there are.
    pub migrations: Option<MigrationCounts>,
    /// The data set that the database was filled with.
    pub seed: Option<SeedReport>,
    /// Storage used by databases and WAL, of the profile's limit.
    pub storage: Option<Storage>,
    /// Client connections.
    pub connections: Option<Connections>,
    /// Snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Databases that a command which was cut off has left, and that the next one removes.
    pub left_overs: Vec<LeftOver>,
    /// Bytes that a server which was killed in mid-copy has left in its data folder.
    pub leaked_bytes: u64,
}

/// Client connections.
#[derive(Debug, Serialize)]
pub struct Connections {
    /// Open now, tfdev's own one not counted.
    pub used: i64,
    /// The server's `max_connections`.
    pub max: i64,
}

/// Looks at the settled instance.
pub async fn status(settings: &Settings, events: &Events) -> Result<StatusReport> {
    let instance = Instance::of(settings);
    let engine::Chosen { engine, reason, .. } = engine::choose(settings, &instance, events).await?;
    let observed = engine.observe().await?;
    let record = InstanceRecord::read(&instance, events)?;
    let mut report = StatusReport::of(settings, &instance, (engine.kind(), reason), &observed, record.as_ref());
    let (Some(endpoint), Some(record), State::Starting) = (observed.endpoint.clone(), record, observed.state) else {
        return Ok(report);
    };
    let server = match engine.server(settings, endpoint, record.root_cert.clone(), events).await {
        Ok(server) => server,
        // Only a server of someone else is asked before it is handed out; what was ours there may be gone.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let gone = Observed { state: State::Absent, endpoint: None, parts: Parts::default(), ..observed };
            return Ok(StatusReport::of(settings, &instance, (engine.kind(), report.engine_reason), &gone, None));
        }
        Err(error) => {
            report.state = State::Unhealthy;
            report.reason = Some(error.to_string());
            return Ok(report);
        }
    };
    report.url = Some(server.url());
    (report.database, report.user) = (server.database.clone(), server.user.name.clone());
    match pg::connect(&server.admin_login(), std::time::Instant::now() + LOGIN_LIMIT).await {
        Ok(mut connection) => {
            server.prove(&mut connection, &record).await?;
            report.state = State::Running;
            report.measure(settings, server.tenancy, &mut connection).await?;
            if let Some(warning) = report.storage.as_ref().and_then(Storage::warning) {
                events.warning(warning);
            }
            let overview = snapshot::overview(&mut connection, &server.database).await?;
            (report.snapshots, report.left_overs) = (overview.snapshots, overview.left_overs);
            report.leaked_bytes = overview.leaked_bytes;
            provision::close(connection).await;
            report.count_migrations(settings, &server).await?;
        }
        Err(pg::LoginError::StartingUp(_)) => report.reason = Some("the server recovers or starts up".to_owned()),
        Err(error) => {
            // It may have ended since it was looked at.
            let now = engine.observe().await?;
            let alive = now.state == State::Starting;
            report.state = if alive { State::Unhealthy } else { now.state };
            report.reason = if alive { Some(error.to_string()) } else { now.reason };
        }
    }
    Ok(report)
}

impl StatusReport {
    fn of(
        settings: &Settings,
        instance: &Instance,
        (engine, engine_reason): (EngineKind, String),
        observed: &Observed,
        record: Option<&InstanceRecord>,
    ) -> Self {
        let dataset = record.and_then(|record| record.seed.clone());
        Self {
            project: instance.project.clone(),
            instance: instance.name.clone(),
            engine,
            engine_reason,
            profile: record
                .filter(|_| observed.state != State::Absent)
                .and_then(InstanceRecord::profile_name)
                .map(str::to_owned),
            state: observed.state,
            reason: observed.reason.clone(),
            created: false,
            started: false,
            parts: observed.parts.clone(),
            limits_enforced: observed.limits_enforced,
            limits_reason: observed.limits_reason.clone(),
            host: observed.endpoint.as_ref().map(|endpoint| endpoint.host.clone()),
            port: observed.endpoint.as_ref().map(|endpoint| endpoint.port),
            database: settings.database.name.value.clone(),
            user: settings.database.user.value.clone(),
            url: None,
            migrations: None,
            seed: dataset,
            storage: None,
            connections: None,
            snapshots: Vec::new(),
            left_overs: Vec::new(),
            leaked_bytes: 0,
        }
    }

    async fn measure(&mut self, settings: &Settings, tenancy: Tenancy, connection: &mut PgConnection) -> Result<()> {
        let what = || "cannot count the server's connections";
        let name = self.profile.as_deref().unwrap_or_else(|| settings.profile_name());
        let limits = profile::resolve(name, &settings.profiles)?.limits;
        self.storage = Some(Storage::measure(connection, tenancy, &self.database, limits.storage_bytes).await?);
        let question = match tenancy {
            Tenancy::Whole => CONNECTIONS,
            Tenancy::Shared => ALL_CONNECTIONS,
        };
        let row = sqlx::raw_sql(question).fetch_one(connection).await.or_failed(what)?;
        self.connections =
            Some(Connections { used: row.try_get(0).or_failed(what)?, max: row.try_get(1).or_failed(what)? });
        Ok(())
    }

    async fn count_migrations(&mut self, settings: &Settings, server: &Server) -> Result<()> {
        let login = server.login();
        let deadline = std::time::Instant::now() + LOGIN_LIMIT;
        let mut connection = pg::connect(&login, deadline).await.map_err(|error| error.into_error(&login))?;
        let status = migrate::status(&mut connection, &Source::of(settings)?).await?;
        provision::close(connection).await;
        self.migrations = Some(MigrationCounts { applied: status.applied, total: status.total });
        Ok(())
    }
}
