//! What runs the server. [`Engine`] is the only seam with effects on a machine; everything above it speaks SQL to the
//! [`Endpoint`] that an engine hands back and never asks which engine it is.
//!
//! What must hold: an engine touches only what carries the instance's label; it undoes only what the same call made,
//! and never the data; and each call can be killed at any point and simply made again.

mod choice;
pub mod cluster;
pub mod docker;
pub mod external;
#[cfg(debug_assertions)]
pub mod fault;
#[cfg(unix)]
pub mod native;
pub mod ports;
pub mod program;

pub use choice::{Chosen, choose, choose_for_up};

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use self::program::{Input, Program};
use crate::config::{EngineChoice, Setting, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::Password;
use crate::server::Server;
use crate::spec::ServerSpec;
use crate::tls::ServerCertificate;

/// The kinds of engine (`CLI.md` § Words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A container through the Docker API.
    Docker,
    /// PostgreSQL 15 programs of this machine.
    Native,
    /// A server by URL, which someone else runs.
    External,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Docker => "docker",
            Self::Native => "native",
            Self::External => "external",
        })
    }
}

impl From<EngineKind> for EngineChoice {
    fn from(kind: EngineKind) -> Self {
        match kind {
            EngineKind::Docker => Self::Docker,
            EngineKind::Native => Self::Native,
            EngineKind::External => Self::External,
        }
    }
}

/// What an instance's server is doing (`CLI.md` § Output).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There is neither a server nor data.
    Absent,
    /// There is data and no running server.
    Stopped,
    /// The server's process runs and does not answer logins yet.
    Starting,
    /// The server answers logins.
    Running,
    /// The server's process runs and does not answer as it should.
    Unhealthy,
    /// The server ended by itself with an error.
    Crashed,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Absent => "absent",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::Crashed => "crashed",
        })
    }
}

/// The address on which a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A host name or address.
    pub host: String,
    /// A TCP port.
    pub port: u16,
}

/// What an instance is made of, under the names by which other tools find it. What an engine has no such thing of is
/// `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Parts {
    /// The container's name, if there is one.
    pub container: Option<String>,
    /// The volume's name, if the data lives in one.
    pub volume: Option<String>,
    /// The image as people name it.
    pub image: Option<String>,
    /// The data folder, if it is a folder of this machine.
    pub data_dir: Option<PathBuf>,
    /// The database with tfdev's own records, on a server of someone else.
    pub registry: Option<String>,
}

impl Parts {
    /// Whether there is data that outlives the server.
    pub fn has_data(&self) -> bool {
        self.volume.is_some() || self.data_dir.is_some() || self.registry.is_some()
    }
}

/// What an engine sees of an instance. `state` is [`State::Starting`] for any live process: only a login tells more.
#[derive(Debug, Clone)]
pub struct Observed {
    /// What the process is doing.
    pub state: State,
    /// The instance's identity as the engine's label has it.
    pub id: Option<Uuid>,
    /// Where the server answers, if it runs.
    pub endpoint: Option<Endpoint>,
    /// What it is made of.
    pub parts: Parts,
    /// Whether the engine holds the server to the profile's limits on memory and processor time.
    pub limits_enforced: bool,
    /// Why it does not, in words.
    pub limits_reason: Option<String>,
    /// Why the server is not running, in words.
    pub reason: Option<String>,
}

/// What [`Engine::start`] did.
#[derive(Debug, Clone)]
pub struct Started {
    /// Whether the data was made by this call.
    pub created: bool,
    /// Whether the server was started by this call.
    pub started: bool,
    /// Whether this call gave a running server another settings file, which it has not read yet.
    pub reconfigured: bool,
    /// Where the server answers.
    pub endpoint: Endpoint,
    /// The superuser's password that a data folder made by this call has until it gets its own.
    pub first_password: Option<Password>,
    /// What the instance is made of.
    pub parts: Parts,
}

/// What a server really has of its machine, read back from what runs it: for those who compare it with what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// The image that it runs, if it runs one.
    pub image: Option<RunningImage>,
    /// The memory that it may use, in bytes; `None` means all.
    pub memory_bytes: Option<u64>,
    /// The processor time that it may use, in billionths of a core; `None` means all.
    pub nano_cpus: Option<u64>,
    /// What its data folder is.
    pub data: DataMount,
}

/// The image of a running server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningImage {
    /// The content's digest.
    pub id: String,
    /// All names that the content has now.
    pub names: Vec<String>,
}

/// What a data folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataMount {
    /// A volume of this name, mounted at this path.
    Volume {
        /// The volume's name.
        name: String,
        /// Where it is mounted.
        target: String,
    },
    /// Memory, mounted at this path.
    Memory {
        /// Where it is mounted.
        target: String,
    },
    /// A folder of this machine.
    Folder(PathBuf),
    /// Nothing that outlives the server.
    None,
}

