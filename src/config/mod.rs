//! Settled configuration: every value with where it came from.
//!
//! What must hold: only this module reads the environment and the configuration files; everything below takes
//! [`Settings`]. Order, strongest first: flag, `TFDEV_…` variable, `tfdev.toml` of the project, the user's file, the
//! built-in defaults (`default.toml`, which is also the reference documentation).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

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
    /// `native.bin_dir`.
    pub native_bin_dir: Option<Setting<PathBuf>>,
    /// `external.url`.
    pub external_url: Option<Setting<String>>,
    /// `external.allow_remote`.
    pub external_allow_remote: Option<Setting<String>>,
    /// The folder of the migrations, absolute; `None` means the built-in TaskFlow schema.
    pub migrations_dir: Option<Setting<PathBuf>>,
    /// The data set: a built-in name, `none`, or a file or folder under `seeds/`.
    pub dataset: Setting<String>,
    /// The project's own profiles.
    pub profiles: BTreeMap<String, ProfileSection>,
    /// The time limit for the command, in seconds.
    pub timeout_seconds: Setting<u64>,
    /// Confirmed beforehand.
    pub yes: Setting<bool>,
    /// Folder for what must survive a restart of the machine and belongs to it: records, passwords, locks.
    pub state_dir: PathBuf,
    /// Folder for what can be made again.
    pub cache_dir: PathBuf,
    /// The user's `PATH`, `PAGER` and the like are never needed below; the home folder is, for messages.
    pub home_dir: Option<PathBuf>,
    /// All settled values in the order of the reference, for `config show`: key, value as written, origin.
    pub listing: Vec<(String, Setting<String>)>,
}
