//! Cuts a SQL file into statements, so that each can be run and named with its line.
//!
//! It follows psql's rules: quotes, dollar quotes, nested comments, parentheses and the bodies of SQL functions
//! (`BEGIN ATOMIC … END`) keep a semicolon from ending a statement. `COPY … FROM STDIN` takes the lines after it up to `\.`,
//! as pg_dump writes them.
//!
//! What must hold: a script cannot end the transaction it runs in, so statements that would are refused here.

use std::ops::Range;

use crate::error::{Error, Result};

/// A SQL file of a data set.
#[derive(Debug, Clone)]
pub(super) struct Script {
    file: String,
    text: String,
    statements: Vec<Statement>,
    /// Tables that `-- tfdev: keep …` lines name, each with its line.
    kept_tables: Vec<(usize, String)>,
}

/// A statement and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// Its bytes in the script, with neither leading space nor semicolon.
    range: Range<usize>,
    /// The line on which it begins, counted from 1.
    pub(super) line: usize,
    /// The bytes in the script of the lines that a `COPY … FROM STDIN` takes.
    copy_data: Option<Range<usize>>,
}

impl Script {
    /// Its bytes.
    pub(super) fn length(&self) -> u64 {
        self.text.len() as u64
    }

    /// Cuts `text` into statements. `file` is the file's name in errors.
    pub(super) fn parse(file: String, text: String) -> Result<Self> {
        let mut scanner = Scanner { file: &file, text: &text, position: 0, counted: (0, 1), kept_tables: Vec::new() };
        let mut statements = Vec::new();
        while let Some(statement) = scanner.next_statement()? {
            statements.push(statement);
        }
        let kept_tables = scanner.kept_tables;
        Ok(Self { file, text, statements, kept_tables })
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// The tables whose rows come with the migrations (`-- tfdev: keep countries, currencies`), each with its line.
    pub(super) fn kept_tables(&self) -> &[(usize, String)] {
        &self.kept_tables
    }

    /// The text of `statement`.
    pub(super) fn sql(&self, statement: &Statement) -> &str {
        &self.text[statement.range.clone()]
    }

    /// The lines that `statement` takes from the script, if it is a `COPY … FROM STDIN`.
    pub(super) fn copy_data(&self, statement: &Statement) -> Option<&str> {
        statement.copy_data.clone().map(|range| &self.text[range])
    }
}

/// Makes the error for a line of a script.
pub(super) fn line_error(file: &str, line: usize, message: impl std::fmt::Display) -> Error {
    Error::bad_input(format!("`{file}:{line}`: {message}"))
}

struct Scanner<'a> {
    file: &'a str,
    text: &'a str,
    position: usize,
    /// A byte up to which lines are counted, and its line; without it a long script would be counted over and over.
    counted: (usize, usize),
    kept_tables: Vec<(usize, String)>,
}

/// What is known of the statement that is being read.
#[derive(Default)]
struct Reading {
    start: Option<usize>,
    parentheses: usize,
    /// Depth of `BEGIN ATOMIC` and `CASE` in the body of a SQL function.
    blocks: usize,
    /// The first words outside parentheses, in capitals.
    words: Vec<String>,
    previous_word: String,
    copies_from_stdin: bool,
}

