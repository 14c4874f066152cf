//! Finding the programs of PostgreSQL 15 on this machine.
//!
//! What must hold: a folder that was named is used or refused, never passed over; without one the first complete
//! PostgreSQL 15 wins, and another major version in front of it is passed over. An error names every folder where
//! something was found and why that is not it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::Settings;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::spec::POSTGRES_MAJOR;

/// The programs that every use of a PostgreSQL needs.
const NEEDED: [&str; 3] = ["postgres", "initdb", "pg_ctl"];

/// Where packages put the programs of PostgreSQL 15: Debian and Ubuntu, PGDG's RPMs, Fedora's own, Alpine, Homebrew on
/// both kinds of Mac, Postgres.app, a plain `make install`.
const USUAL_FOLDERS: [&str; 8] = [
    "/usr/lib/postgresql/15/bin",
    "/usr/pgsql-15/bin",
    "/usr/bin",
    "/usr/libexec/postgresql15",
    "/opt/homebrew/opt/postgresql@15/bin",
    "/usr/local/opt/postgresql@15/bin",
    "/Applications/Postgres.app/Contents/Versions/15/bin",
    "/usr/local/pgsql/bin",
];

/// Where asdf keeps what it installed, below the home folder.
const ASDF: &str = ".asdf/installs/postgres";

/// The remedy for a machine with no PostgreSQL 15.
pub(crate) const INSTALL_HINT: &str = "install PostgreSQL 15 (`apt-get install postgresql-15` on Debian and Ubuntu, `dnf install \
                            postgresql15-server` from PGDG, `brew install postgresql@15`), or name the folder of its \
                            programs: `bin_dir = \"…\"` in `[native]` of `tfdev.toml`";

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct SearchPlaces {
    /// The one folder that counts, if it was named.
    pub bin_dir: Option<PathBuf>,
    /// The user's `PATH`.
    pub search_path: Option<OsString>,
    /// The user's home folder.
    pub home_dir: Option<PathBuf>,
}

/// PostgreSQL 15's programs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Programs {
    /// The full version, for example `15.18`.
    pub version: String,
    /// Their folder; canonical.
    pub bin_dir: PathBuf,
}

/// Why a folder is not it.
#[derive(Debug)]
struct Unfit {
    folder: PathBuf,
    why: String,
}

impl SearchPlaces {
    /// The places that the settings say.
    pub fn of(settings: &Settings) -> Self {
        Self {
            bin_dir: settings.native_bin_dir.as_ref().map(|folder| folder.value.clone()),
            search_path: settings.search_path.clone(),
            home_dir: settings.home_dir.clone(),
        }
    }

    /// The folders in which to look, in order. `pg_config` is asked only if it comes to that.
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let path: Vec<PathBuf> =
            self.search_path.as_deref().map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
        // A relative folder on PATH means another program in another folder: not for a server that stays.
        let path: Vec<_> = path.into_iter().filter(|folder| folder.is_absolute()).collect();
        let configured = path.clone();
        let configured = std::iter::once_with(move || ask_pg_config(&configured)).flatten();
        let asdf = self.home_dir.clone();
        let asdf = std::iter::once_with(move || asdf_folders(asdf.as_deref())).flatten();
        path.into_iter().chain(configured).chain(USUAL_FOLDERS.map(PathBuf::from)).chain(asdf)
    }
}

impl Programs {
    /// Finds them: in the named folder alone, else on PATH, where `pg_config` says, and in the usual places.
    ///
    /// Fails with [`ErrorKind::BadInput`] if the named folder is not one of PostgreSQL 15, and with
    /// [`ErrorKind::NoEngine`] if there is none on this machine.
    pub fn find(places: &SearchPlaces) -> Result<Self> {
        if let Some(folder) = &places.bin_dir {
            return Self::in_folder(folder).map_err(|unfit| {
                Error::bad_input(format!("the programs in `{}` cannot be used: {}", folder.display(), unfit.why))
                    .hint(INSTALL_HINT)
            });
        }
        let mut unfit: Vec<Unfit> = Vec::new();
        for folder in places.folders().filter(|folder| folder.join("postgres").is_file()) {
            match Self::in_folder(&folder) {
                Ok(programs) => return Ok(programs),
                Err(other) if unfit.iter().any(|known| known.folder == other.folder) => {}
                Err(other) => unfit.push(other),
            }
        }
        Err(none_fits(&unfit))
    }

