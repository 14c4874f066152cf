//! `tfdev backup`.

mod report;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use self::report::{moment, write_decisions, write_list, write_pass, write_status, write_summary, write_verified};
use crate::backup::agent::Pass;
use crate::backup::manifest::Kind;
use crate::backup::plan::Target;
use crate::backup::position::Lsn;
use crate::backup::restore::Wanted;
use crate::backup::{self, Backups};
use crate::cli::Session;
use crate::cli::progress::seconds;
use crate::error::Result;
use crate::instance::Instance;
use crate::server::Running;

/// Make backups, recover to any second, and prove that it works
///
/// Set `store` in the section `[backup]` of tfdev.toml to `file:///folder` or `s3://bucket/prefix` and run `tfdev up`:
/// from then on the server archives its log. `tfdev backup agent` brings it into the store and makes a full backup every
/// day.
#[derive(Debug, Args)]
pub struct Backup {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make full backups now: a logical and a physical one
    Now {
        /// Make one kind alone
        #[arg(long, value_enum, value_name = "KIND")]
        only: Option<KindArgument>,
    },
    /// List what is in the store, also of an instance that is not here any more
    List,
    /// Show what is safe, what would be lost now, and what is wrong; exit status 1 if anything is
    Status,
    /// Set a point with a name in the log, to recover to
    Mark {
        /// Its name
        name: String,
    },
    /// Restore into a new instance
    ///
    /// Without a backup or a point all that is in the store is recovered. The new instance archives nothing until
    /// `tfdev backup enable`.
    Restore {
        /// The backup, as `tfdev backup list` names it
        #[arg(conflicts_with_all = ["to", "to_lsn", "to_name"])]
        id: Option<String>,
        /// What was committed until this time, for example 2026-05-01T12:30:00Z
        #[arg(long, value_name = "TIME", value_parser = time, conflicts_with_all = ["to_lsn", "to_name"])]
        to: Option<Timestamp>,
        /// What is in the log before this position, for example 0/3000148
        #[arg(long, value_name = "LSN", value_parser = position, conflicts_with = "to_name")]
        to_lsn: Option<Lsn>,
        /// A point that `tfdev backup mark` has set
        #[arg(long, value_name = "NAME")]
        to_name: Option<String>,
        /// The name of the new instance; with `--replace` the name under which the old one is kept
        #[arg(long = "as", value_name = "INSTANCE")]
        as_instance: String,
        /// Put it in the place of the instance that it was restored from, with the same port and passwords; asks first
        ///
        /// The old server is stopped and kept with its data, under the name that `--as` gives, until `tfdev destroy
        /// --instance NAME`.
        #[arg(long)]
        replace: bool,
    },
    /// Restore into a throw-away server and compare with what was recorded
    Verify {
        /// The backup [default: the newest of each kind]
        id: Option<String>,
    },
    /// Bring the log into the store, make and prove the daily backup, and forget what is too old
    Agent {
        /// Make one pass and end, for cron
        #[arg(long)]
        once: bool,
        #[command(subcommand)]
        action: Option<AgentAction>,
    },
    /// Forget what is too old
    Prune {
        /// Only show what stays and what goes, and why
        #[arg(long)]
        dry_run: bool,
    },
    /// Make a key that encrypts backups, for `encryption_key_file` in the section `[backup]` of tfdev.toml
    ///
    /// Keep a copy of the file where the backups are not: without it nobody can open them. The format is that of age: its
    /// own program opens the backups, too.
    Key {
        /// The file to write, which must not be there yet
        file: std::path::PathBuf,
    },
    /// Let a restored instance archive its log, from the next `tfdev up` on
    Enable,
}

#[derive(Debug, Subcommand)]
enum AgentAction {
    /// Write a unit for systemd, or a job for launchd, that runs the agent
    Install,
}

/// The words for `--only`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArgument {
    /// A dump of the project's database by pg_dump.
    Logical,
    /// A copy of the whole server by pg_basebackup, from which the log leads on.
    Physical,
}

impl From<KindArgument> for Kind {
    fn from(argument: KindArgument) -> Self {
        match argument {
            KindArgument::Logical => Self::Logical,
            KindArgument::Physical => Self::Physical,
        }
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "expected a time with its zone, such as 2026-05-01T12:30:00Z".to_owned())
}

fn position(text: &str) -> Result<Lsn, String> {
    text.parse()
}

