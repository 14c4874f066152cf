//! How the backups of an instance are, as people and monitoring want to know it.
//!
//! What must hold: every figure is measured, never promised; what is wrong is an alarm in words; and asking changes
//! nothing but what this machine remembers of the answer ([`super::gauges`]).

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::catalogue::Catalogue;
use super::gauges::Seen;
use super::manifest::{Kind, Verification};
use super::plan::{Missing, Plan, Range, Target};
use super::state::State;
use super::wal::{self, Spool};
use super::{Backups, Summary, agent, plan, words};
use crate::error::Result;

/// The most that may be lost: `CON-003` § Backup & Recovery, RPO.
const RPO_LIMIT_SECONDS: u64 = 300;

/// The longest that a restore may take: `CON-003` § Backup & Recovery, RTO.
const RTO_LIMIT_MS: u64 = 3_600_000;

/// How late a full backup may be before that is an alarm: the time it may take.
const LATE: SignedDuration = SignedDuration::from_hours(2);

/// How much of the spool's room may be taken before that is an alarm, in parts of the profile's storage.
const SPOOL_ALARM_PART: u64 = 16;

/// Free room on the disk of the data below which there is an alarm, in bytes.
const FREE_ALARM: u64 = 1 << 30;

/// How things are.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Where the backups are.
    pub store: String,
    /// The folder of the cluster there.
    pub cluster: String,
    /// The newest backup of each kind.
    pub last_full: Vec<Summary>,
    /// When the next one is due.
    pub next_full: Timestamp,
    /// The last segment of the log in the store.
    pub last_wal: Option<String>,
    /// When it came there.
    pub last_wal_at: Option<Timestamp>,
    /// How much would be lost now, in seconds; `None` if nothing is in the store yet, or no log is archived.
    pub rpo_seconds: Option<u64>,
    /// The newest restore that proved a backup.
    pub last_verified: Option<Proof>,
    /// What every second can be recovered of.
    pub recoverable: Option<Range>,
    /// What of that cannot be, because a part of the log is missing in the store.
    pub gaps: Vec<Missing>,
    /// What waits for the store, and the room for it.
    pub spool: Option<Spool>,
    /// How much is in the store, in bytes.
    pub stored_bytes: u64,
    /// Whether an agent is at work.
    pub agent: bool,
    /// What is wrong; nothing is what monitoring wants to see.
    pub alarms: Vec<String>,
}

/// A backup that was proven by a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The backup.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// How long it took until the server answered, in milliseconds: the measured RTO.
    pub rto_ms: u64,
}

fn last_proof(catalogue: &Catalogue) -> Option<Proof> {
    let proofs = catalogue.backups.iter().filter_map(|backup| {
        let Verification { at, restore_ms, .. } = backup.verified.clone().filter(|verified| verified.passed)?;
        Some(Proof { id: backup.manifest.id.clone(), at, rto_ms: restore_ms })
    });
    proofs.max_by_key(|proof| proof.at)
}

