//! Other settings for an instance that has run: checked by the server that runs, given to it, and taken back if they do
//! not work.
//!
//! What must hold: a mistake that the running server can tell is told before it is touched; what changes is on record
//! before it does, so that a kill at any point leaves a next `up` that knows both the old and the new settings; and an
//! `up` that fails for the new ones leaves a server that runs with the old ones.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::config::{Definitions, Setting};
use crate::engine::Engine;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::InstanceRecord;
use crate::pg;
use crate::profile::{self, Change, Profile, Proven};
use crate::provision;
use crate::server::Server;
use crate::spec::SUPERUSER;

/// How long the server that runs may take to let us in for a look at its settings.
const LOGIN_LIMIT: Duration = Duration::from_secs(5);

/// How long a server that answers may take to read its settings again.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);

/// How often it is asked whether it has.
const RELOAD_EVERY: Duration = Duration::from_millis(20);

/// Has the server read its settings files again, unless it says that something in ours is wrong.
const RELOAD: &str = "\
    WITH faults AS (SELECT string_agg(concat_ws(': ', name, error), '; ') AS text FROM pg_file_settings \
                    WHERE error IS NOT NULL AND sourcefile ~ '(/etc/tfdev/postgresql|/tfdev)[.]conf$') \
    SELECT CASE WHEN text IS NULL THEN extract(epoch FROM pg_conf_load_time()) || ' ' || pg_reload_conf() \
                ELSE 'faults ' || text END FROM faults;\n";

/// When the server read its settings files.
const LOADED: &str = "SELECT extract(epoch FROM pg_conf_load_time());\n";

/// What is to become other than it was.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The settings of before, if they are to change and are known.
    pub(super) before: Option<Proven>,
    /// What differs.
    pub(super) changes: Vec<Change>,
}

impl Plan {
    /// What `wanted` changes of what is on record.
    pub(super) fn of(record: &InstanceRecord, wanted: &Profile) -> Self {
        match &record.proven {
            Some(proven) if *proven != wanted.proven() => {
                Self { changes: profile::changes(&proven.settings, &wanted.values()), before: Some(proven.clone()) }
            }
            _ => Self::default(),
        }
    }

    /// The error for settings that did not work and were taken back.
    pub(super) fn taken_back(&self, wanted: &Profile, error: Error) -> Error {
        let kind = if error.kind() == ErrorKind::BadInput { ErrorKind::BadInput } else { ErrorKind::Failed };
        let before = self.before.as_ref().map_or("", |before| &before.profile);
        let message = format!(
            "the settings of the profile `{}` did not work and were taken back: the server runs with those of before \
             (profile `{before}`)",
            wanted.name
        );
        let hints = error.hints().to_vec();
        let taken_back = Error::new(kind, message).caused_by(error);
        let taken_back = self.changes.iter().fold(taken_back, |error, change| {
            let origin = wanted.settings.get(&change.name).map(|setting| setting.origin.to_string());
            let origin = origin.filter(|origin| origin != "default").map(|at| format!(" ({at})")).unwrap_or_default();
            error.hint(format!("this was to change: {change}{origin}"))
        });
        hints.into_iter().fold(taken_back, Error::hint)
    }
}

/// Fails, before anything is touched, with what the running server says that it would not take of `wanted`. A server that
/// lets nobody in is not asked.
pub(super) async fn check(
    server: &Server,
    record: &InstanceRecord,
    wanted: &Profile,
    plan: &Plan,
    events: &Events,
) -> Result<()> {
    let login = server.admin_login();
    let mut connection = match pg::connect(&login, Instant::now() + LOGIN_LIMIT).await {
        Ok(connection) => connection,
        Err(error) => {
            events.detail(format!("the running server was not asked about its new settings: {error}"));
            return Ok(());
        }
    };
    server.prove(&mut connection, record).await?;
    let checked = ask(&mut connection, wanted, plan).await;
    provision::close(connection).await;
    checked
}