    /// The programs in this folder.
    fn in_folder(folder: &Path) -> Result<Self, Unfit> {
        // `postgres` may be a link to where the others are.
        let server = folder.join("postgres").canonicalize();
        let bin_dir = server.ok().and_then(|server| server.parent().map(Path::to_owned));
        let unfit = |why: String| Unfit { folder: bin_dir.clone().unwrap_or_else(|| folder.to_owned()), why };
        let Some(bin_dir) = &bin_dir else {
            return Err(unfit("there is no program `postgres`".to_owned()));
        };
        let version = run(&bin_dir.join("postgres"), "--version").map_err(|error| unfit(full_text(&error)))?;
        let version = version_of(&version).ok_or_else(|| {
            unfit(format!("`{} --version` does not say a PostgreSQL version", bin_dir.join("postgres").display()))
        })?;
        if major(&version) != POSTGRES_MAJOR.to_string() {
            return Err(unfit(format!("it is PostgreSQL {version}, not {POSTGRES_MAJOR}")));
        }
        if let Some(missing) = NEEDED.iter().find(|program| !bin_dir.join(program).is_file()) {
            return Err(unfit(format!("there is no program `{missing}`")));
        }
        Ok(Self { version, bin_dir: bin_dir.clone() })
    }

    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

impl std::fmt::Display for Programs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "PostgreSQL {} in {}", self.version, self.bin_dir.display())
    }
}

/// A client program, such as `pg_dump`, of [`POSTGRES_MAJOR`] or later: older ones refuse newer servers.
///
/// Fails with [`ErrorKind::NoEngine`] if there is none on this machine.
pub fn client_program(places: &SearchPlaces, name: &str) -> Result<PathBuf> {
    let mut unfit = Vec::new();
    let folders: Vec<PathBuf> = places.bin_dir.iter().cloned().chain(places.folders()).collect();
    for program in folders.into_iter().map(|folder| folder.join(name)).filter(|program| program.is_file()) {
        let version = run(&program, "--version").ok().and_then(|said| version_of(&said));
        if version
            .as_deref()
            .and_then(|version| major(version).parse().ok())
            .is_some_and(|major: u32| major >= POSTGRES_MAJOR)
        {
            return Ok(program);
        }
        unfit.push(program);
    }
    let message = format!("there is no `{name}` of PostgreSQL {POSTGRES_MAJOR} or later on this machine");
    let error = Error::new(ErrorKind::NoEngine, message)
        .hint("install it (`apt-get install postgresql-client-15` on Debian and Ubuntu, `brew install libpq`)");
    Err(unfit.iter().fold(error, |error, program| error.hint(format!("`{}` is another version", program.display()))))
}

fn none_fits(unfit: &[Unfit]) -> Error {
    let mut message = format!("there is no PostgreSQL {POSTGRES_MAJOR} on this machine");
    let found = unfit.iter().map(|unfit| format!("`{}`: {}", unfit.folder.display(), unfit.why));
    let found: Vec<_> = found.collect();
    if !found.is_empty() {
        write!(message, " (looked at {})", found.join("; ")).expect("writing to a String cannot fail");
    }
    Error::new(ErrorKind::NoEngine, message).hint(INSTALL_HINT)
}

/// The folder of programs that the first `pg_config` on the path names. Packages for developers have it elsewhere than
/// the server.
fn ask_pg_config(path: &[PathBuf]) -> Option<PathBuf> {
    let program = path.iter().map(|folder| folder.join("pg_config")).find(|program| program.is_file())?;
    let said = run(&program, "--bindir").ok()?;
    Some(PathBuf::from(said.trim())).filter(|folder| folder.is_absolute())
}

/// The versions 15 that asdf has, newest first.
fn asdf_folders(home: Option<&Path>) -> Vec<PathBuf> {
    let Some(Ok(entries)) = home.map(|home| std::fs::read_dir(home.join(ASDF))) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut versions: Vec<(u32, String)> = names
        .filter(|name| major(name) == POSTGRES_MAJOR.to_string())
        .map(|name| (name.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or_default(), name))
        .collect();
    versions.sort();
    let home = home.expect("its folder was read");
    versions.into_iter().rev().map(|(_, name)| home.join(ASDF).join(name).join("bin")).collect()
}

