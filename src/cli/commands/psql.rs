//! `tfdev psql`.

use std::process::ExitCode;

use clap::Args;

use crate::cli::Session;
use crate::error::Result;
use crate::psql;

/// Open a psql session
///
/// As the ordinary role, in the project's database. Uses this machine's psql if there is one, so that your history and
/// files work, else the one beside the server.
#[derive(Debug, Args)]
pub struct Psql {
    /// Arguments for psql, after `--`: tfdev psql -- -c "SELECT count(*) FROM tasks"
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

pub(super) async fn run(command: &Psql, session: &Session) -> Result<ExitCode> {
    psql::psql(&session.settings, &command.arguments, &session.events).await
}
