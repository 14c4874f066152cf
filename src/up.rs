//! `up`: from nothing, or from anything that an earlier run left, to a server that answers, is migrated and seeded.
//!
//! What must hold: what can be wrong in the input is found before anything is started; running it again changes nothing;
//! and it can be killed at any point and run again.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::checks;
use crate::config::Settings;
use crate::engine::{self, Engine, EngineKind, Observed, Parts, StartRequest, Started, State};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{Instance, InstanceLock, InstanceRecord, Password};
use crate::migrate::{self, Source};
use crate::pg::{self, Login, LoginError, NotReady};
use crate::profile::{self, DataPlacement, Profile};
use crate::provision::{self, Provision};
use crate::seed::{self, DataSet, SeedOutcome};
use crate::server::{self, Passwords, Server};
use crate::spec::{SUPERUSER, ServerSpec};
use crate::tls::ServerCertificate;

/// How long a server that recovers from a crash may take, as long as it says that it does.
const RECOVERY_LIMIT: Duration = Duration::from_mins(10);

/// What `up` found and did; its JSON is the contract (`CLI.md` § Output).
#[derive(Debug, Serialize)]
pub struct UpReport {
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
    /// What runs the server.
    pub engine: EngineKind,
    /// The server's settings.
    pub profile: String,
    /// Always [`State::Running`].
    pub state: State,
    /// Whether the data was made by this call.
    pub created: bool,
    /// Whether the server was started by this call.
    pub started: bool,
    /// What the instance is made of: the keys `container`, `volume`, `image` and `data_dir`.
    #[serde(flatten)]
    pub parts: Parts,
    /// The host on which the server answers.
    pub host: String,
    /// The port on which the server answers.
    pub port: u16,
    /// The project's database.
    pub database: String,
    /// The ordinary role that owns it.
    pub user: String,
    /// The connection URL with the role's password.
    pub url: String,
    /// How many migrations there are.
    pub migrations: MigrationCounts,
    /// The data set; `None` if there is none.
    pub seed: Option<SeedReport>,
    /// How long the call took, in milliseconds.
    pub elapsed_ms: u64,
}

/// How many migrations there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MigrationCounts {
    /// Applied to the database.
    pub applied: usize,
    /// In the source.
    pub total: usize,
}

/// What is known of the database's data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedReport {
    /// The data set's name.
    pub dataset: String,
    /// Users in the data set.
    pub users: u64,
    /// Tasks in the data set.
    pub tasks: u64,
    /// Whether this call added the rows.
    pub applied: bool,
}

impl From<&SeedOutcome> for SeedReport {
    fn from(outcome: &SeedOutcome) -> Self {
        Self { dataset: outcome.dataset.clone(), users: outcome.users, tasks: outcome.tasks, applied: outcome.applied }
    }
}

/// The input of `up`, read and checked before anything is started.
struct Inputs {
    profile: Profile,
    migrations: Source,
    dataset: Option<DataSet>,
}

impl Inputs {
    fn read(settings: &Settings, record: Option<&InstanceRecord>) -> Result<Self> {
        Ok(Self {
            profile: profile::resolve(profile_name(settings, record), &settings.profiles)?,
            migrations: Source::of(settings)?,
            dataset: DataSet::load(&settings.dataset.value, &settings.project_dir)?,
        })
    }
}

/// The profile that is asked for, else the one that the instance has, else the default one: an `up` that does not name
/// a profile changes nothing.
pub(crate) fn profile_name<'a>(settings: &'a Settings, record: Option<&'a InstanceRecord>) -> &'a str {
    let recorded = record.and_then(|record| record.profile.as_deref());
    match (&settings.profile, recorded) {
        (None, Some(recorded)) => recorded,
        _ => settings.profile_name(),
    }
}

