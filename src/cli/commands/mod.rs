//! One file a command: its arguments, one library call, and how its report looks.

pub(super) mod backup;
pub(super) mod completions;
pub(super) mod compose;
pub(super) mod config;
pub(super) mod destroy;
pub(super) mod doctor;
pub(super) mod down;
pub(super) mod env;
#[cfg(unix)]
pub(super) mod fresh;
pub(super) mod health;
pub(super) mod hooks;
pub(super) mod image;
pub(super) mod init;
pub(super) mod logs;
pub(super) mod man;
pub(super) mod migrate;
pub(super) mod psql;
pub(super) mod reset;
pub(super) mod seed;
#[cfg(all(unix, feature = "server"))]
pub(super) mod serve;
pub(super) mod snapshot;
pub(super) mod status;
#[cfg(unix)]
pub(super) mod test;
pub(super) mod up;
pub(super) mod url;
pub(super) mod verify;
#[cfg(unix)]
pub(super) mod write_log;

use std::process::ExitCode;

use super::Session;
use super::args::Command;
use crate::error::Result;

/// Runs a command that needs a project.
pub(super) async fn run(command: Command, session: &Session) -> Result<ExitCode> {
    match command {
        Command::Up(command) => up::run(&command, session).await?,
        Command::Down(command) => down::run(&command, session).await?,
        Command::Destroy(command) => destroy::run(&command, session).await?,
        Command::Status(command) => status::run(&command, session).await?,
        Command::Url(command) => url::run(&command, session).await?,
        Command::Env(command) => env::run(&command, session).await?,
        Command::Psql(command) => return psql::run(&command, session).await,
        Command::Logs(command) => logs::run(&command, session).await?,
        Command::Migrate(command) => migrate::run(command, session).await?,
        Command::Seed(command) => seed::run(&command, session).await?,
        Command::Snapshot(command) => snapshot::run(command, session).await?,
        Command::Reset(command) => reset::run(&command, session).await?,
        #[cfg(unix)]
        Command::Fresh(command) => fresh::run(command, session).await?,
        #[cfg(unix)]
        Command::Test(command) => return test::run(command, session).await,
        #[cfg(all(unix, feature = "server"))]
        Command::Serve(command) => serve::run(&command, session).await?,
        Command::Hooks(command) => hooks::run(&command, session).await?,
        Command::Backup(command) => return backup::run(command, session).await,
        Command::Health(command) => return health::run(&command, session).await,
        Command::Verify(command) => return verify::run(&command, session).await,
        Command::Doctor(command) => return doctor::run(&command, session).await,
        Command::Image(command) => image::run(command, session).await?,
        Command::Compose(command) => compose::run(&command, session).await?,
        Command::Config(command) => config::run(&command, session)?,
        Command::Init(command) => init::run(&command, session)?,
        Command::Completions(command) => return completions::run(&command, &session.output),
        Command::Man(command) => return man::run(&command, &session.output),
        #[cfg(unix)]
        Command::WriteLog => return write_log::run(),
    }
    Ok(ExitCode::SUCCESS)
}
