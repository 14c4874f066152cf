//! From a wish to a recovery: which base, which files of the log, and where to stop. All of it is pure data.
//!
//! What must hold: what is planned can be carried out with what the store has: every file from the base's begin to the
//! target is there once; and what cannot is refused with what could be had instead.

use jiff::Timestamp;

use super::catalogue::{Catalogue, LogFile};
use super::manifest::{Backup, Kind, Mark, Physical};
use super::position::{Lsn, SEGMENT_BYTES, Segment};
use crate::error::{Error, ErrorKind, Result};

/// How far clocks of this machine and the server may differ: the log of so much longer is taken.
const CLOCKS_DIFFER: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// The state that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All that is in the store.
    Latest,
    /// A backup by itself.
    Backup(String),
    /// What was committed until then.
    Time(Timestamp),
    /// What is in the log before that position.
    Lsn(Lsn),
    /// A point with a name.
    Name(String),
}

/// Where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// At the end of the log.
    End,
    /// Before the first transaction that was committed later.
    Time(Timestamp),
    /// Before what is at that position.
    Lsn(Lsn),
    /// At the point of that name.
    Name(String),
}

/// A recovery that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What to begin with.
    pub base: Backup,
    /// Where to stop.
    pub stop: Stop,
    /// The timeline to follow.
    pub timeline: u32,
    /// The files of the log, each with its name.
    pub log: Vec<(String, LogFile)>,
    /// Where the log ends because a part of it is missing. Whether the time that is wanted is before that, only recovery can
    /// tell; every other target behind it is refused.
    pub gap: Option<Gap>,
}

/// A part of the log that is missing in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first segment that is not there.
    pub first: Segment,
    /// From when on every second can be recovered again: the end of the first base that was begun behind it.
    pub until: Option<Timestamp>,
}

impl Gap {
    fn at(first: Segment, bases: &[(&Backup, &Physical)]) -> Self {
        Self { first, until: behind(first, bases).map(|(backup, _)| backup.manifest.finished) }
    }

    /// Why nothing behind it can be recovered from what is before it, with what can be.
    pub fn refused(&self) -> Error {
        let first = self.first;
        let before = Lsn(first.number * SEGMENT_BYTES);
        let behind = self.until.map_or_else(String::new, |until| format!(", and from {until} on"));
        let message = format!(
            "the segment {first} of the log is missing in the store, which has it up to the position {before}{behind}"
        );
        Error::new(ErrorKind::Refused, message).hint(format!(
            "what is before it can be recovered: `--to-lsn {before}`, or an earlier time; or a backup that was made later"
        ))
    }
}

/// The part of the log that can be recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Range {
    /// The end of the oldest base.
    pub from: Timestamp,
    /// Everything until then is in the store.
    pub until: Timestamp,
}

/// A time within the range that cannot be recovered, because a part of the log is missing in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Missing {
    /// The first segment that is not there.
    pub segment: String,
    /// When the last one before it came into the store; what was committed earlier is in that.
    pub from: Timestamp,
    /// The end of the first base that was begun behind it; `None` if there is none yet.
    pub until: Option<Timestamp>,
}

impl Plan {
    /// Plans the recovery of `target`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is nothing to recover from; [`ErrorKind::Refused`] if the target is not covered.
    pub fn of(catalogue: &Catalogue, target: &Target) -> Result<Self> {
        let bases = bases(catalogue);
        if bases.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "there is no physical backup to recover from")
                .hint("`tfdev backup now` makes one; a logical one is restored by its name: `tfdev backup list`"));
        }
        let timeline = newest_timeline(catalogue, bases[bases.len() - 1].1.timeline);
        let (base, stop, end) = choose(catalogue, &bases, target)?;
        let physical = base.manifest.physical.as_ref().expect("only physical ones were looked at");
        let timeline = followed(catalogue, physical, timeline);
        let (log, missing) = files(catalogue, physical, timeline, end)?;
        let gap = missing.map(|first| Gap::at(first, &bases));
        match gap {
            // A base is no base before its own end.
            Some(gap) if !matches!(stop, Stop::Time(_)) || gap.first <= Segment::before(timeline, physical.stop) => {
                Err(gap.refused())
            }
            gap => Ok(Self { base: base.clone(), stop, timeline, log, gap }),
        }
    }

    /// How many bytes of the log there are, as PostgreSQL has them.
    pub fn log_bytes(&self) -> u64 {
        self.log.len() as u64 * SEGMENT_BYTES
    }
}

