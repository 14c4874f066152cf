//! `up`: from nothing, or from anything that an earlier run left, to a server that answers, is migrated and seeded.
//!
//! What must hold: what can be wrong in the input is found before anything is started; running it again changes nothing;
//! it can be killed at any point and run again; and settings with which the server does not run are taken back.

mod change;
mod record;
mod run;
mod work;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::work::{Begun, Work};
pub(crate) use self::work::{adopt, spec};
use crate::config::Settings;
use crate::engine::{self, EngineKind, Parts, State};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{Instance, InstanceLock, InstanceRecord};
use crate::migrate::Source;
use crate::profile::{self, Change, Profile};
use crate::seed::{DataSet, SeedOutcome};
use crate::snapshot::{self, Snapshots};

/// From how many bytes on a data set is compared with the room that there is.
const WORTH_A_LOOK: u64 = 64 << 20;

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
    /// The settings that this call changed, of an instance that was there before.
    pub changes: Vec<Change>,
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
    let chosen = engine::choose_for_up(settings, &instance, events).await?;
    let engine = chosen.engine;
    let observed = engine.observe().await?;
    if let (State::Starting, Some(reason)) = (observed.state, &observed.reason) {
        events.warning(reason.clone());
    }
    if InstanceRecord::read(&instance, events)?.is_some_and(|record| record.restoring) {
        return Err(unfinished_restore(&instance));
    }
    let (id, mut record) = record::recall(&instance, engine.kind(), &observed, events)?;
    record.engine_reason.get_or_insert(chosen.reason);
    let last_image = observed.parts.image.as_deref().or(record.image.as_deref());
    let source = match chosen.source.filter(|_| last_image.is_none()) {
        Some(found) => found,
        None => engine.source(settings.image.as_ref(), last_image).await?,
    };
    let work = Work { settings, instance: &instance, engine: engine.as_ref(), source: &source, id, timeout, events };
    let Begun { started, server, connection, changes, written } =
        Box::pin(work.begin(&inputs.profile, &observed, &mut record)).await?;
    if let Some(dataset) = inputs.dataset.as_ref().filter(|dataset| dataset.estimated_bytes() > WORTH_A_LOOK)
        && record.seed.is_none()
    {
        let options = snapshot::Options::of(settings, inputs.profile.limits);
        let what = format!("the data set `{}`", dataset.name());
        let snapshots = Snapshots::new(&server, &record, options, events);
        Box::pin(snapshots.check_room(&what, dataset.estimated_bytes())).await?;
    }
    let run = work.run(&server, &inputs.profile, &started, &record);
    let (migrations, seed) = run.fill(connection, &inputs, started.started).await?;
    record.initialised = true;
    record.image_id = Some(source.id.clone());
    record.profile = Some(inputs.profile.name.clone());
    if let Some(seed) = &seed {
        record.remember_seed(seed);
    }
    record::remember(&instance, &record, Some(&written))?;
    Ok(UpReport {
        engine: engine.kind(),
        profile: inputs.profile.name,
        state: State::Running,
        created: started.created,
        started: started.started,
        changes,
        parts: started.parts,
        host: server.endpoint.host.clone(),
        port: server.endpoint.port,
        database: server.database.clone(),
        user: server.user.name.clone(),
        url: server.url(),
        migrations,
        seed,
        elapsed_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        project: instance.project,
        instance: instance.name,
    })
}

/// The error for an instance that was to be made from a backup, which was cut off.
fn unfinished_restore(instance: &Instance) -> Error {
    let message = format!("the instance `{}` was being restored from a backup, which was cut off", instance.name);
    Error::new(ErrorKind::Refused, message)
        .hint(format!("begin anew with `tfdev backup restore … --as {}`", instance.name))
        .hint(format!("or remove it with `tfdev destroy --instance {}`", instance.name))
}
