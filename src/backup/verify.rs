//! Proving a backup: it is restored into a server of its own, compared with what was recorded when it was made, and the
//! server goes again. How long that took until the server answered is the RTO, measured.
//!
//! What must hold: a backup counts as proven only by this; the throw-away instance is known by its record and by its name,
//! so that the next run removes what a kill has left, and nothing else; and the outcome is in the store, for all to see.

use std::time::Duration;

use serde::Serialize;

use super::catalogue::Catalogue;
use super::fingerprint::{self, Fingerprint};
use super::keys::is_locked;
use super::manifest::{Backup, Kind, Verification};
use super::plan::Target;
use super::restore::{self, Restored, Wanted};
use super::store::Store;
use crate::config::{EngineChoice, Setting, Settings};
use crate::engine::EngineKind;
use crate::engine::program::Input;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::fault;
use crate::instance::{FileLock, Instance};
use crate::server::Running;
use crate::spec::SUPERUSER;

/// What the name of a throw-away instance ends in.
const SUFFIX: &str = "_verify";

/// The longest part of the instance's own name that is in that of its throw-away one.
const LONGEST: usize = 30 - SUFFIX.len();

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The backup.
    pub id: String,
    /// What is known of it now.
    #[serde(flatten)]
    pub verification: Verification,
}

/// The name of the throw-away instance of an instance.
fn throw_away_name(instance: &str) -> String {
    format!("{}{SUFFIX}", &instance[..instance.len().min(LONGEST)])
}

/// Proves the backup `id`, or the newest one of each kind, of the settled instance.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none. That one is not as it should be is no error here.
pub async fn verify(settings: &Settings, id: Option<&str>, events: &Events) -> Result<Vec<Verified>> {
    let store = Store::of(settings)?;
    let instance = Instance::of(settings);
    let current = restore::current_folder(&instance, events)?;
    let mut folders = restore::clusters(&store, &instance, current.as_deref()).await?;
    let mut verified = Vec::new();
    while let Some(folder) = folders.pop() {
        let catalogue = Catalogue::load(&store, &folder).await?;
        let wanted: Vec<&Backup> = match id {
            Some(id) => catalogue.backup(id).into_iter().collect(),
            None => {
                super::retention::KINDS.into_iter().filter_map(|kind| catalogue.of_kind(kind).next_back()).collect()
            }
        };
        for backup in &wanted {
            let verification = prove(settings, &store, &catalogue, backup, events).await?;
            verified.push(Verified { id: backup.manifest.id.clone(), verification });
        }
        if !wanted.is_empty() {
            return Ok(verified);
        }
    }
    let what = id.map_or_else(|| "there is no backup".to_owned(), |id| format!("there is no backup `{id}`"));
    Err(Error::new(ErrorKind::NotFound, what).hint("`tfdev backup list` shows them; `tfdev backup now` makes one"))
}

/// Restores one backup into a throw-away instance and compares; the outcome goes into the store.
pub(super) async fn prove(
    settings: &Settings,
    store: &Store,
    catalogue: &Catalogue,
    backup: &Backup,
    events: &Events,
) -> Result<Verification> {
    let manifest = &backup.manifest;
    // That its key is missing says nothing of the backup.
    manifest.check_open(store.keys())?;
    let name = throw_away_name(&settings.instance.value);
    let lock = Instance::of(settings).lock_file().with_file_name(format!("{name}.verify.lock"));
    let limit = Duration::from_secs(settings.timeout_seconds.value);
    let _lock = FileLock::acquire(&lock, "the throw-away server", "backup verify", limit, events).await?;
    let wanted =
        Wanted { target: Target::Backup(manifest.id.clone()), instance: &name, throw_away: true, replace: false };
    let outcome = restore::restore(settings, &wanted, events).await;
    let verification = match &outcome {
        Ok(restored) => {
            fault::point("backup.verify.restored").await;
            let own = settings_of(settings, restored, backup);
            let compared = compare(&own, backup, restored, events).await;
            crate::down::destroy(&own, false, &Events::none()).await?;
            compared?
        }
        // Whatever is damaged is a finding; that the store or Docker does not answer, or a key is missing, is none.
        Err(error) if is_locked(error) => return Err(outcome.expect_err("it was just looked at")),
        Err(error) if matches!(error.kind(), ErrorKind::BadInput | ErrorKind::NotFound | ErrorKind::Refused) => {
            failed(super::words(error))
        }
        Err(error) if error.to_string().contains("ended") => failed(super::words(error)),
        Err(_) => return Err(outcome.expect_err("it was just looked at")),
    };
    let closed = verification.closed(store.keys())?;
    let text = serde_json::to_vec_pretty(&closed).or_failed(|| "cannot write what came of the restore")?;
    store.put(&format!("{}/full/{}/verified.json", catalogue.folder, manifest.id), text.into()).await?;
    Ok(verification)
}