/// The time range that can be recovered; `None` if there is no base.
pub fn range(catalogue: &Catalogue) -> Option<Range> {
    let first = catalogue.of_kind(Kind::Physical).next()?;
    let last = catalogue.of_kind(Kind::Physical).next_back()?;
    let from = first.manifest.finished;
    let until = catalogue.coverage.as_ref().map_or(last.manifest.finished, |coverage| coverage.until);
    Some(Range { from, until: until.max(last.manifest.finished) })
}

/// What of the range cannot be recovered, oldest first.
pub fn missing(catalogue: &Catalogue) -> Vec<Missing> {
    let bases = bases(catalogue);
    let mut found = Vec::new();
    let mut next = bases.first();
    while let Some((backup, base)) = next.copied() {
        let timeline = followed(catalogue, base, newest_timeline(catalogue, base.timeline));
        let Ok((log, Some(first))) = files(catalogue, base, timeline, None) else { break };
        let Gap { until, .. } = Gap::at(first, &bases);
        next = behind(first, &bases);
        // The last segments may still be on their way.
        if next.is_some() || last_position(catalogue) > first.end() {
            let from = log.last().map_or(backup.manifest.finished, |(_, file)| file.at);
            found.push(Missing { segment: first.to_string(), from, until });
        }
    }
    found
}

/// The first base that was begun behind a segment.
fn behind<'b, 'a>(segment: Segment, bases: &'b [(&'a Backup, &'a Physical)]) -> Option<&'b (&'a Backup, &'a Physical)> {
    bases.iter().find(|(_, physical)| physical.start >= segment.end())
}

fn bases(catalogue: &Catalogue) -> Vec<(&Backup, &Physical)> {
    let physical = catalogue.of_kind(Kind::Physical);
    physical.filter_map(|backup| Some((backup, backup.manifest.physical.as_ref()?))).collect()
}

/// The base, where to stop, and the position up to which the log is needed (`None`: all of it).
fn choose<'a>(
    catalogue: &Catalogue,
    bases: &[(&'a Backup, &'a Physical)],
    target: &Target,
) -> Result<(&'a Backup, Stop, Option<Lsn>)> {
    let newest = |fits: &dyn Fn(&Backup, &Physical) -> bool| {
        bases.iter().rev().find(|(backup, physical)| fits(backup, physical)).map(|(backup, _)| *backup)
    };
    match target {
        Target::Latest => Ok((bases[bases.len() - 1].0, Stop::End, None)),
        Target::Backup(id) => {
            let wanted = catalogue.backup(id)?;
            let (backup, physical) = bases
                .iter()
                .find(|(backup, _)| backup.manifest.id == wanted.manifest.id)
                .ok_or_else(|| Error::new(ErrorKind::Refused, format!("the backup `{id}` is a logical one")))?;
            Ok(match &physical.point {
                Some((name, lsn)) => (backup, Stop::Name(name.clone()), Some(*lsn)),
                None => (backup, Stop::Lsn(physical.stop), Some(physical.stop)),
            })
        }
        Target::Time(time) => {
            let range = range(catalogue).expect("there is a base");
            if !(range.from..=range.until).contains(time) {
                return Err(outside(&format!("the time {time}"), range));
            }
            let base = newest(&|backup, _| backup.manifest.finished <= *time)
                .ok_or_else(|| outside(&format!("the time {time}"), range))?;
            // What was committed until then was written before a base that was begun later.
            let later = bases.iter().find(|(backup, _)| backup.manifest.created > *time + CLOCKS_DIFFER);
            Ok((base, Stop::Time(*time), later.map(|(_, physical)| physical.stop)))
        }
        Target::Lsn(lsn) => {
            let end = last_position(catalogue);
            let base = newest(&|_, physical| physical.stop <= *lsn);
            let base = base.filter(|_| *lsn <= end).ok_or_else(|| {
                let first = bases[0].1.stop;
                let message = format!("the position {lsn} is not covered: the backups reach from {first} to {end}");
                Error::new(ErrorKind::Refused, message)
            })?;
            Ok((base, Stop::Lsn(*lsn), Some(*lsn)))
        }
        Target::Name(name) => {
            let mark = find_mark(catalogue, name)?;
            let base = newest(&|_, physical| physical.stop <= mark.lsn).ok_or_else(|| {
                let range = range(catalogue).expect("there is a base");
                outside(&format!("the point `{name}`, which was set at {},", mark.at), range)
            })?;
            Ok((base, Stop::Name(name.clone()), Some(mark.lsn)))
        }
    }
}

