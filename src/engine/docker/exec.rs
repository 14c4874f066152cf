//! Running a program inside a container, with its input and output.
//!
//! What must hold: nothing secret stands in the arguments or the environment, which others on the daemon's machine can
//! list, so secrets go through the standard input; the program sees the end of its input; and the exit code is the
//! program's own, read only when the daemon says that it has ended.

mod session;
mod stream;
#[cfg(unix)]
mod terminal;

use std::pin::Pin;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as Failure;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

pub use self::session::interactive;
pub use self::stream::stream;
use super::errors::failed;
use crate::error::{Error, Result};

/// What a program in a container left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code: 0 is success; 126 and 127 mean that it could not be started.
    pub exit_code: i64,
    /// All that it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// All that it wrote to its standard error, and the engine's words if it could not be started.
    pub stderr: Vec<u8>,
}

/// How much output is taken from the connection at once, in bytes.
const OUTPUT_CAPACITY: usize = 64 * 1024;

/// How long the daemon may take to notice that a program has ended whose output has ended.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);

/// Runs the program `argv[0]` in `container` and waits for its end. It reads `stdin` and then the end of its input.
///
/// An exit code other than 0 is no error. Fails if the container does not exist or does not run.
pub async fn run(docker: &Docker, container: &str, argv: &[&str], stdin: Option<&[u8]>) -> Result<ExecOutput> {
    let options = CreateExecOptions { attach_stdin: Some(stdin.is_some()), ..options(argv) };
    let mut exec = Exec::start(docker, container, options).await?;
    let mut input = exec.input;
    let feeding = async {
        if let Some(bytes) = stdin {
            // A program that does not read all of its input is no failure, so neither is a broken pipe.
            let _ = input.write_all(bytes).await;
            let _ = input.shutdown().await;
        }
        std::future::pending::<()>().await;
    };
    let collecting = async {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(chunk) = exec.output.next().await {
            match chunk? {
                LogOutput::StdOut { message } | LogOutput::StdIn { message } => stdout.extend_from_slice(&message),
                // Without a terminal, what comes outside of both streams are the engine's own words.
                LogOutput::StdErr { message } | LogOutput::Console { message } => stderr.extend_from_slice(&message),
            }
        }
        Ok::<_, Failure>((stdout, stderr))
    };
    let (stdout, stderr) = tokio::select! {
        collected = collecting => collected.map_err(|failure| failed(&exec.action, failure))?,
        () = feeding => (Vec::new(), Vec::new()),
    };
    let exit_code = exit_code(docker, &exec.id, &exec.action).await?;
    // Docker up to 27 writes why it could not start the program where the program would have written.
    let not_started = matches!(exit_code, 126 | 127) && stdout.starts_with(b"OCI runtime exec failed");
    let (stdout, stderr) = if not_started { (Vec::new(), stdout) } else { (stdout, stderr) };
    Ok(ExecOutput { exit_code, stdout, stderr })
}

/// A program that was started.
struct Exec {
    id: String,
    /// What to say if something fails from here on.
    action: String,
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, Failure>> + Send>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
}

impl Exec {
    async fn start(docker: &Docker, container: &str, options: CreateExecOptions<String>) -> Result<Self> {
        let program = options.cmd.iter().flatten().next().cloned().unwrap_or_default();
        let action = format!("run `{program}` in container `{container}`");
        let tty = options.tty.unwrap_or_default();
        let created = docker.create_exec(container, options).await.map_err(|failure| failed(&action, failure))?;
        let start = StartExecOptions { detach: false, tty, output_capacity: Some(OUTPUT_CAPACITY) };
        match docker.start_exec(&created.id, Some(start)).await.map_err(|failure| failed(&action, failure))? {
            StartExecResults::Attached { output, input } => Ok(Self { id: created.id, action, output, input }),
            StartExecResults::Detached => {
                Err(Error::failed(format!("cannot {action}: the daemon did not attach to it")))
            }
        }
    }
}

fn options(argv: &[&str]) -> CreateExecOptions<String> {
    CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(argv.iter().map(|&argument| argument.to_owned()).collect()),
        ..CreateExecOptions::default()
    }
}

/// Waits until the daemon knows that the program has ended, which may be a moment after its output has.
async fn exit_code(docker: &Docker, id: &str, action: &str) -> Result<i64> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let state = docker.inspect_exec(id).await.map_err(|failure| failed(action, failure))?;
        if let (Some(false), Some(code)) = (state.running, state.exit_code) {
            return Ok(code);
        }
        if started.elapsed() > NOTICE_LIMIT {
            return Err(Error::failed(format!("cannot {action}: it closed its output, but goes on running")));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests;