fn full_text(error: &Error) -> String {
    std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ")
}

/// What a program says when it is asked with one argument.
pub(crate) fn run(program: &Path, argument: &str) -> Result<String> {
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

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A folder with programs that say this version.
    fn folder(root: &Path, name: &str, version: &str, programs: &[&str]) -> PathBuf {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for program in programs {
            let path = folder.join(program);
            std::fs::write(&path, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder.canonicalize().unwrap()
    }

    fn named(folder: &Path) -> SearchPlaces {
        SearchPlaces { bin_dir: Some(folder.to_owned()), ..SearchPlaces::default() }
    }

    #[test]
    fn versions_are_read_as_packagers_write_them() {
        let debian = version_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").unwrap();
        assert_eq!((debian.as_str(), major(&debian)), ("15.18", "15"));
        assert_eq!(major(&version_of("postgres (PostgreSQL) 15beta1").unwrap()), "15");
        assert_eq!(major(&version_of("postgres (PostgreSQL) 150.1").unwrap()), "150");
        assert_eq!(version_of("postgres: command not found"), None);
    }

    #[test]
    fn a_named_folder_is_used_or_refused() {
        let root = tempfile::tempdir().unwrap();
        let good = folder(root.path(), "15", "15.4", &NEEDED);
        assert_eq!(Programs::find(&named(&good)).unwrap(), Programs { version: "15.4".into(), bin_dir: good });
        for (name, version, programs, words) in [
            ("empty", "", &[] as &[&str], "there is no program `postgres`"),
            ("other", "16.4", &NEEDED, "it is PostgreSQL 16.4, not 15"),
            ("part", "15.4", &["postgres", "pg_ctl"], "there is no program `initdb`"),
            ("odd", "many", &NEEDED, "does not say a PostgreSQL version"),
        ] {
            let error = Programs::find(&named(&folder(root.path(), name, version, programs))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadInput, "{name}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.hints()[0].contains("postgresql-15"));
        }
    }

    #[test]
    fn another_version_in_front_is_passed_over_and_a_link_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let other = folder(root.path(), "16", "16.4", &NEEDED);
        let good = folder(root.path(), "15", "15.4", &NEEDED);
        let links = root.path().join("links");
        std::fs::create_dir(&links).unwrap();
        symlink(good.join("postgres"), links.join("postgres")).unwrap();
        let search_path = std::env::join_paths([Path::new("."), &other, &links]).unwrap();
        let places = SearchPlaces { search_path: Some(search_path), ..SearchPlaces::default() };
        assert_eq!(Programs::find(&places).unwrap().bin_dir, good);
    }

    #[test]
    fn pg_config_and_asdf_are_asked_too() {
        let root = tempfile::tempdir().unwrap();
        let good = folder(root.path(), "15", "15.4", &NEEDED);
        let tools = root.path().join("tools");
        std::fs::create_dir(&tools).unwrap();
        let program = tools.join("pg_config");
        std::fs::write(&program, format!("#!/bin/sh\necho {}\n", good.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let places = SearchPlaces { search_path: Some(tools.into()), ..SearchPlaces::default() };
        assert_eq!(places.folders().nth(1), Some(good));
        for version in ["15.9", "15.10", "16.1"] {
            folder(root.path(), &format!("{ASDF}/{version}/bin"), version, &NEEDED);
        }
        let found = asdf_folders(Some(root.path()));
        let ends: Vec<_> = found.iter().map(|path| path.ends_with("15.10/bin")).collect();
        assert_eq!(ends, [true, false]);
    }

    #[test]
    fn a_machine_without_it_is_told_what_was_found() {
        let unfit = [Unfit { folder: "/usr/bin".into(), why: "it is PostgreSQL 16.4, not 15".into() }];
        let error = none_fits(&unfit);
        assert_eq!(error.kind(), ErrorKind::NoEngine);
        assert!(error.to_string().ends_with("(looked at `/usr/bin`: it is PostgreSQL 16.4, not 15)"), "{error}");
    }
}
