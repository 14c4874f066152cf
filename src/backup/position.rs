//! Where something is in the write-ahead log: positions, segments and timelines.
//!
//! What must hold: names are PostgreSQL's own, so that a file can be looked up by hand; and all here is pure data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The size of a segment, in bytes: `initdb`'s default, the only one that tfdev makes.
pub const SEGMENT_BYTES: u64 = 16 << 20;

/// How many segments have the same middle part of their name.
const SEGMENTS_PER_LOG: u64 = (1 << 32) / SEGMENT_BYTES;

/// A position in the log (`pg_lsn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected a position in the log such as 0/3000148".to_owned();
        let (high, low) = text.split_once('/').ok_or_else(wrong)?;
        let part = |text: &str| {
            let is_short = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_short.then(|| u64::from_str_radix(text, 16).ok()).flatten().ok_or_else(wrong)
        };
        Ok(Self(part(high)? << 32 | part(low)?))
    }
}

impl TryFrom<String> for Lsn {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

/// One file of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The timeline.
    pub timeline: u32,
    /// Which one, counted from the log's beginning.
    pub number: u64,
}

impl Segment {
    /// The segment that holds the byte at `lsn`.
    pub fn of(timeline: u32, lsn: Lsn) -> Self {
        Self { timeline, number: lsn.0 / SEGMENT_BYTES }
    }

    /// The segment that holds the last byte before `lsn`, where what ends at `lsn` is.
    pub fn before(timeline: u32, lsn: Lsn) -> Self {
        Self { timeline, number: lsn.0.saturating_sub(1) / SEGMENT_BYTES }
    }

    /// The position behind its last byte.
    pub fn end(self) -> Lsn {
        Lsn((self.number + 1) * SEGMENT_BYTES)
    }

    /// The next one on the same timeline.
    #[must_use]
    pub fn next(self) -> Self {
        Self { number: self.number + 1, ..self }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (log, part) = (self.number / SEGMENTS_PER_LOG, self.number % SEGMENTS_PER_LOG);
        write!(formatter, "{:08X}{log:08X}{part:08X}", self.timeline)
    }
}

impl FromStr for Segment {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_name = text.len() == 24 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        if !is_name {
            return Err(());
        }
        let part = |from: usize| u64::from_str_radix(&text[from..from + 8], 16).map_err(drop);
        let timeline = u32::from_str_radix(&text[..8], 16).map_err(drop)?;
        let (log, part) = (part(8)?, part(16)?);
        if part >= SEGMENTS_PER_LOG { Err(()) } else { Ok(Self { timeline, number: log * SEGMENTS_PER_LOG + part }) }
    }
}

/// Where a timeline came from: its parents with the position at which each was left, oldest first.
pub type History = Vec<(u32, Lsn)>;

/// The timeline whose history file has this name.
pub fn history_file(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".history").filter(|number| number.len() == 8)?;
    u32::from_str_radix(number, 16).ok()
}

/// Reads a history file (`timeline.c`): the parent, the position and a reason on each line.
pub fn parse_history(text: &str) -> Option<History> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_segments_have_postgresqls_names() {
        let lsn: Lsn = "1/2A000060".parse().unwrap();
        assert_eq!(lsn.to_string(), "1/2A000060");
        let segment = Segment::of(3, lsn);
        assert_eq!(segment.to_string(), "00000003000000010000002A");
        assert_eq!("00000003000000010000002A".parse(), Ok(segment));
        assert_eq!(segment.end(), Lsn(0x1_2B00_0000));
        assert_eq!(Segment::before(3, segment.end()), segment);
        assert_eq!(Segment { timeline: 1, number: 255 }.next().to_string(), "000000010000000100000000");
        for wrong in ["0000000300000001000001FF", "00000003000000010000002a", "00000002.history", ""] {
            assert!(wrong.parse::<Segment>().is_err(), "{wrong}");
        }
        for wrong in ["", "1", "1/", "/1", "1/123456789", "x/1", "-1/2"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_history_file_tells_the_parents() {
        let text = "1\t0/3000148\tbefore 2026-01-01\n\n2\t0/5000000\tno recovery target specified\n";
        assert_eq!(parse_history(text), Some(vec![(1, Lsn(0x300_0148)), (2, Lsn(0x500_0000))]));
        assert_eq!(parse_history("nonsense"), None);
        assert_eq!((history_file("0000000A.history"), history_file("A.history")), (Some(10), None));
    }
}
