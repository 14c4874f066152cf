//! What stays and what goes: a pure function over what is in the store.
//!
//! What must hold, whatever the clock and the figures say: the newest backup of each kind stays; the last one of each kind
//! that was proven by a restore stays; and no segment goes that a backup which stays needs. A backup from the future, of a
//! clock that was wrong, stays.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::catalogue::Catalogue;
use super::manifest::Kind;
use super::position::Segment;

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Full backups, in days (`CON-003` § Backup & Recovery: 7).
    pub full_days: u64,
    /// The log, in days (`CON-003` § Backup & Recovery: 30).
    pub wal_days: u64,
}

/// What is to become of a backup or a part of the log, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The backup's name, or the segment's.
    pub what: String,
    /// Whether it stays.
    pub keep: bool,
    /// Why.
    pub why: String,
}

/// What retention says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Decisions {
    /// Full backups, oldest first.
    pub full: Vec<Decision>,
    /// The log: all segments that go, and the first that stays.
    pub wal: Vec<Decision>,
}

/// Decides on everything in the catalogue.
pub fn decide(catalogue: &Catalogue, keep: Keep, now: Timestamp) -> Decisions {
    let full: Vec<Decision> =
        (0..catalogue.backups.len()).map(|index| of_backup(catalogue, index, keep, now)).collect();
    let needed = catalogue
        .backups
        .iter()
        .zip(&full)
        .filter(|(_, decision)| decision.keep)
        .filter_map(|(backup, _)| {
            let physical = backup.manifest.physical.as_ref()?;
            Some((Segment::of(physical.timeline, physical.start).number, &backup.manifest.id))
        })
        .min();
    let mut wal = Vec::new();
    for (segment, files) in &catalogue.log.segments {
        let newest = files.iter().map(|file| file.at).max().unwrap_or(now);
        let young = is_young(newest, keep.wal_days, now);
        let (stays, why) = match needed {
            Some((first, id)) if segment.number >= first => (true, format!("the backup `{id}` needs it")),
            // It may be a backup that needs it.
            _ if !catalogue.damaged.is_empty() => (true, "something in the store cannot be understood".to_owned()),
            _ if young => (true, format!("is younger than {} days", keep.wal_days)),
            // Without a base there is no telling what the log is for.
            None => (true, "there is no physical backup".to_owned()),
            Some((_, id)) => (
                false,
                format!("is older than {} days, and `{id}`, the oldest that stays, does not need it", keep.wal_days),
            ),
        };
        wal.push(Decision { what: segment.to_string(), keep: stays, why });
    }
    Decisions { full, wal }
}

fn of_backup(catalogue: &Catalogue, index: usize, keep: Keep, now: Timestamp) -> Decision {
    let backup = &catalogue.backups[index];
    let kind = backup.manifest.kind;
    let later = || catalogue.backups[index + 1..].iter().filter(|other| other.manifest.kind == kind);
    let (stays, why) = if later().next().is_none() {
        (true, format!("is the newest {} one", kind.word()))
    } else if backup.is_proven() && !later().any(super::manifest::Backup::is_proven) {
        (true, format!("is the last {} one that was proven by a restore", kind.word()))
    } else if is_young(backup.manifest.created, keep.full_days, now) {
        (true, format!("is younger than {} days", keep.full_days))
    } else {
        (false, format!("is older than {} days, and there are newer ones", keep.full_days))
    };
    Decision { what: backup.manifest.id.clone(), keep: stays, why }
}

fn is_young(at: Timestamp, days: u64, now: Timestamp) -> bool {
    let limit = SignedDuration::from_hours(i64::try_from(days.saturating_mul(24)).unwrap_or(i64::MAX / 3600));
    now.duration_since(at) < limit
}

/// The kinds of backup, for those who go through all.
pub const KINDS: [Kind; 2] = [Kind::Logical, Kind::Physical];
