//! The PostgreSQL 15 that is installed on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, ErrorKind, Result};

/// Where packages put the programs of PostgreSQL 15: Debian and Ubuntu, PGDG's RPMs, Alpine, a plain `make install`.
const USUAL_FOLDERS: [&str; 4] =
    ["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/usr/libexec/postgresql15", "/usr/local/pgsql/bin"];

/// The remedy for a machine with no PostgreSQL 15.
const INSTALL_HINT: &str = "install the package `postgresql-15` (`apt-get install postgresql-15` on Debian and Ubuntu), or \
                            name the folder of its programs: `bin_dir = \"…\"` in `[native]` of `tfdev.toml`";

/// A PostgreSQL 15 and where its parts are. All paths are canonical.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// The full version, for example `15.18`.
    pub(super) version: String,
    /// The programs.
    pub(super) bin_dir: PathBuf,
    /// The loadable modules.
    pub(super) library_dir: PathBuf,
    /// The files that are the same on every machine: extensions, samples, time zone abbreviations.
    pub(super) share_dir: PathBuf,
}

impl Installation {
    /// Finds it in `bin_dir` alone, or, if that is `None`, in the usual places.
    pub(super) fn find(bin_dir: Option<&Path>) -> Result<Self> {
        if let Some(folder) = bin_dir {
            return Self::in_folder(folder);
        }
        match USUAL_FOLDERS.iter().map(Path::new).find(|folder| folder.join("postgres").is_file()) {
            Some(folder) => Self::in_folder(folder),
            None => Err(Error::bad_input(format!(
                "there is no PostgreSQL 15 on this machine (looked in `{}`)",
                USUAL_FOLDERS.join("`, `")
            ))
            .hint(INSTALL_HINT)),
        }
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let server = folder.join("postgres");
        for program in ["postgres", "initdb", "pg_ctl", "psql"] {
            if !folder.join(program).is_file() {
                return Err(Error::bad_input(format!("there is no program `{program}` in `{}`", folder.display()))
                    .hint(INSTALL_HINT));
            }
        }
        let version = version_of(&run(&server, "--version")?).ok_or_else(|| {
            Error::failed(format!("`{} --version` does not say a PostgreSQL version", server.display()))
        })?;
        if major(&version) != "15" {
            return Err(
                Error::bad_input(format!("`{}` is PostgreSQL {version}, not 15", server.display())).hint(INSTALL_HINT)
            );
        }
        let bin_dir = canonical(folder)?;
        Ok(Self {
            library_dir: canonical(&configured(&bin_dir, "--pkglibdir").unwrap_or_else(|| bin_dir.join("../lib")))?,
            share_dir: canonical(&configured(&bin_dir, "--sharedir").unwrap_or_else(|| usual_share_dir(&bin_dir)))?,
            bin_dir,
            version,
        })
    }

    /// The `postgres` program.
    pub(super) fn server(&self) -> PathBuf {
        self.bin_dir.join("postgres")
    }
}

/// What `pg_config` beside the programs says; `None` where there is none, as it belongs to another package in places.
fn configured(bin_dir: &Path, what: &str) -> Option<PathBuf> {
    let said = run(&bin_dir.join("pg_config"), what).ok()?;
    Some(PathBuf::from(said.trim())).filter(|path| path.is_dir())
}

/// Debian keeps share files away from the programs; others keep them beside.
fn usual_share_dir(bin_dir: &Path) -> PathBuf {
    let debian = PathBuf::from("/usr/share/postgresql/15");
    if debian.join("postgres.bki").is_file() { debian } else { bin_dir.join("../share") }
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().context(ErrorKind::BadInput, || format!("cannot use the folder `{}`", path.display()))
}

fn run(program: &Path, argument: &str) -> Result<String> {
    let output = Command::new(program)
        .arg(argument)
        .env("LC_ALL", "C")
        .output()
        .context(ErrorKind::BadInput, || format!("cannot run `{} {argument}`", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::bad_input(format!("`{} {argument}` failed with {}", program.display(), output.status))
        .caused_by(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Takes `15.18` out of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version_of(said: &str) -> Option<String> {
    let version = said.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    version.starts_with(|character: char| character.is_ascii_digit()).then(|| version.to_owned())
}

/// `15` for `15.18`, `15beta1` and `15devel`.
fn major(version: &str) -> &str {
    let end = version.find(|character: char| !character.is_ascii_digit()).unwrap_or(version.len());
    &version[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_packagers_write_them() {
        let debian = version_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").unwrap();
        assert_eq!((debian.as_str(), major(&debian)), ("15.18", "15"));
        assert_eq!(major(&version_of("postgres (PostgreSQL) 15beta1").unwrap()), "15");
        assert_eq!(major(&version_of("postgres (PostgreSQL) 150.1").unwrap()), "150");
        assert_eq!(version_of("postgres: command not found"), None);
    }

    #[test]
    fn a_folder_with_no_programs_is_bad_input_with_the_package_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let error = Installation::find(Some(folder.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains("no program `postgres`"), "{error}");
        assert!(error.hints()[0].contains("postgresql-15"));
    }

    #[cfg(unix)]
    #[test]
    fn another_major_version_is_bad_input() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        for program in ["postgres", "initdb", "pg_ctl", "psql"] {
            let path = folder.path().join(program);
            std::fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 16.4'\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let error = Installation::find(Some(folder.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains("is PostgreSQL 16.4, not 15"), "{error}");
    }
}
