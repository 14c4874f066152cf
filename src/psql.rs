//! `psql`: a session as the ordinary role, by this machine's program or by the one beside the server.
//!
//! What must hold: the password reaches psql by a password file of mode 0600, never by an argument or a variable.

use std::io::IsTerminal;
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::config::Settings;
use crate::error::{Error, Result};
use crate::event::Events;
use crate::provision;
use crate::server::Running;

/// Variables that would send psql elsewhere, or change what it sends.
const UNWANTED: [&str; 8] =
    ["PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGSERVICE", "PGOPTIONS"];

/// Runs psql with `arguments` on the settled instance, and gives its exit status.
pub async fn psql(settings: &Settings, arguments: &[String], events: &Events) -> Result<ExitCode> {
    let running = Running::find(settings, events).await?;
    // What is typed there writes too.
    let timeout = Duration::from_secs(settings.timeout_seconds.value);
    provision::close(running.connect(timeout).await?).await;
    let pgpass = running.password_file()?;
    let server = &running.server;
    let mut command = Command::new("psql");
    command.args(["--host", &server.endpoint.host, "--port", &server.endpoint.port.to_string()]);
    command.args(["--username", &server.user.name, "--dbname", &server.database]).args(arguments);
    for name in UNWANTED {
        command.env_remove(name);
    }
    for (name, value) in server.tls_variables() {
        command.env(name, value);
    }
    command.env("PGPASSFILE", pgpass.path()).env("PGAPPNAME", "tfdev psql");
    let outcome = if pgpass.lasting().is_some() { run(command) } else { wait_for(command) };
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => beside(&running, arguments, events).await,
        Err(error) => Err(Error::failed("cannot run `psql`").caused_by(error)),
        Ok(code) => Ok(code),
    }
}

/// Becomes psql, so that signals and the terminal are its own.
#[cfg(unix)]
fn run(mut command: Command) -> std::io::Result<ExitCode> {
    Err(std::os::unix::process::CommandExt::exec(&mut command))
}

/// Runs psql and gives its exit status.
#[cfg(not(unix))]
fn run(command: Command) -> std::io::Result<ExitCode> {
    wait_for(command)
}

/// Runs psql and gives its exit status, for a password file that must go afterwards.
fn wait_for(mut command: Command) -> std::io::Result<ExitCode> {
    Ok(exit_code(command.status()?.code().unwrap_or(1).into()))
}

/// Runs the psql beside the server, over the server's own socket.
async fn beside(running: &Running, arguments: &[String], events: &Events) -> Result<ExitCode> {
    events.detail("there is no `psql` on this machine's PATH; using the one beside the server");
    let server = &running.server;
    let mut command = vec!["psql", "--username", &server.user.name, "--dbname", &server.database];
    command.extend(arguments.iter().map(String::as_str));
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    Ok(exit_code(running.engine.interactive(&command, terminal).await?))
}

fn exit_code(status: i64) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
