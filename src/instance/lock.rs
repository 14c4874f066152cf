//! The lock of an instance: one tfdev at a time starts, stops or removes it.
//!
//! What must hold: the kernel frees the lock when its holder dies, however that happens; nothing here ever removes the
//! file, so no two processes can hold locks on two files of one name. What stands in the file only tells who is at work.

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Instance, cannot, private_file};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;

/// How often a waiting process looks whether the lock is free.
const LOOK: Duration = Duration::from_millis(20);

/// Who holds a lock, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// The command that it runs, for example `up`.
    pub command: String,
}

/// A lock on a file. It is free again when this is dropped or the process ends.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

/// What a lock is for, in messages: who else may hold it, and where it is.
struct Subject<'a> {
    path: &'a Path,
    /// What is worked on, for example "the instance `dev` of `app`".
    what: &'a str,
}

impl FileLock {
    /// Takes the lock at `path`, waiting for at most `limit`. `command` is told to others who wait; while this one waits,
    /// `events` tells for whom, and that they work on `what`.
    ///
    /// Fails with [`ErrorKind::Conflict`] that names the holder if the lock is not free in time.
    pub async fn acquire(path: &Path, what: &str, command: &str, limit: Duration, events: &Events) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let subject = Subject { path, what };
        let file = open(path)?;
        let mut told = false;
        while !try_lock(&file, path)? {
            if Instant::now() >= deadline {
                return Err(subject.held(limit));
            }
            if !told {
                events.note(format!("Waiting: {}", subject.at_work()));
                told = true;
            }
            sleep(LOOK).await;
        }
        Ok(Self::held_by(file, command))
    }

    /// Takes the lock at `path` if it is free; `None` if it is not.
    pub fn try_acquire(path: &Path, command: &str) -> Result<Option<Self>> {
        let file = open(path)?;
        let locked = try_lock(&file, path)?;
        Ok(locked.then(|| Self::held_by(file, command)))
    }

    fn held_by(file: File, command: &str) -> Self {
        let mut lock = Self { file };
        let holder = Holder { pid: std::process::id(), command: command.to_owned() };
        // Only a courtesy to those who wait: a full disk must not keep anyone from `destroy`.
        let _ = serde_json::to_vec(&holder).map(|text| lock.tell(&text));
        lock
    }

    fn tell(&mut self, text: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text)
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let _ = self.tell(b"");
        let _ = self.file.unlock();
    }
}

/// The lock of an instance. It is free again when this is dropped or the process ends.
#[derive(Debug)]
pub struct InstanceLock(#[expect(dead_code, reason = "held until it is dropped")] FileLock);

impl InstanceLock {
    /// Takes the lock as [`FileLock::acquire`] does.
    pub async fn acquire(instance: &Instance, command: &str, limit: Duration, events: &Events) -> Result<Self> {
        let what = format!("the instance `{}` of `{}`", instance.name, instance.project);
        FileLock::acquire(&instance.lock_file(), &what, command, limit, events).await.map(Self)
    }

    /// Takes the lock if it is free; `None` if it is not.
    pub fn try_acquire(instance: &Instance, command: &str) -> Result<Option<Self>> {
        Ok(FileLock::try_acquire(&instance.lock_file(), command)?.map(Self))
    }

    /// Who is at work. It is meant for messages: after a kill it is who held the lock last.
    pub fn holder(instance: &Instance) -> Option<Holder> {
        holder(&instance.lock_file())
    }
}

fn holder(path: &Path) -> Option<Holder> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn open(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        private_file::create_folder(folder)?;
    }
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
        .open(path)
        .context(ErrorKind::Failed, || cannot("open the lock file", path))
        .map_err(|error| private_file::writable_hint(error, path))
}

fn try_lock(file: &File, path: &Path) -> Result<bool> {
    locked(file.try_lock(), path)
}

fn locked(attempt: std::result::Result<(), TryLockError>, path: &Path) -> Result<bool> {
    match attempt {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(cannot_lock(error, path)),
    }
}

/// The lock could not even be asked for. Network file systems without a lock service do that.
fn cannot_lock(error: io::Error, path: &Path) -> Error {
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    Error::failed(format!("the file system of `{}` cannot lock files", folder.display()))
        .caused_by(error)
        .hint("set `TFDEV_STATE_DIR` to a folder on a local disk")
}

