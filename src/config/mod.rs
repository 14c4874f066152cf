//! Settled configuration: every value with where it came from.
//!
//! What must hold: only this module reads the environment and the configuration files; everything below takes
//! [`Settings`]. Order, strongest first: flag, `TFDEV_…` variable, `tfdev.toml` of the project, the user's file, the
//! built-in defaults (`default.toml`, which is also the reference documentation).
//!
//! What fails, and how: every mistake in a file, a flag or a variable is [`crate::ErrorKind::BadInput`] with the file and
//! line (or the name of the flag), what was expected and what was found; all mistakes of one run come in one error.
//! Nothing has been started then.

mod cloud;
mod environment;
mod flags;
mod layer;
mod names;
mod problem;
mod project_dir;
mod raw;
mod reference;
mod resolve;
mod server_setting;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::error::Result;
use crate::instance::Password;

pub use cloud::CloudEnvironment;
#[cfg(debug_assertions)]
pub(crate) use environment::fault_clock;
#[cfg(all(debug_assertions, unix))]
pub(crate) use environment::fault_point;
pub use environment::{Environment, json, no_color, restart_without_unwanted, variable_of};
pub use flags::Flags;
pub(crate) use names::{is_instance, key_of_folder, nearest};
pub(crate) use server_setting::{Definitions, is_on, needs_restart, same_setting, size_in_bytes};
pub use template::template;

/// Name of the project's file, and of the user's file in the configuration folder.
pub const FILE_NAME: &str = "tfdev.toml";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum Origin {
    /// A flag of the command line, for example `--profile`.
    Flag {
        /// The flag with its dashes.
        name: String,
    },
    /// An environment variable.
    Environment {
        /// The variable's name.
        name: String,
    },
    /// A line of a configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// Built in.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag { name } | Self::Environment { name } => formatter.write_str(name),
            Self::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Self::Default => formatter.write_str("default"),
        }
    }
}

/// A settled value and its origin.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

impl<T> Setting<T> {
    /// A built-in value.
    pub fn default_value(value: T) -> Self {
        Self { value, origin: Origin::Default }
    }

    /// A value that a flag gave. `name` is the flag without dashes in front, for example `project-dir`.
    pub fn flag(name: &str, value: T) -> Self {
        Self { value, origin: Origin::Flag { name: format!("--{name}") } }
    }

    /// A value that the variable of the flag `name` gave: `TFDEV_PROJECT_DIR` for `project-dir`.
    pub fn variable(name: &str, value: T) -> Self {
        let name = format!("TFDEV_{}", name.replace('-', "_").to_uppercase());
        Self { value, origin: Origin::Environment { name } }
    }

    /// The same setting with its value changed by `change`.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Setting<U> {
        Setting { value: change(self.value), origin: self.origin }
    }
}

/// Which engine is asked for (`CLI.md` § Words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The first one that can be used.
    Auto,
    /// The Docker API.
    Docker,
    /// PostgreSQL 15 programs of this machine.
    Native,
    /// A server by URL.
    External,
}

/// Which port the server is published on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PortChoice {
    /// 5432 if it is free, else one that is assigned once and kept.
    Auto,
    /// This one or an error.
    Fixed(u16),
}

/// What decides which Docker daemon is used, taken from the environment once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerEnvironment {
    /// `DOCKER_HOST`.
    pub host: Option<String>,
    /// `DOCKER_CONTEXT`.
    pub context: Option<String>,
    /// `DOCKER_CONFIG`, or `~/.docker`.
    pub config_dir: Option<PathBuf>,
    /// `DOCKER_TLS_VERIFY` is set and not empty.
    pub tls_verify: bool,
    /// `DOCKER_CERT_PATH`.
    pub cert_path: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`, where a rootless daemon's socket is.
    pub runtime_dir: Option<PathBuf>,
}

/// Asks whoever sits at the terminal for a password, after showing the text; `None` without a terminal.
pub type AskPassword = fn(&str) -> Result<Option<Password>>;

/// Where the password for an external server may be, taken from the environment once (libpq's places).
#[derive(Debug, Clone, Default)]
pub struct PasswordEnvironment {
    /// `PGPASSWORD`.
    pub variable: Option<Password>,
    /// `PGPASSFILE`, or `~/.pgpass`.
    pub file: Option<PathBuf>,
    /// Asks for it, where there is someone to ask.
    pub ask: Option<AskPassword>,
}

/// The `[database]` section.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// The project's database.
    pub name: Setting<String>,
    /// The ordinary role that owns it.
    pub user: Setting<String>,
    /// The port that the server is published on.
    pub port: Setting<PortChoice>,
}

/// A `[profiles.NAME]` section.
#[derive(Debug, Clone, Default)]
pub struct ProfileSection {
    /// The profile that this one starts from; a section named as a built-in profile extends that one.
    pub extends: Option<Setting<String>>,
    /// Server settings by name, as written in postgresql.conf.
    pub settings: BTreeMap<String, Setting<String>>,
}

/// The `[snapshots]` section.
#[derive(Debug, Clone)]
pub struct SnapshotSettings {
    /// How many automatic snapshots are kept.
    pub auto: Setting<u64>,
    /// Whether a ready copy of the base is kept.
    pub standby: Setting<bool>,
}

/// The `[fresh]` section.
#[derive(Debug, Clone)]
pub struct FreshSettings {
    /// How many fresh databases may exist at once.
    pub max_databases: Setting<u64>,
    /// Whether the database of a failed test is kept.
    pub keep_on_failure: Setting<bool>,
    /// After how many seconds without use the server for tests is stopped; 0 means never.
    pub idle_stop_seconds: Setting<u64>,
}

/// The `[backup]` section.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// Where backups go: an `s3://` or `file:///` URL; `None` means that there are none.
    pub store: Option<Setting<String>>,
    /// The file with the keys that encrypt and open backups, absolute; `None` means that new ones are not encrypted.
    pub encryption_key_file: Option<Setting<PathBuf>>,
    /// When the daily full backup is made: hour and minute, UTC.
    pub schedule: Setting<String>,
    /// How many days a full backup is kept.
    pub keep_full_days: Setting<u64>,
    /// How many days the write-ahead log is kept.
    pub keep_wal_days: Setting<u64>,
    /// The variables `AWS_…`, with what the file of credentials has where they say nothing.
    pub variables: CloudEnvironment,
}

