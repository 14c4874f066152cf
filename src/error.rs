//! The one error type of the library: what went wrong, why, and how to mend it.
//!
//! What must hold: every error has a [`ErrorKind`] (which the command line maps to its exit status, `CLI.md` § Exit
//! status), a message that reads well after `error: `, and, wherever a person can do something, a hint with the exact
//! command or setting. Messages are lower case, name the thing in backticks and end without a full stop.

use std::fmt;

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of a failure. Each has one exit status in `CLI.md` § Exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Failed in a way that no other kind names.
    Failed,
    /// Wrong usage of a command or of the library.
    Usage,
    /// No engine can be reached, or the named engine is unusable.
    NoEngine,
    /// There is no such instance, snapshot, backup or data set, or it is not running.
    NotFound,
    /// Refused to be safe: not ours, needs a confirmation, would not fit.
    Refused,
    /// Another tfdev holds the lock, or the name or port is taken by something else.
    Conflict,
    /// A time limit passed.
    TimedOut,
    /// Bad input: configuration, migration, seed or archive.
    BadInput,
    /// Interrupted by the user.
    Interrupted,
}

/// A failure with its causes and with hints that mend it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hints: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hints: Vec::new(), source: None }
    }

    /// Makes an error of [`ErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// Makes an error of [`ErrorKind::BadInput`].
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadInput, message)
    }

    /// Adds what a person can do about it: one sentence with the exact command or setting.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds the lower-level error that led to this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The class of this failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What a person can do about it, most useful first.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// The messages of the underlying errors, nearest first. A cause that only repeats the message above it is left out.
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut last = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            let text = error.to_string();
            if !last.contains(&text) {
                causes.push(text.clone());
                last = text;
            }
            next = error.source();
        }
        causes
    }
}

/// Adds context to the error of a [`std::result::Result`].
pub trait Context<T> {
    /// Turns the error into one of `kind` that says `message()`, caused by the original.
    fn context<M: Into<String>>(self, kind: ErrorKind, message: impl FnOnce() -> M) -> Result<T>;

    /// As [`Context::context`] with [`ErrorKind::Failed`].
    fn or_failed<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>
    where
        Self: Sized,
    {
        self.context(ErrorKind::Failed, message)
    }
}

impl<T, E> Context<T> for std::result::Result<T, E>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn context<M: Into<String>>(self, kind: ErrorKind, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Error::new(kind, message()).caused_by(error))
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NoEngine => "no_engine",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::TimedOut => "timed_out",
            Self::BadInput => "bad_input",
            Self::Interrupted => "interrupted",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_listed_nearest_first_and_without_repeats() {
        let root = std::io::Error::other("permission denied");
        let middle = Error::failed("cannot read `a`: permission denied").caused_by(root);
        let top = Error::bad_input("the project file cannot be used").caused_by(middle);
        assert_eq!(top.causes(), ["cannot read `a`: permission denied"]);
        assert_eq!(top.kind(), ErrorKind::BadInput);
    }
}