impl Subject<'_> {
    /// A sentence on who is at work.
    fn at_work(&self) -> String {
        let who = match holder(self.path) {
            Some(holder) => format!("another tfdev (pid {}, `{}`)", holder.pid, holder.command),
            None => "another tfdev".to_owned(),
        };
        format!("{who} is at work on {}", self.what)
    }

    fn held(&self, limit: Duration) -> Error {
        let message = format!("{}, and did not finish within {} s", self.at_work(), limit.as_secs());
        let error = Error::new(ErrorKind::Conflict, message);
        match holder(self.path) {
            Some(holder) => {
                error.hint(format!("wait for it with `--timeout SECONDS`, or end it: `kill {}`", holder.pid))
            }
            None => error.hint("wait for it with `--timeout SECONDS`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::sync::{Arc, Mutex};

    use super::super::tests::instance;
    use super::*;
    use crate::event::Event;

    /// Variable that makes [`holds_the_lock_until_killed`] do its work.
    const ROOT: &str = "TFDEV_TEST_LOCK_ROOT";

    /// No test of its own: the other process of the tests below.
    #[test]
    #[ignore = "runs as the other process of the tests on locks"]
    #[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "speaks to the test that started it")]
    fn holds_the_lock_until_killed() {
        let Some(root) = std::env::var_os(ROOT) else { return };
        let _lock = InstanceLock::try_acquire(&instance(Path::new(&root)), "up").unwrap().unwrap();
        println!("locked");
        let _ = io::stdin().lines().next();
    }

    /// Starts another process that holds the lock of the instance below `root`.
    fn other_holder(root: &Path) -> Child {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "instance::lock::tests::holds_the_lock_until_killed"])
            .env(ROOT, root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("locked")), "the other process has the lock");
        child
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn a_held_lock_is_a_conflict_that_names_the_holder() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        let mut other = other_holder(root.path());
        assert!(InstanceLock::try_acquire(&instance, "down").unwrap().is_none());
        let notes = Arc::new(Mutex::new(Vec::new()));
        let seen = notes.clone();
        let events = Events::to(move |event| seen.lock().unwrap().push(event));
        let error = run(InstanceLock::acquire(&instance, "down", Duration::from_millis(100), &events)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let who = format!("another tfdev (pid {}, `up`) is at work on the instance `dev` of `app`", other.id());
        assert!(error.to_string().starts_with(&who), "{error}");
        assert_eq!(*notes.lock().unwrap(), [Event::Note(format!("Waiting: {who}"))]);
        drop(other.stdin.take());
        other.wait().unwrap();
        assert!(InstanceLock::try_acquire(&instance, "down").unwrap().is_some());
    }

    #[test]
    fn the_lock_of_a_killed_process_is_free() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        let mut other = other_holder(root.path());
        assert!(InstanceLock::try_acquire(&instance, "up").unwrap().is_none());
        let events = Events::none();
        let waiting = InstanceLock::acquire(&instance, "up", Duration::from_secs(20), &events);
        let kill = async { other.kill().unwrap() };
        let lock = run(async { tokio::join!(waiting, kill).0 }).unwrap();
        assert_eq!(InstanceLock::holder(&instance).unwrap().pid, std::process::id());
        drop(lock);
        assert!(instance.lock_file().exists() && InstanceLock::holder(&instance).is_none());
        other.wait().unwrap();
    }

    #[test]
    fn two_in_one_process_exclude_each_other_and_instances_do_not() {
        let root = tempfile::tempdir().unwrap();
        let dev = instance(root.path());
        let test = Instance { name: "test".to_owned(), state_dir: dev.state_dir.with_file_name("test"), ..dev.clone() };
        let lock = InstanceLock::try_acquire(&dev, "up").unwrap();
        assert!(lock.is_some() && InstanceLock::try_acquire(&dev, "up").unwrap().is_none());
        assert!(InstanceLock::try_acquire(&test, "up").unwrap().is_some());
        assert!(!dev.state_dir.exists(), "the lock stands outside the instance's own folder");
    }

    #[test]
    fn every_one_of_many_gets_its_turn() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let limit = Duration::from_secs(30);
                    let lock = run(InstanceLock::acquire(&instance, "up", limit, &Events::none())).unwrap();
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    std::thread::yield_now();
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(lock);
                });
            }
        });
    }

    #[test]
    fn a_file_system_without_locks_says_where_to_go() {
        // What flock(2) gives on a network file system without a lock service, and on one that has no locks at all.
        #[cfg(unix)]
        for number in [rustix::io::Errno::NOLCK, rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::NOSYS] {
            let failed = Err(TryLockError::Error(number.into()));
            let error = locked(failed, Path::new("/net/state/app/dev.lock")).unwrap_err();
            assert_eq!(error.to_string(), "the file system of `/net/state/app` cannot lock files");
            assert!(error.causes()[0].contains(&io::Error::from(number).to_string()), "{error:?}");
            assert!(error.hints()[0].contains("TFDEV_STATE_DIR"));
        }
        assert!(!locked(Err(TryLockError::WouldBlock), Path::new("/x")).unwrap());
    }
}