/// Everything that is settled before any work begins.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The root of the checkout: the folder that holds `tfdev.toml`, else the one tfdev was started in; canonical.
    pub project_dir: PathBuf,
    /// The project's key, if it is named; else it is made from the folder.
    pub project: Option<Setting<String>>,
    /// The instance.
    pub instance: Setting<String>,
    /// The engine asked for.
    pub engine: Setting<EngineChoice>,
    /// The profile's name; `None` means: by the instance (`test` for the instance `test`, else `dev`).
    pub profile: Option<Setting<String>>,
    /// The database, its owner and port.
    pub database: DatabaseSettings,
    /// The image; `None` means `postgres:15-alpine`, or the offline image if that one can't be had.
    pub image: Option<Setting<String>>,
    /// Where Docker is.
    pub docker: DockerEnvironment,
    /// `docker.publish`: the address of Docker's machine that the port is published on.
    pub docker_publish: Option<Setting<IpAddr>>,
    /// `native.bin_dir`.
    pub native_bin_dir: Option<Setting<PathBuf>>,
    /// `native.user`.
    pub native_user: Option<Setting<String>>,
    /// `external.url`.
    pub external_url: Option<Setting<String>>,
    /// `external.allow_remote`.
    pub external_allow_remote: Option<Setting<String>>,
    /// Where the password for an external server may be.
    pub passwords: PasswordEnvironment,
    /// The name of this machine; empty if it has none.
    pub machine: String,
    /// The folder of the migrations, absolute; `None` means the built-in TaskFlow schema.
    pub migrations_dir: Option<Setting<PathBuf>>,
    /// The data set: a built-in name, `none`, or a file or folder under `seeds/`.
    pub dataset: Setting<String>,
    /// The project's own profiles.
    pub profiles: BTreeMap<String, ProfileSection>,
    /// What is kept as snapshots.
    pub snapshots: SnapshotSettings,
    /// Fresh databases for tests.
    pub fresh: FreshSettings,
    /// Backups.
    pub backup: BackupSettings,
    /// The time limit for the command, in seconds.
    pub timeout_seconds: Setting<u64>,
    /// Confirmed beforehand.
    pub yes: Setting<bool>,
    /// Folder for what must survive a restart of the machine and belongs to it: records, passwords, locks.
    pub state_dir: PathBuf,
    /// Folder for what can be made again.
    pub cache_dir: PathBuf,
    /// The user's home folder.
    pub home_dir: Option<PathBuf>,
    /// The user's `PATH`, where PostgreSQL's programs may be.
    pub search_path: Option<OsString>,
    /// When the engine is to fail, for tests (`crate::engine::fault`).
    #[cfg(debug_assertions)]
    pub fault: Option<String>,
    /// The program of tfdev, if that is what this process runs: the native engine has it write the server's log.
    pub own_program: Option<PathBuf>,
    /// All settled values in the order of the reference, for `config show`: key, value as written, origin. The value of
    /// a key that is not set and has no default is empty.
    pub listing: Vec<(String, Setting<String>)>,
}

impl Settings {
    /// The project's key: as named, else the folder's name and a short hash of its canonical path.
    pub fn project_key(&self) -> String {
        self.project.as_ref().map_or_else(|| names::key_of_folder(&self.project_dir), |named| named.value.clone())
    }

    /// The name of the profile: as asked for, else `test` for the instance `test` and `dev` for all others.
    pub fn profile_name(&self) -> &str {
        match &self.profile {
            Some(asked) => &asked.value,
            None if self.instance.value == "test" => "test",
            None => "dev",
        }
    }
}
