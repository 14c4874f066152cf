//! Lines into entries.
//!
//! A server writes an entry as a line with its severity, and each further line of a text begins with a tab. What belongs
//! to it (`DETAIL`, `STATEMENT` and the like) follows as lines of their own, with the same prefix.

use std::collections::HashMap;

use serde::Serialize;

use super::prefix::Prefix;

/// How many processes' last statements are kept: more than there can be connections in any profile. What a process that
/// ended said last is no longer asked for.
const LAST_STATEMENTS: usize = 4096;

/// An entry that has grown to so many bytes is cut: nobody reads more of a statement.
const LONGEST_TEXT: usize = 1 << 20;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For developers of the server.
    Debug,
    /// What a client asked for.
    Info,
    /// Something that may help.
    Notice,
    /// What is worth a look.
    Warning,
    /// What is written for those who run the server.
    Log,
    /// A statement failed.
    Error,
    /// A session ended.
    Fatal,
    /// All sessions ended.
    Panic,
}

impl Severity {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "DEBUG" | "DEBUG1" | "DEBUG2" | "DEBUG3" | "DEBUG4" | "DEBUG5" => Self::Debug,
            "INFO" => Self::Info,
            "NOTICE" => Self::Notice,
            "WARNING" => Self::Warning,
            "LOG" => Self::Log,
            "ERROR" => Self::Error,
            "FATAL" => Self::Fatal,
            "PANIC" => Self::Panic,
            _ => return None,
        })
    }
}

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A statement that is about to run (`log_statement`).
    Statement,
    /// How long one took (`log_min_duration_statement`).
    Duration,
    /// A failure.
    Error,
    /// Anything else.
    Message,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// When it was written, as it stands there.
    pub at: Option<String>,
    /// The process that wrote it.
    pub pid: Option<u32>,
    /// The role of the session, if the prefix names it.
    pub user: Option<String>,
    /// The database of the session, if the prefix names it.
    pub database: Option<String>,
    /// What the client called itself, if the prefix names it.
    pub application: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub kind: Kind,
    /// The text.
    pub message: String,
    /// The statement that it is about.
    pub statement: Option<String>,
    /// How long that statement took, in milliseconds.
    pub duration_ms: Option<f64>,
    /// `DETAIL`.
    pub detail: Option<String>,
    /// `HINT`.
    pub hint: Option<String>,
    /// `CONTEXT`.
    pub context: Option<String>,
}

/// Which text of an entry the next lines belong to.
#[derive(Debug, Clone, Copy)]
enum Text {
    Message,
    Statement,
    Detail,
    Hint,
    Context,
    /// One that is not kept.
    Other,
}

/// Makes entries of pieces of a log.
#[derive(Debug)]
pub struct Reader {
    prefix: Prefix,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// The entry that may go on.
    open: Option<(Entry, Text)>,
    /// What each process ran last: a duration is written without the text if the text was written before.
    last: HashMap<u32, String>,
}

impl Reader {
    /// Begins with a log whose lines have this prefix.
    pub fn new(prefix: Prefix) -> Self {
        Self { prefix, line: Vec::new(), open: None, last: HashMap::new() }
    }

