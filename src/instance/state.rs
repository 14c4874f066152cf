//! The record of an instance: what was settled once and must be known again.
//!
//! What must hold: the record only remembers. What is running is asked of the engine, so a lost record costs a look at
//! the labels and no data. Fields that this version does not know are kept, so that a newer tfdev's record survives.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Instance, cannot, private_file};
use crate::config::EngineChoice;
use crate::error::{Context, Result};
use crate::event::Events;
use crate::profile::Proven;
use crate::up::SeedReport;

/// What is known of an instance. A field is `None` while it is not known yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceRecord {
    /// Identity of the instance, made when it was created: in its labels and in the server, to prove that it is ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The engine that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineChoice>,
    /// Why it was made on that engine, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_reason: Option<String>,
    /// The profile that it was last started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// When it was created: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// The version of tfdev that wrote this last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tfdev_version: Option<String>,
    /// The checkout that it was last started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_dir: Option<PathBuf>,
    /// The port that it was given, which is kept over restarts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The image as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The image's content, `sha256:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// `system_identifier` of the data folder, in decimal: above 2^53, where JSON numbers end for many readers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// The data set that the database was filled with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<SeedReport>,
    /// The file of the authority that signed the server's certificate, if the server has `ssl = on`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_cert: Option<PathBuf>,
    /// The settings with which the server was last seen to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proven: Option<Proven>,
    /// Whether other settings than those were about to be given to the server: it may have either.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub changing: bool,
    /// Whether the first initialisation came to its end.
    pub initialised: bool,
    /// Whether the log is not archived though a store is configured: so it is in a restored instance until it is told.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub archive_off: bool,
    /// Whether it is being made from a backup, and may be removed by whoever begins that anew.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restoring: bool,
    /// Whether it was made to prove a backup, and goes afterwards.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub throw_away: bool,
    /// What a newer version wrote.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl InstanceRecord {
    /// Reads the record of an instance; `None` if there is none.
    ///
    /// A record that is no JSON is moved aside, with a warning, as `instance.json.broken` and counts as none.
    pub fn read(instance: &Instance, events: &Events) -> Result<Option<Self>> {
        let path = instance.record_file();
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.or_failed(|| cannot("read the record", &path))?,
        };
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                let aside = path.with_file_name("instance.json.broken");
                fs::rename(&path, &aside).or_failed(|| cannot("move aside the broken record", &path))?;
                let why = format!("the record `{}` cannot be read ({error})", path.display());
                events.warning(format!("{why}; it is now `{}`, and a new one is made", aside.display()));
                Ok(None)
            }
        }
    }

    /// The instance's identity.
    pub fn id(&self) -> Option<Uuid> {
        self.uuid.as_deref()?.parse().ok()
    }

    /// The profile of the server: the one that it was last seen to run with.
    pub fn profile_name(&self) -> Option<&str> {
        self.proven.as_ref().map(|proven| proven.profile.as_str()).or(self.profile.as_deref())
    }

    /// The server's system identifier.
    pub fn system_identifier(&self) -> Option<u64> {
        self.system_identifier.as_deref()?.parse().ok()
    }

    /// Notes which data set the database was filled with; one that was not applied changes nothing.
    pub fn remember_seed(&mut self, seed: &SeedReport) {
        if seed.applied || self.seed.is_none() {
            self.seed = Some(seed.clone());
        }
    }

    /// Writes the record in one step. The caller holds the instance's lock.
    pub fn write(&self, instance: &Instance) -> Result<()> {
        instance.create_state_dir()?;
        private_file::write_json(&instance.record_file(), self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::tests::instance;
    use super::*;
    use crate::event::Event;

    #[test]
    fn what_is_written_is_read_again() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        assert_eq!(InstanceRecord::read(&instance, &Events::none()).unwrap(), None);
        let record = InstanceRecord {
            uuid: Some(uuid::Uuid::new_v4().to_string()),
            engine: Some(EngineChoice::Docker),
            port: Some(5433),
            system_identifier: Some(u64::MAX.to_string()),
            initialised: true,
            ..InstanceRecord::default()
        };
        record.write(&instance).unwrap();
        assert_eq!(InstanceRecord::read(&instance, &Events::none()).unwrap(), Some(record));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(instance.record_file()), 0o600);
            assert_eq!(mode(instance.state_dir.clone()), 0o700);
        }
    }

    #[test]
    fn fields_of_a_newer_version_survive() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        instance.create_state_dir().unwrap();
        fs::write(instance.record_file(), r#"{"port":1,"standby":{"of":[18446744073709551615]}}"#).unwrap();
        let mut record = InstanceRecord::read(&instance, &Events::none()).unwrap().unwrap();
        record.port = Some(2);
        record.write(&instance).unwrap();
        let text = fs::read_to_string(instance.record_file()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["port"], 2);
        assert_eq!(value["standby"]["of"][0], 18_446_744_073_709_551_615_u64);
        assert!(value.get("uuid").is_none(), "what is not known is not written");
    }

    #[test]
    fn a_broken_record_is_moved_aside_with_a_warning() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        instance.create_state_dir().unwrap();
        fs::write(instance.record_file(), "{\"port\":").unwrap();
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let seen = warnings.clone();
        let events = Events::to(move |event| seen.lock().unwrap().push(event));
        assert_eq!(InstanceRecord::read(&instance, &events).unwrap(), None);
        assert!(
            matches!(&warnings.lock().unwrap()[..], [Event::Warning(text)] if text.contains("instance.json.broken"))
        );
        assert_eq!(fs::read_to_string(instance.state_dir.join("instance.json.broken")).unwrap(), "{\"port\":");
        assert_eq!(InstanceRecord::read(&instance, &Events::none()).unwrap(), None);
    }
}
