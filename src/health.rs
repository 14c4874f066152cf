//! `health`: the two checks of CON-003 § Health Checks, each with a deadline, its latency, and the reason when it fails.
//!
//! - Live: `SELECT 1` is answered.
//! - Ready: `count(*) < 90 … WHERE state != 'idle'` of 100 connections, which is 90 % of `max_connections` in every
//!   profile (`CLI.md` § Profiles). Where the server keeps so many connections for superusers that this many can never be
//!   at work, as with 20 of them, it is also not ready while all others are at work. A server in recovery is not ready.
//!
//! What must hold: it changes nothing; the connection that counts is not counted; and it gets in also when all others are
//! taken, because the admin role is a superuser, for whom the server keeps some (`superuser_reserved_connections`). The
//! healthcheck of the container asks the same question ([`CONTAINER_QUERY`]).

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::config::{Origin, Setting, Settings};
use crate::engine::EngineKind;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::identity;
use crate::pg::{self, LoginError};
use crate::provision;
use crate::server::Running;

/// The question of the check for life (CON-003 § Health Checks).
pub const LIVENESS: &str = "SELECT 1";

/// How long each check may take, unless `--timeout` says otherwise.
const DEADLINE: Duration = Duration::from_secs(5);

/// Connections at work, with the source's own condition; those that are open; those whose state this role may not see;
/// how many there may be; how many of these are for superusers; and whether the server takes no writes.
const COUNTS: &str = "\
    SELECT count(*) FILTER (WHERE state != 'idle') AS busy, \
    count(*) FILTER (WHERE backend_type = 'client backend' OR (backend_type IS NULL AND usesysid IS NOT NULL)) AS open, \
    count(*) FILTER (WHERE backend_type IS NULL AND usesysid IS NOT NULL) AS hidden, \
    current_setting('max_connections')::bigint AS most, \
    current_setting('superuser_reserved_connections')::bigint AS reserved, \
    pg_is_in_recovery() AS recovering \
    FROM pg_stat_activity WHERE pid <> pg_backend_pid()";

/// The question of a container's own healthcheck: one row, `t` if the server is ready, as [`Counts::reason`] has it.
///
/// A server that listens nowhere is the one that an image's first initialisation uses.
pub const CONTAINER_QUERY: &str = "\
    SELECT count(*) < least(current_setting('max_connections')::int * 0.9, current_setting('max_connections')::int - \
    current_setting('superuser_reserved_connections')::int) AND NOT pg_is_in_recovery() AND \
    current_setting('listen_addresses') <> '' FROM pg_stat_activity WHERE state != 'idle' AND pid <> pg_backend_pid()";

/// Which checks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Both.
    All,
    /// The one for life.
    Live,
    /// The one for readiness.
    Ready,
}

/// What the checks found.
#[derive(Debug, Serialize)]
pub struct HealthReport {
    /// When they were made: RFC 3339, UTC.
    pub at: Timestamp,
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
    /// What runs the server.
    pub engine: EngineKind,
    /// Whether all checks that were made passed.
    pub healthy: bool,
    /// How long the login took, in milliseconds; `None` if there was none.
    pub login_ms: Option<f64>,
    /// The check for life.
    pub live: Option<Check>,
    /// The check for readiness.
    pub ready: Option<Readiness>,
    /// Whether a check failed because its time was over.
    #[serde(skip)]
    pub timed_out: bool,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Whether it passed.
    pub ok: bool,
    /// How long the server took to answer, in milliseconds; `None` without an answer.
    pub latency_ms: Option<f64>,
    /// Why it did not pass.
    pub reason: Option<String>,
}

/// The check for readiness, with what was counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Readiness {
    /// Whether it passed, how fast, and why not.
    #[serde(flatten)]
    pub check: Check,
    /// What was counted; `None` without an answer.
    #[serde(flatten)]
    pub counts: Option<Counts>,
}

/// Connections, the one that counts left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// At work: those whose state is not `idle`.
    pub busy: i64,
    /// Fewer than this many must be at work: 90 % of `max_connections`.
    pub limit: i64,
    /// Open ones of clients, at work or not.
    pub open: i64,
    /// Those whose state the role may not see, which count as idle.
    pub hidden: i64,
    /// The server's `max_connections`.
    pub max_connections: i64,
    /// How many of these are for superusers.
    pub reserved: i64,
    /// Whether the server is in recovery and takes no writes.
    pub recovering: bool,
}

