//! The process that writes a server's log into files, and moves them on when they are big.
//!
//! What must hold: what the server writes is taken from it at once, also when it cannot be kept; a line is not cut
//! between two files unless it is very long; and the process ends with the last process of the server.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, openat, renameat};

use super::{KEPT, LARGE, PIECE, name};

/// How far a log may grow over [`LARGE`] in search of the end of a line.
const LONGEST_LINE: u64 = 1 << 20;

/// Copies standard input to its end into the log in the folder that standard output is.
pub fn write_log() -> io::Result<()> {
    // Of no terminal: neither its end nor its Ctrl-C is meant for this process. It fails in a process that leads one.
    let _ = rustix::process::setsid();
    let folder = io::stdout();
    copy(&mut io::stdin().lock(), folder.as_fd(), LARGE)
}

fn copy(source: &mut impl Read, folder: BorrowedFd<'_>, large: u64) -> io::Result<()> {
    let mut log = Log { folder, file: None, size: 0 };
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = &buffer[..count];
        // A full disk costs lines of the log, and never the server.
        let _ = log.take(piece, large);
    }
}

/// The log that is written to.
struct Log<'a> {
    folder: BorrowedFd<'a>,
    file: Option<File>,
    size: u64,
}

impl Log<'_> {
    fn take(&mut self, piece: &[u8], large: u64) -> io::Result<()> {
        self.open()?;
        if self.size + (piece.len() as u64) < large {
            return self.write(piece);
        }
        let end_of_line = piece.iter().rposition(|byte| *byte == b'\n').map(|position| position + 1);
        let Some(end) = end_of_line.or_else(|| (self.size >= large + LONGEST_LINE).then_some(0)) else {
            return self.write(piece);
        };
        let (before, after) = piece.split_at(end);
        let written = self.write(before);
        self.move_on()?;
        written?;
        self.open()?;
        self.write(after)
    }

    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(openat(self.folder, name(0), flags, Mode::RUSR | Mode::WUSR)?);
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn move_on(&mut self) -> io::Result<()> {
        self.file = None;
        for number in (0..KEPT).rev() {
            let moved = renameat(self.folder, name(number), self.folder, name(number + 1));
            if number == 0 {
                moved?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn lines(from: usize, to: usize) -> String {
        let lines: Vec<_> = (from..to).map(|number| format!("line {number:03}\n")).collect();
        lines.concat()
    }

    #[test]
    fn a_log_is_moved_on_between_two_lines_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let open = File::open(folder.path()).unwrap();
        // Nine bytes a line, in pieces that end within lines.
        let text = lines(0, 100);
        for piece in text.as_bytes().chunks(40) {
            copy(&mut &piece[..], open.as_fd(), 100).unwrap();
        }
        let read = |number| fs::read_to_string(folder.path().join(name(number))).unwrap_or_default();
        let kept = (0..=KEPT).rev().map(read).collect::<String>();
        assert!(text.ends_with(&kept) && kept.starts_with("line ") && kept.len() > 300, "{kept}");
        assert!((0..=KEPT).all(|number| read(number).len() <= 140), "none is much larger");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_line_without_an_end_is_cut_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let open = File::open(folder.path()).unwrap();
        copy(&mut io::repeat(b'x').take(3 << 20), open.as_fd(), 1 << 10).unwrap();
        let size = |number| fs::metadata(folder.path().join(name(number))).unwrap().len();
        assert!(size(1) < (1 << 20) + (2 << 16), "{}", size(1));
        assert_eq!(size(0) + size(1) + size(2), 3 << 20);
    }

    #[test]
    fn what_cannot_be_written_is_taken_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(name(0))).unwrap();
        let open = File::open(folder.path()).unwrap();
        let text = lines(0, 9);
        let mut source = text.as_bytes();
        copy(&mut source, open.as_fd(), 100).unwrap();
        assert!(source.is_empty());
        fs::remove_dir(folder.path().join(name(0))).unwrap();
        copy(&mut text.as_bytes(), open.as_fd(), 100).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join(name(0))).unwrap(), text);
    }
}
