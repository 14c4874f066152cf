//! Sessions of ours with the server, which wait where others would be refused.
//!
//! What must hold: a server that has no connection left, or that is just starting, is waited for until the deadline, and one
//! that is gone for as long as a start takes; the server is proven to be the instance's own before a session is used.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::instance::InstanceRecord;
use crate::pg::clone::Admin;
use crate::pg::{self, Login, LoginError};
use crate::server::Server;

/// The first pause before another attempt; each is twice as long as the one before, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// See [`FIRST_PAUSE`]. A refused login costs the server a process, and thirty may be waiting.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long a server at whose address nobody listens may be starting again. After that it may be somewhere else, or must be
/// started by whoever wants it.
const ABSENT_LIMIT: Duration = Duration::from_secs(5);

/// Logs in to manage databases.
pub(super) async fn open(server: &Server, record: &InstanceRecord, deadline: Instant) -> Result<Admin> {
    let login = Login { application_name: "tfdev fresh".to_owned(), ..server.admin_login() };
    let mut admin = Admin::set_up(connect(&login, deadline).await?).await?;
    server.prove(&mut admin.connection, record).await?;
    Ok(admin)
}

/// Logs in, and waits for a connection if there is none left.
pub(super) async fn connect(login: &Login, deadline: Instant) -> Result<sqlx::PgConnection> {
    let mut pause = FIRST_PAUSE;
    let mut absent_since = None;
    loop {
        let attempt = pg::connect(login, deadline).await;
        let is_absent = matches!(attempt, Err(LoginError::NotListening | LoginError::ProxyOnly));
        absent_since = is_absent.then(|| absent_since.unwrap_or_else(Instant::now));
        let is_gone = absent_since.is_some_and(|since| since.elapsed() > ABSENT_LIMIT);
        match attempt {
            Ok(connection) => return Ok(connection),
            Err(error) if is_gone || !is_passing(&error) => return Err(error.into_error(login)),
            Err(error) if Instant::now() + pause >= deadline => {
                return Err(Error::new(ErrorKind::TimedOut, format!("no connection to the server in time: {error}"))
                    .hint("use fewer tests at once, or raise `max_connections` under `[profiles.…]` in `tfdev.toml`")
                    .caused_by(error.into_error(login)));
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn is_passing(error: &LoginError) -> bool {
    error.may_pass() || matches!(error, LoginError::TooManyConnections(_))
}

/// Whether the session in which this happened is gone, and another one may do better.
pub fn is_lost(error: &Error) -> bool {
    match cause(error) {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed) => true,
        Some(sqlx::Error::Database(database)) => {
            matches!(database.code().as_deref(), Some("57P01" | "57P02" | "57P03" | "08006" | "08003"))
        }
        _ => false,
    }
}

/// Whether the server at the address does not know our role, its password or the database: a server that was made anew has
/// other passwords, and another one may have its port.
pub(super) fn is_turned_away(error: &Error) -> bool {
    let Some(sqlx::Error::Database(database)) = cause(error) else { return false };
    matches!(database.code().as_deref(), Some("28P01" | "28000" | "3D000"))
}

/// What the server or the connection to it said.
fn cause(error: &Error) -> Option<&sqlx::Error> {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<sqlx::Error>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