/// Makes the instance run, migrated and seeded.
pub async fn up(settings: &Settings, events: &Events) -> Result<UpReport> {
    let begin = Instant::now();
    let instance = Instance::of(settings);
    let inputs = Inputs::read(settings, InstanceRecord::read(&instance, events)?.as_ref())?;
    let timeout = Duration::from_secs(settings.timeout_seconds.value);
    let _lock = InstanceLock::acquire(&instance, "up", timeout, events).await?;
    let engine = engine::choose_for_up(settings, &instance, events).await?.engine;
    let observed = engine.observe().await?;
    let (id, mut record) = recall(&instance, engine.kind(), &observed, events)?;
    let passwords = Passwords::of(&instance, events)?;
    let last = observed.parts.image.as_deref().or(record.image.as_deref());
    let source = engine.source(settings.image.as_ref(), last).await?;
    if let (State::Starting, Some(reason)) = (observed.state, &observed.reason) {
        events.warning(reason.clone());
    }
    let mut spec = ServerSpec::new(&inputs.profile, &source.name, &source.id, settings.database.port.value);
    let certificate = if inputs.profile.ssl {
        let certificate = ServerCertificate::of(&instance, &settings.state_dir, &engine.host())?;
        spec = spec.with_certificate(certificate.fingerprint());
        Some(certificate)
    } else {
        None
    };
    let request =
        StartRequest { spec, certificate, id, last_port: record.port, superuser_password: passwords.superuser.clone() };
    // On record before the engine makes anything that carries the identity.
    let written = remember(&instance, &record, None)?;
    let starting = Instant::now();
    let started = engine.start(&request).await?;
    record.port = Some(started.endpoint.port);
    record.image.clone_from(&started.parts.image);
    record.root_cert = request.certificate.as_ref().map(|certificate| certificate.root_cert.clone());
    let server = Server::new(settings, started.endpoint.clone(), passwords, record.root_cert.clone());
    let run = Run { instance: &instance, id, engine: engine.as_ref(), server: &server, events, timeout };
    let must_flush = request.spec.data == DataPlacement::Volume && (started.created || !record.initialised);
    let mut connection = run.ready(&started, &mut record).await?;
    if started.started {
        events.finished("Started PostgreSQL", starting.elapsed());
    }
    let image_changed = record.image_id.as_ref().is_some_and(|id| *id != source.id);
    let fill = async {
        if started.started {
            checks::clock(&mut connection, events).await?;
        }
        if image_changed {
            checks::collations(&mut connection, events).await?;
        }
        let options = migrate::Options { lock_timeout: timeout, ..migrate::Options::default() };
        let migrated = migrate::run(&server.login(), &inputs.migrations, &options, events).await?;
        let seed = run.seed(&mut connection, inputs.dataset.as_ref()).await?;
        Ok::<_, Error>((migrated, seed))
    };
    // A new data folder was never written to the disk on purpose, and until it is the instance counts as unfinished.
    let flush = async { if must_flush { engine.flush().await } else { Ok(()) } };
    let ((migrated, seed), ()) = tokio::try_join!(fill, flush)?;
    provision::close(connection).await;
    record.initialised = true;
    record.image_id = Some(source.id.clone());
    record.profile = Some(inputs.profile.name.clone());
    if let Some(seed) = &seed {
        record.remember_seed(seed);
    }
    remember(&instance, &record, Some(&written))?;
    Ok(UpReport {
        project: instance.project.clone(),
        instance: instance.name.clone(),
        engine: engine.kind(),
        profile: inputs.profile.name,
        state: State::Running,
        created: started.created,
        started: started.started,
        parts: started.parts,
        host: server.endpoint.host.clone(),
        port: server.endpoint.port,
        database: server.database.clone(),
        user: server.user.clone(),
        url: server.url(),
        migrations: MigrationCounts { applied: migrated.applied, total: migrated.total },
        seed,
        elapsed_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// What is on record of the instance, brought in line with what the engine sees, and the instance's identity.
fn recall(
    instance: &Instance,
    engine: EngineKind,
    observed: &Observed,
    events: &Events,
) -> Result<(Uuid, InstanceRecord)> {
    let mut record = InstanceRecord::read(instance, events)?.unwrap_or_default();
    let on_record = record.id();
    let id = match (on_record, observed.id) {
        (Some(on_record), Some(seen)) if on_record != seen => {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the data of `{}` carries the identity {seen}, and the record of this machine names {on_record}",
                    instance.container_name()
                ),
            )
            .hint(format!(
                "if the container and its volume are the right ones, remove the record `{}` and run `tfdev up`",
                instance.record_file().display()
            )));
        }
        (Some(on_record), None) if !record.initialised || observed.state != State::Absent => on_record,
        (Some(_), None) => {
            events.warning("The data of this instance was removed by something other than tfdev; it is made anew");
            record.initialised = false;
            record.system_identifier = None;
            Uuid::new_v4()
        }
        // The record is lost, or this is the first run: what carries our labels names its identity.
        (_, Some(seen)) => seen,
        (None, None) => Uuid::new_v4(),
    };
    record.uuid = Some(id.to_string());
    record.engine = Some(engine.into());
    record.project_dir = Some(instance.project_dir.clone());
    record.tfdev_version = Some(env!("CARGO_PKG_VERSION").to_owned());
    record.created_at.get_or_insert_with(|| jiff::Timestamp::now().to_string());
    Ok((id, record))
}