fn failed(problem: String) -> Verification {
    let problems = vec![problem];
    Verification { at: super::now(), passed: false, restore_ms: 0, tables: 0, amcheck: None, problems, sealed: None }
}

fn settings_of(settings: &Settings, restored: &Restored, backup: &Backup) -> Settings {
    let mut own = settings.clone();
    own.instance = Setting::default_value(restored.instance.clone());
    if backup.manifest.source.engine == EngineKind::External {
        own.engine = Setting::default_value(EngineChoice::Auto);
        own.external_url = None;
    }
    own
}

async fn compare(settings: &Settings, backup: &Backup, restored: &Restored, events: &Events) -> Result<Verification> {
    let running = Running::find(settings, events).await?;
    let limit = Duration::from_secs(settings.timeout_seconds.value);
    let manifest = &backup.manifest;
    let admin = running.server.admin_login();
    let mut problems = Vec::new();
    let mut tables = 0;
    if let Some(expected) = &manifest.fingerprint {
        let found = match manifest.kind {
            Kind::Physical => fingerprint::read_all(&admin, limit).await,
            Kind::Logical => logical_tables(&running, expected, limit).await,
        };
        match found {
            Ok(found) => problems.extend(fingerprint::differences(expected, &found)),
            Err(error) => problems.push(super::words(&error)),
        }
        tables = fingerprint::count(expected);
    }
    let amcheck = if manifest.kind == Kind::Physical { amcheck(&running, &mut problems).await? } else { None };
    Ok(Verification {
        at: super::now(),
        passed: problems.is_empty(),
        restore_ms: restored.elapsed_ms,
        tables,
        amcheck,
        problems,
        sealed: None,
    })
}

/// The tables of the one database that a dump is of, under the name that it had.
async fn logical_tables(running: &Running, expected: &Fingerprint, limit: Duration) -> Result<Fingerprint> {
    let admin = running.server.admin_login();
    let mut found = Fingerprint::new();
    if let Some(database) = expected.keys().next() {
        let tables = fingerprint::read_database(&admin, &running.server.database, true, limit).await?;
        found.insert(database.clone(), tables);
    }
    Ok(found)
}

/// Has `pg_amcheck` look at all files; `None` if it, or its extension, is not there.
async fn amcheck(running: &Running, problems: &mut Vec<String>) -> Result<Option<bool>> {
    let command = [
        "pg_amcheck",
        "--all",
        "--install-missing",
        "--no-password",
        "--username",
        SUPERUSER,
        "--maintenance-db",
        SUPERUSER,
    ];
    let mut program = running.engine.stream(&command, Input::None).await?;
    let mut said = Vec::new();
    while let Some(piece) = program.read().await? {
        if said.len() < 4096 {
            said.extend_from_slice(&piece);
        }
    }
    match program.finish().await?.exit_code {
        0 => Ok(Some(true)),
        2 => {
            let text = String::from_utf8_lossy(&said).into_owned();
            problems.push(format!("pg_amcheck found damage: {}", text.lines().take(3).collect::<Vec<_>>().join("; ")));
            Ok(Some(false))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_throw_away_instances_are_names() {
        for name in ["dev", &"x".repeat(30)] {
            let name = throw_away_name(name);
            assert!(crate::config::is_instance(&name), "{name}");
        }
    }
}
