//! `down` and `destroy`: stopping instances, and removing them with their data.
//!
//! What must hold: `down` loses nothing; `destroy` removes only what carries the labels of the very instance, and the
//! record of an instance goes after its data, so that a kill in between leaves something that can be destroyed again.

use std::time::Duration;

use serde::Serialize;

use crate::config::{EngineChoice, Setting, Settings};
use crate::engine;
use crate::error::Result;
use crate::event::Events;
use crate::identity;
use crate::instance::{Instance, InstanceLock, InstanceRecord};

/// What `down` did.
#[derive(Debug, Serialize)]
pub struct DownReport {
    /// The project's key.
    pub project: String,
    /// The instances that were looked at.
    pub instances: Vec<Stopped>,
}

/// What `down` did to one instance.
#[derive(Debug, Serialize)]
pub struct Stopped {
    /// The instance.
    pub instance: String,
    /// Whether it was running before.
    pub changed: bool,
    /// Whether the server still runs, because it is not tfdev's to stop.
    pub running: bool,
    /// Whether its data is still there; data in memory goes with the server.
    pub data_kept: bool,
}

/// What `destroy` did.
#[derive(Debug, Serialize)]
pub struct DestroyReport {
    /// The project's key.
    pub project: String,
    /// The instances that were looked at.
    pub instances: Vec<Destroyed>,
}

/// What `destroy` did to one instance.
#[derive(Debug, Serialize)]
pub struct Destroyed {
    /// The instance.
    pub instance: String,
    /// What was removed, in words.
    pub removed: Vec<String>,
}

/// The instances that a command works on: the settled one, or all that the project has a record of, the settled one
/// among them.
pub fn instances(settings: &Settings, all: bool) -> Result<Vec<Instance>> {
    let settled = Instance::of(settings);
    if !all {
        return Ok(vec![settled]);
    }
    let names = Instance::names_on_disk(settings)?;
    let mut instances: Vec<_> = names.iter().map(|name| Instance::named(settings, name)).collect();
    if !instances.contains(&settled) {
        instances.insert(0, settled);
    }
    Ok(instances)
}

/// The settings for one of several instances: each that is on record is on the engine that made it, whichever is asked for.
fn settings_for(settings: &Settings, instance: &Instance, all: bool, events: &Events) -> Result<Settings> {
    let mut own = settings.clone();
    if all && InstanceRecord::read(instance, events)?.is_some_and(|record| record.engine.is_some()) {
        own.engine = Setting::default_value(EngineChoice::Auto);
    }
    Ok(own)
}

/// Stops the settled instance, or all of the project's, and keeps their data.
pub async fn down(settings: &Settings, all: bool, events: &Events) -> Result<DownReport> {
    let mut stopped = Vec::new();
    let instances = instances(settings, all)?;
    for instance in &instances {
        let limit = Duration::from_secs(settings.timeout_seconds.value);
        let _lock = InstanceLock::acquire(instance, "down", limit, events).await?;
        let engine = engine::choose(&settings_for(settings, instance, all, events)?, instance, events).await?.engine;
        identity::check(instance, engine.as_ref(), events).await?;
        events.started(format!("Stopping {}", instance.container_name()));
        let changed = engine.stop().await?;
        let observed = engine.observe().await?;
        if !all && observed.state == engine::State::Absent {
            return Err(instance.not_found());
        }
        stopped.push(Stopped {
            instance: instance.name.clone(),
            changed,
            running: observed.state == engine::State::Starting,
            data_kept: observed.parts.has_data(),
        });
    }
    Ok(DownReport { project: instances[0].project.clone(), instances: stopped })
}

/// Removes the settled instance, or all of the project's, with their data.
pub async fn destroy(settings: &Settings, all: bool, events: &Events) -> Result<DestroyReport> {
    let mut destroyed = Vec::new();
    let instances = instances(settings, all)?;
    for instance in &instances {
        let settings = settings_for(settings, instance, all, events)?;
        destroyed.push(destroy_instance(&settings, instance, events).await?);
    }
    Ok(DestroyReport { project: instances[0].project.clone(), instances: destroyed })
}

/// Removes one instance with its data, and then its record.
pub async fn destroy_instance(settings: &Settings, instance: &Instance, events: &Events) -> Result<Destroyed> {
    let limit = Duration::from_secs(settings.timeout_seconds.value);
    let _lock = InstanceLock::acquire(instance, "destroy", limit, events).await?;
    let engine = engine::choose(settings, instance, events).await?.engine;
    identity::check(instance, engine.as_ref(), events).await?;
    events.started(format!("Removing {}", instance.container_name()));
    let removed = engine.destroy().await?;
    instance.remove_state_dir()?;
    Ok(Destroyed { instance: instance.name.clone(), removed })
}