pub(super) async fn run(command: Backup, session: &Session) -> Result<ExitCode> {
    let Session { settings, events, output, .. } = session;
    match command.action {
        Action::List => {
            let listings = backup::list(settings, events).await?;
            output.result(&listings, |out| write_list(&listings, out))?;
        }
        Action::Restore { id, to, to_lsn, to_name, as_instance, replace } => {
            let target = match (id, to, to_lsn, to_name) {
                (Some(id), ..) => Target::Backup(id),
                (_, Some(time), ..) => Target::Time(time),
                (_, _, Some(lsn), _) => Target::Lsn(lsn),
                (.., Some(name)) => Target::Name(name),
                _ => Target::Latest,
            };
            let wanted = Wanted { target, instance: &as_instance, throw_away: false, replace };
            if replace {
                backup::replace::check(settings, events).await?;
                let old = Instance::of(settings).container_name();
                output.confirm(&format!(
                    "Stop `{old}`, keep it as `{as_instance}`, and put what is restored in its place?"
                ))?;
            }
            let mut restored = Box::pin(backup::restore::restore(settings, &wanted, events)).await?;
            if replace {
                restored = Box::pin(backup::replace::replace(settings, restored, events)).await?;
            }
            output.result(&restored, |out| {
                let elapsed = seconds(Duration::from_millis(restored.elapsed_ms));
                writeln!(out, "restored `{}` from {} in {elapsed}", restored.instance, restored.backup)?;
                if let Some(old) = &restored.replaced {
                    writeln!(
                        out,
                        "what was there is stopped and kept as `{old}`: `tfdev destroy --instance {old}` removes it"
                    )?;
                }
                if let Some(commit) = restored.last_commit {
                    writeln!(out, "the last change in it is of {}", moment(commit))?;
                }
                writeln!(out, "{}", restored.url)
            })?;
        }
        Action::Verify { id } => {
            let verified = backup::verify::verify(settings, id.as_deref(), events).await?;
            output.result(&verified, |out| verified.iter().try_for_each(|one| write_verified(one, out)))?;
            return Ok(code(verified.iter().all(|one| one.verification.passed)));
        }
        Action::Agent { action: Some(AgentAction::Install), .. } => {
            let installed = backup::unit::install(settings)?;
            output.result(&installed, |out| {
                writeln!(out, "wrote {}; start it with", installed.file.display())?;
                installed.commands.iter().try_for_each(|command| writeln!(out, "  {command}"))
            })?;
        }
        Action::Agent { once, action: None } => {
            let mut tell = |pass: &Pass| drop(write_pass(pass, once, session));
            backup::agent::run(settings, once, events, &mut tell).await?;
        }
        Action::Key { file } => {
            let made = backup::keys::create(&file)?;
            output.result(&made, |out| {
                writeln!(out, "wrote {}; its public key is {}", made.file.display(), made.public_key)?;
                writeln!(out, "keep a copy of it elsewhere: without it nobody can open the backups")
            })?;
        }
        Action::Enable => {
            backup::enable(settings, events).await?;
            let done = serde_json::json!({ "instance": settings.instance.value, "enabled": true });
            output.result(&done, |out| writeln!(out, "the log will be archived from the next `tfdev up` on"))?;
        }
        action => return of_running(action, session).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn of_running(action: Action, session: &Session) -> Result<ExitCode> {
    let Session { settings, events, output, .. } = session;
    let running = Running::find(settings, events).await?;
    let backups = Backups::of(&running, settings, events)?;
    match action {
        Action::Now { only } => {
            let made = backups.now(only.map(Kind::from)).await?;
            output.result(&made, |out| made.iter().try_for_each(|one| write_summary(one, out)))?;
        }
        Action::Status => {
            let status = backups.status().await?;
            output.result(&status, |out| write_status(&status, out))?;
            return Ok(code(status.alarms.is_empty()));
        }
        Action::Mark { name } => {
            let mark = backups.mark(&name).await?;
            output.result(&mark, |out| writeln!(out, "set the point `{}` at {}", mark.name, mark.lsn))?;
        }
        Action::Prune { dry_run } => {
            let (decisions, removed) = backups.prune(dry_run).await?;
            let report = serde_json::json!({ "decisions": decisions, "removed": removed });
            output.result(&report, |out| write_decisions(&decisions, dry_run, out))?;
        }
        _ => unreachable!("the others need no running instance"),
    }
    Ok(ExitCode::SUCCESS)
}

fn code(is_well: bool) -> ExitCode {
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
