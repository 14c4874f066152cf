//! A file that takes its name only when it is whole.
//!
//! What must hold: under the name there is the old file or the whole new one, on the disk; a failure or an interruption
//! leaves no other file, and what a kill left goes with the next write of the same name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, ErrorKind, Result};

/// What the name of a file ends in that is not whole.
const SUFFIX: &str = ".partial";

/// A file that is being written, removed unless it took its name.
#[derive(Debug)]
pub(crate) struct PartialFile {
    target: PathBuf,
    path: PathBuf,
    /// Locked as long as it is written, which tells it from what a kill left.
    file: File,
    kept: bool,
}

impl PartialFile {
    /// Begins to write what is to be called `target`; `example` is a name for the hint if that is a folder.
    pub(crate) fn beside(target: &Path, example: &str) -> Result<Self> {
        let shown = target.display();
        if target.is_dir() {
            return Err(Error::bad_input(format!("`{shown}` is a folder"))
                .hint(format!("name a file, for example `{}`", target.join(example).display())));
        }
        let Some(name) = target.file_name() else {
            return Err(Error::bad_input(format!("`{shown}` names no file")));
        };
        let folder = folder_of(target);
        if !folder.is_dir() {
            return Err(Error::bad_input(format!("there is no folder `{}`", folder.display()))
                .hint(format!("`mkdir -p {}`", folder.display())));
        }
        let prefix = format!(".{}.", name.to_string_lossy());
        remove_left_over(folder, &prefix);
        let path = folder.join(format!("{prefix}{}{SUFFIX}", uuid::Uuid::new_v4().simple()));
        let what = || format!("cannot write `{}`", path.display());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).or_failed(what)?;
        // Where files cannot be locked, what a kill left stays.
        let _ = file.try_lock();
        Ok(Self { target: target.to_owned(), path, file, kept: false })
    }

    /// The file to write to.
    pub(crate) fn file(&self) -> Result<File> {
        self.file.try_clone().or_failed(|| format!("cannot write `{}`", self.path.display()))
    }

    /// Removes the file when it is dropped, unless it took its name. For whoever waits for the writer and may go first.
    pub(crate) fn guard(&self) -> RemovedOnDrop {
        RemovedOnDrop(self.path.clone())
    }

    /// Writes all to the disk and takes the name, in place of what has it now.
    pub(crate) fn take_name(self) -> Result<()> {
        self.finish(|from, to| fs::rename(from, to))
    }

    /// As [`PartialFile::take_name`], but fails with [`ErrorKind::Refused`] if there is a file of that name.
    pub(crate) fn take_free_name(self) -> Result<()> {
        self.finish(|from, to| match fs::hard_link(from, to) {
            Ok(()) => fs::remove_file(from),
            // Not every file system has links.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !to.exists() => fs::rename(from, to),
            Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
        })
    }

    fn finish(mut self, name: impl FnOnce(&Path, &Path) -> io::Result<()>) -> Result<()> {
        let what = || format!("cannot write `{}`", self.target.display());
        self.file.sync_all().or_failed(what)?;
        match name(&self.path, &self.target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(&self.target)),
            named => named.or_failed(what)?,
        }
        self.kept = true;
        // So that the name survives a power cut too. Not every platform can sync a folder; the file itself is safe.
        if let Ok(folder) = File::open(folder_of(&self.target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a file when it is dropped.
#[derive(Debug)]
pub(crate) struct RemovedOnDrop(PathBuf);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The error for a file that is there already.
pub(crate) fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::Refused, format!("there is a file `{}` already", path.display()))
        .hint("name another file, or add `--yes` to replace it")
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what killed writers of this name left. That it cannot be removed is no reason to fail.
fn remove_left_over(folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let unique = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(SUFFIX));
        if unique.is_none_or(|unique| unique.parse::<uuid::Uuid>().is_err()) {
            continue;
        }
        let is_free = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if is_free {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn count(folder: &Path) -> usize {
        folder.read_dir().unwrap().count()
    }

    #[test]
    fn a_partial_file_goes_unless_it_took_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        fs::write(&path, "before").unwrap();
        let partial = PartialFile::beside(&path, "x").unwrap();
        partial.file().unwrap().write_all(b"half").unwrap();
        drop(partial);
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(count(folder.path()), 1);

        let partial = PartialFile::beside(&path, "x").unwrap();
        partial.file().unwrap().write_all(b"whole").unwrap();
        partial.take_name().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(count(folder.path()), 1);
    }

    #[test]
    fn a_name_that_is_taken_meanwhile_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump");
        let (one, other) = (PartialFile::beside(&path, "x").unwrap(), PartialFile::beside(&path, "x").unwrap());
        one.file().unwrap().write_all(b"one").unwrap();
        one.take_free_name().unwrap();
        let error = other.take_free_name().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(count(folder.path()), 1);
    }

    #[test]
    fn what_a_kill_left_goes_with_the_next_write_of_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump");
        let left = folder.path().join(format!(".dump.{}.partial", uuid::Uuid::new_v4().simple()));
        let not_ours = folder.path().join(".dump.notes.partial");
        fs::write(&left, "half").unwrap();
        fs::write(&not_ours, "mine").unwrap();
        let at_work = PartialFile::beside(&path, "x").unwrap();
        let second = PartialFile::beside(&path, "x").unwrap();
        assert!(!left.exists() && not_ours.exists());
        at_work.take_name().unwrap();
        drop(second);
        assert_eq!(count(folder.path()), 2);
    }

    #[test]
    fn a_folder_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let error = PartialFile::beside(folder.path(), "x").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        let error = PartialFile::beside(&folder.path().join("none/a.tar"), "x").err().unwrap();
        assert!(error.hints()[0].contains("mkdir -p"));
    }
}
