//! Restoring: a new instance from what the store has, beside the one that it is of.
//!
//! A physical restore brings the base and every file of the log that is needed into a new data folder before any server
//! runs on it: so the server needs no way to the store, its `restore_command` finds nothing and says so, and what is
//! missing or damaged is known before recovery begins. Recovery runs with what the source's control file asks for, until
//! the target, and promotes (`replay`); then the server gets its ordinary settings, this machine's passwords and an
//! identity of its own.
//!
//! What must hold: nothing that is there is written over; what a kill left of a restore goes with the next one into the
//! same name, and nothing else does; and an instance is handed out only when it was promoted and takes writes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;

use super::catalogue::{Catalogue, LogFile, cluster_folder};
use super::codec;
use super::folder::Folder;
use super::manifest::{Backup, Kind, Manifest};
use super::plan::{Plan, Stop, Target};
use super::position::Lsn;
use super::replay::{New, is_ended_early};
use super::store::Store;
use crate::channel_reader::ChannelReader;
use crate::config::{EngineChoice, PortChoice, Setting, Settings};
use crate::engine::{self, DataSource, Engine, EngineKind, StartRequest, State};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::fault;
use crate::instance::{Instance, InstanceLock, InstanceRecord, Secrets};
use crate::profile::{self, DataPlacement};
use crate::server::{Running, Server};
use crate::snapshot::{ImportOptions, Snapshots};
use crate::spec::POSTGRES_MAJOR;
use crate::up;

/// How many pieces of the base wait for being unpacked.
const WAITING_PIECES: usize = 32;

/// How many files of the log are read ahead, of 16 MB each.
const WAITING_FILES: usize = 2;

/// What to restore, and as what.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The state.
    pub target: Target,
    /// The name of the new instance.
    pub instance: &'a str,
    /// Whether it is there to prove the backup, and goes afterwards.
    pub throw_away: bool,
    /// Whether it is to take the place of the settled instance ([`super::replace`]): it has the same passwords then.
    pub replace: bool,
}

/// What was restored.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The new instance.
    pub instance: String,
    /// The backup that it began with.
    pub backup: String,
    /// How that was made.
    pub kind: Kind,
    /// Where recovery ended in the log.
    pub lsn: Option<Lsn>,
    /// When the last transaction was committed that is in it.
    pub last_commit: Option<Timestamp>,
    /// The connection URL.
    pub url: String,
    /// The port.
    pub port: u16,
    /// How long it took until all of the data was there, in milliseconds; the rest is the server's recovery.
    pub brought_ms: u64,
    /// How long it took until the server answered, in milliseconds.
    pub elapsed_ms: u64,
    /// The name that the instance has now whose place it took; `None` if it took none's.
    pub replaced: Option<String>,
}

/// The folder in the store of the instance as it is on this machine; `None` if it is not there.
pub(super) fn current_folder(instance: &Instance, events: &Events) -> Result<Option<String>> {
    let record = InstanceRecord::read(instance, events)?.filter(|record| record.initialised);
    Ok(record.and_then(|record| {
        let id = record.id()?;
        Some(cluster_folder(&instance.project, &instance.name, record.system_identifier(), id))
    }))
}

/// The folders of all clusters that the store has of an instance, the newest last, the current one behind all.
pub(super) async fn clusters(store: &Store, instance: &Instance, current: Option<&str>) -> Result<Vec<String>> {
    let parent = format!("{}/{}", instance.project, instance.name);
    let mut found = Vec::new();
    for name in store.folders(&parent).await? {
        let folder = format!("{parent}/{name}");
        // Names of backups begin with their time.
        let newest = store.folders(&format!("{folder}/full")).await?.pop().unwrap_or_default();
        found.push((current == Some(folder.as_str()), newest, folder));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, _, folder)| folder).collect())
}

