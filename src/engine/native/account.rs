//! Who runs the server: whoever runs tfdev, or, where that is root, an ordinary user, because PostgreSQL refuses root.
//!
//! What must hold: a program of the server never runs as root and never with more groups than its user's first one; it
//! gets a clean environment, so that neither `LANG` nor a `PG…` variable nor a secret of the caller reaches it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{fchown, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{getegid, geteuid};

use crate::config::Setting;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::programs;

/// Who runs the server if root runs tfdev and names nobody, the first one that there is.
const USUAL: [&str; 2] = ["postgres", "nobody"];

/// The search path of the server's programs; `archive_command` and its like use it.
pub(super) const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A user of this machine who runs a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether it is another user than the one who runs tfdev.
    pub(super) is_other: bool,
}

impl Account {
    /// Whether this process is root's.
    pub(super) fn am_root() -> bool {
        geteuid().is_root()
    }

    /// Who runs the server of a new data folder, and the name for messages if that is another user than ours.
    pub(super) fn for_new(named: Option<&Setting<String>>) -> Result<(Self, Option<String>)> {
        if !Self::am_root() {
            let own = Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), is_other: false };
            return Ok((own, None));
        }
        if let Some(named) = named {
            let account = Self::by_name(&named.value).ok_or_else(|| {
                Error::bad_input(format!("there is no user `{}` on this machine ({})", named.value, named.origin))
                    .hint("name another one with `user` in the section `[native]` of tfdev.toml")
            })?;
            return Ok((account, Some(named.value.clone())));
        }
        for name in USUAL {
            if let Some(account) = Self::by_name(name) {
                return Ok((account, Some(name.to_owned())));
            }
        }
        Err(Error::new(
            ErrorKind::NoEngine,
            format!("PostgreSQL refuses to be run by root, and there is no user `{}` here", USUAL.join("` or `")),
        )
        .hint("name an ordinary user with `user` in the section `[native]` of tfdev.toml, or run tfdev as one"))
    }

    /// The user of that name, as the machine's own directory knows it.
    fn by_name(name: &str) -> Option<Self> {
        let number = |what: &str| -> Option<u32> {
            let output = Command::new("id").args([what, "--", name]).output().ok().filter(|o| o.status.success())?;
            String::from_utf8_lossy(&output.stdout).trim().parse().ok()
        };
        let (uid, gid) = (number("-u")?, number("-g")?);
        (uid != 0).then_some(Self { uid, gid, is_other: true })
    }

    /// Who owns a data folder that is there. Fails if that user cannot run a server from here.
    pub(super) fn of_owner(data: &Path, uid: u32, gid: u32) -> Result<Self> {
        let own = geteuid().as_raw();
        let folder = data.display();
        if uid == 0 {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the data folder `{folder}` belongs to root, and PostgreSQL refuses to be run by root"),
            )
            .hint(format!("give it back to the user who ran its server: `chown -R postgres:postgres {folder}`")));
        }
        if uid != own && own != 0 {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the data folder `{folder}` belongs to the user {uid}, and tfdev is run by the user {own}"),
            )
            .hint(format!("run tfdev as that user, or take the folder over: `sudo chown -R {own} {folder}`")));
        }
        Ok(Self { uid, gid, is_other: uid != own })
    }

    /// A command that runs `program` as this user with a clean environment.
    pub(super) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", SEARCH_PATH).env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
        if self.is_other {
            // The standard library drops all other groups when root takes another user's number.
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Runs `program` to its end; a failure is the program's own words.
    pub(super) fn run(self, program: &Path, arguments: &[&str]) -> Result<()> {
        let what = || format!("cannot run `{}`", program.display());
        let output = self.command(program).args(arguments).output().or_failed(what).map_err(|error| {
            error.hint(format!("the user {} must be able to reach and run it", self.uid)).hint(programs::INSTALL_HINT)
        })?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::failed(format!("`{}` failed with {}", program.display(), output.status)).caused_by(text))
    }

    /// Gives a file that we made to this user.
    pub(super) fn give(self, file: &File) -> io::Result<()> {
        if self.is_other { fchown(file, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }

    /// Gives a folder or file that we made, or the link itself, to this user.
    pub(super) fn give_path(self, path: &Path) -> io::Result<()> {
        if self.is_other { lchown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_of_root_or_of_someone_else_is_refused() {
        let data = Path::new("/data");
        assert!(Account::of_owner(data, 0, 0).unwrap_err().to_string().contains("belongs to root"));
        let own = geteuid().as_raw();
        let other = Account::of_owner(data, own + 1234, 0);
        if own == 0 {
            assert!(other.unwrap().is_other);
        } else {
            assert!(other.unwrap_err().hints()[0].contains("chown -R"));
            assert!(!Account::of_owner(data, own, 0).unwrap().is_other);
        }
    }

    #[test]
    fn a_server_is_never_roots() {
        assert_eq!(Account::by_name("root"), None);
        assert_eq!(Account::by_name("no-such-user-here"), None);
        if let Ok((account, name)) = Account::for_new(None) {
            assert_ne!(account.uid, 0);
            assert_eq!(account.is_other, Account::am_root());
            assert_eq!(name.is_some(), Account::am_root());
        }
    }

    #[test]
    fn programs_get_a_clean_environment_and_the_users_own_number() {
        let Ok((account, _)) = Account::for_new(None) else { return };
        let output = account.command(Path::new("/bin/sh")).args(["-c", "id -u; id -G; env"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(account.uid.to_string().as_str()));
        if account.is_other {
            assert_eq!(lines.next(), Some(account.gid.to_string().as_str()));
        }
        assert!(text.contains("LC_ALL=C\n") && !text.contains("HOME=") && !text.contains("LANG="), "{text}");
    }
}