    /// Takes the next piece; gives the entries that are whole now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Entry> {
        let mut whole = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            whole.extend(self.take_line(&String::from_utf8_lossy(&line)));
        }
        if self.line.len() < LONGEST_TEXT {
            self.line.extend_from_slice(rest);
        }
        whole
    }

    /// Gives the last entry, because nothing more has come for a while. A line without its end stays.
    pub fn flush(&mut self) -> Option<Entry> {
        if self.line.is_empty() { self.close() } else { None }
    }

    /// Gives the last entry, because nothing more can come.
    pub fn finish(&mut self) -> Vec<Entry> {
        let line = std::mem::take(&mut self.line);
        let before = if line.is_empty() { None } else { self.take_line(&String::from_utf8_lossy(&line)) };
        before.into_iter().chain(self.close()).collect()
    }

    /// Takes a line; gives the entry before it, if that is whole now.
    fn take_line(&mut self, line: &str) -> Option<Entry> {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if let (Some(more), Some((entry, text))) = (line.strip_prefix('\t'), self.open.as_mut()) {
            entry.add(*text, "\n");
            entry.add(*text, more);
            return None;
        }
        let Some((said, word, rest)) = self.split(line) else {
            // Not the server's: nothing goes on over it.
            return self.close();
        };
        let belongs = match word {
            "DETAIL" => Some(Text::Detail),
            "HINT" => Some(Text::Hint),
            "CONTEXT" => Some(Text::Context),
            "STATEMENT" => Some(Text::Statement),
            "QUERY" | "LOCATION" | "BACKTRACE" => Some(Text::Other),
            _ => None,
        };
        if let Some(text) = belongs {
            if let Some((entry, open)) = self.open.as_mut().filter(|(entry, _)| entry.pid == said.pid) {
                *open = text;
                entry.add(text, rest);
            }
            return None;
        }
        let severity = Severity::of(word)?;
        let before = self.close();
        let entry = Entry {
            at: said.at,
            pid: said.pid,
            user: said.user,
            database: said.database,
            application: said.application,
            severity,
            kind: if severity >= Severity::Error { Kind::Error } else { Kind::Message },
            message: rest.to_owned(),
            statement: None,
            duration_ms: None,
            detail: None,
            hint: None,
            context: None,
        };
        self.open = Some((entry, Text::Message));
        before
    }

    /// Splits a line into what its prefix says, the word behind it and the rest; `None` if it is none of the server's.
    fn split<'a>(&self, line: &'a str) -> Option<(super::prefix::Said, &'a str, &'a str)> {
        let mut from = 0;
        while let Some(found) = line[from..].find(":  ") {
            let end = from + found;
            let begin = line[..end].rfind(|one: char| !one.is_ascii_uppercase() && !one.is_ascii_digit());
            let begin = begin.map_or(0, |at| at + line[at..].chars().next().map_or(1, char::len_utf8));
            let word = &line[begin..end];
            if is_word(word)
                && let Some(said) = self.prefix.read(&line[..begin])
            {
                return Some((said, word, &line[end + 3..]));
            }
            from = end + 3;
        }
        None
    }

    /// Gives the open entry, with what its text says.
    fn close(&mut self) -> Option<Entry> {
        let (mut entry, _) = self.open.take()?;
        if entry.severity == Severity::Log {
            self.understand(&mut entry);
        }
        Some(entry)
    }

    /// Takes apart what the server writes of statements: `statement: …`, `execute NAME: …`, `duration: … ms`, and
    /// `duration: … ms  statement: …` with its kin.
    fn understand(&mut self, entry: &mut Entry) {
        if let Some(rest) = entry.message.strip_prefix("duration: ") {
            let Some((number, after)) = rest.split_once(" ms") else { return };
            let Ok(duration) = number.parse::<f64>() else { return };
            entry.kind = Kind::Duration;
            entry.duration_ms = Some(duration);
            let last = entry.pid.and_then(|pid| self.last.get(&pid));
            entry.statement = text_of(after.trim_start()).map(str::to_owned).or_else(|| last.cloned());
            return;
        }
        let Some(text) = text_of(&entry.message) else { return };
        entry.kind = Kind::Statement;
        entry.statement = Some(text.to_owned());
        if let Some(pid) = entry.pid {
            if self.last.len() >= LAST_STATEMENTS && !self.last.contains_key(&pid) {
                self.last.clear();
            }
            self.last.insert(pid, text.to_owned());
        }
    }
}

fn is_word(word: &str) -> bool {
    const OTHERS: [&str; 7] = ["DETAIL", "HINT", "CONTEXT", "STATEMENT", "QUERY", "LOCATION", "BACKTRACE"];
    OTHERS.contains(&word) || Severity::of(word).is_some()
}

/// The statement behind `statement: `, `execute NAME: ` and the like; `None` if it is none of these.
fn text_of(message: &str) -> Option<&str> {
    if let Some(text) = message.strip_prefix("statement: ") {
        return Some(text);
    }
    let steps = ["execute fetch from ", "execute ", "parse ", "bind ", "fastpath function call: "];
    let named = steps.iter().find_map(|step| message.strip_prefix(step))?;
    named.split_once(": ").map(|(_, text)| text)
}