fn find_mark<'a>(catalogue: &'a Catalogue, name: &str) -> Result<&'a Mark> {
    catalogue.marks.get(name).ok_or_else(|| {
        let guess = crate::config::nearest(name, catalogue.marks.keys().map(String::as_str));
        let guess = guess.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        Error::new(ErrorKind::NotFound, format!("there is no point `{name}`{guess}"))
            .hint("`tfdev backup list` shows them; `tfdev backup mark NAME` sets one")
    })
}

fn outside(what: &str, range: Range) -> Error {
    let message = format!("{what} is not covered: the backups reach from {} to {}", range.from, range.until);
    Error::new(ErrorKind::Refused, message)
        .hint("`tfdev backup restore --as NAME` without a time recovers all that is in the store")
}

/// The end of the last segment in the store.
fn last_position(catalogue: &Catalogue) -> Lsn {
    catalogue.log.segments.keys().map(|segment| segment.end()).max().unwrap_or(Lsn(0))
}

/// The newest timeline that comes from `timeline`.
fn newest_timeline(catalogue: &Catalogue, timeline: u32) -> u32 {
    let descends = |(_, (_, history)): &(&u32, &(LogFile, super::position::History))| {
        history.iter().any(|(of, _)| *of == timeline)
    };
    catalogue.log.histories.iter().filter(descends).map(|(number, _)| *number).max().unwrap_or(timeline)
}

/// Whether `timeline` is that of the base, or left it behind the base's end.
fn leads_to(catalogue: &Catalogue, base: &Physical, timeline: u32) -> bool {
    timeline == base.timeline
        || catalogue.log.histories.get(&timeline).is_some_and(|(_, history)| {
            history.iter().any(|(parent, left)| *parent == base.timeline && *left >= base.stop)
        })
}

/// The timeline that recovery from the base follows: `newest` if that comes from it, or else its own.
fn followed(catalogue: &Catalogue, base: &Physical, newest: u32) -> u32 {
    if leads_to(catalogue, base, newest) { newest } else { base.timeline }
}

/// The files of the log, each with its name, and the first segment that is missing, before which they end.
type Files = (Vec<(String, LogFile)>, Option<Segment>);

/// The files of the log from the base's begin to `end`, or to the last one.
fn files(catalogue: &Catalogue, base: &Physical, timeline: u32, end: Option<Lsn>) -> Result<Files> {
    let log = &catalogue.log;
    let history = log.histories.get(&timeline);
    // Each timeline on the way, newest first, with the segment in which it begins.
    let mut way: Vec<(u32, u64)> = Vec::new();
    let mut begin = 0;
    for (parent, left) in history.map(|(_, history)| history.as_slice()).unwrap_or_default() {
        way.insert(0, (*parent, begin));
        begin = left.0 / SEGMENT_BYTES;
    }
    way.insert(0, (timeline, begin));
    let mut files: Vec<(String, LogFile)> =
        history.map(|(file, _)| (format!("{timeline:08X}.history"), file.clone())).into_iter().collect();
    let first = Segment::of(base.timeline, base.start).number;
    let needed = Segment::before(base.timeline, end.unwrap_or(base.stop).max(base.stop)).number;
    let last_there = log
        .segments
        .keys()
        .filter(|segment| way.iter().any(|(of, begin)| *of == segment.timeline && segment.number >= *begin))
        .map(|segment| segment.number)
        .max()
        .unwrap_or_default();
    // One more, if it is there: a record may go on behind the position.
    let last = match end {
        Some(_) => (needed + 1).min(last_there.max(needed)),
        None => last_there.max(needed),
    };
    for number in first..=last {
        let found = way.iter().filter(|(_, begin)| number >= *begin).find_map(|(timeline, _)| {
            let segment = Segment { timeline: *timeline, number };
            Some((segment, log.segments.get(&segment)?.as_slice()))
        });
        match found {
            Some((segment, [file])) => files.push((segment.to_string(), file.clone())),
            Some((segment, several)) => {
                return Err(Error::failed(format!(
                    "the store has {} contents for the segment {segment} of the log, which must not be",
                    several.len()
                ))
                .hint("two servers wrote to one place; make a new backup with `tfdev backup now --only physical`"));
            }
            None if number > needed && end.is_some() => break,
            None => return Ok((files, Some(Segment { timeline, number }))),
        }
    }
    Ok((files, None))
}
