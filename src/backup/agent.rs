//! The agent: one process for an instance that brings the log into the store, makes the daily full backup, proves it, and
//! forgets what is too old.
//!
//! What must hold: one agent for an instance; the log goes on into the store while anything else takes its time; what
//! fails in one pass is told and tried again in the next, and never ends the agent; a machine that slept through the hour
//! makes up for it; and backups are forgotten only after a newer one was tried.

use std::cell::Cell;
use std::time::{Duration, Instant};

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::catalogue::Catalogue;
use super::gauges::Seen;
use super::manifest::Kind;
use super::plan::{Plan, Target};
use super::retention::{self, Decisions, Keep};
use super::state::{self, State};
use super::{Backups, Summary, verify, words};
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::fault;
use crate::instance::{FileLock, Instance};
use crate::server::Running;

/// How often the spool is emptied: a segment is in the store within 5 s of being closed.
const EVERY: Duration = Duration::from_secs(3);

/// How often the rest of a pass is looked at while the log is brought away.
const LOOK: Duration = Duration::from_millis(50);

/// How often the store is looked at for its figures alone.
const SEE_EVERY: SignedDuration = SignedDuration::from_mins(5);

/// How long a full backup, or a proof, that failed is left alone.
const RETRY_FULL: SignedDuration = SignedDuration::from_mins(10);

/// How often the store is looked through for parts of the log that went away there.
const LOOK_THROUGH: SignedDuration = SignedDuration::from_hours(1);

/// How old a folder without a manifest must be to be no backup at work.
const ABANDONED: SignedDuration = SignedDuration::from_hours(24);

/// What one pass did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pass {
    /// Files of the log that came into the store.
    pub shipped: usize,
    /// Full backups that were made.
    pub made: Vec<Summary>,
    /// What was proven, or not.
    pub verified: Vec<verify::Verified>,
    /// What was forgotten.
    pub forgotten: Vec<String>,
    /// What failed, in words.
    pub problems: Vec<String>,
}

/// The last time of the schedule that has come.
pub(super) fn last_due(schedule: &str, now: Timestamp) -> Timestamp {
    let mut parts = schedule.split(':').map(|part| part.parse::<i8>().unwrap_or_default());
    let (hour, minute) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let time = Time::new(hour, minute, 0, 0).unwrap_or_default();
    let zoned = now.to_zoned(TimeZone::UTC);
    let today = zoned.date().to_datetime(time).to_zoned(TimeZone::UTC).map_or(now, |zoned| zoned.timestamp());
    if today <= now { today } else { today - SignedDuration::from_hours(24) }
}

/// The next time of the schedule.
pub(super) fn next_due(schedule: &str, now: Timestamp) -> Timestamp {
    last_due(schedule, now) + SignedDuration::from_hours(24)
}

/// Whether a full backup is to be made now: the newest of each kind that there should be is older than the last time of
/// the schedule.
pub(super) fn is_due(catalogue: &Catalogue, kinds: &[Kind], schedule: &str, now: Timestamp) -> bool {
    let due = last_due(schedule, now);
    // One from the future, of a clock that was wrong, is no reason to make none.
    let is_fresh = |kind: Kind| {
        catalogue
            .of_kind(kind)
            .any(|backup| (due..=now + SignedDuration::from_mins(5)).contains(&backup.manifest.created))
    };
    !kinds.iter().all(|kind| is_fresh(*kind))
}

/// The lock of the agent of an instance.
fn lock_file(instance: &Instance) -> std::path::PathBuf {
    instance.lock_file().with_file_name(format!("{}.agent.lock", instance.name))
}

/// Whether an agent is at work.
pub(super) fn is_at_work(instance: &Instance) -> Result<bool> {
    Ok(FileLock::try_acquire(&lock_file(instance), "backup status")?.is_none())
}

