//! The server's log: a file that is moved aside when it is big and the server starts, and that can be followed.
//!
//! What must hold: a log that was moved aside while it is followed costs the reader no line.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::LogReceiver;
use crate::error::{Context, Result};

/// A log of this many bytes is moved aside when the server starts.
const LARGE: u64 = 10 << 20;

/// How many logs are kept beside the current one.
const KEPT: u32 = 3;

/// How many lines of the log an error shows.
const LINES_IN_ERROR: usize = 15;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How much is read at once.
const PIECE: usize = 64 * 1024;

fn numbered(path: &Path, number: u32) -> PathBuf {
    path.with_extension(format!("log.{number}"))
}

/// Opens the log for the server to write to, after moving a big one aside. Returns where the new lines will begin.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let what = || format!("cannot open the server's log `{}`", path.display());
    if fs::metadata(path).is_ok_and(|found| found.len() >= LARGE) {
        for number in (1..KEPT).rev() {
            let _ = fs::rename(numbered(path, number), numbered(path, number + 1));
        }
        fs::rename(path, numbered(path, 1)).or_failed(what)?;
    }
    let file = File::options().create(true).append(true).mode(0o600).open(path).or_failed(what)?;
    let begin = file.metadata().or_failed(what)?.len();
    Ok((file, begin))
}

/// What was written from `begin` on, at most its last [`PIECE`].
pub(super) fn since(path: &Path, begin: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
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

/// Hands the log to `receive`, from the last `tail` lines on, and goes on with new lines if `follow`.
pub(super) async fn read(path: &Path, tail: Option<u32>, follow: bool, receive: &mut LogReceiver<'_>) -> Result<()> {
    let what = || format!("cannot read the server's log `{}`", path.display());
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !follow => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => wait_for(path).await.or_failed(what)?,
        file => file.or_failed(what)?,
    };
    let begin = match tail {
        Some(lines) => start_of_last(&mut file, lines).or_failed(what)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(begin)).or_failed(what)?;
    let mut buffer = vec![0; PIECE];
    loop {
        let count = file.read(&mut buffer).or_failed(what)?;
        if count > 0 {
            receive(&buffer[..count])?;
            continue;
        }
        if !follow {
            return Ok(());
        }
        // The end of this one: it may have been moved aside since, with all that was written to it read by now.
        let current = fs::metadata(path).ok().map(|found| found.ino());
        if current.is_some_and(|current| file.metadata().is_ok_and(|own| own.ino() != current)) {
            let rest = file.read(&mut buffer).or_failed(what)?;
            receive(&buffer[..rest])?;
            file = File::open(path).or_failed(what)?;
            continue;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn wait_for(path: &Path) -> io::Result<File> {
    loop {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => tokio::time::sleep(LOOK).await,
            file => return file,
        }
    }
}

/// Where the last `lines` lines begin.
fn start_of_last(file: &mut File, lines: u32) -> io::Result<u64> {
    let mut position = file.metadata()?.len();
    if lines == 0 {
        return Ok(position);
    }
    let mut missing = lines;
    let mut buffer = vec![0; PIECE];
    let end = position;
    while position > 0 {
        let length = position.min(PIECE as u64);
        position -= length;
        file.seek(SeekFrom::Start(position))?;
        let piece = &mut buffer[..usize::try_from(length).expect("a piece fits in memory")];
        file.read_exact(piece)?;
        for (index, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = position + index as u64 + 1;
            if after == end {
                continue;
            }
            missing = missing.saturating_sub(1);
            if missing == 0 {
                return Ok(after);
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    async fn tail(path: &Path, lines: Option<u32>) -> String {
        let mut text = Vec::new();
        read(path, lines, false, &mut |bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })
        .await
        .unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn the_last_lines_are_found_whatever_the_pieces_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.log");
        assert_eq!(tail(&path, Some(3)).await, "");
        let long = "x".repeat(PIECE - 1);
        fs::write(&path, format!("one\n{long}\ntwo\nthree")).unwrap();
        assert_eq!(tail(&path, Some(1)).await, "three");
        assert_eq!(tail(&path, Some(2)).await, "two\nthree");
        assert_eq!(tail(&path, Some(3)).await, format!("{long}\ntwo\nthree"));
        assert_eq!(tail(&path, Some(9)).await, format!("one\n{long}\ntwo\nthree"));
        assert_eq!(tail(&path, None).await.len(), 4 + PIECE + 4 + 5);
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(tail(&path, Some(1)).await, "two\n");
        assert_eq!(tail(&path, Some(0)).await, "");
    }

    #[test]
    fn a_big_log_is_moved_aside_and_three_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.log");
        for number in 0..6u8 {
            let (mut file, begin) = open(&path).unwrap();
            assert_eq!(begin, 0);
            file.write_all(&[b'0' + number]).unwrap();
            file.set_len(LARGE).unwrap();
        }
        let first = |path: &Path| fs::read(path).unwrap()[0];
        assert_eq!([first(&path), first(&numbered(&path, 1)), first(&numbered(&path, 3))], *b"542");
        assert!(!numbered(&path, 4).exists());
        fs::write(&path, "little\n").unwrap();
        assert_eq!(open(&path).unwrap().1, 7);
    }

    #[tokio::test]
    async fn a_followed_log_may_be_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.log");
        let heard = Arc::new(Mutex::new(String::new()));
        let (sink, reader_path) = (heard.clone(), path.clone());
        let reader = tokio::spawn(async move {
            let mut receive = move |bytes: &[u8]| {
                sink.lock().unwrap().push_str(std::str::from_utf8(bytes).unwrap());
                Ok(())
            };
            read(&reader_path, None, true, &mut receive).await
        });
        let heard = async |words: &str| {
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while *heard.lock().unwrap() != words {
                assert!(std::time::Instant::now() < deadline, "{words:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        fs::write(&path, "one\n").unwrap();
        heard("one\n").await;
        let mut old = File::options().append(true).open(&path).unwrap();
        fs::rename(&path, numbered(&path, 1)).unwrap();
        old.write_all(b"two\n").unwrap();
        fs::write(&path, "three\n").unwrap();
        heard("one\ntwo\nthree\n").await;
        reader.abort();
    }
}
