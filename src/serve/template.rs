//! The templates that clients make, by the hash that each client gives its own, and what was handed out of each.
//!
//! What must hold: nothing in here waits; what takes long is done by [`super::integresql`], which says here first that it
//! is at it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::fresh::{Draft, Lease, Template};

/// How long a database that was handed out is not taken for a forgotten one (IntegreSQL's figure).
const YOUNG: Duration = Duration::from_millis(250);

/// What a template is doing.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// A client fills it.
    Filling,
    /// It is being closed, or given up.
    Ending,
    /// It is there.
    Ready(Template),
    /// It was discarded, or could not be finished.
    Gone,
}

/// A template that a client fills.
pub(super) struct Filling {
    pub(super) draft: Box<Draft>,
    /// Of the number of those that may be open at once.
    pub(super) _place: OwnedSemaphorePermit,
}

/// A database that a client has.
pub(super) struct Taken {
    pub(super) lease: Lease,
    pub(super) since: Instant,
}

/// One template.
pub(super) struct Entry {
    phase: watch::Sender<Phase>,
    filling: Option<Filling>,
    begun: Instant,
    next_id: i64,
    /// What clients have, by the number that they know.
    taken: BTreeMap<i64, Taken>,
    /// What clients gave back unchanged, oldest first.
    unlocked: VecDeque<(i64, Lease)>,
}

/// What there is under a number that a client names.
#[derive(Debug, PartialEq)]
pub(super) enum Known<T> {
    /// It has it.
    Taken(T),
    /// It had it, and gave it back or lost it.
    Returned,
    /// Nobody ever had it.
    Unknown,
}

