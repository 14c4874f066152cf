//! Files and folders that only their owner may read, written so that a reader finds the old text or the new one.
//!
//! What must hold: a file is never seen half-written, whatever kills the writer; its mode is 0600 and a folder's is 0700
//! whatever the umask says.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::cannot;
use crate::error::{Context, Error, ErrorKind, Result};

/// What the name of a half-written file ends in.
const TEMPORARY: &str = ".tmp";
/// A half-written file of this age belongs to a process that was killed: writing takes milliseconds.
const ABANDONED: Duration = Duration::from_mins(10);

/// Makes a folder and what is missing above it, open to the owner alone. A folder that is there is closed to others.
pub(crate) fn create_folder(folder: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    let made = builder.create(folder).and_then(|()| close_to_others(folder, 0o700).map(drop));
    made.context(ErrorKind::Failed, || cannot("make the folder", folder)).map_err(|error| writable_hint(error, folder))
}

/// Makes a folder and what is missing above it, open to the owner alone. A folder that is there stays as it is.
pub(crate) fn create_folder_once(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Writes a file in one step: a reader finds all of it or what was there before. Its folder exists.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    remove_abandoned(path);
    let temporary = write_beside(path, content)?;
    let renamed = fs::rename(&temporary, path);
    finish(path, &temporary, renamed)
}

/// As [`write`], with a value as JSON.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).or_failed(|| format!("cannot write `{}`", path.display()))?;
    text.push('\n');
    write(path, text.as_bytes())
}

/// As [`write`], but leaves a file that is there as it is; says whether it wrote.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> Result<bool> {
    remove_abandoned(path);
    let temporary = write_beside(path, content)?;
    let linked = fs::hard_link(&temporary, path);
    if linked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        let _ = fs::remove_file(&temporary);
        return Ok(false);
    }
    finish(path, &temporary, linked).map(|()| true)
}

/// Two folders of one file system get each other's name, in one step: whatever kills us, either both have or none.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) fn exchange(one: &Path, other: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let what = || format!("cannot let `{}` and `{}` change places", one.display(), other.display());
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).map_err(io::Error::from).or_failed(what)?;
    sync_folder(one).and_then(|()| sync_folder(other)).or_failed(what)
}

/// There is no such step here.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(crate) fn exchange(one: &Path, other: &Path) -> Result<()> {
    let message =
        format!("this system cannot let `{}` and `{}` change places in one step", one.display(), other.display());
    Err(Error::new(ErrorKind::Refused, message))
}

/// Takes the permissions of others from a file or folder that has more than `mode`; says whether there were any.
pub(crate) fn close_to_others(path: &Path, mode: u32) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let is_open = is_open_to_others(&fs::metadata(path)?);
        if is_open {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(is_open)
    }
    #[cfg(not(unix))]
    {
        // The profile folder of a Windows user is closed to others already.
        let _ = (path, mode);
        Ok(false)
    }
}

/// Whether others may do anything with a file or folder.
#[cfg(unix)]
pub(crate) fn is_open_to_others(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o077 != 0
}

/// Windows closes a user's own folders by itself, and shows nothing here.
#[cfg(not(unix))]
pub(crate) fn is_open_to_others(_: &fs::Metadata) -> bool {
    false
}

/// Adds what to do when the state folder can't be written to.
pub(crate) fn writable_hint(error: Error, path: &Path) -> Error {
    error.hint(format!(
        "make `{}` a folder that you may write to, or set `TFDEV_STATE_DIR` to another folder",
        path.parent().unwrap_or(path).display()
    ))
}

fn finish(path: &Path, temporary: &Path, named: io::Result<()>) -> Result<()> {
    // After a rename there is nothing to remove; after a link there is.
    let _ = fs::remove_file(temporary);
    named.and_then(|()| sync_folder(path)).context(ErrorKind::Failed, || cannot("write the file", path))
}