/// Writes the record if it differs from what is `known` to be written; returns what is written now.
fn remember(instance: &Instance, record: &InstanceRecord, known: Option<&InstanceRecord>) -> Result<InstanceRecord> {
    let on_disk = match known {
        Some(known) => Some(known.clone()),
        None => InstanceRecord::read(instance, &Events::none())?,
    };
    if on_disk.as_ref() != Some(record) {
        record.write(instance)?;
    }
    Ok(record.clone())
}

/// What the steps after the engine's start share.
struct Run<'a> {
    instance: &'a Instance,
    id: Uuid,
    engine: &'a dyn Engine,
    server: &'a Server,
    events: &'a Events,
    timeout: Duration,
}

impl Run<'_> {
    /// Waits for a login as the ordinary role and proves whose server it is; sets up what a new server lacks.
    async fn ready(&self, started: &Started, record: &mut InstanceRecord) -> Result<PgConnection> {
        if record.initialised && !started.created {
            let login = self.server.login();
            match self.wait(&login).await {
                Ok(mut connection) => {
                    server::prove(&mut connection, record).await?;
                    return Ok(connection);
                }
                Err(NotReady::Answered(LoginError::WrongPassword(_))) => {
                    self.events.detail("the role's password is not the one on record");
                }
                Err(NotReady::Answered(LoginError::NoDatabase(_))) => {
                    self.events.note(format!("The database `{}` is gone; it is made anew", self.server.database));
                }
                Err(error) => return Err(error.into_error(&login)),
            }
        }
        self.provision(started, record).await?;
        let login = self.server.login();
        self.wait(&login).await.map_err(|error| error.into_error(&login))
    }

    /// Waits until `login` succeeds. A server that says that it recovers gets more time than the time limit.
    async fn wait(&self, login: &Login) -> Result<PgConnection, NotReady> {
        let begin = Instant::now();
        loop {
            match pg::wait_ready(login, Instant::now() + self.timeout, || self.engine.check_alive()).await {
                Err(NotReady::TimedOut(LoginError::StartingUp(_))) if begin.elapsed() < RECOVERY_LIMIT => {
                    self.events.note("The server recovers from a crash; waiting for it");
                }
                other => return other,
            }
        }
    }

    /// Sets up a new server, or mends one whose passwords or database are not as they should be.
    async fn provision(&self, started: &Started, record: &mut InstanceRecord) -> Result<()> {
        let mut connection = self.superuser(started.first_password.as_ref()).await?;
        let wanted = Provision {
            instance: self.instance,
            id: self.id,
            database: &self.server.database,
            user: &self.server.user,
            superuser_password: &self.server.passwords.superuser,
            user_password: &self.server.passwords.user,
        };
        let identifier = provision::provision(&mut connection, &wanted).await?;
        provision::close(connection).await;
        record.system_identifier = Some(identifier.to_string());
        record.write(self.instance)
    }

    /// Logs in as the superuser, with the password a new data folder came with, or the one on record, or after setting
    /// it from beside the server.
    async fn superuser(&self, first: Option<&Password>) -> Result<PgConnection> {
        let own = self.server.superuser_login();
        for password in first.into_iter().chain([&self.server.passwords.superuser]) {
            let login = Login { password: password.expose().to_owned(), ..own.clone() };
            match self.wait(&login).await {
                Ok(connection) => return Ok(connection),
                Err(NotReady::Answered(LoginError::WrongPassword(_))) => {}
                Err(error) => return Err(error.into_error(&login)),
            }
        }
        self.set_password_from_beside().await?;
        self.wait(&own).await.map_err(|error| error.into_error(&own))
    }

    /// Sets the superuser's password over the server's own socket, after looking whose server it is.
    async fn set_password_from_beside(&self) -> Result<()> {
        self.events.note("The server has other passwords than this machine; they are set anew");
        let psql = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-d", SUPERUSER];
        let found = self.engine.run(&psql, provision::MARKER_QUERY.as_bytes()).await?;
        let found = String::from_utf8_lossy(&found.checked("read the server's identity")?.stdout).trim().to_owned();
        if let Some(other) = found.parse().ok().filter(|found: &Uuid| *found != self.id) {
            return Err(provision::not_ours(self.id, other));
        }
        let script = provision::superuser_password_script(&self.server.passwords.superuser)?;
        self.engine.run(&psql, script.as_bytes()).await?.checked("set the superuser's password")?;
        Ok(())
    }

    /// Loads the data set into an empty database.
    async fn seed(&self, connection: &mut PgConnection, dataset: Option<&DataSet>) -> Result<Option<SeedReport>> {
        let Some(dataset) = dataset else { return Ok(None) };
        let outcome = seed::apply(connection, dataset, seed::Mode::OnlyIfEmpty, self.events).await?;
        Ok(Some(SeedReport::from(&outcome)))
    }
}