/// Finds the cluster that has the target.
async fn find(store: &Store, instance: &Instance, target: &Target, events: &Events) -> Result<Catalogue> {
    let current = current_folder(instance, events)?;
    let mut folders = clusters(store, instance, current.as_deref()).await?;
    let mut last = None;
    while let Some(folder) = folders.pop() {
        let catalogue = Catalogue::load(store, &folder).await?;
        let fits = match target {
            Target::Backup(id) => catalogue.backup(id).is_ok(),
            Target::Name(name) => catalogue.marks.contains_key(name),
            _ => catalogue.of_kind(Kind::Physical).next().is_some(),
        };
        if fits {
            return Ok(catalogue);
        }
        last = last.or(Some(catalogue));
    }
    last.ok_or_else(|| {
        let message = format!(
            "there are no backups of the instance `{}` of the project `{}` in {}",
            instance.name,
            instance.project,
            store.place()
        );
        Error::new(ErrorKind::NotFound, message).hint(
            "`project` in tfdev.toml and `--instance` say whose backups are looked for; `tfdev backup now` makes one",
        )
    })
}

/// Makes a new instance of what the store has of the settled one.
///
/// # Errors
/// [`ErrorKind::Conflict`] if there is such an instance; [`ErrorKind::Refused`] if the target is not covered;
/// [`ErrorKind::BadInput`] if something in the store is damaged.
pub async fn restore(settings: &Settings, wanted: &Wanted<'_>, events: &Events) -> Result<Restored> {
    let begin = Instant::now();
    let store = Store::of(settings)?;
    let source = Instance::of(settings);
    if source.name == wanted.instance {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("a restore never goes over the instance `{}`", source.name),
        )
        .hint("name a new one: `--as restored`"));
    }
    if !crate::config::is_instance(wanted.instance) {
        return Err(Error::bad_input(format!("`{}` cannot be the name of an instance", wanted.instance))
            .hint("use 1 to 30 lower-case letters, digits or `_`, the first one a letter"));
    }
    let catalogue = find(&store, &source, &wanted.target, events).await?;
    let logical = match &wanted.target {
        Target::Backup(id) => Some(catalogue.backup(id)?).filter(|backup| backup.manifest.kind == Kind::Logical),
        _ => None,
    };
    let work = Work { store: &store, catalogue: &catalogue, wanted, events, begin };
    // Boxed: each is a long way, and callers are to stay small.
    if let Some(backup) = logical {
        return Box::pin(work.logical(settings, backup)).await;
    }
    let plan = Plan::of(&catalogue, &wanted.target)?;
    Box::pin(work.physical(settings, &plan)).await
}

/// The settings of the new instance.
fn settings_for(settings: &Settings, name: &str, manifest: &Manifest) -> Settings {
    let mut own = settings.clone();
    own.instance = Setting::flag("as", name.to_owned());
    own.profile.get_or_insert_with(|| Setting::default_value(manifest.source.profile.clone()));
    if own.engine.value == EngineChoice::Auto && manifest.source.engine != EngineKind::External {
        own.engine.value = manifest.source.engine.into();
    }
    if own.engine.value == EngineChoice::External {
        // A logical backup of someone else's server becomes a server of our own.
        own.engine = Setting::default_value(EngineChoice::Auto);
        own.external_url = None;
    }
    if own.image.is_none() && !manifest.source.image.is_empty() && own.engine.value == EngineChoice::Docker {
        own.image = Some(Setting::default_value(manifest.source.image.clone()));
    }
    if let PortChoice::Fixed(_) = own.database.port.value {
        own.database.port = Setting::default_value(PortChoice::Auto);
    }
    own
}

/// Removes what a restore into this name has left that was cut off. Fails if there is anything else.
async fn make_way(instance: &Instance, engine: &dyn Engine, events: &Events) -> Result<()> {
    let record = InstanceRecord::read(instance, events)?;
    let observed = engine.observe().await?;
    match &record {
        Some(record) if record.restoring || record.throw_away => {
            crate::identity::check_record(instance, Some(record), &observed)?;
            engine.destroy().await?;
            instance.remove_state_dir()
        }
        None if observed.state == State::Absent => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Conflict,
            format!("there is an instance `{}` of the project `{}` already", instance.name, instance.project),
        )
        .hint("a restore makes a new one: name another with `--as`")
        .hint(format!("or remove that one: `tfdev destroy --instance {}`", instance.name))),
    }
}