impl Scanner<'_> {
    fn next_statement(&mut self) -> Result<Option<Statement>> {
        let mut reading = Reading::default();
        while let Some(byte) = self.peek(0) {
            let start = self.position;
            match byte {
                b'-' if self.peek(1) == Some(b'-') => {
                    self.line_comment();
                    continue;
                }
                b'/' if self.peek(1) == Some(b'*') => {
                    self.block_comment()?;
                    continue;
                }
                b';' if reading.parentheses == 0 && reading.blocks == 0 => {
                    self.position += 1;
                    if let Some(statement) = self.finish(&mut reading, start)? {
                        return Ok(Some(statement));
                    }
                    continue;
                }
                _ if byte.is_ascii_whitespace() => {
                    self.position += 1;
                    continue;
                }
                b'\\' => {
                    let command = self.text[start..].split_whitespace().next().unwrap_or("\\");
                    let message = format!("`{command}` is a command of psql, which does not run here");
                    return Err(line_error(self.file, self.line_of(start), message)
                        .hint("write plain SQL; other files of the folder run by themselves, in the order of names"));
                }
                b'\'' => self.quoted(b'\'', is_escape_string(&self.text[..start]))?,
                b'"' => self.quoted(b'"', false)?,
                b'$' => self.dollar_quoted()?,
                b'(' => {
                    reading.parentheses += 1;
                    self.position += 1;
                }
                b')' => {
                    reading.parentheses = reading.parentheses.saturating_sub(1);
                    self.position += 1;
                }
                _ if is_word_start(byte) => {
                    let word = self.word();
                    if reading.parentheses == 0 {
                        reading.take_word(word);
                    }
                }
                _ => self.position += 1,
            }
            reading.start.get_or_insert(start);
        }
        let end = self.text.trim_end().len();
        self.finish(&mut reading, end)
    }

    /// Ends the statement that is being read at byte `end`; there is none if only comments were read.
    fn finish(&mut self, reading: &mut Reading, end: usize) -> Result<Option<Statement>> {
        let reading = std::mem::take(reading);
        let Some(start) = reading.start else { return Ok(None) };
        let line = self.line_of(start);
        if let Some(command) = reading.transaction_command() {
            let message = format!("`{command}` would break up the transaction in which the whole data set runs");
            return Err(line_error(self.file, line, message)
                .hint("remove it: all files of a data set run in one transaction, all or nothing"));
        }
        let copy_data = reading.copies_from_stdin.then(|| self.take_copy_data());
        Ok(Some(Statement { range: start..end.max(start), line, copy_data }))
    }

    /// Takes the lines after a `COPY … FROM STDIN` up to `\.` or the end of the file.
    fn take_copy_data(&mut self) -> Range<usize> {
        let rest = &self.text[self.position..];
        let start = self.position + rest.find('\n').map_or(rest.len(), |newline| newline + 1);
        let mut end = start;
        for line in self.text[start..].split_inclusive('\n') {
            if line.trim_end() == "\\." {
                self.position = end + line.len();
                return start..end;
            }
            end += line.len();
        }
        self.position = end;
        start..end
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.position + ahead).copied()
    }

    fn line_of(&mut self, position: usize) -> usize {
        if position < self.counted.0 {
            self.counted = (0, 1);
        }
        let (from, line) = self.counted;
        let passed = self.text[from..position].matches('\n').count();
        self.counted = (position, line + passed);
        line + passed
    }

    fn line_comment(&mut self) {
        let rest = &self.text[self.position..];
        let comment = rest.split('\n').next().unwrap_or(rest);
        if let Some(tables) = comment.strip_prefix("-- tfdev: keep ") {
            let line = self.line_of(self.position);
            let names = tables.split(',').map(str::trim).filter(|name| !name.is_empty());
            self.kept_tables.extend(names.map(|name| (line, name.to_owned())));
        }
        self.position += comment.len();
    }

    fn block_comment(&mut self) -> Result<()> {
        let start = self.position;
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.position += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.position += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                (Some(_), _) => self.position += 1,
                (None, _) => return Err(self.unterminated("comment", start)),
            }
        }
    }

    /// Passes a text in quotes. Two quotes stand for one; with `escapes` a backslash takes the next character along.
    fn quoted(&mut self, quote: u8, escapes: bool) -> Result<()> {
        let start = self.position;
        self.position += 1;
        while let Some(byte) = self.peek(0) {
            self.position += 1;
            if byte == b'\\' && escapes {
                self.position += 1;
            } else if byte == quote {
                if self.peek(0) != Some(quote) {
                    return Ok(());
                }
                self.position += 1;
            }
        }
        Err(self.unterminated("quoted text", start))
    }

    /// Passes `$tag$ … $tag$`; a lone dollar sign, as of a parameter, is passed alone.
    fn dollar_quoted(&mut self) -> Result<()> {
        let start = self.position;
        let rest = &self.text[start..];
        let tag_end = rest[1..].find(|letter: char| !(letter.is_alphanumeric() || letter == '_')).map(|end| end + 1);
        let is_tag = tag_end.is_some_and(|end| {
            rest[end..].starts_with('$') && !rest[1..].starts_with(|first: char| first.is_ascii_digit())
        });
        let Some(tag_end) = tag_end.filter(|_| is_tag) else {
            self.position += 1;
            return Ok(());
        };
        let tag = &rest[..=tag_end];
        let Some(length) = rest[tag.len()..].find(tag) else {
            return Err(self.unterminated("dollar-quoted text", start));
        };
        self.position += tag.len() + length + tag.len();
        Ok(())
    }

    /// Passes a word and returns it in capitals.
    fn word(&mut self) -> String {
        let start = self.position;
        while self.peek(0).is_some_and(|byte| is_word_start(byte) || byte.is_ascii_digit() || byte == b'$') {
            self.position += 1;
        }
        self.text[start..self.position].to_ascii_uppercase()
    }

    fn unterminated(&mut self, what: &str, start: usize) -> Error {
        line_error(self.file, self.line_of(start), format!("the {what} that begins here does not end"))
    }
}

impl Reading {
    /// How many words at the start of a statement can decide what kind of statement it is.
    const FIRST_WORDS: usize = 4;

