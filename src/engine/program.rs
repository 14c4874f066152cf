//! A program that runs beside the server and is read while it runs, such as `pg_dump`.
//!
//! What must hold: memory is bounded, whatever the program writes; and the program ends when this process dies or loses
//! interest, however that happens. A daemon lets a program in a container run on when nobody is attached any more, and the
//! kernel does the same for a child, so the program runs below a small shell (`LIFELINE`) that holds on to its input:
//! the end of that input, which nothing but a live tfdev keeps open, ends the program.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{select, unfold};
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ProgramOutput;
use crate::error::{Context, Error, Result};

/// How much output of a program of this machine is taken at once, in bytes.
const OUTPUT_CAPACITY: usize = 256 * 1024;

/// How much a pipe is to hold, in bytes. With Linux's own 64 KB the program and its reader wait for each other.
#[cfg(target_os = "linux")]
const PIPE_CAPACITY: usize = 1 << 20;

/// How much of the standard error is kept, in bytes: the last lines say what went wrong.
const KEPT_ERRORS: usize = 16 * 1024;

/// The shell's script. Arguments: the folder for files, the length of the file (empty: there is none), the program.
///
/// - A file is the input's first bytes. It is there only while the shell lives: one whose shell is gone, by a kill or with
///   its container, is removed by the next shell, with whatever the program called the same and a dot and more. Process
///   numbers come again, so the name has the shell's start time too.
/// - What reads the input afterwards only waits for its end. It has no other stream of ours, or the program's output would
///   never end.
/// - `cat` writes in large pieces and `head` does not: on the daemon's file system that was 8 s for 900 MB and not 15.
/// - In a container the server is process 1, inherits whatever loses its parent, and takes such a process that dies of a
///   signal for a crashed one of its own: it would end all sessions and recover. So the shell waits for all that it
///   starts, and nothing is killed that may have children of its own, unless it ends these.
/// - A shell says when a program of its dies of a signal. With nobody left to read that it would die of it itself, before
///   it has removed the file, so it has an answer to that signal; what it starts has none.
/// - Works with dash, bash and busybox.
pub(super) const LIFELINE: &str = r#"
umask 077
trap : PIPE
folder=$1 length=$2
shift 2
exec 3<&0 </dev/null
began() {
    if [ -r /proc/self/stat ]; then cut -d' ' -f22 "/proc/$1/stat"; else ps -o lstart= -p "$1" | tr -dc '0-9A-Za-z'; fi
} 2>/dev/null
if [ -n "$length" ]; then
    for left in "$folder"/tfdev-file-*; do
        of=${left##*/tfdev-file-} of=${of%%.*}
        [ "$(began "${of%-*}")" = "${of#*-}" ] || rm -f "$left" 2>/dev/null
    done
    file=$folder/tfdev-file-$$-$(began $$)
    trap 'rm -f "$file" "$file".*' EXIT
    head -c "$length" <&3 | cat >"$file" || exit 74
    [ "$(wc -c <"$file")" -eq "$length" ] || exit 74
    set -- "$@" "$file"
fi
"$@" 3<&- &
program=$!
{ read -r _; while kill "$program"; do sleep 1; done; } <&3 >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait "$program"
status=$?
kill "$watcher" 2>/dev/null
wait "$watcher" 2>/dev/null
exit "$status"
"#;

/// What a program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    None,
    /// A file of so many bytes, which are written with [`Program::write`]. Its path is the program's last argument, and
    /// the program starts when all of it is there. It may read anywhere in the file.
    File(u64),
}

impl Input {
    /// The arguments of the shell's script that come before the program.
    pub(super) fn script_arguments(self, folder: &str) -> [String; 2] {
        let length = match self {
            Self::None => String::new(),
            Self::File(length) => length.to_string(),
        };
        [folder.to_owned(), length]
    }
}

/// A part of what a program wrote.
#[derive(Debug)]
pub(super) enum Piece {
    /// To its standard output.
    Output(Bytes),
    /// To its standard error.
    Error(Bytes),
}

/// Everything that a running program writes, in order.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Result<Piece>> + Send>>;

/// Tells the program's exit status once it has closed its output.
pub(super) type Exit = Pin<Box<dyn Future<Output = Result<i64>> + Send>>;

