//! Names and notes that people give to snapshots.
//!
//! What must hold: a name is for people and never part of a database's or a file's name, so any text will do that can be
//! shown on a line.

use jiff::Timestamp;

use crate::error::{Error, Result};

/// How many characters a name may have.
const LONGEST_NAME: usize = 200;

/// How many characters a note may have.
const LONGEST_NOTE: usize = 1000;

/// Checks a name.
///
/// # Errors
/// [`crate::ErrorKind::BadInput`] if it is blank, longer than 200 characters or has control characters.
pub fn check(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::bad_input("the name of a snapshot must not be empty"));
    }
    check_text("the name of a snapshot", name, LONGEST_NAME)
}

/// Checks a note as a name is checked; it may be empty and has up to 1000 characters.
pub fn check_note(note: &str) -> Result<()> {
    check_text("the note of a snapshot", note, LONGEST_NOTE)
}

fn check_text(what: &str, text: &str, longest: usize) -> Result<()> {
    let length = text.chars().count();
    if length > longest {
        return Err(Error::bad_input(format!("{what} has {length} characters, and {longest} are the most")));
    }
    match text.chars().find(|letter| letter.is_control()) {
        Some(letter) => {
            Err(Error::bad_input(format!("{what} has the control character `{}`", letter.escape_unicode())))
        }
        None => Ok(()),
    }
}

/// A name made of the time, for a snapshot that got none.
pub fn of_time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The name of an automatic snapshot.
pub fn of_automatic(now: Timestamp) -> String {
    now.strftime("auto-%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// The first of `wanted`, `wanted-2`, `wanted-3` … that is not taken.
pub fn free(wanted: String, taken: impl Fn(&str) -> bool) -> String {
    if !taken(&wanted) {
        return wanted;
    }
    let mut number = 2_u64;
    while taken(&format!("{wanted}-{number}")) {
        number += 1;
    }
    format!("{wanted}-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_that_can_be_shown_on_a_line_is_a_name() {
        for name in ["a", "before split", "'; DROP DATABASE x; --", "../x", "ä".repeat(40).as_str(), "日本語", "A\"b"]
        {
            assert!(check(name).is_ok(), "{name}");
        }
        assert!(check(&"ä".repeat(200)).is_ok());
        for name in ["", "   ", "a\nb", "a\u{7}", "\u{9b}31m", &"x".repeat(201)] {
            assert_eq!(check(name).unwrap_err().kind(), crate::ErrorKind::BadInput, "{name:?}");
        }
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        assert_eq!(free("a".into(), |name| ["a", "a-2"].contains(&name)), "a-3");
        assert_eq!(of_automatic(Timestamp::from_millisecond(1_000_123).unwrap()), "auto-1970-01-01T00:16:40.123Z");
    }
}