/// Becomes the agent of the settled instance, until the process ends; or makes one pass.
///
/// # Errors
/// [`ErrorKind::Conflict`] if there is one.
pub async fn run(settings: &Settings, once: bool, events: &Events, tell: &mut (dyn FnMut(&Pass) + Send)) -> Result<()> {
    let instance = Instance::of(settings);
    super::store::Store::of(settings)?;
    let Some(_lock) = FileLock::try_acquire(&lock_file(&instance), "backup agent")? else {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("there is an agent for the instance `{}` already", instance.name),
        )
        .hint("`tfdev backup status` shows what it does"));
    };
    loop {
        let mut pass = Pass::default();
        match pass_of(settings, events, &mut pass).await {
            Ok(()) => {}
            Err(error) if once => return Err(error),
            Err(error) => pass.problems.push(words(&error)),
        }
        tell(&pass);
        if once {
            return match pass.problems.first() {
                None => Ok(()),
                Some(problem) => Err(Error::failed(problem.clone())),
            };
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn pass_of(settings: &Settings, events: &Events, pass: &mut Pass) -> Result<()> {
    let running = Running::find(settings, events).await?;
    let backups = Backups::of(&running, settings, events)?;
    let archives = backups.no_physical()?.is_none();
    if archives {
        let mut connection = backups.session().await?;
        match backups.ship(&mut connection).await {
            Ok(shipped) => pass.shipped = shipped.files,
            Err(error) => pass.problems.push(words(&error)),
        }
        crate::provision::close(connection).await;
    }
    // A full backup and its proof take their time, in which the log goes on.
    let is_done = Cell::new(false);
    let rest = async {
        let done = backups.work(archives, pass).await;
        is_done.set(true);
        done
    };
    let shipping = async {
        if archives {
            backups.keep_shipping(&is_done).await;
        }
    };
    let (done, ()) = tokio::join!(Box::pin(rest), shipping);
    let has_news = !pass.made.is_empty() || !pass.verified.is_empty() || !pass.forgotten.is_empty();
    Box::pin(backups.see(has_news)).await;
    done
}

impl Backups<'_> {
    /// Brings the log into the store, again and again, until the rest of the pass is done. What fails is on record, and
    /// tried again.
    async fn keep_shipping(&self, is_done: &Cell<bool>) {
        let mut last = Instant::now();
        while !is_done.get() {
            tokio::time::sleep(LOOK).await;
            if last.elapsed() < EVERY || is_done.get() {
                continue;
            }
            if let Ok(mut connection) = self.session().await {
                let _ = self.ship(&mut connection).await;
                crate::provision::close(connection).await;
            }
            last = Instant::now();
        }
    }

    /// Looks at the store now and then, for those who ask this machine ([`super::gauges`]).
    async fn see(&self, has_news: bool) {
        let seen = Seen::read(&self.running.instance, &self.folder).map(|seen| super::now().duration_since(seen.at));
        if has_news || seen.is_none_or(|age| !(SignedDuration::ZERO..SEE_EVERY).contains(&age)) {
            // A store or server that does not answer is on record by those who need it.
            let _ = self.status().await;
        }
    }

    /// Makes a full backup if one is due, proves what is not proven, and forgets what is too old.
    async fn work(&self, archives: bool, pass: &mut Pass) -> Result<()> {
        {
            let _lock = self.lock("backup agent").await?;
            self.make_if_due(archives, pass).await?;
        }
        self.prove_and_forget(pass).await
    }

    async fn make_if_due(&self, archives: bool, pass: &mut Pass) -> Result<()> {
        let instance = &self.running.instance;
        let now = super::now();
        let mut state = State::read(instance, &self.folder);
        state.agent_at = Some(now);
        let looks = !is_within(state.looked, now, LOOK_THROUGH);
        if looks {
            state.looked = Some(now);
        }
        state.write(instance)?;
        let tried = state.tried_full.filter(|_| state.full.is_some());
        if is_early(tried, now) || !self.wants_full(&state, archives, looks, now).await? {
            return Ok(());
        }
        match self.make_full(None).await {
            Ok(made) => pass.made = made,
            Err(error) => pass.problems.push(words(&error)),
        }
        let mut state = State::read(instance, &self.folder);
        // The newest are to be proven; older ones were superseded.
        state.unproven = pass.made.iter().map(|made| made.id.clone()).collect();
        state.tried_verify = None;
        state.write(instance)?;
        fault::point("backup.agent.made").await;
        Ok(())
    }

    /// Whether a full backup is due, or needed because the log has a gap; `looks`: also one that is only in the store.
    async fn wants_full(&self, state: &State, archives: bool, looks: bool, now: Timestamp) -> Result<bool> {
        if state.gap.is_some() && state.shipping.is_none() {
            return Ok(true);
        }
        let schedule = &self.settings.backup.schedule.value;
        let due = last_due(schedule, now);
        // The store is asked only if this machine does not know that the last one was made in time.
        let is_made = state.full.is_none() && state.tried_full.is_some_and(|tried| tried >= due && tried <= now);
        if is_made && !(looks && archives) {
            return Ok(false);
        }
        let catalogue = self.catalogue().await?;
        if archives && has_gap(&catalogue) {
            return Ok(true);
        }
        let kinds: &[Kind] = if archives { &retention::KINDS } else { &[Kind::Logical] };
        Ok(!is_made && is_due(&catalogue, kinds, schedule, now))
    }

    /// Proves what was made, in this pass or in one that was cut off, and then forgets what is too old.
    async fn prove_and_forget(&self, pass: &mut Pass) -> Result<()> {
        let instance = &self.running.instance;
        let unproven = State::read(instance, &self.folder);
        if unproven.unproven.is_empty() || is_early(unproven.tried_verify, super::now()) {
            return Ok(());
        }
        let catalogue = self.catalogue().await?;
        let (mut trouble, mut left) = (None, Vec::new());
        for backup in catalogue.backups.iter().filter(|backup| unproven.unproven.contains(&backup.manifest.id)) {
            let id = &backup.manifest.id;
            match verify::prove(self.settings, &self.store, &catalogue, backup, self.events).await {
                Ok(verification) => {
                    if !verification.passed {
                        let problems = verification.problems.join("; ");
                        trouble = Some(format!("`{id}` was not restored as it was: {problems}"));
                    }
                    pass.verified.push(verify::Verified { id: id.clone(), verification });
                }
                Err(error) => {
                    trouble = Some(format!("`{id}` could not be restored: {}", words(&error)));
                    left.push(id.clone());
                }
            }
        }
        pass.problems.extend(trouble.clone());
        let _lock = self.lock("backup agent").await?;
        pass.forgotten = self.forget(false).await?.1;
        let mut state = State::read(instance, &self.folder);
        state::note(&mut state.verify, trouble);
        state.unproven = left;
        state.tried_verify = Some(super::now());
        state.write(instance)
    }

    /// Forgets what is too old, or only tells what that would be. Returns the decisions and what was removed.
    pub async fn prune(&self, dry_run: bool) -> Result<(Decisions, Vec<String>)> {
        let _lock = self.lock("backup prune").await?;
        self.forget(dry_run).await
    }

    async fn forget(&self, dry_run: bool) -> Result<(Decisions, Vec<String>)> {
        let catalogue = self.catalogue().await?;
        let keep = Keep {
            full_days: self.settings.backup.keep_full_days.value,
            wal_days: self.settings.backup.keep_wal_days.value,
        };
        let decisions = retention::decide(&catalogue, keep, super::now());
        let mut removed = Vec::new();
        if dry_run {
            return Ok((decisions, removed));
        }
        for decision in decisions.full.iter().filter(|decision| !decision.keep) {
            let folder = format!("full/{}", decision.what);
            let manifest = &catalogue.backup(&decision.what)?.manifest;
            // The manifest goes first: what is left does not count.
            for key in
                [format!("{folder}/manifest.json"), format!("{folder}/verified.json"), manifest.payload.key.clone()]
            {
                self.store.delete(&format!("{}/{key}", self.folder)).await?;
                fault::point("backup.forget.deleted").await;
            }
            removed.push(decision.what.clone());
        }
        for id in &catalogue.unfinished {
            if is_abandoned(id, super::now()) {
                for file in ["dump.zst", "dump.zst.age", "base.tar.zst", "base.tar.zst.age", "verified.json"] {
                    self.store.delete(&format!("{}/full/{id}/{file}", self.folder)).await?;
                }
                self.store.remove_partial(&format!("{}/full/{id}", self.folder));
                removed.push(id.clone());
            }
        }
        for decision in decisions.wal.iter().filter(|decision| !decision.keep) {
            let files = decision.what.parse().ok().and_then(|segment| catalogue.log.segments.get(&segment));
            for file in files.into_iter().flatten() {
                self.store.delete(&format!("{}/{}", self.folder, file.key)).await?;
            }
            removed.push(decision.what.clone());
        }
        Ok((decisions, removed))
    }
}

/// Whether what failed is to be left alone for a while.
fn is_early(tried: Option<Timestamp>, now: Timestamp) -> bool {
    is_within(tried, now, RETRY_FULL)
}

/// Whether that was less than `time` ago. What is in the future was noted by a clock that was wrong.
fn is_within(at: Option<Timestamp>, now: Timestamp, time: SignedDuration) -> bool {
    at.is_some_and(|at| (SignedDuration::ZERO..time).contains(&now.duration_since(at)))
}

/// Whether the log that goes on from the newest base is not whole in the store.
fn has_gap(catalogue: &Catalogue) -> bool {
    let planned = Plan::of(catalogue, &Target::Latest);
    planned.is_err_and(|error| error.kind() == ErrorKind::Refused)
}

/// Whether a folder without a manifest, whose name begins with its time, is of a backup that was cut off.
fn is_abandoned(id: &str, now: Timestamp) -> bool {
    let time = id.split('-').next().unwrap_or_default();
    jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", time)
        .and_then(|parsed| parsed.to_datetime())
        .and_then(|civil| civil.to_zoned(TimeZone::UTC))
        .is_ok_and(|at| now.duration_since(at.timestamp()) > ABANDONED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_in_utc_and_days_that_were_slept_through_are_due() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(last_due("02:00", at("2026-03-01T02:00:00Z")), at("2026-03-01T02:00:00Z"));
        assert_eq!(last_due("02:00", at("2026-03-01T01:59:59Z")), at("2026-02-28T02:00:00Z"));
        assert_eq!(next_due("23:30", at("2026-12-31T23:45:00Z")), at("2027-01-01T23:30:00Z"));
    }

    #[test]
    fn only_old_folders_without_a_manifest_are_abandoned() {
        let now = "2026-03-03T00:00:00Z".parse().unwrap();
        assert!(is_abandoned("20260301T020000Z-physical", now));
        assert!(!is_abandoned("20260302T020000Z-physical", now));
        assert!(!is_abandoned("something-else", now));
    }
}