/// A program that runs. Dropping it ends the program.
pub struct Program {
    /// What to say if something fails; reads after "cannot".
    action: String,
    input: Pin<Box<dyn AsyncWrite + Send>>,
    pieces: Pieces,
    exit: Exit,
    errors: Vec<u8>,
    /// What it wrote while its file was not complete.
    early: VecDeque<Bytes>,
}

impl Program {
    /// A program that was started; `action` reads after "cannot".
    pub(super) fn new(action: String, input: Pin<Box<dyn AsyncWrite + Send>>, pieces: Pieces, exit: Exit) -> Self {
        Self { action, input, pieces, exit, errors: Vec::new(), early: VecDeque::new() }
    }

    /// A program of this machine whose streams are pipes. `kept` is dropped when it has ended.
    pub(super) fn of_child(action: String, mut child: tokio::process::Child, kept: impl Send + 'static) -> Self {
        let input: Pin<Box<dyn AsyncWrite + Send>> = match child.stdin.take() {
            Some(stdin) => Box::pin(stdin),
            None => Box::pin(tokio::io::sink()),
        };
        let stdout = child.stdout.take().expect("it was asked for");
        let stderr = child.stderr.take().expect("it was asked for");
        // Where a user's pipes have taken all that they may, it stays as it is.
        #[cfg(target_os = "linux")]
        let _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_CAPACITY);
        let doing = action.clone();
        let pieces = select(
            bytes_of(stdout).map(|bytes| bytes.map(Piece::Output)),
            bytes_of(stderr).map(|bytes| bytes.map(Piece::Error)),
        )
        .map(move |piece| piece.or_failed(|| format!("cannot {doing}: its output could not be read")));
        let doing = action.clone();
        let exit = Box::pin(async move {
            let status = child.wait().await.or_failed(|| format!("cannot {doing}"))?;
            drop(kept);
            Ok(status.code().unwrap_or(1).into())
        });
        Self::new(action, input, Box::pin(pieces), exit)
    }

    /// The next part of the program's standard output; `None` at its end.
    pub async fn read(&mut self) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.early.pop_front() {
            return Ok(Some(bytes));
        }
        while let Some(piece) = self.pieces.next().await {
            match piece? {
                Piece::Output(bytes) => return Ok(Some(bytes)),
                Piece::Error(bytes) => keep(&mut self.errors, &bytes),
            }
        }
        Ok(None)
    }

    /// Writes the next bytes of its file. Fails if the program ends meanwhile; [`Program::finish`] tells why.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { action, input, pieces, errors, early, .. } = self;
        let what = || format!("cannot {action}: it takes no more input");
        let mut writing = std::pin::pin!(async {
            input.write_all(bytes).await?;
            input.flush().await
        });
        loop {
            // A daemon may go on taking what nobody reads any more.
            tokio::select! {
                biased;
                written = &mut writing => return written.or_failed(what),
                piece = pieces.next() => match piece {
                    Some(Ok(Piece::Output(bytes))) => early.push_back(bytes),
                    Some(Ok(Piece::Error(bytes))) => keep(errors, &bytes),
                    Some(Err(error)) => return Err(error),
                    None => return Err(Error::failed(what())),
                },
            }
        }
    }

    /// Waits for the program's end; what it still writes to its standard output is dropped. The result's standard error
    /// is the last of it.
    pub async fn finish(mut self) -> Result<ProgramOutput> {
        while self.read().await?.is_some() {}
        let exit_code = self.exit.await?;
        Ok(ProgramOutput { exit_code, stdout: Vec::new(), stderr: self.errors })
    }
}

fn bytes_of(reader: impl AsyncRead + Unpin + Send) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    unfold(reader, |mut reader| async move {
        let mut buffer = BytesMut::with_capacity(OUTPUT_CAPACITY);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.freeze()), reader)),
            Err(error) => Some((Err(error), reader)),
        }
    })
}

/// Keeps the last of what is written to the standard error.
fn keep(errors: &mut Vec<u8>, bytes: &[u8]) {
    errors.extend_from_slice(bytes);
    let excess = errors.len().saturating_sub(KEPT_ERRORS);
    errors.drain(..excess);
}

impl std::fmt::Debug for Program {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Program").field("action", &self.action).finish_non_exhaustive()
    }
}