/// A restore.
struct Work<'a> {
    store: &'a Store,
    catalogue: &'a Catalogue,
    wanted: &'a Wanted<'a>,
    events: &'a Events,
    begin: Instant,
}

impl Work<'_> {
    async fn physical(&self, settings: &Settings, plan: &Plan) -> Result<Restored> {
        let manifest = &plan.base.manifest;
        check_version(manifest)?;
        manifest.check_open(self.store.keys())?;
        let own = settings_for(settings, self.wanted.instance, manifest);
        let instance = Instance::of(&own);
        let limit = Duration::from_secs(own.timeout_seconds.value);
        let _lock = InstanceLock::acquire(&instance, "backup restore", limit, self.events).await?;
        let mut new = self.prepare(settings, own, instance, manifest).await?;
        let restored = self.recover(&mut new, plan).await;
        if restored.is_err() {
            // Nothing of it was there before.
            let removed = new.engine.destroy().await;
            if removed.is_ok() {
                new.instance.remove_state_dir()?;
            }
        }
        restored
    }

    /// Settles what the new instance is to be, and puts it on record.
    async fn prepare(
        &self,
        settings: &Settings,
        own: Settings,
        instance: Instance,
        manifest: &Manifest,
    ) -> Result<New> {
        // What the engine tells of a server that stops and starts is the restore's own affair.
        let chosen = engine::choose_for_up(&own, &instance, &Events::none()).await?;
        let engine = chosen.engine;
        make_way(&instance, engine.as_ref(), self.events).await?;
        if engine.kind() != manifest.source.engine {
            let (made, asked) = (manifest.source.engine, engine.kind());
            let message = format!("the backup `{}` is of the engine {made}, and this one is {asked}", manifest.id);
            return Err(Error::new(ErrorKind::Refused, message)
                .hint(format!(
                    "`--engine {made}` restores it; another build of PostgreSQL may sort text in another way"
                ))
                .hint("a logical backup can be restored on every engine: `tfdev backup list`"));
        }
        let profile = profile::resolve(own.profile_name(), &own.profiles)?;
        if profile.data == DataPlacement::Memory {
            return Err(Error::new(ErrorKind::Refused, "a backup cannot be restored into memory")
                .hint("name a profile with its data on the disk, for example `--profile dev`"));
        }
        let source = match chosen.source {
            Some(source) => source,
            None => engine.source(own.image.as_ref(), None).await?,
        };
        let (spec, certificate) = up::spec(&own, &profile, &instance, engine.as_ref(), &source, true)?;
        let id = uuid::Uuid::new_v4();
        let record = InstanceRecord {
            uuid: Some(id.to_string()),
            engine: Some(engine.kind().into()),
            engine_reason: Some(format!("restored from the backup `{}`", manifest.id)),
            profile: Some(profile.name.clone()),
            created_at: Some(super::now().to_string()),
            tfdev_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            project_dir: Some(instance.project_dir.clone()),
            image: Some(source.name.clone()).filter(|_| engine.kind() == EngineKind::Docker),
            archive_off: true,
            restoring: true,
            throw_away: self.wanted.throw_away,
            ..InstanceRecord::default()
        };
        // Before there is anything that carries the identity.
        record.write(&instance)?;
        self.take_passwords(settings, &instance)?;
        fault::point("backup.restore.intent").await;
        let request = StartRequest { spec, id, last_port: None, certificate };
        Ok(New { settings: own, instance, engine, record, request, source_id: source.id })
    }

    /// Gives the new instance the passwords of the one whose place it is to take.
    fn take_passwords(&self, settings: &Settings, instance: &Instance) -> Result<()> {
        if !self.wanted.replace {
            return Ok(());
        }
        Secrets::of(instance).take_over(&Secrets::of(&Instance::of(settings)), self.events)
    }

    async fn recover(&self, new: &mut New, plan: &Plan) -> Result<Restored> {
        let manifest = &plan.base.manifest;
        self.events.started(format!("Restoring `{}`", manifest.id));
        let physical = manifest.physical.as_ref().expect("the plan is of a physical backup");
        // PostgreSQL knows a timeline by its history file, which a server that was restored has not archived.
        let timeline =
            || if plan.timeline == physical.timeline { "current".to_owned() } else { plan.timeline.to_string() };
        let stop = new.recovery(&plan.stop, timeline(), &physical.settings);
        self.fill(new, &stop, plan).await?;
        fault::point("backup.restore.filled").await;
        let brought = self.begin.elapsed();
        self.events.finished(format!("Brought `{}` and {} files of the log", manifest.id, plan.log.len()), brought);
        self.events.started("Recovering");
        let recovering = Instant::now();
        let server = match new.replay(&stop).await {
            // The time that is wanted is behind what is missing.
            Err(error) if is_ended_early(&error) && plan.gap.is_some() => {
                return Err(plan.gap.map_or(error, |gap| gap.refused()));
            }
            Err(error) if is_ended_early(&error) && matches!(plan.stop, Stop::Time(_) | Stop::Lsn(_)) => {
                // All that there is was committed before the target: then the end of the log is the target's state.
                let end = new.recovery(&Stop::End, timeline(), &physical.settings);
                new.replay(&end).await?
            }
            replayed => replayed?,
        };
        let end = new.take_over(&server).await?;
        fault::point("backup.restore.promoted").await;
        new.engine.stop().await?;
        let server =
            up::adopt(&new.settings, &new.instance, new.engine.as_ref(), &new.request, &mut new.record, self.events)
                .await?;
        new.record.initialised = true;
        new.record.restoring = false;
        new.record.image_id = Some(new.source_id.clone());
        new.record.write(&new.instance)?;
        self.events.finished("Recovered and promoted", recovering.elapsed());
        Ok(self.report(manifest, &server, brought, end))
    }

    fn report(
        &self,
        manifest: &Manifest,
        server: &Server,
        brought: Duration,
        (lsn, last_commit): (Option<Lsn>, Option<Timestamp>),
    ) -> Restored {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Restored {
            instance: self.wanted.instance.to_owned(),
            backup: manifest.id.clone(),
            kind: manifest.kind,
            lsn,
            last_commit,
            url: server.url(),
            port: server.endpoint.port,
            brought_ms: milliseconds(brought),
            elapsed_ms: milliseconds(self.begin.elapsed()),
            replaced: None,
        }
    }

    /// Makes the data folder out of the base and the log.
    async fn fill(&self, new: &New, request: &StartRequest, plan: &Plan) -> Result<()> {
        let payload = &plan.base.manifest.payload;
        let keys = self.store.keys().clone();
        let (base_sender, base_receiver) = mpsc::channel(WAITING_PIECES);
        let (log_sender, log_receiver) = mpsc::channel(WAITING_FILES);
        let contents =
            Folder { base: base_receiver, payload: payload.clone(), keys, log: log_receiver, files: plan.log.len() };
        let source: DataSource = Box::new(move |marker, send| contents.write(marker, send));
        let fetching = async {
            codec::fetch(self.store, &format!("{}/{}", self.catalogue.folder, payload.key), base_sender).await?;
            self.fetch_log(&plan.log, log_sender).await
        };
        let (fetched, made) = tokio::join!(fetching, new.engine.restore(request, source));
        // What the store says comes first: it is why the folder is not whole.
        fetched.and(made)
    }

    async fn fetch_log(&self, files: &[(String, LogFile)], sender: mpsc::Sender<(String, Bytes)>) -> Result<()> {
        for (name, file) in files {
            let key = format!("{}/{}", self.catalogue.folder, file.key);
            let contents = codec::read_checked(self.store, &key, &file.sha256).await?;
            if sender.send((name.clone(), contents)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Makes a new instance, and its database of a dump.
    async fn logical(&self, settings: &Settings, backup: &Backup) -> Result<Restored> {
        let manifest = &backup.manifest;
        check_version(manifest)?;
        manifest.check_open(self.store.keys())?;
        let damaged = || Error::bad_input(format!("the manifest of `{}` does not describe its dump", manifest.id));
        let described = manifest.logical.clone().ok_or_else(damaged)?;
        let mut own = settings_for(settings, self.wanted.instance, manifest);
        own.dataset = Setting::default_value("none".to_owned());
        let instance = Instance::of(&own);
        {
            let limit = Duration::from_secs(own.timeout_seconds.value);
            let _lock = InstanceLock::acquire(&instance, "backup restore", limit, self.events).await?;
            let engine = engine::choose_for_up(&own, &instance, self.events).await?.engine;
            make_way(&instance, engine.as_ref(), self.events).await?;
        }
        // Until all of it is there, whoever begins anew may remove it.
        InstanceRecord { archive_off: true, throw_away: true, ..InstanceRecord::default() }.write(&instance)?;
        self.take_passwords(settings, &instance)?;
        let path = instance.state_dir.join(format!("{}.{}", manifest.id, crate::archive::EXTENSION));
        let fetched = self.fetch_dump(manifest, described, &path).await;
        let restored = match fetched {
            Ok(()) => self.import(&own, manifest, &path).await,
            Err(error) => Err(error),
        };
        if restored.is_err() {
            // Nothing of it was there before.
            let _ = crate::down::destroy(&own, false, &Events::none()).await;
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).or_failed(|| format!("cannot remove `{}`", path.display()))?;
            }
            _ => {}
        }
        restored
    }

    /// Writes the dump as a file that `snapshot import` reads, which checks all of it.
    async fn fetch_dump(
        &self,
        manifest: &Manifest,
        described: crate::archive::Manifest,
        path: &std::path::Path,
    ) -> Result<()> {
        let (sender, receiver) = mpsc::channel(WAITING_PIECES);
        let target = path.to_owned();
        let key = format!("{}/{}", self.catalogue.folder, manifest.payload.key);
        let (keys, name) = (self.store.keys().clone(), key.clone());
        let writing = tokio::task::spawn_blocking(move || {
            let mut packed = keys.open(ChannelReader::new(receiver), &name)?;
            crate::archive::assemble(&target, &described, &mut packed)
        });
        let fetched = codec::fetch(self.store, &key, sender).await;
        let written = writing.await.or_failed(|| "writing the dump was cut off").and_then(|written| written);
        fetched.and(written)
    }

    async fn import(&self, own: &Settings, manifest: &Manifest, path: &std::path::Path) -> Result<Restored> {
        let brought = self.begin.elapsed();
        up::up(own, self.events).await?;
        let running = Running::find(own, self.events).await?;
        let snapshots = Snapshots::of(&running, own, self.events)?;
        let options = ImportOptions::of(&running, own, path, Some(&manifest.id))?;
        let imported = snapshots.import(running.engine.as_ref(), &options).await?;
        for left_out in imported.left_out {
            self.events.warning(left_out);
        }
        snapshots.restore(&manifest.id).await?;
        let mut record = running.record.clone();
        record.throw_away = self.wanted.throw_away;
        record.seed = None;
        record.write(&running.instance)?;
        Ok(self.report(manifest, &running.server, brought, (None, Some(manifest.created))))
    }
}

fn check_version(manifest: &Manifest) -> Result<()> {
    if manifest.postgres.split('.').next() == Some(&POSTGRES_MAJOR.to_string()) {
        return Ok(());
    }
    let message =
        format!("the backup `{}` is of PostgreSQL {}, and tfdev runs {POSTGRES_MAJOR}", manifest.id, manifest.postgres);
    Err(Error::new(ErrorKind::Refused, message))
}
