//! Where a native server's files are.
//!
//! ```text
//! <state folder of the instance>/native/   ours alone
//!     server.json                          what the server was started with, and where its home is
//!     limits.json                          the control groups that it is in (limits/)
//!     log/server.log, log/server.log.1 …   what it wrote (log/): a folder of the server's user
//! <home>/
//!     data/                                the data folder, with the marker of the instance
//!     tfdev.conf, pg_hba.conf, server.*    settings, which data/postgresql.conf includes
//!     run/                                 the server's socket, mode 0700
//!     files/                               what a program beside the server needs as a file while it runs, mode 0700
//! ```
//!
//! The home is the same folder as the first one, but:
//! - if root runs tfdev the server runs as another user, who must not need to reach into root's state folder: the home is
//!   `/var/lib/tfdev/<hash of the state folder>`, of which that user owns `data`, `run` and `files` alone; an instance that
//!   took another's place keeps the home that it had;
//! - data in memory has its home on a tmpfs.
//!
//! What must hold: nothing absolute is kept about a home inside the state folder, so that it can be moved with it; and a
//! home outside of it is used only if it is ours.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::account::Account;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::{Instance, private_file};
use crate::pg::programs::Programs;
use crate::spec::hexadecimal;

/// Where homes are if root runs tfdev.
const SYSTEM_FOLDER: &str = "/var/lib/tfdev";

/// The longest path of a socket: 103 bytes on macOS, 107 on Linux (`sun_path`, with its end mark).
const LONGEST_SOCKET: usize = 103;

/// The longest name of a socket in its folder.
const SOCKET_NAME: &str = "/.s.PGSQL.65535";

/// What is kept of a server, as a container's labels keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The identity of the instance.
    pub(super) id: Uuid,
    /// The home, if it is outside of the state folder.
    pub(super) home: Option<PathBuf>,
    /// The name that the data carries until the instance's new one is written there: its state folder took another's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) former: Option<String>,
    /// Whether the data is in memory and goes with the server.
    pub(super) in_memory: bool,
    /// The hash of the spec that the server was started with.
    pub(super) spec_hash: String,
    /// The programs that it was started with.
    pub(super) programs: Programs,
}

/// The folders of an instance's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Ours alone.
    pub(super) records: PathBuf,
    /// The server's.
    pub(super) home: PathBuf,
}

impl Kept {
    /// Reads what is kept of an instance's server; `None` if there is nothing that can be read.
    pub(super) fn read(instance: &Instance) -> Option<Self> {
        serde_json::from_slice(&fs::read(records(instance).join("server.json")).ok()?).ok()
    }

    /// Keeps it.
    pub(super) fn write(&self, place: &Place) -> Result<()> {
        private_file::create_folder(&place.records)?;
        private_file::write_json(&place.records.join("server.json"), self)
    }
}

fn records(instance: &Instance) -> PathBuf {
    instance.state_dir.join("native")
}

/// The home of that name, or one of its like: instances that took each other's place kept their homes, so it may be that
/// of another.
fn free_home(home: &Path, instance: &Instance) -> PathBuf {
    let numbered = (1..).map(|number| home.with_added_extension(number.to_string()));
    let mut homes = std::iter::once(home.to_owned()).chain(numbered);
    homes.find(|home| !home.exists() || !is_anothers(home, instance)).expect("there is no end of them")
}

/// Whether another instance of the project has its home there.
fn is_anothers(home: &Path, instance: &Instance) -> bool {
    instance.other_state_dirs().any(|other| {
        let kept = fs::read(other.join("native/server.json")).ok();
        let kept: Option<Kept> = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        kept.is_some_and(|kept| kept.home.as_deref() == Some(home))
    })
}

/// Tells instances apart in a folder that all share.
fn hash(instance: &Instance) -> String {
    hexadecimal(&Sha256::digest(instance.state_dir.as_os_str().as_encoded_bytes())[..8])
}

impl Place {
    /// Where the instance's server is, or would be made on a disk.
    pub(super) fn of(instance: &Instance, kept: Option<&Kept>) -> Self {
        let records = records(instance);
        let outside = kept.and_then(|kept| kept.home.clone());
        let home = outside.unwrap_or_else(|| {
            if Account::am_root() && !records.join("data").exists() {
                free_home(&Path::new(SYSTEM_FOLDER).join(hash(instance)), instance)
            } else {
                records.clone()
            }
        });
        Self { records, home }
    }

    /// Where a new server with its data in memory is made: on a tmpfs with this much room; `None` if there is none.
    pub(super) fn in_memory(instance: &Instance, runtime_dir: Option<&Path>, room: u64) -> Option<Self> {
        let name = format!("tfdev-{}-{}", geteuid().as_raw(), hash(instance));
        // Root's own runtime folder is closed to the server's user.
        let runtime_dir = runtime_dir.filter(|_| !Account::am_root());
        let mut folders = std::iter::once(Path::new("/dev/shm")).chain(runtime_dir);
        let folder = folders.find(|folder| is_tmpfs_with(folder, room))?;
        Some(Self { records: records(instance), home: folder.join(name) })
    }

    /// The home, if it is outside of the state folder.
    pub(super) fn outside(&self) -> Option<PathBuf> {
        (self.home != self.records).then(|| self.home.clone())
    }

    /// The data folder.
    pub(super) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// The data folder while it is made.
    pub(super) fn partial(&self) -> PathBuf {
        self.home.join("data.partial")
    }

    /// The data folder while it is removed.
    pub(super) fn removed(&self) -> PathBuf {
        self.home.join("data.removed")
    }

    /// The folder of files for programs beside the server.
    pub(super) fn files(&self) -> PathBuf {
        self.home.join("files")
    }

