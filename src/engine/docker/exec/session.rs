//! A program in a container that a person, or a pipe, uses directly: our own input and output become the program's.
//!
//! What must hold: the terminal is given back as it was, also after an error; and nothing waits for a key press after
//! the program has ended.

use std::io::{self, Read};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::CreateExecOptions;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::{Exec, exit_code, options};
use crate::engine::docker::errors::failed;
use crate::error::{Error, ErrorKind, Result};

/// The exit code that a shell gives a program whose reader has gone away (128 and the number of SIGPIPE).
const READER_GONE: i64 = 141;

/// Runs the program `argv[0]` in `container` on our standard input, output and error, and returns its exit code.
///
/// With `tty` (when both input and output are a terminal) the program gets a terminal of the size of ours, which passes
/// every key on, Ctrl-C too; it then has one output, so its standard error is not told apart. Without, everything is
/// piped and the program sees the end of our input. Returns 141 if the reader of our output goes away.
///
/// `environment` is added to the container's; others on the daemon's machine can list it, so it is no place for secrets.
/// The thread that reads our input stays behind until its next line or the end of this process, so nothing else should
/// read the standard input afterwards.
pub async fn interactive(
    docker: &Docker,
    container: &str,
    argv: &[&str],
    environment: &[(&str, &str)],
    tty: bool,
) -> Result<i64> {
    let options = CreateExecOptions {
        attach_stdin: Some(true),
        tty: Some(tty),
        env: Some(environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        ..options(argv)
    };
    let mut exec = Exec::start(docker, container, options).await?;
    let ended = {
        #[cfg(unix)]
        let _raw = tty.then(super::terminal::RawMode::enter).transpose()?;
        let mut input = exec.input;
        let feeding = async {
            let mut chunks = read_stdin();
            while let Some(bytes) = chunks.recv().await {
                if input.write_all(&bytes).await.is_err() || input.flush().await.is_err() {
                    break;
                }
            }
            let _ = input.shutdown().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = forward(&mut exec.output, &exec.action) => ended?,
            () = feeding => Ended::Program,
            () = follow_size(docker, &exec.id, tty) => Ended::Program,
        }
    };
    match ended {
        Ended::Program => exit_code(docker, &exec.id, &exec.action).await,
        Ended::Reader => Ok(READER_GONE),
    }
}

/// Why there is nothing more to pass on.
enum Ended {
    /// The program closed its output.
    Program,
    /// Nobody reads ours.
    Reader,
}

/// Passes the program's output on until its end.
async fn forward(
    output: &mut (impl futures_util::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Unpin),
    action: &str,
) -> Result<Ended> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(chunk) = output.next().await {
        let written = match chunk.map_err(|failure| failed(action, failure))? {
            LogOutput::StdErr { message } => write(&mut stderr, &message).await,
            LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
                write(&mut stdout, &message).await
            }
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ended::Reader),
            Err(error) => {
                return Err(Error::new(ErrorKind::Failed, "cannot write the program's output").caused_by(error));
            }
        }
    }
    Ok(Ended::Program)
}

async fn write(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Reads our standard input in a thread of its own.
///
/// The runtime's way would keep the process from ending until the next key press, because it waits for its reading
/// thread; a thread that is ours ends with the process.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; 8192];
        loop {
            match stdin.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) if count > 0 => {
                    if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Ok(_) | Err(_) => return,
            }
        }
    });
    receiver
}

/// Gives the program's terminal the size of ours, now and whenever ours changes. Never ends.
#[cfg(unix)]
async fn follow_size(docker: &Docker, id: &str, tty: bool) {
    if tty {
        super::terminal::follow_size(docker, id).await;
    }
    std::future::pending::<()>().await;
}

#[cfg(not(unix))]
async fn follow_size(_: &Docker, _: &str, _: bool) {
    std::future::pending::<()>().await;
}
