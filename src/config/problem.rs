//! Mistakes in the configuration, gathered so that one run tells all of them.

use super::Origin;
use crate::error::{Error, Result};

/// What is wrong with a value: what follows its name in the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The predicate, for example `must be "on" or "off", found "maybe"`.
    pub(super) says: String,
    /// How to mend it.
    pub(super) hint: Option<String>,
}

impl Fault {
    /// A fault that says `says` after the name.
    pub(super) fn new(says: impl Into<String>) -> Self {
        Self { says: says.into(), hint: None }
    }

    /// The value must be `expected` and is `found`.
    pub(super) fn expected(expected: &str, found: impl std::fmt::Display) -> Self {
        Self::new(format!("must be {expected}, found {found}"))
    }

    /// Adds how to mend it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// One mistake, ready to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    message: String,
    hint: Option<String>,
}

impl Problem {
    /// A mistake at `origin`; the line of a file stands in front of `says`.
    pub(super) fn at(origin: &Origin, says: impl std::fmt::Display) -> Self {
        let message = match origin {
            Origin::File { .. } => format!("{origin}: {says}"),
            _ => says.to_string(),
        };
        Self { message, hint: None }
    }

    /// A fault of the value of `key`. A flag or a variable is called by its own name.
    pub(super) fn of_value(origin: &Origin, key: &str, fault: Fault) -> Self {
        let name = match origin {
            Origin::Flag { name } | Origin::Environment { name } => name,
            Origin::File { .. } | Origin::Default => key,
        };
        Self { hint: fault.hint, ..Self::at(origin, format_args!("`{name}` {}", fault.says)) }
    }

    /// Adds how to mend it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Fails if there are problems: the first is the message, the others are its causes, and all hints are kept.
pub(super) fn refuse_if_any(problems: Vec<Problem>) -> Result<()> {
    let mut hints: Vec<String> = Vec::new();
    for hint in problems.iter().filter_map(|problem| problem.hint.as_ref()) {
        if !hints.contains(hint) {
            hints.push(hint.clone());
        }
    }
    let chain = problems.into_iter().rev().fold(None, |rest: Option<Error>, problem| {
        let error = Error::bad_input(problem.message);
        Some(match rest {
            Some(rest) => error.caused_by(rest),
            None => error,
        })
    });
    match chain {
        Some(error) => Err(hints.into_iter().fold(error, Error::hint)),
        None => Ok(()),
    }
}
