//! The PostgreSQL 15 that is installed on this machine.

use std::path::{Path, PathBuf};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::programs::{self, Programs, SearchPlaces};

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
        let places = SearchPlaces { bin_dir: bin_dir.map(Path::to_owned), ..SearchPlaces::default() };
        let Programs { version, bin_dir } = Programs::find(&places)?;
        if !bin_dir.join("psql").is_file() {
            return Err(Error::bad_input(format!("there is no program `psql` in `{}`", bin_dir.display()))
                .hint(programs::INSTALL_HINT));
        }
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
    let said = programs::run(&bin_dir.join("pg_config"), what).ok()?;
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
