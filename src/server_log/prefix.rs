//! What stands in front of each line of a log: `log_line_prefix` (PostgreSQL manual, 20.8.3), read backwards.
//!
//! What must hold: a text that a client chose (its name, a database's) may hold anything, so a line is an entry only if
//! all of its prefix fits.

/// The server's own default.
pub(super) const DEFAULT: &str = "%m [%p] ";

/// One part of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// This very text.
    Text(String),
    /// What an escape stands for.
    Escape(char),
    /// `%q`: processes without a session write nothing from here on.
    Stop,
}

/// A prefix that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(Vec<Part>);

/// What a prefix says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) at: Option<String>,
    pub(super) pid: Option<u32>,
    pub(super) user: Option<String>,
    pub(super) database: Option<String>,
    pub(super) application: Option<String>,
}

impl Prefix {
    /// Reads a value of `log_line_prefix`.
    pub fn parse(format: &str) -> Self {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = format.chars().peekable();
        while let Some(character) = rest.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            // A number pads what the escape stands for with spaces.
            while rest.next_if(|next| next.is_ascii_digit() || *next == '-').is_some() {}
            match rest.next() {
                Some('%') => text.push('%'),
                Some(escape) => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(if escape == 'q' { Part::Stop } else { Part::Escape(escape) });
                }
                None => {}
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Self(parts)
    }

    /// Reads `text`, which must be the prefix and nothing else; `None` if it is not.
    pub(super) fn read(&self, text: &str) -> Option<Said> {
        let mut said = Said::default();
        fits(&self.0, text, &mut said).then_some(said)
    }
}

/// Whether `text` is exactly `parts`. An escape takes as little as it can.
fn fits(parts: &[Part], text: &str, said: &mut Said) -> bool {
    let Some((first, rest)) = parts.split_first() else { return text.is_empty() };
    match first {
        Part::Text(own) => text.strip_prefix(own.as_str()).is_some_and(|text| fits(rest, text, said)),
        Part::Stop => text.is_empty() || fits(rest, text, said),
        Part::Escape(escape) => {
            let ends = text.char_indices().map(|(index, _)| index).chain([text.len()]);
            for end in ends {
                let (value, after) = text.split_at(end);
                if !is_a(*escape, value.trim()) {
                    continue;
                }
                if fits(rest, after, said) {
                    note(*escape, value.trim(), said);
                    return true;
                }
            }
            false
        }
    }
}

/// Whether a text may be what an escape stands for.
fn is_a(escape: char, text: &str) -> bool {
    match escape {
        'p' | 'l' | 'x' | 'P' => text.bytes().all(|byte| byte.is_ascii_digit()) && (escape == 'P' || !text.is_empty()),
        'm' | 't' | 's' => is_time(text),
        'n' => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'),
        'e' => text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        _ => true,
    }
}

/// `2026-11-27 23:01:27.123 UTC`, with or without a fraction.
fn is_time(text: &str) -> bool {
    let mut words = text.split(' ');
    let (Some(date), Some(time), Some(zone), None) = (words.next(), words.next(), words.next(), words.next()) else {
        return false;
    };
    let numbers = |word: &str, mark: char, count: usize| {
        word.split(mark).count() == count && word.chars().all(|one| one.is_ascii_digit() || one == mark || one == '.')
    };
    numbers(date, '-', 3) && numbers(time, ':', 3) && !zone.is_empty()
}

fn note(escape: char, value: &str, said: &mut Said) {
    let text = || Some(value.to_owned()).filter(|value| !value.is_empty() && value != "[unknown]");
    match escape {
        'p' => said.pid = value.parse().ok(),
        'm' => said.at = text(),
        't' | 'n' if said.at.is_none() => said.at = text(),
        'u' => said.user = text(),
        'd' => said.database = text(),
        'a' => said.application = text(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_read() {
        let said = Prefix::parse(DEFAULT).read("2026-11-27 23:01:27.123 UTC [4711] ").unwrap();
        assert_eq!((said.at.as_deref(), said.pid), (Some("2026-11-27 23:01:27.123 UTC"), Some(4711)));
        for other in ["", "[4711] ", "2026-11-27 23:01:27.123 UTC [4711]", "2026-11-27 23:01:27.123 UTC [x] "] {
            assert_eq!(Prefix::parse(DEFAULT).read(other), None, "{other}");
        }
    }

    #[test]
    fn other_prefixes_say_more_and_names_may_hold_anything() {
        let prefix = Prefix::parse("%t:%r:%u@%d:[%p]:%q app=%a %%");
        let said = prefix.read("2026-11-27 23:01:27 UTC:127.0.0.1(1):me@app:[12]: app=LOG:  %x [7]: %").unwrap();
        assert_eq!((said.user.as_deref(), said.database.as_deref()), (Some("me"), Some("app")));
        assert_eq!((said.pid, said.application.as_deref()), (Some(12), Some("LOG:  %x [7]:")));
        // The part behind %q is that of sessions alone.
        assert_eq!(prefix.read("2026-11-27 23:01:27 UTC::@:[12]:").unwrap().pid, Some(12));
        assert_eq!(Prefix::parse("%-8p|").read("12      |").unwrap().pid, Some(12));
        assert_eq!(Prefix::parse("").read("").unwrap(), Said::default());
    }
}