/// What a program that ran beside the server left.
#[derive(Debug, Clone)]
pub struct ProgramOutput {
    /// Its exit status.
    pub exit_code: i64,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

impl ProgramOutput {
    /// Fails, with what the program wrote, unless it succeeded; `action` reads after "cannot".
    pub fn checked(self, action: &str) -> Result<Self> {
        if self.exit_code == 0 {
            return Ok(self);
        }
        let text = String::from_utf8_lossy(&self.stderr).trim().to_owned();
        Err(Error::failed(format!("cannot {action}: the program ended with exit status {}", self.exit_code))
            .caused_by(text))
    }
}

/// What a server is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name, such as an image's.
    pub name: String,
    /// What tells two builds of one name apart.
    pub id: String,
}

/// What an instance is started with, beside its spec.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// The server to run.
    pub spec: ServerSpec,
    /// The identity that the data carries.
    pub id: Uuid,
    /// The port that the instance had before, if it had one.
    pub last_port: Option<u16>,
    /// The server's certificate, if it has `ssl = on`.
    pub certificate: Option<ServerCertificate>,
}

/// The error for what an external server cannot do; `what` reads after "can't", `why` after "because".
pub fn cannot(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::Refused, format!("the external engine can't {what}, because {why}"))
}

/// Hands a data folder as a tar file, in pieces, to its second argument, until that says that nobody listens. Its first
/// argument is the text of [`cluster::MARKER`], which is the last entry: what fails before it leaves nothing whole.
/// It blocks.
pub type DataSource = Box<dyn FnOnce(&str, &mut dyn FnMut(Bytes) -> bool) -> Result<()> + Send>;

/// Takes the next bytes of a log.
pub type LogReceiver<'a> = dyn FnMut(&[u8]) -> Result<()> + Send + 'a;

/// The seam with effects on a machine.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Which kind this is.
    fn kind(&self) -> EngineKind;

    /// Looks at the instance and changes nothing.
    async fn observe(&self) -> Result<Observed>;

    /// Reads back what the running server has of its machine. Fails with [`ErrorKind::Refused`] where that is someone
    /// else's.
    async fn resources(&self) -> Result<Resources>;

    /// Makes what is missing and starts the server; it may not answer logins yet when this returns. A server that runs
    /// already is started anew only if it cannot take what changed while it runs.
    async fn start(&self, request: &StartRequest) -> Result<Started>;

    /// Makes the data of a new instance from `data`, for [`Engine::start`] to run a server on. Fails with
    /// [`ErrorKind::Conflict`] if there is any; whatever else fails leaves what [`Engine::destroy`] removes.
    async fn restore(&self, request: &StartRequest, data: DataSource) -> Result<()>;

    /// Gets the data ready for another name of its instance, whose state folder is about to take the place of another's:
    /// until [`Engine::renamed`] the data is known by the name that it has now. Changes nothing else.
    ///
    /// Fails with [`ErrorKind::Refused`] where data cannot be renamed.
    async fn before_rename(&self) -> Result<()>;

    /// Gives the data of a server that does not run the name that its instance has now.
    async fn renamed(&self) -> Result<()>;

    /// Fails, with the server's last log lines, if the server's process is no longer alive.
    async fn check_alive(&self) -> Result<()>;

    /// Stops the server in order and keeps its data. Returns whether it was running.
    async fn stop(&self) -> Result<bool>;

    /// Removes the server and its data. Returns what was removed, in words.
    async fn destroy(&self) -> Result<Vec<String>>;

    /// Makes sure that data made by [`Engine::start`] survives a crash of the machine.
    async fn flush(&self) -> Result<()>;

    /// The host that the server's certificate is to name; `None` if the certificate is not ours to make.
    fn certificate_host(&self) -> Option<String>;

    /// The server at `endpoint`, as everything above the engine reaches it: who logs in, and how. `root_cert` is the file
    /// of the authority that signed the certificate that we made for it, if we did.
    async fn server(
        &self,
        settings: &Settings,
        endpoint: Endpoint,
        root_cert: Option<PathBuf>,
        events: &Events,
    ) -> Result<Server> {
        Server::own(settings, endpoint, root_cert, events)
    }

    /// Finds what the server is to be made from: what was asked for, else what the instance was made with, else the best
    /// there is.
    async fn source(&self, requested: Option<&Setting<String>>, last: Option<&str>) -> Result<Source>;

    /// Runs a program beside the server, as the server's user where that matters. Secrets go in by `stdin` only.
    async fn run(&self, command: &[&str], stdin: &[u8]) -> Result<ProgramOutput>;

    /// Starts a program beside the server, as the server's user, whose output is read while it runs. It ends when the
    /// returned value is dropped and when this process dies, however that happens. `sh` and the server's programs are
    /// found by their names.
    async fn stream(&self, command: &[&str], input: Input) -> Result<Program>;

    /// Runs a program beside the server on this process's own input and output; `terminal` if both are one. Returns its
    /// exit status.
    async fn interactive(&self, command: &[&str], terminal: bool) -> Result<i64>;

    /// Hands the server's log to `receive`, from the last `tail` lines on (all if `None`), and new lines if `follow`.
    async fn logs(&self, tail: Option<u32>, follow: bool, receive: &mut LogReceiver<'_>) -> Result<()>;
}

/// Waits, for at most `limit`, until what a dropped call left behind is cleaned up.
pub async fn settle(limit: Duration) {
    docker::cleanup::settle(limit).await;
}