impl Entry {
    fn add(&mut self, text: Text, more: &str) {
        let into = match text {
            Text::Message => &mut self.message,
            Text::Statement => self.statement.get_or_insert_default(),
            Text::Detail => self.detail.get_or_insert_default(),
            Text::Hint => self.hint.get_or_insert_default(),
            Text::Context => self.context.get_or_insert_default(),
            Text::Other => return,
        };
        if into.len() + more.len() <= LONGEST_TEXT {
            into.push_str(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::prefix::DEFAULT;
    use super::*;

    const LOG: &str = "\
PostgreSQL Database directory appears to contain a database; Skipping initialization
2026-11-27 10:00:00.000 UTC [1] LOG:  database system is ready to accept connections
2026-11-27 10:00:01.000 UTC [7] LOG:  statement: SELECT
\t  1,
\t\t'ERROR:  no' AS \"x\"
2026-11-27 10:00:02.000 UTC [8] LOG:  statement: SELECT pg_sleep(2)
2026-11-27 10:00:03.500 UTC [7] LOG:  duration: 1500.250 ms
2026-11-27 10:00:04.000 UTC [9] LOG:  duration: 2000.000 ms  execute sqlx_s_1: SELECT * FROM tasks WHERE title = $1
2026-11-27 10:00:04.000 UTC [9] DETAIL:  parameters: $1 = 'a
\tb'
2026-11-27 10:00:05.000 UTC [7] ERROR:  relation \"nope\" does not exist at character 15
2026-11-27 10:00:05.000 UTC [7] STATEMENT:  SELECT * FROM
\tnope
2026-11-27 10:00:06.000 UTC [1] WARNING:  something
\t
\tmore
";

    fn entries(pieces: impl IntoIterator<Item = Vec<u8>>) -> Vec<Entry> {
        let mut reader = Reader::new(Prefix::parse(DEFAULT));
        let mut all: Vec<_> = pieces.into_iter().flat_map(|piece| reader.push(&piece)).collect();
        all.extend(reader.finish());
        all
    }

    #[test]
    fn entries_are_put_together() {
        let all = entries([LOG.as_bytes().to_vec()]);
        let kinds: Vec<_> = all.iter().map(|entry| (entry.pid.unwrap(), entry.kind)).collect();
        let expected = [
            (1, Kind::Message),
            (7, Kind::Statement),
            (8, Kind::Statement),
            (7, Kind::Duration),
            (9, Kind::Duration),
            (7, Kind::Error),
            (1, Kind::Message),
        ];
        assert_eq!(kinds, expected);
        let statement = "SELECT\n  1,\n\t'ERROR:  no' AS \"x\"";
        assert_eq!(all[1].statement.as_deref(), Some(statement));
        // The duration belongs to what the same process ran last.
        assert_eq!((all[3].duration_ms, all[3].statement.as_deref()), (Some(1500.25), Some(statement)));
        assert_eq!(all[4].statement.as_deref(), Some("SELECT * FROM tasks WHERE title = $1"));
        assert_eq!(all[4].detail.as_deref(), Some("parameters: $1 = 'a\nb'"));
        assert_eq!(all[5].statement.as_deref(), Some("SELECT * FROM\nnope"));
        assert_eq!(all[6].message, "something\n\nmore");
    }

    #[test]
    fn what_is_quiet_counts_as_whole_but_half_a_line_does_not() {
        let mut reader = Reader::new(Prefix::parse(DEFAULT));
        assert!(reader.push(b"2026-11-27 10:00:00.000 UTC [1] LOG:  one\n2026-11").is_empty());
        assert_eq!(reader.flush(), None);
        assert_eq!(reader.push(b"-27 10:00:00.000 UTC [1] LOG:  two\n").len(), 1);
        assert_eq!(reader.flush().unwrap().message, "two");
        assert_eq!(reader.flush(), None);
    }

    proptest! {
        #[test]
        fn the_pieces_make_no_difference(cuts in proptest::collection::vec(1usize..40, 0..80)) {
            let mut rest = LOG.as_bytes();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece.to_vec());
                rest = after;
            }
            pieces.push(rest.to_vec());
            prop_assert_eq!(entries(pieces), entries([LOG.as_bytes().to_vec()]));
        }

        #[test]
        fn no_text_makes_the_reader_stop(text in "(?s).{0,300}", prefix in ".{0,20}") {
            let mut reader = Reader::new(Prefix::parse(&prefix));
            reader.push(text.as_bytes());
            reader.finish();
        }
    }
}
