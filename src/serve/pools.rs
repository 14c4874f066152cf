//! The pool of the instance, and another one when the instance was stopped, or made anew, while the service runs.
//!
//! What must hold: what clients have stays theirs for as long as its server lives. An instance that somebody stopped is
//! started by the next call and not before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::fresh::{self, Pool};

/// How long the server may take to answer before it is looked for anew.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// How long an answer counts: many may wait and ask at once.
const RECENT: Duration = Duration::from_millis(500);

/// How often the server of a call that takes long is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The pool, and what it takes to open another one.
pub(super) struct Pools {
    settings: Settings,
    events: Events,
    current: Mutex<Pool>,
    /// The server did not answer when it was asked last.
    is_suspect: AtomicBool,
    /// When it answered, if it did so last.
    answered: Mutex<Option<Instant>>,
    opening: tokio::sync::Mutex<()>,
    /// How many copies are to be ready.
    ahead: usize,
}

impl Pools {
    pub(super) fn new(settings: Settings, events: Events, pool: Pool, ahead: usize) -> Self {
        pool.make_ahead(ahead);
        Self {
            settings,
            events,
            current: Mutex::new(pool),
            is_suspect: AtomicBool::new(false),
            answered: Mutex::new(None),
            opening: tokio::sync::Mutex::new(()),
            ahead,
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// The pool as it is.
    pub(super) fn current(&self) -> Pool {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pool, opened anew if its server is gone, and whether that was so. The instance is started if it does not run.
    pub(super) async fn usable(&self) -> Result<(Pool, bool)> {
        if !self.is_suspect.load(Ordering::Acquire) {
            return Ok((self.current(), false));
        }
        let _turn = self.opening.lock().await;
        if !self.is_suspect.load(Ordering::Acquire) || self.look().await {
            return Ok((self.current(), false));
        }
        self.events.note("The server of fresh databases is gone; it is looked for, and started if it does not run");
        let pool = fresh::open(&self.settings, None, fresh::holder_name(), &self.events).await?;
        let old = self.current();
        if pool.is_of_the_server_of(&old) {
            // It was busy, or stopped in between with its data on a disk: what the old pool holds is still there.
            self.is_suspect.store(false, Ordering::Release);
            return Ok((old, false));
        }
        pool.make_ahead(self.ahead);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = pool.clone();
        self.is_suspect.store(false, Ordering::Release);
        Ok((pool, true))
    }

    /// Asks the server whether it is still there, unless it has just answered.
    pub(super) async fn look(&self) -> bool {
        let is_recent = |answered: &Instant| answered.elapsed() < RECENT;
        if self.answered.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|answered| is_recent(&answered)) {
            return true;
        }
        let checked = self.current().check(ANSWER_LIMIT).await;
        if let Err(error) = &checked {
            self.events.detail(format!("the server of fresh databases does not answer: {error}"));
        }
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = checked.is_ok().then(Instant::now);
        self.is_suspect.store(checked.is_err(), Ordering::Release);
        checked.is_ok()
    }

    /// Returns when the server has not answered twice, though it was waited for.
    pub(super) async fn lost(&self) -> Error {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !self.look().await && !self.look().await {
                return Error::new(ErrorKind::NotFound, "the server of fresh databases does not answer");
            }
        }
    }

    /// Whether the server failed in a way that it does when it is not the one that the pool was opened with.
    pub(super) fn suspect(&self, error: &Error) -> bool {
        let is_missing_table = error.causes().iter().any(|cause| cause.contains("tfdev.fresh_"));
        if is_missing_table || fresh::is_lost(error) {
            *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.is_suspect.store(true, Ordering::Release);
        }
        self.is_suspect.load(Ordering::Acquire)
    }
}