impl Counts {
    /// Counts by way of `connection`.
    pub async fn read(connection: &mut PgConnection) -> Result<Self> {
        let what = || "cannot count the connections";
        let row = sqlx::raw_sql(COUNTS).fetch_one(connection).await.or_failed(what)?;
        let number = |name: &str| row.try_get::<i64, _>(name).or_failed(what);
        let max_connections = number("most")?;
        Ok(Self {
            busy: number("busy")?,
            // Fewer than nine tenths; where that is no whole number, as with 25, the next one is the first too many.
            limit: (max_connections * 9 + 9) / 10,
            open: number("open")?,
            hidden: number("hidden")?,
            max_connections,
            reserved: number("reserved")?,
            recovering: row.try_get("recovering").or_failed(what)?,
        })
    }

    /// How many connections there are for roles that are no superusers.
    pub fn ordinary(&self) -> i64 {
        self.max_connections - self.reserved
    }

    /// Why the server is not ready; `None` if it is.
    pub fn reason(&self) -> Option<String> {
        let Self { busy, limit, max_connections, reserved, .. } = self;
        if self.recovering {
            return Some("the server is in recovery and takes no writes".to_owned());
        }
        if busy >= limit {
            return Some(format!(
                "{busy} connections are at work, and fewer than {limit} (90 % of max_connections = {max_connections}) may be"
            ));
        }
        (*busy >= self.ordinary()).then(|| {
            format!(
                "all {} connections for ordinary roles are at work; the other {reserved} of {max_connections} are for \
                 superusers",
                self.ordinary()
            )
        })
    }
}

/// Makes the checks once.
///
/// Fails as [`Running::find`] does if there is no such instance or it does not run, and with [`ErrorKind::Refused`] if
/// another server answers. A check that does not pass is no failure: the report says so.
pub async fn health(settings: &Settings, checks: Checks, events: &Events) -> Result<HealthReport> {
    let limit = deadline(settings);
    // The engine is to answer within the same time, and not within that of an `up`.
    let patience = Setting { value: limit.as_secs().max(1), origin: settings.timeout_seconds.origin.clone() };
    let settings = Settings { timeout_seconds: patience, ..settings.clone() };
    let found = tokio::time::timeout(limit, Running::find(&settings, events)).await;
    let running = found.map_err(|_| no_answer("the engine", limit))??;
    let mut report = HealthReport {
        at: Timestamp::now(),
        project: running.instance.project.clone(),
        instance: running.instance.name.clone(),
        engine: running.engine.kind(),
        healthy: false,
        login_ms: None,
        live: None,
        ready: None,
        timed_out: false,
    };
    let begin = Instant::now();
    match pg::connect(&running.server.admin_login(), begin + limit).await {
        Ok(mut connection) => {
            report.login_ms = Some(milliseconds(begin));
            report.make(checks, &running, &mut connection, limit).await?;
            provision::close(connection).await;
        }
        Err(error @ LoginError::WrongPassword(_)) => {
            return Err(identity::login_failed(error, &running.server.admin_login()));
        }
        Err(error) => report.without_login(checks, &error, limit),
    }
    let live = report.live.as_ref().is_none_or(|live| live.ok);
    report.healthy = live && report.ready.as_ref().is_none_or(|ready| ready.check.ok);
    Ok(report)
}

/// Makes the checks again and again, `pause` apart, and hands each outcome to `receive`, until that fails.
pub async fn watch(
    settings: &Settings,
    checks: Checks,
    pause: Duration,
    events: &Events,
    receive: &mut (dyn FnMut(Result<HealthReport>) -> Result<()> + Send),
) -> Result<()> {
    loop {
        receive(health(settings, checks, events).await)?;
        tokio::time::sleep(pause).await;
    }
}

/// How long each check may take.
fn deadline(settings: &Settings) -> Duration {
    match settings.timeout_seconds.origin {
        Origin::Default => DEADLINE,
        _ => Duration::from_secs(settings.timeout_seconds.value),
    }
}

fn no_answer(who: &str, limit: Duration) -> Error {
    Error::new(ErrorKind::TimedOut, format!("{who} gave no answer within {} s", limit.as_secs()))
        .hint("`tfdev doctor` looks at what is in the way; `--timeout SECONDS` waits longer")
}

