//! The swap: another database takes the project's name, and the one that had it is kept or goes.
//!
//! What must hold: it is one transaction, rows and the marker included, without which the database would not be known as
//! the instance's own on a server where others have databases too. While it runs new sessions wait: where our role is a superuser,
//! before they have looked the database's number up, so that they get the new one and are not refused.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection};

use super::registry::{self, Kind, NewRow, Row, Stage};
use super::work::Work;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::pg::clone::{self, ClosedSession};
use crate::pg::quote;

/// How long the whole may take, with what has to be tried again.
const LIMIT: Duration = Duration::from_secs(30);

/// What a try may wait for a lock: everybody who logs in anywhere in the server waits behind it. And how long the server
/// waits for us: a tfdev that is stopped here (Ctrl-Z) must not keep everybody out.
const LOCAL_SETTINGS: &str = "BEGIN; SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '10s'; \
                              SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// Keeps new sessions waiting before they look up which database they mean.
const HOLD_LOGINS: &str = "LOCK TABLE pg_catalog.pg_database IN ACCESS EXCLUSIVE MODE";

/// Every one of so many tries does without: on a busy machine one alone may be too late for its lock.
const TRIES_WITH_LOGINS_HELD: u32 = 5;

/// What one try waits at most before the next one; others get their turn meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

/// What is to happen to the present state.
pub(super) struct Outgoing {
    /// The row that it gets.
    pub(super) row: NewRow,
    /// [`Stage::Ready`] to keep it, or [`Stage::Dropping`].
    pub(super) stage: Stage,
    /// Rows of automatic snapshots that are too many then.
    pub(super) outdated: Vec<i64>,
}

impl Work<'_> {
    /// Puts the database of `incoming` in the place of the project's. Returns the row of the one that was there.
    pub(super) async fn swap(&mut self, incoming: &Row, outgoing: &Outgoing) -> Result<Row> {
        let begin = Instant::now();
        let mut tries = 0;
        let mut closed = Vec::new();
        loop {
            // A session that keeps the list of databases locked for long is no reason not to go on.
            tries += 1;
            let hold_logins = self.admin.superuser && tries % TRIES_WITH_LOGINS_HELD != 0;
            match self.try_swap(incoming, outgoing, hold_logins, &mut closed).await {
                Ok(row) => {
                    fault::point("snapshot.swap.committed").await;
                    self.tell_closed(&closed);
                    self.rows.retain(|row| row.id != incoming.id);
                    self.rows.push(row.clone());
                    let mut gone = outgoing.outdated.clone();
                    gone.extend((outgoing.stage == Stage::Dropping).then_some(row.id));
                    self.drop_later(&gone).await;
                    return Ok(row);
                }
                Err(error) => {
                    // The transaction is over either way; a session that is gone fails the next try.
                    let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.admin.connection).await;
                    if !may_pass(&error) || begin.elapsed() > LIMIT {
                        return Err(error);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn try_swap(
        &mut self,
        incoming: &Row,
        outgoing: &Outgoing,
        hold_logins: bool,
        closed: &mut Vec<ClosedSession>,
    ) -> Result<Row> {
        let database = self.on.database();
        let current = quote::identifier(database)?;
        let source = self.source().await?;
        let connection = &mut self.admin.connection;
        run(connection, LOCAL_SETTINGS.to_owned()).await?;
        let marker = self.on.server.project_marker(connection, self.on.record).await?;
        let kept = registry::insert(connection, database, &outgoing.row, outgoing.stage).await?;
        registry::forget(connection, &[incoming.id]).await?;
        registry::set_stage(connection, &outgoing.outdated, Stage::Dropping).await?;
        if hold_logins {
            run(connection, HOLD_LOGINS.to_owned()).await?;
        }
        closed.extend(clone::close_sessions(connection, source.oid).await?);
        fault::point("snapshot.swap.locked").await;
        let aside = quote::identifier(&kept.database)?;
        let rename = format!("ALTER DATABASE {current} RENAME TO {aside}");
        let helper = &mut self.helper.connection;
        let nothing = std::future::ready(());
        let late = clone::run_without_sessions(&mut self.admin, helper, source.oid, rename, nothing).await;
        closed.extend(late.or_failed(what)?);
        let connection = &mut self.admin.connection;
        let new = quote::identifier(&incoming.database)?;
        if let Some(marker) = marker {
            let comment = quote::literal(&marker.comment())?;
            run(connection, format!("COMMENT ON DATABASE {new} IS {comment}")).await?;
        }
        run(connection, format!("ALTER DATABASE {aside} WITH ALLOW_CONNECTIONS false")).await?;
        run(connection, format!("ALTER DATABASE {new} WITH ALLOW_CONNECTIONS true")).await?;
        run(connection, format!("ALTER DATABASE {new} RENAME TO {current}")).await?;
        fault::point("snapshot.swap.renamed").await;
        run(connection, "COMMIT".to_owned()).await?;
        Ok(Row { exists: true, ..kept })
    }

    /// What to do with the present state, of which `details` are known: keep it, up to the number of automatic
    /// snapshots, or let it go if there are to be none. `used` is an automatic one that takes the project's name.
    pub(super) fn outgoing(&self, note: String, details: registry::Details, used: Option<i64>) -> Outgoing {
        let most = usize::try_from(self.on.options.auto).unwrap_or(usize::MAX);
        let kept = self.rows.iter().filter(|row| row.kind == Kind::Auto && row.stage == Stage::Ready);
        let mut kept: Vec<&Row> = kept.filter(|row| Some(row.id) != used).collect();
        kept.sort_by_key(|row| row.id);
        let excess = (kept.len() + 1).saturating_sub(most.max(1));
        let outdated = kept[..if most == 0 { kept.len() } else { excess }].iter().map(|row| row.id).collect();
        let name = super::name::of_automatic(jiff::Timestamp::now());
        let name = super::name::free(name, |name| self.is_taken(name));
        let row = NewRow { name: Some(name), note: Some(note), details, ..NewRow::of(Kind::Auto) };
        Outgoing { row, stage: if most == 0 { Stage::Dropping } else { Stage::Ready }, outdated }
    }
}

fn what() -> &'static str {
    "cannot put the other database in the place of the project's"
}

async fn run(connection: &mut PgConnection, statements: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await.map(drop).or_failed(what)
}

/// Whether another try may succeed: somebody was in the way (55006), had a lock (55P03, 40P01), or took long (57014).
fn may_pass(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<sqlx::Error>());
    let code = cause.and_then(crate::pg::connect::server_error).map(sqlx::postgres::PgDatabaseError::code);
    matches!(code, Some("55006" | "55P03" | "40P01" | "57014"))
}