impl Entry {
    fn new(phase: Phase) -> Self {
        Self {
            phase: watch::Sender::new(phase),
            filling: None,
            begun: Instant::now(),
            next_id: 0,
            taken: BTreeMap::new(),
            unlocked: VecDeque::new(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Takes out what is being filled; whoever gets it ends it.
    pub(super) fn end_filling(&mut self) -> Option<Filling> {
        let filling = self.filling.take()?;
        self.phase.send_replace(Phase::Ending);
        Some(filling)
    }

    /// Notes that the template is there.
    pub(super) fn finish(&mut self, template: Template) {
        self.phase.send_replace(Phase::Ready(template));
    }

    /// A database that was given back unchanged.
    pub(super) fn reuse(&mut self) -> Option<(i64, Lease)> {
        let (id, lease) = self.unlocked.pop_front()?;
        self.taken.insert(id, Taken { lease: lease.clone(), since: Instant::now() });
        Some((id, lease))
    }

    /// Notes a hand-out, under the next number.
    pub(super) fn hand_out(&mut self, lease: Lease) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        self.taken.insert(id, Taken { lease, since: Instant::now() });
        id
    }

    /// Notes that a client gave a database back unchanged.
    pub(super) fn unlock(&mut self, id: i64) -> Known<()> {
        match self.take_back(id) {
            Known::Taken(lease) => {
                self.unlocked.push_back((id, lease));
                Known::Taken(())
            }
            Known::Returned => Known::Returned,
            Known::Unknown => Known::Unknown,
        }
    }

    /// Takes a database out of what clients have.
    pub(super) fn take_back(&mut self, id: i64) -> Known<Lease> {
        match self.taken.remove(&id) {
            Some(taken) => Known::Taken(taken.lease),
            None if (0..self.next_id).contains(&id) => Known::Returned,
            None => Known::Unknown,
        }
    }
}

/// All templates, by hash.
#[derive(Default)]
pub(super) struct Templates {
    entries: HashMap<String, Entry>,
}

impl Templates {
    pub(super) fn get(&mut self, hash: &str) -> Option<&mut Entry> {
        self.entries.get_mut(hash)
    }

    /// The entry of a template that is ready, if it is this one.
    pub(super) fn ready(&mut self, hash: &str, template: i64) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(hash)?;
        matches!(&*entry.phase.borrow(), Phase::Ready(ready) if ready.id == template).then_some(())?;
        Some(entry)
    }

    /// A new one that a client fills. Gives what clients had of another one under the same hash, which is forgotten.
    #[must_use]
    pub(super) fn begin(&mut self, hash: &str, filling: Filling) -> Vec<Lease> {
        let old = self.remove(hash);
        let entry = Entry { filling: Some(filling), ..Entry::new(Phase::Filling) };
        self.entries.insert(hash.to_owned(), entry);
        old
    }

    /// One that the server knows. Gives what clients had of another one under the same hash, which is forgotten.
    #[must_use]
    pub(super) fn adopt(&mut self, hash: &str, template: Template) -> Vec<Lease> {
        if self.ready(hash, template.id).is_some() {
            return Vec::new();
        }
        let old = self.remove(hash);
        self.entries.insert(hash.to_owned(), Entry::new(Phase::Ready(template)));
        old
    }

    /// Forgets all, because their server is gone, and tells those who wait.
    pub(super) fn forget(&mut self) {
        for hash in self.hashes() {
            self.remove(&hash);
        }
    }

    /// Forgets a template, tells those who wait for it, and gives the databases that clients had or gave back.
    pub(super) fn remove(&mut self, hash: &str) -> Vec<Lease> {
        let Some(entry) = self.entries.remove(hash) else { return Vec::new() };
        entry.phase.send_replace(Phase::Gone);
        let taken = entry.taken.into_values().map(|taken| taken.lease);
        taken.chain(entry.unlocked.into_iter().map(|(_, lease)| lease)).collect()
    }

    pub(super) fn hashes(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// Those that a client began to fill so long ago.
    pub(super) fn filling_since(&self, time: Duration) -> Vec<(String, String)> {
        let old = self.entries.iter().filter(|(_, entry)| entry.begun.elapsed() >= time);
        let filling = old.filter_map(|(hash, entry)| Some((hash.clone(), entry.filling.as_ref()?)));
        filling.map(|(hash, filling)| (hash, filling.draft.database().to_owned())).collect()
    }

    /// Takes out a database that was given back unchanged, of another template than `template` if that can be.
    pub(super) fn spare(&mut self, template: i64) -> Option<Lease> {
        let is_other = |entry: &&mut Entry| !matches!(&*entry.phase.borrow(), Phase::Ready(own) if own.id == template);
        let other = self.entries.values_mut().filter(is_other).find_map(|entry| entry.unlocked.pop_front());
        other.map(|(_, lease)| lease)
    }

    /// What clients have for longer than a moment, oldest first: hash, number, database.
    pub(super) fn oldest(&self) -> Vec<(String, i64, String)> {
        let all =
            self.entries.iter().flat_map(|(hash, entry)| entry.taken.iter().map(move |(id, one)| (hash, id, one)));
        let mut old: Vec<_> = all.filter(|(_, _, taken)| taken.since.elapsed() >= YOUNG).collect();
        old.sort_by_key(|(_, _, taken)| taken.since);
        old.into_iter().map(|(hash, id, taken)| (hash.clone(), *id, taken.lease.database.clone())).collect()
    }

    /// The numbers of those that are ready, each with its hash.
    pub(super) fn all_ready(&self) -> Vec<(i64, String)> {
        let number = |entry: &Entry| match &*entry.phase.borrow() {
            Phase::Ready(template) => Some(template.id),
            _ => None,
        };
        self.entries.iter().filter_map(|(hash, entry)| Some((number(entry)?, hash.clone()))).collect()
    }

    /// How many a client fills.
    pub(super) fn count_filling(&self) -> usize {
        self.entries.values().filter(|entry| entry.filling.is_some()).count()
    }

    /// How many databases clients have, and how many they gave back unchanged.
    pub(super) fn counts(&self) -> (usize, usize) {
        let of = |count: fn(&Entry) -> usize| self.entries.values().map(count).sum();
        (of(|entry| entry.taken.len()), of(|entry| entry.unlocked.len()))
    }
}
