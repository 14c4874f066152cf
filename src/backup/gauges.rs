//! The figures of backups for monitoring, out of what this machine remembers: cheap, and without a word to the store or
//! the server.
//!
//! What must hold: all of it can be lost, and is then seen anew; a figure that is not known is left out; and how old what
//! was seen of the store is can be told. How much would be lost now is reckoned when somebody asks, as the time since the
//! last moment that is in the store for sure: it grows when nobody works on the backups.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::manifest::Kind;
use super::position::SEGMENT_BYTES;
use super::state::State;
use super::status::{Proof, Status};
use super::{agent, restore};
use crate::config::Settings;
use crate::error::Result;
use crate::event::Events;
use crate::instance::{Instance, private_file};

/// What was last seen of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The cluster's folder in the store that this is of.
    folder: String,
    /// When that was.
    pub(super) at: Timestamp,
    /// When the newest backup of each kind was begun.
    last_full: BTreeMap<Kind, Timestamp>,
    last_verified: Option<Proof>,
    stored_bytes: u64,
    /// How many alarms there were.
    alarms: usize,
}

/// The figures of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gauges {
    /// The instance.
    pub instance: String,
    /// When the newest backup of each kind was begun.
    pub last_full: BTreeMap<Kind, Timestamp>,
    /// When the last part of the log came into the store.
    pub last_wal: Option<Timestamp>,
    /// How much would be lost now at most, in seconds.
    pub rpo_seconds: Option<u64>,
    /// The newest restore that proved a backup.
    pub last_verified: Option<Proof>,
    /// How much was in the store, in bytes.
    pub stored_bytes: Option<u64>,
    /// How much of the log waits for the store, in bytes.
    pub spool_bytes: Option<u64>,
    /// How many alarms there were.
    pub alarms: Option<usize>,
    /// When the store was last looked at.
    pub seen: Option<Timestamp>,
    /// Whether an agent is at work.
    pub agent: bool,
}

fn file(instance: &Instance) -> std::path::PathBuf {
    instance.state_dir.join("backup-seen.json")
}

impl Seen {
    pub(super) fn of(status: &Status, at: Timestamp) -> Self {
        Self {
            folder: status.cluster.clone(),
            at,
            last_full: status.last_full.iter().map(|full| (full.kind, full.created)).collect(),
            last_verified: status.last_verified.clone(),
            stored_bytes: status.stored_bytes,
            alarms: status.alarms.len(),
        }
    }

    /// What was last seen of this folder of the store.
    pub(super) fn read(instance: &Instance, folder: &str) -> Option<Self> {
        let seen: Self = serde_json::from_slice(&std::fs::read(file(instance)).ok()?).ok()?;
        (seen.folder == folder).then_some(seen)
    }

    pub(super) fn write(&self, instance: &Instance) -> Result<()> {
        private_file::write_json(&file(instance), self)
    }
}

/// The figures of all instances of the project whose backups were ever worked on here; none without a store.
pub fn read(settings: &Settings) -> Result<Vec<Gauges>> {
    if settings.backup.store.is_none() {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for name in Instance::names_on_disk(settings)? {
        let instance = Instance::named(settings, &name);
        let Some(folder) = restore::current_folder(&instance, &Events::none())? else { continue };
        let (state, seen) = (State::read(&instance, &folder), Seen::read(&instance, &folder));
        if state.agent_at.is_some() || state.safe.is_some() || seen.is_some() {
            all.push(Gauges::of(name, &state, seen, agent::is_at_work(&instance)?, super::now()));
        }
    }
    Ok(all)
}

impl Gauges {
    fn of(instance: String, state: &State, seen: Option<Seen>, agent: bool, now: Timestamp) -> Self {
        let since = |at: Timestamp| u64::try_from(now.duration_since(at).as_secs()).unwrap_or_default();
        let (mut last_full, mut last_verified) = (BTreeMap::new(), None);
        let (stored_bytes, alarms, at) = match seen {
            Some(seen) => {
                (last_full, last_verified) = (seen.last_full, seen.last_verified);
                (Some(seen.stored_bytes), Some(seen.alarms), Some(seen.at))
            }
            None => (None, None, None),
        };
        Self {
            instance,
            last_full,
            last_wal: state.last_shipped,
            rpo_seconds: state.safe.as_ref().map(|safe| since(safe.at)),
            last_verified,
            stored_bytes,
            spool_bytes: state.spool_files.map(|files| files * SEGMENT_BYTES),
            alarms,
            seen: at,
            agent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::position::Lsn;
    use super::super::state::Sample;
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out_and_what_may_be_lost_grows() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let mut state = State::default();
        let nothing = Gauges::of("dev".into(), &state, None, false, at(100));
        assert_eq!((nothing.rpo_seconds, nothing.stored_bytes, nothing.spool_bytes), (None, None, None));
        state.safe = Some(Sample { at: at(100), lsn: Lsn(1), snapshot: "a".into() });
        state.spool_files = Some(2);
        let known = Gauges::of("dev".into(), &state, None, false, at(160));
        assert_eq!((known.rpo_seconds, known.spool_bytes), (Some(60), Some(2 * SEGMENT_BYTES)));
        assert_eq!(
            Gauges::of("dev".into(), &state, None, false, at(90)).rpo_seconds,
            Some(0),
            "a clock that went back"
        );
    }
}
