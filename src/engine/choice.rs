//! Which engine an instance gets.
//!
//! What must hold: an instance stays on the engine that made it; with `auto` a new one gets Docker if that can run it, else
//! PostgreSQL 15 of this machine, else an error with both reasons; a server of someone else only when it is asked for; and the reason can be told.

use std::time::Duration;

use super::docker::DockerEngine;
use super::docker::connect::connect;
use super::external::ExternalEngine;
use super::{Engine, EngineKind, Source, State};
use crate::config::{EngineChoice, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{Instance, InstanceRecord};
use crate::pg::programs::{Programs, SearchPlaces};
use crate::spec::POSTGRES_MAJOR;

/// An engine, and why it is this one.
pub struct Chosen {
    /// The engine for the instance.
    pub engine: Box<dyn Engine>,
    /// Why, in words that read after the engine's name in brackets.
    pub reason: String,
    /// What its server is to be made from, where the choice had to find that out.
    pub source: Option<Source>,
}

/// What can be chosen from.
struct Candidates<'a> {
    settings: &'a Settings,
    instance: &'a Instance,
    events: &'a Events,
}

/// The engine for `instance`.
pub async fn choose(settings: &Settings, instance: &Instance, events: &Events) -> Result<Chosen> {
    let candidates = Candidates { settings, instance, events };
    let chosen = match candidates.bound().await? {
        Some((engine, reason)) => Chosen { engine, reason, source: None },
        None => candidates.first_that_answers().await?,
    };
    chosen.with_faults(settings)
}

/// The engine on which `up` is to make or start `instance`: with `auto`, a Docker without a way to an image does not count.
pub async fn choose_for_up(settings: &Settings, instance: &Instance, events: &Events) -> Result<Chosen> {
    let candidates = Candidates { settings, instance, events };
    if let Some((engine, reason)) = candidates.bound().await? {
        return Chosen { engine, reason, source: None }.with_faults(settings);
    }
    let mut chosen = candidates.first_that_answers().await?;
    // Who names an image means Docker.
    if chosen.engine.kind() == EngineKind::Docker && settings.image.is_none() {
        match chosen.engine.source(None, None).await {
            Err(no_image) if no_image.kind() == ErrorKind::NoEngine => {
                chosen = candidates.instead_of_docker(&no_image)?;
            }
            found => chosen.source = Some(found?),
        }
    }
    if chosen.engine.kind() == EngineKind::Native {
        events.note(format!("Using PostgreSQL {POSTGRES_MAJOR} of this machine: {}", chosen.reason));
    }
    chosen.with_faults(settings)
}

impl Chosen {
    /// The same, with an engine that fails on cue if a test asks for that; only debug builds know such a thing.
    #[cfg(debug_assertions)]
    fn with_faults(self, settings: &Settings) -> Result<Self> {
        let Some(cue) = &settings.fault else { return Ok(self) };
        let engine = super::fault::FaultEngine::new(self.engine, cue.parse()?, &settings.state_dir);
        Ok(Self { engine: Box::new(engine), ..self })
    }

    #[cfg(not(debug_assertions))]
    #[expect(clippy::unnecessary_wraps, reason = "a debug build reads a cue, which may be none")]
    fn with_faults(self, _: &Settings) -> Result<Self> {
        Ok(self)
    }
}