fn write_beside(path: &Path, content: &[u8]) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}.{count}{TEMPORARY}", temporary_prefix(path) + &std::process::id().to_string());
    let temporary = path.with_file_name(name);
    let written = create_private(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
        .context(ErrorKind::Failed, || cannot("write the file", path))
        .map_err(|error| writable_hint(error, path))?;
    Ok(temporary)
}

fn create_private(path: &Path) -> io::Result<File> {
    // What is there under this name was left by a killed process that had the same number.
    let _ = fs::remove_file(path);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn temporary_prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes what killed processes left of this file. That it can't be removed is no reason to fail.
fn remove_abandoned(path: &Path) {
    let Some(Ok(entries)) = path.parent().map(fs::read_dir) else { return };
    let prefix = temporary_prefix(path);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if name.starts_with(&prefix) && name.ends_with(TEMPORARY) && age.is_some_and(|age| age > ABANDONED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn readers_never_see_a_part_while_many_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        write(&path, b"0").unwrap();
        std::thread::scope(|scope| {
            let writers = ["1", "2", "3"].map(|digit| {
                let path = &path;
                scope.spawn(move || (0..50).for_each(|_| write(path, digit.repeat(100_000).as_bytes()).unwrap()))
            });
            while writers.iter().any(|writer| !writer.is_finished()) {
                let text = fs::read_to_string(&path).unwrap();
                assert!(text == "0" || text.len() == 100_000 && text.bytes().all(|byte| byte == text.as_bytes()[0]));
            }
        });
        assert_eq!(names(folder.path()), ["record"]);
    }

    #[test]
    fn only_one_of_many_makes_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let made = std::thread::scope(|scope| {
            let path = &path;
            let all: Vec<_> = (0..8).map(|n: u8| scope.spawn(move || write_new(path, &[n]).unwrap())).collect();
            all.into_iter().map(|one| one.join().unwrap()).filter(|made| *made).count()
        });
        assert_eq!(made, 1);
        assert_eq!(names(folder.path()), ["secret"]);
    }

    #[cfg(unix)]
    #[test]
    fn modes_do_not_depend_on_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("a/b");
        let before = rustix::process::umask(rustix::fs::Mode::empty());
        create_folder(&below).unwrap();
        write(&below.join("one"), b"x").unwrap();
        write_new(&below.join("two"), b"x").unwrap();
        rustix::process::umask(before);
        assert_eq!((mode(&below), mode(&folder.path().join("a"))), (0o700, 0o700));
        assert_eq!((mode(&below.join("one")), mode(&below.join("two"))), (0o600, 0o600));
        fs::set_permissions(&below, fs::Permissions::from_mode(0o755)).unwrap();
        create_folder(&below).unwrap();
        assert_eq!(mode(&below), 0o700);
    }

    #[cfg(any(target_os = "linux", target_os = "macos"))]
    #[test]
    fn two_folders_change_places() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        fs::create_dir(&one).unwrap();
        assert!(exchange(&one, &other).is_err() && one.exists(), "nothing without the other");
        fs::create_dir(&other).unwrap();
        fs::write(one.join("of one"), "").unwrap();
        exchange(&one, &other).unwrap();
        assert_eq!((names(&one), names(&other)), (Vec::new(), vec!["of one".to_owned()]));
    }

    #[test]
    fn what_a_killed_writer_left_goes_away_and_what_a_living_one_writes_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (old, young) = (folder.path().join(".record.1.0.tmp"), folder.path().join(".record.2.0.tmp"));
        fs::write(&young, "half").unwrap();
        let file = File::create(&old).unwrap();
        file.set_modified(std::time::SystemTime::now() - ABANDONED * 2).unwrap();
        write(&folder.path().join("record"), b"x").unwrap();
        assert_eq!(names(folder.path()), [".record.2.0.tmp", "record"]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let error = create_folder(&folder.path().join("file/below")).unwrap_err();
        assert!(error.to_string().starts_with("cannot make the folder `"));
        assert!(error.hints()[0].contains("TFDEV_STATE_DIR"));
    }
}
