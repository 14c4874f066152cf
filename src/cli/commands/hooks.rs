//! `tfdev hooks`.

use clap::{Args, Subcommand};

use crate::cli::Session;
use crate::cli::progress::seconds;
use crate::error::{Context, Result};
use crate::event::Events;
use crate::hooks::{self, HooksReport};

/// Keep one database state for each branch, by a git hook
///
/// After `tfdev hooks install`, a checkout of another branch keeps the database as it is as the snapshot `branch NAME` and
/// restores that of the other branch. A branch that was never left goes on with the database as it is. It works on the
/// instance `dev` while that runs, and never fails a checkout.
#[derive(Debug, Args)]
pub struct Hooks {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add the hook to the repository; a hook that is there keeps what it does
    Install,
    /// Take the hook out of the repository
    Remove,
    /// What the hook calls
    #[command(hide = true)]
    Run {
        /// The hook
        hook: String,
        /// What git tells it
        arguments: Vec<String>,
    },
}

impl Hooks {
    /// Whether git called, which is not to hear of failures by an exit status.
    pub(in crate::cli) fn is_run(&self) -> bool {
        matches!(self.action, Action::Run { .. })
    }
}

pub(super) async fn run(command: &Hooks, session: &Session) -> Result<()> {
    let folder = &session.settings.project_dir;
    match &command.action {
        Action::Install => {
            let program = std::env::current_exe().or_failed(|| "cannot tell where this program is")?;
            let report = hooks::install(folder, &program)?;
            write(session, &report, "the hook is in", "the hook was in already:")
        }
        Action::Remove => {
            let report = hooks::remove(folder)?;
            write(session, &report, "the hook is taken out of", "there was no hook of tfdev in")
        }
        Action::Run { hook, arguments } if hook == "post-checkout" => {
            if let Some(switched) =
                Box::pin(hooks::post_checkout(&session.settings, arguments, &Events::none())).await?
            {
                let how = if switched.restored {
                    format!("the database is as `{}` left it", switched.to)
                } else {
                    format!("`{}` goes on with the database of `{}`", switched.to, switched.from)
                };
                session.output.line("tfdev:", anstyle::Style::new(), &format!("{how} ({})", seconds(switched.elapsed)));
            }
            Ok(())
        }
        // A later version may have more hooks, and this one may be called by its block.
        Action::Run { .. } => Ok(()),
    }
}

fn write(session: &Session, report: &HooksReport, changed: &str, unchanged: &str) -> Result<()> {
    session.output.result(report, |out| {
        let words = if report.changed { changed } else { unchanged };
        writeln!(out, "{words} {}", report.file.display())
    })
}
