//! What instances have left whose checkout is gone.
//!
//! What must hold: an instance is cleaned away only if this user's own record names it, if its key was made from the path
//! of its checkout, so that no other folder can mean it, and if that folder is not there. What has tfdev's labels and no
//! record here may be another user's or another machine's: it is told, and left alone. Removing goes the way of
//! `destroy`, which proves by label and marker that the data is this instance's.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::machine::is_gone;
use super::{Area, Finding, Level};
use crate::config::{EngineChoice, Setting, Settings, is_instance, key_of_folder};
use crate::down;
use crate::engine::docker::DataVolume;
use crate::engine::docker::connect::DockerConnection;
use crate::engine::docker::machine::Thing;
use crate::engine::{self, EngineKind};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{Instance, InstanceRecord};

/// How long it may take to look at one instance, or to list what Docker has.
const LIMIT: Duration = Duration::from_millis(500);

/// How many names a finding tells.
const TOLD: usize = 5;

/// An instance that is on record here.
pub(super) struct Project {
    pub(super) instance: Instance,
    pub(super) record: InstanceRecord,
}

/// What an instance has left whose checkout is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOver {
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
    /// The checkout that is gone.
    pub project_dir: PathBuf,
    /// What runs it, or ran it.
    pub engine: EngineKind,
    /// What there is of it, in words.
    pub parts: Vec<String>,
}

/// What was removed of an instance.
#[derive(Debug, Serialize)]
pub struct Removed {
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
    /// What was removed, in words.
    pub removed: Vec<String>,
}

/// All instances that are on record in the state folder.
pub(super) fn projects(settings: &Settings) -> Vec<Project> {
    let folders = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    };
    let root = settings.state_dir.join("projects");
    let mut found = Vec::new();
    for project in folders(root.clone()) {
        for name in folders(root.join(&project)).into_iter().filter(|name| is_instance(name)) {
            let state_dir = root.join(&project).join(&name);
            // Read by hand: a record that is broken is only moved aside by commands that need it.
            let text = std::fs::read(state_dir.join("instance.json")).unwrap_or_default();
            let Ok(record) = serde_json::from_slice::<InstanceRecord>(&text) else { continue };
            let Some(project_dir) = record.project_dir.clone() else { continue };
            found.push(Project {
                instance: Instance { project: project.clone(), name, project_dir, state_dir },
                record,
            });
        }
    }
    found
}

/// The settings with which another instance is worked on: its record names the engine.
fn for_others(settings: &Settings) -> Settings {
    Settings { engine: Setting::default_value(EngineChoice::Auto), ..settings.clone() }
}

pub(super) async fn look(
    settings: &Settings,
    projects: &[Project],
    docker: Option<&DockerConnection>,
    events: &Events,
) -> (Vec<LeftOver>, Vec<Finding>) {
    let mut left = Vec::new();
    let mut findings = Vec::new();
    for project in projects.iter().filter(|project| is_gone(&project.instance.project_dir)) {
        let Project { instance, record } = project;
        let folder = instance.project_dir.display();
        let whose = format!("the instance `{}` of `{}`", instance.name, instance.project);
        let why = format!("its checkout `{folder}` is gone");
        let engine = match record.engine {
            Some(EngineChoice::Docker) if docker.is_none() => {
                let what = format!("{whose} is in Docker, which cannot be asked");
                findings.push(Finding::new(Area::LeftOver, Level::Note, what, why));
                continue;
            }
            Some(EngineChoice::Docker) => EngineKind::Docker,
            Some(EngineChoice::Native) => EngineKind::Native,
            _ => {
                let what =
                    format!("{whose} is on a server that someone else runs, and tfdev does not log in there by itself");
                let mend = destroy_by_hand(instance);
                findings.push(Finding::new(Area::LeftOver, Level::Note, what, why).mend(mend));
                continue;
            }
        };
        if key_of_folder(&instance.project_dir) != instance.project {
            let what = format!("{whose} was last started from a folder that is gone");
            let why =
                format!("another folder may name the same project in its tfdev.toml, so it is left alone ({folder})");
            findings.push(Finding::new(Area::LeftOver, Level::Note, what, why).mend(destroy_by_hand(instance)));
            continue;
        }
        let parts = parts(settings, instance, events).await;
        let what = format!("{whose} is left over: {}", parts.join(", "));
        findings.push(
            Finding::new(Area::LeftOver, Level::Warning, what, format!("{why}, so no command finds it any more"))
                .mend("remove what such instances have left, after a list and a question: `tfdev doctor --clean`"),
        );
        left.push(LeftOver {
            project: instance.project.clone(),
            instance: instance.name.clone(),
            project_dir: instance.project_dir.clone(),
            engine,
            parts,
        });
    }
    findings.extend(unknown(projects, docker).await);
    if findings.is_empty() {
        findings.push(Finding::ok(Area::LeftOver, "no instance is left over from a checkout that is gone"));
    }
    (left, findings)
}

