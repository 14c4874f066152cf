//! A fresh database as a test has it: gone when the value is.

use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::home::Home;
use super::pool::{Lease, Pool};
use crate::error::{Context, Result};

/// How long the database of a failed test stays.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// How long a drop waits for the note that the database is free to go. Usually that takes less than a millisecond.
const NOTE_LIMIT: Duration = Duration::from_secs(2);

/// How long a connection may be waited for: the server may have few, and tests queue.
const ACQUIRE_LIMIT: Duration = Duration::from_mins(1);

/// A private database. When the value is dropped, also by a panic, the database goes; when the process is killed, the next
/// process that uses fresh databases removes it.
pub struct Fresh {
    home: Arc<Home>,
    pool: Pool,
    lease: Option<Lease>,
    keep_on_failure: bool,
    connections: u32,
}

impl fmt::Debug for Fresh {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Fresh({})", self.name())
    }
}

impl Fresh {
    pub(super) fn new(home: Arc<Home>, pool: Pool, lease: Lease, keep_on_failure: bool, connections: u32) -> Self {
        Self { home, pool, lease: Some(lease), keep_on_failure, connections }
    }

    fn lease(&self) -> &Lease {
        self.lease.as_ref().expect("only the methods that consume the value take the lease out")
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.lease().database
    }

    /// The connection URL, with the password of the role that owns the database.
    pub fn url(&self) -> String {
        self.lease().url()
    }

    /// Options for a connection with sqlx.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.lease().login().options()
    }

    /// Options for a pool with sqlx: as many connections as [`super::FreshConfig::connections`] says, and patience.
    pub fn pool_options(&self) -> PgPoolOptions {
        PgPoolOptions::new().max_connections(self.connections).acquire_timeout(ACQUIRE_LIMIT)
    }

    /// Gives the database back and waits until that is noted. Dropping the value does the same.
    pub async fn close(mut self) -> Result<()> {
        let Some(lease) = self.lease.take() else { return Ok(()) };
        let pool = self.pool.clone();
        let given_back = self.home.runtime.spawn(async move { pool.give_back(lease).await });
        given_back.await.or_failed(|| "the thread for fresh databases has ended")?
    }

    /// Lets the database stay for `time`, whatever becomes of this process, and gives its URL.
    pub async fn keep(mut self, time: Duration) -> Result<String> {
        let url = self.url();
        let Some(lease) = self.lease.take() else { return Ok(url) };
        let pool = self.pool.clone();
        let kept = self.home.runtime.spawn(async move { pool.keep(lease, time).await });
        kept.await.or_failed(|| "the thread for fresh databases has ended")??;
        Ok(url)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        if self.home.process != std::process::id() {
            // A forked process: the database is its parent's.
            return;
        }
        let keep = self.keep_on_failure && std::thread::panicking();
        if keep {
            tell_kept(&lease);
        }
        let pool = self.pool.clone();
        let (send, receive) = mpsc::channel();
        self.home.runtime.spawn(async move {
            // What cannot be noted now is found by the next process.
            let _ = if keep { pool.keep(lease, KEPT_FOR).await } else { pool.give_back(lease).await };
            let _ = send.send(());
        });
        let _ = receive.recv_timeout(NOTE_LIMIT);
    }
}

/// Says, among the output of the failed test, where its database is. The password is left out of logs.
#[expect(clippy::print_stderr, reason = "the test runner shows what a failed test wrote to its standard error")]
fn tell_kept(lease: &Lease) {
    let login = lease.login();
    eprintln!(
        "tfdev: the database of this test stays for {} hours: postgres://{login}; `tfdev fresh list` shows its whole URL",
        KEPT_FOR.as_secs() / 3600
    );
}
