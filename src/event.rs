//! What the library tells while it works. It never prints: the binary turns events into bars, lines or nothing.
//!
//! What must hold: an event is for people, never the result of a call, so dropping every event changes no behaviour; and
//! no event carries a secret.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// One thing worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step began: a sentence in the present tense such as `Starting PostgreSQL`.
    Started(String),
    /// The step that began last is done: a sentence such as `Started PostgreSQL 15.18`, and the time it took.
    Finished(String, Duration),
    /// Something a person should know, such as a port other than the usual one.
    Note(String),
    /// Something that may need a person's attention, though the command goes on.
    Warning(String),
    /// How a decision was made; shown with `--verbose`.
    Detail(String),
    /// How far a long piece of work is.
    Progress(Progress),
}

/// How far a long piece of work is. Several may run at once; `id` tells them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Tells this piece of work from others that run at the same time, for example a layer's digest.
    pub id: String,
    /// What is being done, for example `Downloading` or `tasks`.
    pub label: String,
    /// What is counted.
    pub unit: Unit,
    /// How many units are done.
    pub position: u64,
    /// How many units there are, where that is known.
    pub total: Option<u64>,
    /// Whether this is the last event for `id`.
    pub done: bool,
}

/// What a [`Progress`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Rows of a table.
    Rows,
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<dyn Fn(Event) + Send + Sync>);

impl Events {
    /// Sends each event to `receiver`.
    pub fn to(receiver: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receiver))
    }

    /// Drops every event.
    pub fn none() -> Self {
        Self::to(|_| {})
    }

    /// Sends `event`.
    pub fn send(&self, event: Event) {
        (self.0)(event);
    }

    /// Sends [`Event::Started`].
    pub fn started(&self, text: impl Into<String>) {
        self.send(Event::Started(text.into()));
    }

    /// Sends [`Event::Finished`].
    pub fn finished(&self, text: impl Into<String>, elapsed: Duration) {
        self.send(Event::Finished(text.into(), elapsed));
    }

    /// Sends [`Event::Note`].
    pub fn note(&self, text: impl Into<String>) {
        self.send(Event::Note(text.into()));
    }

    /// Sends [`Event::Warning`].
    pub fn warning(&self, text: impl Into<String>) {
        self.send(Event::Warning(text.into()));
    }

    /// Sends [`Event::Detail`].
    pub fn detail(&self, text: impl Into<String>) {
        self.send(Event::Detail(text.into()));
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Events")
    }
}
