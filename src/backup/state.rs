//! What this machine remembers of the backups of an instance: how far the log is in the store, and what went wrong.
//!
//! What must hold: all of it can be lost. The store and the server are the truth; this only tells how things went.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::position::Lsn;
use crate::error::Result;
use crate::instance::{Instance, private_file};

/// How many moments are remembered that are not in the store yet.
const SAMPLES: usize = 120;

/// A moment of the server: all that was committed by then is before the position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The server's clock.
    pub at: Timestamp,
    /// The position.
    pub lsn: Lsn,
    /// Which transactions had ended (`pg_current_snapshot`). Equal ones mean that nothing was committed in between.
    pub snapshot: String,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// When it was seen first.
    pub since: Timestamp,
    /// What it is, in words.
    pub what: String,
}

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The cluster's folder in the store that this is of.
    pub folder: String,
    /// The newest moment that is in the store.
    pub safe: Option<Sample>,
    /// Newer ones, oldest first.
    pub waiting: Vec<Sample>,
    /// The last segment that came into the store.
    pub last_segment: Option<String>,
    /// When it did.
    pub last_shipped: Option<Timestamp>,
    /// How many files waited in the spool when it was last emptied, or could not be.
    pub spool_files: Option<u64>,
    /// Why the log does not get into the store.
    pub shipping: Option<Trouble>,
    /// Why there is no full backup.
    pub full: Option<Trouble>,
    /// Why a backup was not proven.
    pub verify: Option<Trouble>,
    /// The log is not whole: PostgreSQL had no room to keep it, or its archive was off. A new physical backup mends that.
    pub gap: Option<Trouble>,
    /// When the agent was last at work.
    pub agent_at: Option<Timestamp>,
    /// When full backups of all kinds were last tried.
    pub tried_full: Option<Timestamp>,
    /// When the agent last looked whether the store has all of the log.
    pub looked: Option<Timestamp>,
    /// Backups that the agent has made and not proven yet.
    pub unproven: Vec<String>,
    /// When that was last tried.
    pub tried_verify: Option<Timestamp>,
}

fn file(instance: &Instance) -> std::path::PathBuf {
    instance.state_dir.join("backup.json")
}

impl State {
    /// Reads what is remembered; nothing if it is of another cluster or cannot be read.
    pub fn read(instance: &Instance, folder: &str) -> Self {
        let read = std::fs::read(file(instance)).ok();
        let state: Option<Self> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let fresh = Self { folder: folder.to_owned(), ..Self::default() };
        state.filter(|state| state.folder == folder).unwrap_or(fresh)
    }

    /// Remembers it.
    pub(super) fn write(&self, instance: &Instance) -> Result<()> {
        instance.create_state_dir()?;
        private_file::write_json(&file(instance), self)
    }

    /// Notes a moment. Of many that wait some are kept, evenly over the time.
    pub(super) fn add(&mut self, sample: Sample) {
        let waiting = &mut self.waiting;
        if let [first, .., before, last] = &mut waiting[..] {
            let part = i32::try_from(SAMPLES / 2).unwrap_or(i32::MAX);
            if sample.at.duration_since(before.at) < sample.at.duration_since(first.at) / part {
                *last = sample;
                return;
            }
        }
        waiting.push(sample);
        if waiting.len() > SAMPLES {
            let mut index = 0;
            waiting.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }

    /// Takes note that all before `end` is in the store.
    pub(super) fn settle(&mut self, end: Lsn) {
        // A moment in which nothing was committed since the last safe one is as safe.
        loop {
            let Some(next) = self.waiting.first() else { return };
            let unchanged = self.safe.as_ref().is_some_and(|safe| safe.snapshot == next.snapshot);
            if next.lsn > end && !unchanged {
                return;
            }
            let mut next = self.waiting.remove(0);
            if let Some(safe) = self.safe.as_ref().filter(|_| next.lsn > end) {
                next.lsn = safe.lsn;
            }
            self.safe = Some(next);
        }
    }

    /// How much would be lost now, in seconds: nothing if nothing was committed since the last safe moment. `None` if no
    /// moment is safe.
    pub(super) fn rpo_seconds(&self, now: &Sample) -> Option<u64> {
        let safe = self.safe.as_ref()?;
        if safe.snapshot == now.snapshot {
            return Some(0);
        }
        Some(u64::try_from(now.at.duration_since(safe.at).as_secs()).unwrap_or_default())
    }
}

/// Notes trouble, or its end; says since when it lasts.
pub(super) fn note(trouble: &mut Option<Trouble>, what: Option<String>) {
    *trouble = what.map(|what| {
        let since = trouble.as_ref().map_or_else(super::now, |trouble| trouble.since);
        Trouble { since, what }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64, lsn: u64, snapshot: &str) -> Sample {
        Sample { at: Timestamp::from_second(second).unwrap(), lsn: Lsn(lsn), snapshot: snapshot.into() }
    }

    #[test]
    fn only_what_is_in_the_store_is_safe() {
        let mut state = State::default();
        assert_eq!(state.rpo_seconds(&sample(0, 0, "a")), None);
        state.add(sample(10, 100, "a"));
        state.add(sample(20, 200, "b"));
        state.settle(Lsn(150));
        assert_eq!(state.safe, Some(sample(10, 100, "a")));
        assert_eq!(state.rpo_seconds(&sample(25, 210, "b")), Some(15));
        state.settle(Lsn(200));
        assert_eq!(state.rpo_seconds(&sample(25, 210, "b")), Some(0));
        // Checkpoints go on in an idle server.
        state.add(sample(60, 999, "b"));
        state.settle(Lsn(200));
        assert_eq!(state.safe, Some(sample(60, 200, "b")));
        state.add(sample(70, 1000, "c"));
        state.settle(Lsn(999));
        assert_eq!(state.rpo_seconds(&sample(71, 1000, "c")), Some(11));
    }

    #[test]
    fn a_long_outage_keeps_some_moments() {
        let mut state = State::default();
        for second in 0..10_000 {
            state.add(sample(second, second.unsigned_abs() + 1, &second.to_string()));
        }
        assert!(state.waiting.len() <= SAMPLES && state.waiting.len() > SAMPLES / 4);
        state.settle(Lsn(5_000));
        let safe = state.safe.unwrap().at.as_second();
        assert!((2_000..5_000).contains(&safe), "{safe}");
    }
}