    fn take_word(&mut self, word: String) {
        if self.words.len() < Self::FIRST_WORDS {
            self.words.push(word.clone());
        }
        match word.as_str() {
            "ATOMIC" if self.previous_word == "BEGIN" && self.words[0] == "CREATE" => self.blocks += 1,
            "CASE" if self.blocks > 0 => self.blocks += 1,
            "END" => self.blocks = self.blocks.saturating_sub(1),
            "STDIN" if self.previous_word == "FROM" && self.words[0] == "COPY" => self.copies_from_stdin = true,
            _ => {}
        }
        self.previous_word = word;
    }

    /// The words of a statement that begins or ends a transaction.
    fn transaction_command(&self) -> Option<String> {
        let first = self.words.first()?.as_str();
        let second = self.words.get(1).map(String::as_str);
        match (first, second) {
            ("ROLLBACK", _) if self.words.iter().any(|word| word == "TO") => None,
            ("BEGIN" | "COMMIT" | "END" | "ROLLBACK" | "ABORT", _) => Some(first.to_owned()),
            ("START" | "PREPARE", Some("TRANSACTION")) => Some(format!("{first} TRANSACTION")),
            _ => None,
        }
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || !byte.is_ascii()
}

/// Whether a quote after `before` opens a text in which backslashes escape: `E'…'`.
fn is_escape_string(before: &str) -> bool {
    let mut letters = before.bytes().rev();
    let is_e = letters.next().is_some_and(|byte| byte.eq_ignore_ascii_case(&b'e'));
    is_e && !letters.next().is_some_and(|byte| is_word_start(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(text: &str) -> Vec<(usize, String)> {
        let script = Script::parse("x.sql".to_owned(), text.to_owned()).unwrap();
        script.statements().iter().map(|statement| (statement.line, script.sql(statement).to_owned())).collect()
    }

    fn error(text: &str) -> String {
        Script::parse("x.sql".to_owned(), text.to_owned()).unwrap_err().to_string()
    }

    #[test]
    fn statements_carry_the_line_on_which_they_begin() {
        let text = "-- first\n\nSELECT 1;\n/* a /* nested */ ; */ SELECT\n 2 ;;\nSELECT 3";
        let expected = [(3, "SELECT 1"), (4, "SELECT\n 2 "), (6, "SELECT 3")];
        assert_eq!(statements(text), expected.map(|(line, sql)| (line, sql.to_owned())));
        assert!(statements(" \n-- nothing\n").is_empty());
    }

    #[test]
    fn semicolons_inside_other_things_end_nothing() {
        for text in [
            "SELECT 'a;''b;'",
            "SELECT E'a\\';b'",
            "SELECT 'a\\'",
            "SELECT \"a;b\"",
            "SELECT $$a;b$$, $tag$ ; $$ ; $tag$, $1",
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
            "SELECT 'größe;', größe$1 FROM t",
        ] {
            assert_eq!(statements(&format!("{text};")), [(1, text.to_owned())]);
        }
    }

    #[test]
    fn copy_takes_its_lines() {
        let text = "COPY t (a, b) FROM stdin;\n1\t;x\n2\t\\N\n\\.\nSELECT 1;";
        let script = Script::parse("x.sql".to_owned(), text.to_owned()).unwrap();
        let data: Vec<Option<&str>> = script.statements().iter().map(|statement| script.copy_data(statement)).collect();
        assert_eq!(data, [Some("1\t;x\n2\t\\N\n"), None]);
        assert_eq!(script.statements()[1].line, 5);
    }

    #[test]
    fn a_script_cannot_end_its_transaction() {
        for command in ["BEGIN", "commit", "END", "ROLLBACK", "abort", "START TRANSACTION", "PREPARE TRANSACTION 'x'"] {
            assert!(error(&format!("SELECT 1;\n{command};")).starts_with("`x.sql:2`: `"), "{command}");
        }
        assert_eq!(
            statements("SAVEPOINT a; ROLLBACK TO a; ROLLBACK WORK TO SAVEPOINT a; PREPARE p AS SELECT 1").len(),
            4
        );
    }

    #[test]
    fn what_does_not_end_or_is_not_sql_is_named_with_its_line() {
        assert_eq!(error("SELECT 1;\nSELECT 'a"), "`x.sql:2`: the quoted text that begins here does not end");
        assert_eq!(error("\n/* a"), "`x.sql:2`: the comment that begins here does not end");
        assert_eq!(error("DO $x$ a"), "`x.sql:1`: the dollar-quoted text that begins here does not end");
        assert_eq!(error("SELECT 1;\n\\i other.sql"), "`x.sql:2`: `\\i` is a command of psql, which does not run here");
    }

    #[test]
    fn kept_tables_are_read_from_comments() {
        let text = "-- tfdev: keep countries, shop.currencies\nSELECT 1;";
        let script = Script::parse("x.sql".to_owned(), text.to_owned()).unwrap();
        assert_eq!(script.kept_tables(), [(1, "countries".to_owned()), (1, "shop.currencies".to_owned())]);
    }
}