    /// The folder of the server's log.
    pub(super) fn log_dir(&self) -> PathBuf {
        self.records.join("log")
    }

    /// Tells this server apart from all others of this machine.
    pub(super) fn name(&self) -> String {
        hexadecimal(&Sha256::digest(self.records.as_os_str().as_encoded_bytes())[..8])
    }

    /// The folder of the server's socket: in the home if its path is short enough, else in `runtime_dir` or `/tmp`.
    pub(super) fn socket_dir(&self, runtime_dir: Option<&Path>) -> PathBuf {
        let own = self.home.join("run");
        let fits = |folder: &Path| folder.as_os_str().len() + SOCKET_NAME.len() <= LONGEST_SOCKET;
        if fits(&own) {
            return own;
        }
        let hash = hexadecimal(&Sha256::digest(own.as_os_str().as_encoded_bytes())[..8]);
        let name = format!("tfdev-{}-{hash}", geteuid().as_raw());
        let runtime_dir = runtime_dir.filter(|folder| !Account::am_root() && folder.is_dir());
        let below_it = runtime_dir.map(|folder| folder.join(&name)).filter(|folder| fits(folder));
        below_it.unwrap_or_else(|| Path::new("/tmp").join(name))
    }

    /// Makes the folders that are missing.
    pub(super) fn create(&self) -> Result<()> {
        private_file::create_folder(&self.records)?;
        if self.home == self.records {
            return Ok(());
        }
        // Another user passes through to what is theirs, and sees nothing.
        let mode = if Account::am_root() { 0o711 } else { 0o700 };
        if self.home.starts_with(SYSTEM_FOLDER) {
            own_folder(Path::new(SYSTEM_FOLDER), 0o711, geteuid().as_raw())?;
        }
        own_folder(&self.home, mode, geteuid().as_raw()).map(drop)
    }

    /// Makes a folder that is open to the server's user alone: that of the socket, the log or files for programs.
    pub(super) fn create_folder_for(folder: &Path, account: Account) -> Result<()> {
        let own = geteuid().as_raw();
        // A kill may have come between making it and giving it away.
        let made = match fs::symlink_metadata(folder) {
            Ok(found) if found.uid() == account.uid => own_folder(folder, 0o700, account.uid)?,
            _ => own_folder(folder, 0o700, own)?,
        };
        if made.uid() != account.uid {
            account.give_path(folder).or_failed(|| format!("cannot give the folder `{}` away", folder.display()))?;
        }
        Ok(())
    }
}

/// Makes a folder, or makes sure that the one that is there is `owner`'s and no link, and sets its mode.
fn own_folder(folder: &Path, mode: u32, owner: u32) -> Result<Metadata> {
    let what = || format!("cannot make the folder `{}`", folder.display());
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).or_failed(what).map_err(|error| {
                let parent = folder.parent().unwrap_or(folder);
                error.hint(format!("make `{}` a folder that this user may write to", parent.display()))
            });
        }
        _ => {}
    }
    let found = fs::symlink_metadata(folder).or_failed(what)?;
    if !found.is_dir() || found.uid() != owner {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("`{}` is in the way: it is not a folder of the user {owner}", folder.display()),
        )
        .hint(format!("look at it with `ls -ld {}`, and remove it if it is not needed", folder.display())));
    }
    if found.permissions().mode() & 0o777 != mode {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).or_failed(what)?;
    }
    Ok(found)
}

/// Whether `folder` is in memory and has so many bytes left.
#[cfg(target_os = "linux")]
fn is_tmpfs_with(folder: &Path, room: u64) -> bool {
    /// `TMPFS_MAGIC` of `linux/magic.h`.
    const TMPFS: u64 = 0x0102_1994;
    let Ok(found) = rustix::fs::statfs(folder) else { return false };
    let free = found.f_bavail.saturating_mul(found.f_bsize.unsigned_abs());
    u64::try_from(found.f_type).is_ok_and(|kind| kind == TMPFS) && free >= room
}

/// Whether `folder` is in memory and has so many bytes left: other systems have no such folder.
#[cfg(not(target_os = "linux"))]
fn is_tmpfs_with(_: &Path, _: u64) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::instance;

    #[test]
    fn a_home_in_the_state_folder_moves_with_it() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        fs::create_dir_all(records(&instance).join("data")).unwrap();
        let place = Place::of(&instance, None);
        assert_eq!((place.home.clone(), place.outside()), (records(&instance), None));
    }

    #[test]
    fn a_long_path_gets_a_short_socket_folder() {
        let place = |home: &str| Place { records: "/r".into(), home: home.into() };
        assert_eq!(place("/short").socket_dir(None), Path::new("/short/run"));
        let long = place(&format!("/{}", "long".repeat(30)));
        let short = long.socket_dir(Some(Path::new("/run/nowhere/at/all")));
        assert!(short.starts_with("/tmp") && short.as_os_str().len() < 60, "{}", short.display());
        assert_ne!(short, place(&format!("/{}x", "long".repeat(30))).socket_dir(None));
    }

    #[test]
    fn a_folder_that_is_not_ours_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let own = geteuid().as_raw();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(root.path(), &link).unwrap();
        assert_eq!(own_folder(&link, 0o700, own).unwrap_err().kind(), ErrorKind::Refused);
        assert!(own_folder(root.path(), 0o700, own + 1).unwrap_err().to_string().contains("in the way"));
        let folder = root.path().join("folder");
        own_folder(&folder, 0o711, own).unwrap();
        assert_eq!(own_folder(&folder, 0o700, own).unwrap().permissions().mode() & 0o777, 0o711);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_a_file_system_in_memory_with_room_counts() {
        assert!(!is_tmpfs_with(Path::new("/proc"), 0));
        assert!(!is_tmpfs_with(Path::new("/dev/shm"), u64::MAX));
    }
}
