//! What is slow, what failed, what was run.

use std::collections::HashMap;

use serde::Serialize;

use super::entry::{Entry, Kind, Severity};
use super::statement::normalised;

/// Slow statements, those that took the most time together first.
#[derive(Debug, Default, Serialize)]
pub struct Slow {
    /// The groups.
    pub groups: Vec<SlowGroup>,
    #[serde(skip)]
    by_text: HashMap<String, usize>,
}

/// Slow statements that differ in values only.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlowGroup {
    /// Their text, with `?` for each value.
    pub statement: String,
    /// How many there were.
    pub count: u64,
    /// How long all took together, in milliseconds.
    pub total_ms: f64,
    /// How long one took on average, in milliseconds.
    pub mean_ms: f64,
    /// How long the slowest took, in milliseconds.
    pub max_ms: f64,
    /// The slowest one, as it was run.
    pub slowest: String,
    /// When the last one was logged.
    pub last_at: Option<String>,
}

impl Slow {
    /// Takes an entry, if it is about a slow statement.
    pub fn add(&mut self, entry: &Entry) {
        let (Some(duration), Some(statement)) = (entry.duration_ms, &entry.statement) else { return };
        let text = normalised(statement);
        let index = *self.by_text.entry(text.to_lowercase()).or_insert(self.groups.len());
        if index == self.groups.len() {
            self.groups.push(SlowGroup {
                statement: text,
                count: 0,
                total_ms: 0.0,
                mean_ms: 0.0,
                max_ms: 0.0,
                slowest: String::new(),
                last_at: None,
            });
        }
        let group = &mut self.groups[index];
        group.count += 1;
        group.total_ms += duration;
        #[expect(clippy::cast_precision_loss, reason = "no log has 2^52 entries")]
        let count = group.count as f64;
        group.mean_ms = group.total_ms / count;
        if duration > group.max_ms {
            group.max_ms = duration;
            group.slowest.clone_from(statement);
        }
        group.last_at.clone_from(&entry.at);
    }

    /// Puts the groups into their order.
    #[must_use]
    pub fn ranked(mut self) -> Self {
        self.by_text.clear();
        self.groups.sort_by(|one, other| other.total_ms.total_cmp(&one.total_ms));
        self
    }
}

/// Errors, the most frequent first.
#[derive(Debug, Default, Serialize)]
pub struct Errors {
    /// The groups.
    pub groups: Vec<Failure>,
    #[serde(skip)]
    by_text: HashMap<String, usize>,
}

/// Errors that say the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    /// How bad they are.
    pub severity: Severity,
    /// What the last one said.
    pub message: String,
    /// How many there were.
    pub count: u64,
    /// When the last one was logged.
    pub last_at: Option<String>,
    /// The last one's statement.
    pub statement: Option<String>,
    /// The last one's detail.
    pub detail: Option<String>,
    /// The last one's hint.
    pub hint: Option<String>,
}

impl Errors {
    /// Takes an entry, if it is an error.
    pub fn add(&mut self, entry: &Entry) {
        if entry.kind != Kind::Error {
            return;
        }
        let count = entry.statement.as_ref().map_or_else(String::new, |statement| normalised(statement).to_lowercase());
        let key = format!("{:?} {} {count}", entry.severity, message_form(&entry.message));
        let index = *self.by_text.entry(key).or_insert(self.groups.len());
        let of = |count| Failure {
            severity: entry.severity,
            message: entry.message.clone(),
            count,
            last_at: entry.at.clone(),
            statement: entry.statement.clone(),
            detail: entry.detail.clone(),
            hint: entry.hint.clone(),
        };
        match self.groups.get_mut(index) {
            Some(group) => *group = of(group.count + 1),
            None => self.groups.push(of(1)),
        }
    }

    /// Puts the groups into their order.
    #[must_use]
    pub fn ranked(mut self) -> Self {
        self.by_text.clear();
        self.groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        self
    }
}