fn destroy_by_hand(instance: &Instance) -> String {
    format!(
        "if it is not needed, from a folder whose tfdev.toml has `project = \"{}\"`: `tfdev destroy --instance {}`",
        instance.project, instance.name
    )
}

fn no_answer() -> Error {
    Error::new(ErrorKind::TimedOut, "there was no answer in time")
}

/// What there is of an instance, in words.
async fn parts(settings: &Settings, instance: &Instance, events: &Events) -> Vec<String> {
    let settings = for_others(settings);
    let look = async {
        let chosen = engine::choose(&settings, instance, events).await?;
        chosen.engine.observe().await
    };
    let mut words = Vec::new();
    match tokio::time::timeout(LIMIT, look).await.unwrap_or_else(|_| Err(no_answer())) {
        Ok(observed) => {
            words.extend(observed.parts.container.map(|name| format!("container {name} ({})", observed.state)));
            words.extend(observed.parts.volume.map(|name| format!("volume {name}")));
            words.extend(
                observed.parts.data_dir.map(|folder| format!("data folder {} ({})", folder.display(), observed.state)),
            );
        }
        Err(error) => words.push(format!("it cannot be looked at: {error}")),
    }
    words.push(format!("record {}", instance.state_dir.display()));
    words
}

/// Containers and volumes with tfdev's labels, of which this user has no record.
async fn unknown(projects: &[Project], docker: Option<&DockerConnection>) -> Option<Finding> {
    let things = tokio::time::timeout(LIMIT, docker?.things()).await.ok()?.ok()?;
    // A volume of an instance that took another's place has the labels of what it was made for.
    let is_known = |thing: &Thing, known: &Instance| {
        (&known.project, &known.name) == (&thing.project, &thing.instance)
            || thing.is_volume && known.project == thing.project && DataVolume::of(known).name == thing.name
    };
    let names: Vec<_> = things
        .iter()
        .filter(|thing| !projects.iter().any(|known| is_known(thing, &known.instance)))
        .map(|thing| thing.name.as_str())
        .collect();
    if names.is_empty() {
        return None;
    }
    let more = if names.len() > TOLD { format!(" and {} more", names.len() - TOLD) } else { String::new() };
    let what = format!(
        "Docker has {} containers and volumes of tfdev that are not on record here: {}{more}",
        names.len(),
        names[..names.len().min(TOLD)].join(", ")
    );
    let why = "they may be another user's or another machine's, so they are left alone";
    Some(
        Finding::new(Area::LeftOver, Level::Note, what, why)
            .mend(
                "see whose they are: `docker ps -a --filter label=dev.tfdev.project --format '{{.Names}} {{.Labels}}'`",
            )
            .mend("if they are not needed: `docker rm -f NAME`, and `docker volume rm NAME-data`"),
    )
}

/// Removes what [`super::doctor`] listed, the way of `destroy`. What is no longer left over is passed over.
pub async fn clean(settings: &Settings, left: &[LeftOver], events: &Events) -> Result<Vec<Removed>> {
    let settings = for_others(settings);
    let projects = projects(&settings);
    let mut all = Vec::new();
    for one in left {
        let found = projects.iter().find(|project| {
            let instance = &project.instance;
            (&instance.project, &instance.name, &instance.project_dir)
                == (&one.project, &one.instance, &one.project_dir)
        });
        let Some(Project { instance, .. }) = found.filter(|found| is_gone(&found.instance.project_dir)) else {
            continue;
        };
        if key_of_folder(&instance.project_dir) != instance.project {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the project `{}` may be in use from another folder", one.project),
            ));
        }
        let mut removed = down::destroy_instance(&settings, instance, events).await?.removed;
        removed.push(format!("record {}", instance.state_dir.display()));
        all.push(Removed { project: one.project.clone(), instance: one.instance.clone(), removed });
    }
    Ok(all)
}