impl Candidates<'_> {
    /// The engine that was asked for, or that has the instance; `None` if nothing is settled.
    async fn bound(&self) -> Result<Option<(Box<dyn Engine>, String)>> {
        let asked = &self.settings.engine;
        let wanted = match asked.value {
            EngineChoice::Auto => None,
            EngineChoice::Docker => Some(EngineKind::Docker),
            EngineChoice::Native => Some(EngineKind::Native),
            EngineChoice::External => Some(EngineKind::External),
        };
        let has = self.has_instance(wanted).await?;
        match (wanted, has) {
            (Some(wanted), Some(has)) if wanted != has => Err(self.elsewhere(wanted, has)),
            (Some(wanted), _) => Ok(Some((self.engine(wanted).await?, format!("asked for by {}", asked.origin)))),
            (None, Some(has)) => Ok(Some((self.engine(has).await?, self.reason_on_record()?))),
            (None, None) => Ok(None),
        }
    }

    /// The engine that has the instance, as the record tells, or the data folder where the record is lost. An instance
    /// that was never finished and of which nothing is there counts as none.
    async fn has_instance(&self, wanted: Option<EngineKind>) -> Result<Option<EngineKind>> {
        let record = InstanceRecord::read(self.instance, self.events)?;
        let kind = match record.as_ref().and_then(|record| record.engine) {
            Some(EngineChoice::Docker) => EngineKind::Docker,
            Some(EngineChoice::Native) => EngineKind::Native,
            Some(EngineChoice::External) => EngineKind::External,
            _ => {
                let Ok(native) = native(self.settings, self.instance, self.events) else { return Ok(None) };
                let there = native.observe().await?.state != State::Absent;
                return Ok(there.then_some(EngineKind::Native));
            }
        };
        let initialised = record.is_some_and(|record| record.initialised);
        if initialised || wanted == Some(kind) {
            return Ok(Some(kind));
        }
        // An engine that cannot be asked has nothing that was ever finished.
        let Ok(engine) = self.engine(kind).await else { return Ok(None) };
        let there = engine.observe().await.is_ok_and(|observed| observed.state != State::Absent);
        Ok(there.then_some(kind))
    }

    /// Why the instance was made on its engine.
    fn reason_on_record(&self) -> Result<String> {
        let record = InstanceRecord::read(self.instance, self.events)?;
        let reason = record.and_then(|record| record.engine_reason);
        Ok(reason.unwrap_or_else(|| "it has this instance".to_owned()))
    }

    async fn engine(&self, kind: EngineKind) -> Result<Box<dyn Engine>> {
        match kind {
            EngineKind::Docker => self.docker().await,
            EngineKind::Native => native(self.settings, self.instance, self.events),
            EngineKind::External => {
                let engine = ExternalEngine::new(self.instance.clone(), self.settings, self.events.clone())?;
                Ok(Box::new(engine))
            }
        }
    }

    async fn docker(&self) -> Result<Box<dyn Engine>> {
        let timeout = Duration::from_secs(self.settings.timeout_seconds.value);
        let connection = connect(&self.settings.docker, timeout, self.events).await?;
        Ok(Box::new(DockerEngine::new(connection, self.instance.clone(), self.settings, self.events.clone())))
    }

    async fn first_that_answers(&self) -> Result<Chosen> {
        match self.docker().await {
            Ok(engine) => Ok(Chosen { engine, reason: "the first that can be used".to_owned(), source: None }),
            Err(unreachable) if unreachable.kind() == ErrorKind::NoEngine => self.instead_of_docker(&unreachable),
            Err(error) => Err(error),
        }
    }

    /// PostgreSQL 15 of this machine, because Docker cannot be used.
    fn instead_of_docker(&self, why: &Error) -> Result<Chosen> {
        let programs = Programs::find(&SearchPlaces::of(self.settings));
        match programs.and_then(|_| native(self.settings, self.instance, self.events)) {
            Ok(engine) => Ok(Chosen { engine, reason: format!("Docker cannot be used: {why}"), source: None }),
            Err(missing) => {
                let message = format!("no engine can be used: for Docker, {why}; for the native one, {missing}");
                let hints = why.hints().iter().chain(missing.hints());
                Err(hints.fold(Error::new(ErrorKind::NoEngine, message), |error, hint| error.hint(hint.clone())))
            }
        }
    }

    fn elsewhere(&self, wanted: EngineKind, has: EngineKind) -> Error {
        let origin = &self.settings.engine.origin;
        Error::new(
            ErrorKind::Refused,
            format!(
                "the instance `{}` of the project `{}` is on the engine {has}, and {origin} asks for {wanted}",
                self.instance.name, self.instance.project
            ),
        )
        .hint(format!("go on with `--engine {has}`"))
        .hint(format!(
            "or move its data: `tfdev snapshot export moved.tfsnap --engine {has}`, `tfdev destroy --engine {has}`, \
             `tfdev up --engine {wanted}`, `tfdev snapshot import moved.tfsnap`, `tfdev snapshot restore moved`"
        ))
        .hint("or keep both: `--instance NAME` makes another one")
    }
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "other platforms have no native engine")]
fn native(settings: &Settings, instance: &Instance, events: &Events) -> Result<Box<dyn Engine>> {
    Ok(Box::new(super::native::NativeEngine::new(instance.clone(), settings, events.clone())))
}

#[cfg(not(unix))]
fn native(_: &Settings, _: &Instance, _: &Events) -> Result<Box<dyn Engine>> {
    Err(Error::new(ErrorKind::NoEngine, "the native engine runs on Linux and macOS only").hint("start Docker"))
}