/// A message without the numbers in it.
fn message_form(message: &str) -> String {
    message.split(|one: char| one.is_ascii_digit()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("#")
}

/// What was run, the most frequent first.
#[derive(Debug, Default, Serialize)]
pub struct Statements {
    /// How many statements were logged.
    pub total: u64,
    /// How many of each kind: `SELECT`, `INSERT` and so on.
    pub commands: std::collections::BTreeMap<String, u64>,
    /// The groups.
    pub groups: Vec<StatementGroup>,
    #[serde(skip)]
    by_text: HashMap<String, usize>,
}

/// Statements that differ in values only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatementGroup {
    /// Their text, with `?` for each value.
    pub statement: String,
    /// How many there were.
    pub count: u64,
    /// When the last one was logged.
    pub last_at: Option<String>,
}

impl Statements {
    /// Takes an entry, if it is a statement.
    pub fn add(&mut self, entry: &Entry) {
        // A slow one whose text was not written before, as with `log_statement = ddl`, counts here, too.
        let is_text_of_slow = entry.kind == Kind::Duration && entry.message.contains(" ms  ");
        let Some(statement) = entry.statement.as_ref().filter(|_| entry.kind == Kind::Statement || is_text_of_slow)
        else {
            return;
        };
        let text = normalised(statement);
        let command = text.split(|one: char| !one.is_ascii_alphabetic()).find(|word| !word.is_empty());
        self.total += 1;
        *self.commands.entry(command.unwrap_or("?").to_uppercase()).or_default() += 1;
        let index = *self.by_text.entry(text.to_lowercase()).or_insert(self.groups.len());
        if index == self.groups.len() {
            self.groups.push(StatementGroup { statement: text, count: 0, last_at: None });
        }
        self.groups[index].count += 1;
        self.groups[index].last_at.clone_from(&entry.at);
    }

    /// Puts the groups into their order.
    #[must_use]
    pub fn ranked(mut self) -> Self {
        self.by_text.clear();
        self.groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Prefix, Reader};
    use super::*;

    fn entries(log: &str) -> Vec<Entry> {
        let mut reader = Reader::new(Prefix::parse("[%p] "));
        let mut all = reader.push(log.as_bytes());
        all.extend(reader.finish());
        all
    }

    #[test]
    fn slow_statements_are_ranked_by_all_their_time() {
        let mut slow = Slow::default();
        let log = "[1] LOG:  duration: 1200.0 ms  statement: SELECT pg_sleep(1.2)\n\
                   [2] LOG:  statement: select  PG_SLEEP(2)\n[2] LOG:  duration: 2000.0 ms\n\
                   [1] LOG:  duration: 3000.0 ms  statement: VACUUM\n";
        for entry in &entries(log) {
            slow.add(entry);
        }
        let slow = slow.ranked();
        let told: Vec<_> =
            slow.groups.iter().map(|group| (group.statement.as_str(), group.count, group.total_ms)).collect();
        assert_eq!(told, [("SELECT pg_sleep(?)", 2, 3200.0), ("VACUUM", 1, 3000.0)]);
        assert_eq!((slow.groups[0].max_ms, slow.groups[0].slowest.as_str()), (2000.0, "select  PG_SLEEP(2)"));
    }

    #[test]
    fn errors_and_statements_are_counted() {
        let all = entries(
            "[1] LOG:  statement: SELECT 1/0\n[1] ERROR:  division by zero\n[1] STATEMENT:  SELECT 1/0\n\
             [1] LOG:  statement: SELECT 2/0\n[1] ERROR:  division by zero\n[1] STATEMENT:  SELECT 2/0\n\
             [1] FATAL:  out\n[3] LOG:  duration: 1001.5 ms  execute a: DELETE FROM t\n",
        );
        let (mut errors, mut statements) = (Errors::default(), Statements::default());
        for entry in &all {
            errors.add(entry);
            statements.add(entry);
        }
        let errors = errors.ranked();
        assert_eq!((errors.groups.len(), errors.groups[0].count), (2, 2));
        assert_eq!(errors.groups[0].statement.as_deref(), Some("SELECT 2/0"));
        let statements = statements.ranked();
        assert_eq!((statements.total, statements.groups[0].count), (3, 2));
        assert_eq!(statements.commands["DELETE"], 1);
    }
}
