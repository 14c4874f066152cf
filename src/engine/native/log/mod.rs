//! The server's log: files of bounded size that are moved on while the server runs (`writer`), and that can be followed
//! (`read`).
//!
//! ```text
//! <records>/log/          the server's user's own
//!     server.log          what is written to now
//!     server.log.1 …      what was before, the oldest with the highest number
//! ```
//!
//! What must hold: a server's log takes no more than [`KEPT`] + 1 files of about [`LARGE`] bytes, however long it runs;
//! the server never waits for it longer than a write takes, and goes on without it; and nothing that this user may read
//! and the server's user may not is shown because of a link in the folder.

mod read;
mod writer;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::account::Account;
use super::place::Place;
use crate::error::{Context, Result};

pub(super) use self::read::read;
pub use self::writer::write_log;

/// A log of this many bytes is moved on.
const LARGE: u64 = 10 << 20;

/// How many logs are kept beside the current one.
const KEPT: u32 = 3;

/// The file that is written to now.
const CURRENT: &str = "server.log";

/// How many lines of the log an error shows.
const LINES_IN_ERROR: usize = 15;

/// How much is read at once.
const PIECE: usize = 64 * 1024;

/// How long the last lines of a server that ended may take until they are in the file.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// The argument that makes the program of tfdev the writer of a log.
pub const WRITER_ARGUMENT: &str = "write-log";

/// The name of a file that was moved on `number` times; 0 is the current one.
fn name(number: u32) -> String {
    if number == 0 { CURRENT.to_owned() } else { format!("{CURRENT}.{number}") }
}

/// Opens a file of the log, and never a link or a pipe that the server's user put there.
fn open_to_read(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
}

/// Where a server is to write its log.
#[derive(Debug)]
pub(super) struct Sink {
    target: OwnedFd,
    /// The process that moves the log on, if there is one: else that is done only when a server starts.
    writer: Option<Child>,
    folder: PathBuf,
    /// Where the server's lines will begin.
    begin: u64,
}

impl Sink {
    /// Makes the log ready for the server. `program` is tfdev's own, which becomes the writer.
    pub(super) fn open(place: &Place, account: Account, program: Option<&Path>) -> Result<Self> {
        let folder = place.log_dir();
        Place::create_folder_for(&folder, account)?;
        let what = || format!("cannot open the server's log `{}`", folder.join(CURRENT).display());
        let path = folder.join(CURRENT);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.len() >= LARGE) {
            move_on(&folder).or_failed(what)?;
        }
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let file = File::options().create(true).append(true).mode(0o600).custom_flags(flags).open(&path);
        let file = file.or_failed(what)?;
        account.give(&file).or_failed(what)?;
        let begin = file.metadata().or_failed(what)?.len();
        let (target, writer) = match program.and_then(|program| start_writer(program, &folder, account).ok()) {
            Some((pipe, writer)) => (pipe, Some(writer)),
            None => (file.into(), None),
        };
        Ok(Self { target, writer, folder, begin })
    }

    /// A standard stream for the server.
    pub(super) fn stream(&self) -> io::Result<Stdio> {
        Ok(self.target.try_clone()?.into())
    }

    /// Where the server's lines will begin.
    pub(super) fn begin(&self) -> u64 {
        self.begin
    }

    /// What a server wrote that ended.
    pub(super) fn close(self) -> String {
        drop(self.target);
        let deadline = Instant::now() + DRAIN_LIMIT;
        if let Some(mut writer) = self.writer {
            while matches!(writer.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        since(&self.folder, self.begin)
    }
}

/// Starts the process that writes the log of a server into files. It gets the folder as its standard output, because
/// the server's user need not be able to reach into the state folder.
fn start_writer(program: &Path, folder: &Path, account: Account) -> io::Result<(OwnedFd, Child)> {
    let (reader, pipe) = io::pipe()?;
    let mut command = account.command(program);
    command.arg0("tfdev").arg(WRITER_ARGUMENT).stdin(reader).stdout(File::open(folder)?).stderr(Stdio::null());
    let child = command.spawn()?;
    Ok((pipe.into(), child))
}

/// Moves every file of the log on by one, the oldest over the edge.
fn move_on(folder: &Path) -> io::Result<()> {
    for number in (1..KEPT).rev() {
        let _ = fs::rename(folder.join(name(number)), folder.join(name(number + 1)));
    }
    fs::rename(folder.join(name(0)), folder.join(name(1)))
}

/// What was written from `begin` on, at most its last [`PIECE`].
pub(super) fn since(folder: &Path, begin: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = open_to_read(&folder.join(CURRENT))?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(end.saturating_sub(PIECE as u64))))?;
        let mut bytes = Vec::new();
        file.take(PIECE as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The last lines of `text`, for an error.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LINES_IN_ERROR)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn place(root: &Path) -> Place {
        Place { records: root.to_owned(), home: root.to_owned() }
    }

    #[test]
    fn a_big_log_is_moved_on_when_a_server_starts_and_three_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let account = Account::for_new(None).unwrap().0;
        let place = place(root.path());
        let path = |number| place.log_dir().join(name(number));
        for number in 0..6u8 {
            let sink = Sink::open(&place, account, None).unwrap();
            assert_eq!(sink.begin(), 0);
            let mut file = File::from(sink.target);
            file.write_all(&[b'0' + number]).unwrap();
            file.set_len(LARGE).unwrap();
        }
        assert_eq!([0, 1, 3].map(|number| fs::read(path(number)).unwrap()[0]), *b"542");
        assert!(!path(4).exists());
        fs::write(path(0), "little\n").unwrap();
        assert_eq!(Sink::open(&place, account, None).unwrap().begin(), 7);
    }

    #[test]
    fn a_link_in_the_folder_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        let account = Account::for_new(None).unwrap().0;
        let secret = root.path().join("secret");
        fs::write(&secret, "secret\n").unwrap();
        Sink::open(&place, account, None).unwrap();
        let path = place.log_dir().join(CURRENT);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert_eq!(since(&place.log_dir(), 0), "");
        assert!(Sink::open(&place, account, None).unwrap_err().to_string().contains("cannot open the server's log"));
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
    }
}