async fn ask(connection: &mut PgConnection, wanted: &Profile, plan: &Plan) -> Result<()> {
    let what = || "cannot ask the server for its settings";
    let table: String = sqlx::query_scalar(Definitions::QUESTION).fetch_one(&mut *connection).await.or_failed(what)?;
    let definitions = Definitions::of_server(&table);
    definitions.refuse_wrong(&wanted.settings)?;
    for (name, setting) in plan.changes.iter().filter_map(|change| wanted.settings.get_key_value(&change.name)) {
        // The other contexts can be tried by a start only.
        if matches!(definitions.context(name), Some("user" | "superuser")) {
            try_out(connection, name, setting).await?;
        }
    }
    Ok(())
}

/// Sets a value in a transaction that is given up, to hear what the server says to it.
async fn try_out(connection: &mut PgConnection, name: &str, setting: &Setting<String>) -> Result<()> {
    let mut transaction = connection.begin().await.or_failed(|| "cannot ask the server for its settings")?;
    let set = sqlx::query("SELECT set_config($1, $2, true)").bind(name).bind(&setting.value);
    let tried = set.execute(&mut *transaction).await;
    transaction.rollback().await.or_failed(|| "cannot ask the server for its settings")?;
    tried.map(drop).map_err(|error| {
        let says = error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
        Error::bad_input(format!("{}: the server does not take `{name}`: {says}", setting.origin)).caused_by(error)
    })
}

/// Has the running server read its settings again, and waits until it did: from beside it, so that it needs neither its
/// certificate nor a password.
pub(super) async fn reload(engine: &dyn Engine, timeout: Duration) -> Result<()> {
    let begin = Instant::now();
    let answer = ask_beside(engine, RELOAD, begin, timeout).await?;
    if let Some(faults) = answer.strip_prefix("faults ") {
        return Err(Error::bad_input(format!("the server does not take its settings: {faults}"))
            .hint("`tfdev logs` shows what it says to them"));
    }
    let before = answer.split(' ').next().unwrap_or_default().to_owned();
    while ask_beside(engine, LOADED, begin, timeout).await? == before {
        if begin.elapsed() > RELOAD_LIMIT {
            return Err(Error::new(ErrorKind::TimedOut, "the server did not read its new settings in time"));
        }
        tokio::time::sleep(RELOAD_EVERY).await;
    }
    Ok(())
}

/// What the server answers over its own socket. One that is still starting up gets the whole time limit.
async fn ask_beside(engine: &dyn Engine, question: &str, begin: Instant, timeout: Duration) -> Result<String> {
    let psql = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-d", SUPERUSER];
    loop {
        let output = match engine.run(&psql, question.as_bytes()).await {
            Ok(output) => output,
            // Beside a server that has just ended no program can be run.
            Err(error) => {
                engine.check_alive().await?;
                return Err(error);
            }
        };
        let said = String::from_utf8_lossy(&output.stderr);
        // One that is starting up says so, or has no socket yet; what else it says will not change.
        let may_pass = said.contains("the database system is") || !said.contains("FATAL:");
        if output.exit_code == 0 || !may_pass || begin.elapsed() > timeout {
            let output = output.checked("have the server read its settings")?;
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        engine.check_alive().await?;
        tokio::time::sleep(RELOAD_EVERY).await;
    }
}

/// Whether an `up` that failed so may have failed for the settings: not where the server is not ours to write to, or its
/// port or name is someone else's.
pub(super) fn may_be_at_fault(error: &Error, plan: &Plan) -> bool {
    match error.kind() {
        ErrorKind::Failed | ErrorKind::TimedOut | ErrorKind::BadInput | ErrorKind::NotFound => true,
        // Nobody gets in any more.
        ErrorKind::Conflict => plan.changes.iter().any(|change| change.name.ends_with("_connections")),
        _ => false,
    }
}