/// Since `begin`, to the microsecond.
fn milliseconds(begin: Instant) -> f64 {
    (begin.elapsed().as_secs_f64() * 1_000_000.0).round() / 1000.0
}

impl Check {
    fn failed(reason: String) -> Self {
        Self { ok: false, latency_ms: None, reason: Some(reason) }
    }
}

impl HealthReport {
    async fn make(
        &mut self,
        checks: Checks,
        running: &Running,
        connection: &mut PgConnection,
        limit: Duration,
    ) -> Result<()> {
        let proven = tokio::time::timeout(limit, running.server.prove(connection, &running.record)).await;
        if let Ok(proven) = proven {
            proven?;
        }
        if checks != Checks::Ready {
            let live = live(connection, limit).await;
            self.timed_out |= live.1;
            self.live = Some(live.0);
        }
        if checks != Checks::Live {
            let ready = ready(connection, limit).await;
            self.timed_out |= ready.1;
            self.ready = Some(ready.0);
        }
        Ok(())
    }

    /// Nobody could log in, so no check passed.
    fn without_login(&mut self, checks: Checks, error: &LoginError, limit: Duration) {
        self.timed_out = matches!(error, LoginError::Timeout);
        let reason = match error {
            LoginError::TooManyConnections(_) => {
                "the server has no connection left, not even one of those that it keeps for superusers".to_owned()
            }
            LoginError::Timeout => format!("no login within {} s", limit.as_secs()),
            other => other.to_string(),
        };
        let check = Check::failed(reason);
        self.ready = (checks != Checks::Live).then(|| Readiness { check: check.clone(), counts: None });
        self.live = (checks != Checks::Ready).then_some(check);
    }
}

/// Asks whether the server lives; and whether its time was over.
pub(crate) async fn live(connection: &mut PgConnection, limit: Duration) -> (Check, bool) {
    let begin = Instant::now();
    match tokio::time::timeout(limit, sqlx::raw_sql(LIVENESS).fetch_one(connection)).await {
        Ok(Ok(_)) => (Check { ok: true, latency_ms: Some(milliseconds(begin)), reason: None }, false),
        Ok(Err(error)) => (Check::failed(error.to_string()), false),
        Err(_) => (Check::failed(format!("no answer within {} s", limit.as_secs())), true),
    }
}

/// Asks whether the server is ready; and whether its time was over.
pub(crate) async fn ready(connection: &mut PgConnection, limit: Duration) -> (Readiness, bool) {
    let begin = Instant::now();
    match tokio::time::timeout(limit, Counts::read(connection)).await {
        Ok(Ok(counts)) => {
            let reason = counts.reason();
            let check = Check { ok: reason.is_none(), latency_ms: Some(milliseconds(begin)), reason };
            (Readiness { check, counts: Some(counts) }, false)
        }
        Ok(Err(error)) => {
            let reason = std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ");
            (Readiness { check: Check::failed(reason), counts: None }, false)
        }
        Err(_) => {
            let reason = format!("no answer within {} s", limit.as_secs());
            (Readiness { check: Check::failed(reason), counts: None }, true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(busy: i64, max_connections: i64) -> Counts {
        Counts {
            busy,
            limit: (max_connections * 9 + 9) / 10,
            open: busy,
            hidden: 0,
            max_connections,
            reserved: 3,
            recovering: false,
        }
    }

    #[test]
    fn ready_is_what_the_source_says() {
        assert_eq!(counts(89, 100).reason(), None);
        assert!(counts(90, 100).reason().unwrap().contains("fewer than 90 "));
        assert_eq!(counts(179, 200).reason(), None);
        assert!(counts(180, 200).reason().is_some());
        // 22 of 25 are fewer than 22.5.
        assert_eq!(Counts { reserved: 0, ..counts(22, 25) }.reason(), None);
        assert!(Counts { reserved: 0, ..counts(23, 25) }.reason().is_some());
    }

    #[test]
    fn a_server_with_few_connections_is_not_ready_when_all_are_at_work() {
        assert_eq!(counts(16, 20).reason(), None);
        assert!(counts(17, 20).reason().unwrap().starts_with("all 17 connections for ordinary roles"));
        assert!(counts(18, 20).reason().unwrap().contains("fewer than 18 "));
        assert!(Counts { recovering: true, ..counts(0, 20) }.reason().unwrap().contains("recovery"));
    }
}
