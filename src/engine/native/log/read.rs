//! Reading a log whose files may be moved on meanwhile.
//!
//! What must hold: a log that is moved on while it is read costs the reader no line, and shows none twice.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{CURRENT, KEPT, PIECE, name, open_to_read};
use crate::engine::LogReceiver;
use crate::error::{Context, Result};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Hands the log to `receive`, from the last `tail` lines on, and goes on with new lines if `follow`.
pub(in crate::engine::native) async fn read(
    folder: &Path,
    tail: Option<u32>,
    follow: bool,
    receive: &mut LogReceiver<'_>,
) -> Result<()> {
    let what = || format!("cannot read the server's log `{}`", folder.join(CURRENT).display());
    let mut files = open_all(folder).or_failed(what)?;
    while follow && files.is_empty() {
        tokio::time::sleep(LOOK).await;
        files = open_all(folder).or_failed(what)?;
    }
    if let Some(lines) = tail {
        files = seek_to_last(files, lines).or_failed(what)?;
    }
    let mut buffer = vec![0; PIECE];
    // A followed log: the file whose end was reached last, and is the current one as far as is known.
    let mut last: Option<File> = None;
    loop {
        for mut file in files.drain(..) {
            drain(&mut file, &mut buffer, receive, what)?;
            last = Some(file);
        }
        let Some(current) = last.as_mut().filter(|_| follow) else { return Ok(()) };
        if is_current(folder, current) {
            tokio::time::sleep(LOOK).await;
            drain(current, &mut buffer, receive, what)?;
            continue;
        }
        // It was moved on, with all that was ever written to it.
        drain(current, &mut buffer, receive, what)?;
        files = newer_than(current, open_all(folder).or_failed(what)?);
        if files.is_empty() {
            // The next one is not there yet.
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Hands over all of `file` that is there.
fn drain(file: &mut File, buffer: &mut [u8], receive: &mut LogReceiver<'_>, what: impl Fn() -> String) -> Result<()> {
    loop {
        let count = file.read(buffer).or_failed(&what)?;
        if count == 0 {
            return Ok(());
        }
        receive(&buffer[..count])?;
    }
}

/// The files of the log that are there, the oldest first.
fn open_all(folder: &Path) -> io::Result<Vec<File>> {
    let mut files: Vec<(u64, File)> = Vec::new();
    // The newest is opened first: one that is moved on meanwhile is met twice, and none is missed.
    for number in 0..=KEPT {
        match open_to_read(&folder.join(name(number))) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                if files.iter().all(|(known, _)| *known != inode) {
                    files.push((inode, file));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files.into_iter().rev().map(|(_, file)| file).collect())
}

/// Those of `files` that came after `file`; all, if that one is no longer there.
fn newer_than(file: &File, mut files: Vec<File>) -> Vec<File> {
    let inode = |file: &File| file.metadata().ok().map(|found| found.ino());
    let own = inode(file);
    match files.iter().position(|other| inode(other) == own) {
        Some(position) => files.split_off(position + 1),
        None => files,
    }
}

fn is_current(folder: &Path, file: &File) -> bool {
    let current = fs::symlink_metadata(folder.join(CURRENT)).map(|found| found.ino());
    file.metadata().is_ok_and(|own| current.is_ok_and(|current| current == own.ino()))
}

/// Leaves out what is before the last `lines` lines.
fn seek_to_last(mut files: Vec<File>, lines: u32) -> io::Result<Vec<File>> {
    let mut missing = lines;
    for index in (0..files.len()).rev() {
        let (begin, still_missing) = start_of_last(&mut files[index], missing)?;
        files[index].seek(SeekFrom::Start(begin))?;
        missing = still_missing;
        if missing == 0 {
            return Ok(files.split_off(index));
        }
    }
    Ok(files)
}

/// Where the last `lines` lines begin, and how many of them are not there.
fn start_of_last(file: &mut File, lines: u32) -> io::Result<(u64, u32)> {
    let mut position = file.metadata()?.len();
    if lines == 0 || position == 0 {
        return Ok((position, lines));
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
            missing -= 1;
            if missing == 0 {
                return Ok((after, 0));
            }
        }
    }
    // The first line of the file.
    Ok((0, missing - 1))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    async fn tail(folder: &Path, lines: Option<u32>) -> String {
        let mut text = Vec::new();
        let receive = &mut |bytes: &[u8]| {
            text.extend_from_slice(bytes);
            Ok(())
        };
        read(folder, lines, false, receive).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn the_last_lines_are_found_whatever_the_pieces_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CURRENT);
        assert_eq!(tail(folder.path(), Some(3)).await, "");
        let long = "x".repeat(PIECE - 1);
        fs::write(&path, format!("one\n{long}\ntwo\nthree")).unwrap();
        assert_eq!(tail(folder.path(), Some(1)).await, "three");
        assert_eq!(tail(folder.path(), Some(2)).await, "two\nthree");
        assert_eq!(tail(folder.path(), Some(3)).await, format!("{long}\ntwo\nthree"));
        assert_eq!(tail(folder.path(), Some(4)).await, format!("one\n{long}\ntwo\nthree"));
        assert_eq!(tail(folder.path(), Some(9)).await, format!("one\n{long}\ntwo\nthree"));
        assert_eq!(tail(folder.path(), None).await.len(), 4 + PIECE + 4 + 5);
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(tail(folder.path(), Some(1)).await, "two\n");
        assert_eq!(tail(folder.path(), Some(0)).await, "");
    }

    #[tokio::test]
    async fn the_last_lines_may_be_in_files_that_were_moved_on() {
        let folder = tempfile::tempdir().unwrap();
        for (number, text) in [(2, "one\ntwo\n"), (1, "three\nfour\n"), (0, "five\n")] {
            fs::write(folder.path().join(name(number)), text).unwrap();
        }
        let all = "one\ntwo\nthree\nfour\nfive\n";
        assert_eq!(tail(folder.path(), None).await, all);
        for lines in 0..=6 {
            let expected: Vec<_> = all.split_inclusive('\n').collect();
            let expected = expected[expected.len().saturating_sub(lines)..].concat();
            assert_eq!(tail(folder.path(), Some(u32::try_from(lines).unwrap())).await, expected, "{lines}");
        }
    }

    #[tokio::test]
    async fn a_followed_log_may_be_moved_on_once_and_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number| folder.path().join(name(number));
        let heard = Arc::new(Mutex::new(String::new()));
        let (sink, reader_path) = (heard.clone(), folder.path().to_owned());
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
        fs::write(path(0), "one\n").unwrap();
        heard("one\n").await;
        let mut old = File::options().append(true).open(path(0)).unwrap();
        old.write_all(b"two\n").unwrap();
        fs::rename(path(0), path(1)).unwrap();
        fs::write(path(0), "three\n").unwrap();
        heard("one\ntwo\nthree\n").await;
        // Twice before the reader looks again.
        fs::rename(path(1), path(3)).unwrap();
        fs::rename(path(0), path(2)).unwrap();
        fs::write(path(1), "four\n").unwrap();
        fs::write(path(0), "five\n").unwrap();
        heard("one\ntwo\nthree\nfour\nfive\n").await;
        reader.abort();
    }
}
