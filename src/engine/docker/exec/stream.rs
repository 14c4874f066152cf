//! A program in a container whose output is read while it runs (see [`crate::engine::program`]).

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::CreateExecOptions;
use futures_util::StreamExt;

use super::{Exec, exit_code, options};
use crate::engine::docker::errors::failed;
use crate::engine::program::{Input, LIFELINE, Piece, Program};
use crate::error::Result;

/// The folder for files in the container: beside the data folder, which is a volume, and on the daemon's disk.
const FOLDER: &str = "/var/tmp";

/// Who runs the program: the server's user in every image of PostgreSQL.
const USER: &str = "postgres";

/// Starts the program `argv[0]` in `container`. It ends with the returned value, and with this process.
pub async fn stream(docker: &Docker, container: &str, argv: &[&str], input: Input) -> Result<Program> {
    let script = input.script_arguments(FOLDER);
    let mut command = vec!["sh", "-c", LIFELINE, "tfdev"];
    command.extend(script.iter().map(String::as_str));
    command.extend(argv);
    let options = CreateExecOptions { attach_stdin: Some(true), user: Some(USER.to_owned()), ..options(&command) };
    let exec = Exec::start(docker, container, options).await?;
    let action = format!("run `{}` in container `{container}`", argv.first().copied().unwrap_or_default());
    let doing = action.clone();
    let pieces = exec.output.map(move |piece| match piece {
        Ok(LogOutput::StdOut { message } | LogOutput::StdIn { message }) => Ok(Piece::Output(message)),
        Ok(LogOutput::StdErr { message } | LogOutput::Console { message }) => Ok(Piece::Error(message)),
        Err(failure) => Err(failed(&doing, failure)),
    });
    let (docker, id, doing) = (docker.clone(), exec.id, action.clone());
    let exit = Box::pin(async move { exit_code(&docker, &id, &doing).await });
    Ok(Program::new(action, exec.input, Box::pin(pieces), exit))
}
