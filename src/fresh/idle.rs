//! Stopping the server for tests when nobody uses it any more.
//!
//! A process of its own watches it, begun by whoever opens a pool where none watches yet: the program `tfdev`, also for a
//! suite of the library, if it is in `PATH`. It ends with the server.
//!
//! What must hold:
//! - Only a server whose data is thrown away anyway (its profile is `test` or made from it) is stopped, and never one of
//!   someone else.
//! - A server in use is not stopped. In use is one that has a session of anybody, or a database that is kept for a time. The
//!   stop goes through the lock of the instance, as `tfdev up` does; and while it takes one last look, nobody gets a
//!   fresh database: what is free is marked to go, and making another one waits for a lock that ends with the server. Who waits
//!   there starts the server again ([`super::lease`]).

use std::process::Stdio;
use std::time::{Duration, Instant};

use sqlx::Row as _;

use super::registry::COUNT_LOCK;
use super::session;
use crate::config::Settings;
use crate::engine::EngineKind;
use crate::error::{Context, Result};
use crate::event::Events;
use crate::identity;
use crate::instance::{FileLock, Instance, InstanceLock};
use crate::pg::Login;
use crate::pg::clone::Admin;
use crate::profile::{self, BuiltIn};
use crate::server::Running;

/// What `pg_stat_activity` shows of the session of a process that watches.
const APPLICATION_NAME: &str = "tfdev idle";

/// The pause between two looks is this part of the time limit, at most [`LONGEST_PAUSE`].
const LOOKS: u32 = 8;

/// See [`LOOKS`].
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often is looked whether the server is still there.
const PING_EVERY: Duration = Duration::from_secs(1);

/// The file that the process which watches has locked.
fn lock_file(instance: &Instance) -> std::path::PathBuf {
    instance.state_dir.with_file_name(format!("{}.idle.lock", instance.name))
}

/// Whether the server is one that may be stopped for want of use.
fn may_be_stopped(running: &Running, settings: &Settings) -> bool {
    let name = running.record.profile_name();
    let profile = name.map(|name| profile::resolve(name, &settings.profiles));
    let is_for_tests = profile.is_some_and(|profile| profile.is_ok_and(|profile| profile.base == BuiltIn::Test));
    is_for_tests && running.engine.kind() != EngineKind::External && settings.fresh.idle_stop_seconds.value > 0
}

/// Sees that a process watches the server. Without one the server runs on, which is no reason to fail.
pub(super) fn see_that_it_is_watched(running: &Running, settings: &Settings) {
    if !may_be_stopped(running, settings)
        || !matches!(FileLock::try_acquire(&lock_file(&running.instance), "fresh"), Ok(Some(_)))
    {
        return;
    }
    let program = settings.own_program.clone().unwrap_or_else(|| "tfdev".into());
    let mut command = std::process::Command::new(program);
    command.arg("--quiet").arg("--project-dir").arg(&settings.project_dir);
    command.args(["--instance", &running.instance.name, "fresh", "watch"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // What a terminal interrupts is not what watches.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // The runtime waits for its end, whenever that is.
    drop(tokio::process::Command::from(command).spawn());
}

/// Waits until nobody has used the server for as long as `fresh.idle_stop` says, and stops it. Returns at once if another
/// process watches, and with an error when the server ends in another way.
pub async fn stop_when_idle(settings: &Settings, events: &Events) -> Result<()> {
    let instance = Instance::of(settings);
    let Some(_watching) = FileLock::try_acquire(&lock_file(&instance), "fresh watch")? else { return Ok(()) };
    let running = Running::find(settings, events).await?;
    if !may_be_stopped(&running, settings) {
        return Ok(());
    }
    let login = Login { application_name: APPLICATION_NAME.to_owned(), ..running.server.admin_login() };
    let deadline = Instant::now() + Duration::from_secs(settings.timeout_seconds.value);
    let mut admin = Admin::set_up(session::connect(&login, deadline).await?).await?;
    running.server.prove(&mut admin.connection, &running.record).await?;
    loop {
        wait_until_idle(&mut admin, Duration::from_secs(settings.fresh.idle_stop_seconds.value)).await?;
        if stop(&mut admin, &running, settings, events).await? {
            return Ok(());
        }
    }
}

/// How a server is used.
#[derive(PartialEq, Eq)]
struct Use {
    /// Whether there is a session, or a database that is kept.
    now: bool,
    /// How many sessions there were since the server's start.
    sessions: Option<i64>,
}

async fn look(admin: &mut Admin) -> Result<Use> {
    let what = || "cannot look whether the server is in use";
    let question = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' \
                    AND pid <> pg_backend_pid() AND application_name <> $1) \
                    OR EXISTS (SELECT FROM tfdev.fresh_database WHERE stage = 'kept' AND expires_at > clock_timestamp()), \
                    (SELECT sum(sessions)::bigint FROM pg_stat_database)";
    let row = sqlx::query(question).bind(APPLICATION_NAME).fetch_one(&mut admin.connection).await.or_failed(what)?;
    Ok(Use { now: row.try_get(0).or_failed(what)?, sessions: row.try_get(1).or_failed(what)? })
}

async fn wait_until_idle(admin: &mut Admin, limit: Duration) -> Result<()> {
    let pause = (limit / LOOKS).min(LONGEST_PAUSE);
    let (mut last, mut since) = (look(admin).await?, Instant::now());
    while last.now || since.elapsed() < limit {
        let look_again = Instant::now() + pause;
        while Instant::now() < look_again {
            tokio::time::sleep(pause.min(PING_EVERY)).await;
            // It shows whether the server is still there. A statement that waited in the server would hold a snapshot, for
            // which all old versions of rows would have to be kept.
            sqlx::raw_sql("").execute(&mut admin.connection).await.or_failed(|| "the server has ended")?;
        }
        let found = look(admin).await?;
        if found.now || found != last {
            since = Instant::now();
        }
        last = found;
    }
    Ok(())
}

/// Stops the server unless somebody has come. Returns whether it is stopped.
async fn stop(admin: &mut Admin, running: &Running, settings: &Settings, events: &Events) -> Result<bool> {
    let what = || "cannot close the pool of fresh databases";
    let limit = Duration::from_secs(settings.timeout_seconds.value);
    let _lock = InstanceLock::acquire(&running.instance, "fresh watch", limit, events).await?;
    identity::check(&running.instance, running.engine.as_ref(), events).await?;
    let close = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({COUNT_LOCK}); \
         UPDATE tfdev.fresh_database SET stage = 'dropping' WHERE stage IN ('free', 'returned')"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(close)).execute(&mut admin.connection).await.or_failed(what)?;
    if look(admin).await?.now {
        sqlx::raw_sql("ROLLBACK").execute(&mut admin.connection).await.or_failed(what)?;
        return Ok(false);
    }
    running.engine.stop().await
}