impl Backups<'_> {
    /// How things are.
    pub async fn status(&self) -> Result<Status> {
        let catalogue = self.catalogue().await?;
        let instance = &self.running.instance;
        let state = State::read(instance, &self.folder);
        let archives = self.no_physical()?.is_none();
        let (mut spool, mut rpo) = (None, None);
        if archives {
            let mut connection = self.session().await?;
            let now = wal::sample(&mut connection).await?;
            crate::provision::close(connection).await;
            rpo = state.rpo_seconds(&now);
            spool = Some(self.spool().await?);
        }
        let now = super::now();
        let schedule = &self.settings.backup.schedule.value;
        let newest = |kind: Kind| catalogue.of_kind(kind).next_back();
        let last_full = super::retention::KINDS.into_iter().filter_map(newest);
        let log: u64 = catalogue.log.segments.values().flatten().map(|file| file.bytes).sum();
        let full: u64 = catalogue.backups.iter().map(|backup| backup.manifest.payload.compressed_bytes).sum();
        let mut status = Status {
            store: self.store.place().to_owned(),
            cluster: self.folder.clone(),
            last_full: last_full.map(|backup| Summary::of(&backup.manifest, backup.verified.as_ref())).collect(),
            next_full: agent::next_due(schedule, now),
            last_wal: state.last_segment.clone(),
            last_wal_at: state.last_shipped,
            rpo_seconds: rpo,
            last_verified: last_proof(&catalogue),
            recoverable: plan::range(&catalogue),
            gaps: plan::missing(&catalogue),
            spool,
            stored_bytes: log + full,
            agent: agent::is_at_work(instance)?,
            alarms: Vec::new(),
        };
        let kinds: &[Kind] = if archives { &super::retention::KINDS } else { &[Kind::Logical] };
        status.alarms = alarms(&catalogue, &state, &status, kinds, self.storage_bytes()?, schedule, now);
        if archives && let Err(error) = self.check_archiving().await {
            status.alarms.push(words(&error));
        }
        // Only remembered: a full disk must not keep anyone from knowing how things are.
        let _ = Seen::of(&status, now).write(instance);
        Ok(status)
    }

    /// The storage that the profile allows, in bytes.
    fn storage_bytes(&self) -> Result<u64> {
        Ok(crate::profile::resolve(self.profile_name(), &self.settings.profiles)?.limits.storage_bytes)
    }
}

/// What is wrong, most of all first.
fn alarms(
    catalogue: &Catalogue,
    state: &State,
    status: &Status,
    kinds: &[Kind],
    storage_bytes: u64,
    schedule: &str,
    now: Timestamp,
) -> Vec<String> {
    let mut alarms = Vec::new();
    for trouble in [&state.gap, &state.shipping, &state.full, &state.verify].into_iter().flatten() {
        alarms.push(format!("since {}: {}", trouble.since.strftime("%Y-%m-%d %H:%M:%S UTC"), trouble.what));
    }
    alarms.extend(catalogue.damaged.values().cloned());
    if status.rpo_seconds.is_some_and(|rpo| rpo > RPO_LIMIT_SECONDS) {
        let rpo = status.rpo_seconds.unwrap_or_default();
        let agent = if status.agent { "" } else { ": no agent is at work" };
        alarms.push(format!(
            "{rpo} s of changes are not in the store, and at most {RPO_LIMIT_SECONDS} s should be{agent}"
        ));
    }
    if let Some(spool) = &status.spool {
        if spool.bytes > storage_bytes / SPOOL_ALARM_PART {
            alarms.push(format!("{} MB of the log wait for the store", spool.bytes >> 20));
        }
        if spool.free_bytes < FREE_ALARM {
            alarms.push(format!("only {} MB are left on the disk of the data", spool.free_bytes >> 20));
        }
    }
    for kind in kinds {
        let newest = catalogue.of_kind(*kind).next_back();
        let late = agent::last_due(schedule, now - LATE);
        match newest {
            None => alarms.push(format!("there is no {} backup", kind.word())),
            Some(backup) if backup.manifest.created < late => {
                alarms.push(format!("the newest {} backup is of {}", kind.word(), backup.manifest.created));
            }
            Some(backup) if backup.manifest.sealed.is_some() => {
                let key = backup.manifest.payload.recipient.as_deref().unwrap_or("another key");
                alarms.push(format!("no key here opens `{}`: it is for {key}", backup.manifest.id));
            }
            Some(backup) if backup.verified.as_ref().is_some_and(|verified| !verified.passed) => {
                alarms.push(format!("a restore of `{}` did not give what was recorded", backup.manifest.id));
            }
            Some(_) => {}
        }
    }
    if status.last_verified.as_ref().is_some_and(|proof| proof.rto_ms > RTO_LIMIT_MS) {
        alarms.push("the last restore took longer than an hour".to_owned());
    }
    if catalogue.of_kind(Kind::Physical).next().is_some()
        && let Err(error) = Plan::of(catalogue, &Target::Latest)
    {
        alarms.push(words(&error));
    }
    alarms
}
