//! `tfdev fresh`.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use crate::cli::Session;
use crate::config::Origin;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fresh::{self, FreshDatabase, Lease, Pool, Recipe, Template, holder};
use crate::migrate::Source;
use crate::seed::DataSet;
use crate::server::Running;

/// Get a private database for a test
///
/// Prints the URL of a migrated database that nobody else has. It is gone when the program that called tfdev ends, however
/// that ends, or after the time that --ttl names. The server is the project's instance `test`, whose data is in memory; it
/// is started if it does not run, and stopped when nobody has used it for an hour.
#[derive(Debug, Args)]
pub struct Fresh {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    create: Create,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the URL of a new one; the same as without a word
    Create(Create),
    /// List the fresh databases, and who has them
    List,
    /// Drop some by name, whoever has them, or all that no living process has
    Drop {
        /// Their names
        #[arg(value_name = "NAME", required_unless_present = "all")]
        names: Vec<String>,
        /// All that are ready, kept or left over
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Drop now what dead processes have left, and what has expired
    Gc,
    /// Stop the server when nobody has used it for a while
    #[command(hide = true)]
    Watch,
    /// Hold a database for another process
    #[command(hide = true)]
    Hold {
        /// The process
        #[arg(long, value_name = "PROCESS")]
        process: i32,
        #[command(flatten)]
        create: Create,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Fill it with a data set: small, demo, or a file under seeds/ [default: no rows]
    #[arg(long, value_name = "NAME")]
    seed: Option<String>,
    /// Keep it for so long, such as 90s, 30m or 8h, and not for the life of the calling program
    #[arg(long, value_name = "TIME", value_parser = fresh::read_lifetime)]
    ttl: Option<Duration>,
}

/// What `fresh` prints with `--json`.
#[derive(Debug, Serialize, Deserialize)]
struct Created {
    database: String,
    url: String,
    instance: String,
}

/// An error as [`crate::cli`] writes it with `--json`.
#[derive(Deserialize)]
struct Written {
    error: WrittenError,
}

#[derive(Deserialize)]
struct WrittenError {
    kind: ErrorKind,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
}

pub(super) async fn run(command: Fresh, session: &Session) -> Result<()> {
    if command.action.is_some() && (command.create.seed.is_some() || command.create.ttl.is_some()) {
        return Err(Error::new(ErrorKind::Usage, "`--seed` and `--ttl` say how a database is made")
            .hint("write them behind the word, if it takes them: `tfdev fresh create --ttl 30m`"));
    }
    match command.action.unwrap_or(Action::Create(command.create)) {
        Action::Create(create) => {
            let created = match create.ttl {
                Some(time) => create_for(&create, time, session).await?,
                None => create_for_caller(&create, session)?,
            };
            session.output.result(&created, |out| writeln!(out, "{}", created.url))
        }
        Action::List => {
            let mut found = pool_of_running(session).await?.list().await?;
            found.retain(|one| !one.is_left_over());
            session.output.result(&found, |out| write_list(&found, out))
        }
        Action::Drop { names, all } => {
            let pool = pool_of_running(session).await?;
            let names = if all { not_in_use(&pool).await? } else { names };
            pool.drop_named(&names).await?;
            write_dropped(&names, session)
        }
        Action::Gc => {
            let names = pool_of_running(session).await?.collect().await?;
            write_dropped(&names, session)
        }
        Action::Watch => fresh::idle::stop_when_idle(&session.settings, &session.events).await,
        Action::Hold { process, create } => hold(process, &create, session).await,
    }
}

/// A database with the data set that `seed` asks for, and its pool; the server is started if it does not run.
pub(super) async fn take(seed: Option<&str>, session: &Session) -> Result<(Pool, Template, Lease)> {
    let settings = &session.settings;
    let dataset = seed.map(|name| DataSet::load(name, &settings.project_dir)).transpose()?.flatten();
    let recipe = Recipe { dataset, ..Recipe::of(Source::of(settings)?) };
    fresh::lease(settings, &recipe, &fresh::holder_name(), &session.events).await
}

async fn pool_of_running(session: &Session) -> Result<Pool> {
    let running = Running::find(&session.settings, &session.events).await?;
    fresh::of_running(&running, &session.settings, None, fresh::holder_name(), &session.events).await
}

async fn create_for(create: &Create, time: Duration, session: &Session) -> Result<Created> {
    let (pool, _, lease) = take(create.seed.as_deref(), session).await?;
    let created = created(&lease, session);
    pool.keep(lease, time).await?;
    Ok(created)
}

fn created(lease: &Lease, session: &Session) -> Created {
    Created { database: lease.database.clone(), url: lease.url(), instance: session.settings.instance.value.clone() }
}

/// Has a process of its own take the database and hold it for the program that called us.
fn create_for_caller(create: &Create, session: &Session) -> Result<Created> {
    let caller = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if caller <= 1 {
        return Err(Error::new(ErrorKind::Usage, "no program called tfdev that the database could be held for")
            .hint("say how long it is to stay: `tfdev fresh --ttl 1h`"));
    }
    let mut holder = holder_command(caller, create, session)?;
    let mut child = holder.spawn().or_failed(|| "cannot start the process that holds the database")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut line = String::new();
    if let Some(stdout) = stdout {
        BufReader::new(stdout).read_line(&mut line).or_failed(|| "cannot read the URL of the database")?;
    }
    if !line.is_empty() {
        return serde_json::from_str(&line).or_failed(|| "cannot read the URL of the database");
    }
    let mut text = String::new();
    if let Some(mut stderr) = stderr {
        stderr.read_to_string(&mut text).or_failed(|| "cannot read why there is no database")?;
    }
    Err(error_of(&text))
}

/// This program again, with the same settings and in no group of processes that a terminal interrupts.
fn holder_command(caller: i32, create: &Create, session: &Session) -> Result<Command> {
    let settings = &session.settings;
    let program = std::env::current_exe().or_failed(|| "cannot find the program of tfdev")?;
    let mut command = Command::new(program);
    command.arg("--json").arg("--project-dir").arg(&settings.project_dir);
    command.args(["--instance", &settings.instance.value]);
    command.args(["--timeout", &settings.timeout_seconds.value.to_string()]);
    if let (Origin::Flag { .. }, Some(engine)) = (&settings.engine.origin, engine_word(session)) {
        command.args(["--engine", &engine]);
    }
    if let Some(profile) = &settings.profile {
        command.args(["--profile", &profile.value]);
    }
    command.args(["fresh", "hold", "--process", &caller.to_string()]);
    if let Some(seed) = &create.seed {
        command.args(["--seed", seed]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    Ok(command)
}

/// The engine as `--engine` takes it.
fn engine_word(session: &Session) -> Option<String> {
    let listed = session.settings.listing.iter().find(|(key, _)| key == "engine");
    listed.map(|(_, setting)| setting.value.clone())
}

/// The error that another tfdev has written as JSON.
fn error_of(text: &str) -> Error {
    let Some(Ok(Written { error })) = text.lines().last().map(serde_json::from_str) else {
        return Error::failed("the process that was to hold the database has ended").caused_by(text.trim().to_owned());
    };
    let told = error.hints.into_iter().fold(Error::new(error.kind, error.message), Error::hint);
    if error.causes.is_empty() { told } else { told.caused_by(error.causes.join(": ")) }
}

/// Takes a database, tells of it, and holds it until the process ends.
async fn hold(process: i32, create: &Create, session: &Session) -> Result<()> {
    let process = holder::Watched::new(process)?;
    let (pool, template, lease) = take(create.seed.as_deref(), session).await?;
    let created = created(&lease, session);
    session.output.result(&created, |out| writeln!(out, "{}", created.url))?;
    // The next one shall not have to wait. Nobody hears of it if that fails.
    let _ = pool.replenish(&template, 1).await;
    holder::hold(&pool, lease, process).await
}

async fn not_in_use(pool: &Pool) -> Result<Vec<String>> {
    let found = pool.list().await?;
    let loose = found.into_iter().filter(|one| !one.held || one.stage == fresh::Stage::Kept);
    Ok(loose.map(|one| one.database).collect())
}

fn write_dropped(names: &[String], session: &Session) -> Result<()> {
    session.output.result(&serde_json::json!({ "dropped": names }), |out| {
        if names.is_empty() {
            return writeln!(out, "there was nothing to drop");
        }
        names.iter().try_for_each(|name| writeln!(out, "dropped {name}"))
    })
}

fn write_list(found: &[FreshDatabase], out: &mut dyn Write) -> std::io::Result<()> {
    if found.is_empty() {
        return writeln!(out, "there are no fresh databases; `tfdev fresh` makes one");
    }
    for one in found {
        let holder = one.holder.as_deref().unwrap_or_default();
        let until = one.expires_at.map(|at| at.strftime("until %Y-%m-%d %H:%M:%S UTC").to_string());
        let line = format!("{}  {:<13}  {holder}  {}", one.database, one.stage.to_string(), until.unwrap_or_default());
        writeln!(out, "{}", line.trim_end())?;
        if one.stage == fresh::Stage::Kept {
            writeln!(out, "  {}", one.url)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_the_holder_is_told_as_it_is() {
        let text = r#"{"error":{"kind":"no_engine","message":"m","causes":["c"],"hints":["h"]}}"#;
        let error = error_of(text);
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NoEngine, "m"));
        assert_eq!((error.causes(), error.hints()), (vec!["c".to_owned()], &["h".to_owned()][..]));
        assert!(error_of("killed").causes()[0].contains("killed"));
    }
}
