//! Which Docker daemon is used, and where the ports that it publishes can be reached.
//!
//! What must hold: the choice depends only on [`DockerEnvironment`] and the file system, never on whether a daemon
//! answers, so that the same machine gives the same daemon every time (another daemon would mean another, empty
//! database); and every choice says what made it, so that a message can name the setting to change.
//!
//! Order, strongest first: `DOCKER_HOST`, `DOCKER_CONTEXT`, `currentContext` of `config.json`, a rootless socket, the
//! platform's socket.

mod address;
mod context;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::config::{DockerEnvironment, Setting};
use crate::error::{Error, ErrorKind, Result};

/// Where a Docker daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A named pipe of Windows, such as `//./pipe/docker_engine`.
    NamedPipe(String),
    /// HTTP without encryption. The host stands without brackets, also an IPv6 address.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// HTTP over TLS.
    Tls {
        /// The host, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// The folder of `ca.pem`, and of `cert.pem` and `key.pem` where the daemon asks for a client certificate.
        folder: PathBuf,
    },
    /// HTTP through the `ssh` program, which starts `docker system dial-stdio` on the other side.
    Ssh {
        /// The user, if it is not left to ssh's own settings.
        user: Option<String>,
        /// The host, or a `Host` of the ssh configuration.
        host: String,
        /// The port, if it is not left to ssh's own settings.
        port: Option<u16>,
    },
}

impl Address {
    /// The host of an address in a network.
    fn host(&self) -> Option<&str> {
        match self {
            Self::Unix(_) | Self::NamedPipe(_) => None,
            Self::Tcp { host, .. } | Self::Tls { host, .. } | Self::Ssh { host, .. } => Some(host),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix://{}", path.display()),
            Self::NamedPipe(path) => write!(formatter, "npipe://{path}"),
            Self::Tcp { host, port } | Self::Tls { host, port, .. } => {
                write!(formatter, "tcp://{}:{port}", bracketed(host))
            }
            Self::Ssh { user, host, port } => {
                formatter.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(formatter, "{user}@")?;
                }
                formatter.write_str(&bracketed(host))?;
                port.map_or(Ok(()), |port| write!(formatter, ":{port}"))
            }
        }
    }
}

/// What kind of setting chose an endpoint. It decides which remedies make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// `DOCKER_HOST`.
    Host,
    /// A context of the docker command line.
    Context,
    /// Nothing was set: a socket of this machine.
    Found,
}

/// The daemon that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// What chose it, in words that stand after "chosen by": for example `DOCKER_HOST`, or
    /// ``context `desktop-linux` (currentContext in /home/me/.docker/config.json)``.
    pub chosen_by: String,
    /// What kind of setting chose it.
    pub choice: Choice,
    /// The platform's socket, where it was there too but a rootless one was preferred.
    pub passed_over: Option<PathBuf>,
    /// The host name that an ssh alias stands for; filled in when the connection is made.
    pub(super) ssh_host_name: Option<String>,
}

impl Endpoint {
    /// Chooses the daemon that `environment` and the files of this machine ask for.
    ///
    /// Fails with [`ErrorKind::NoEngine`] for a context that does not exist, a scheme that tfdev does not know and
    /// missing TLS files, and with [`ErrorKind::BadInput`] for an address or a file that cannot be understood.
    pub fn choose(environment: &DockerEnvironment) -> Result<Self> {
        Self::choose_among(environment, &Places::of_this_machine(environment))
    }

    fn choose_among(environment: &DockerEnvironment, places: &Places) -> Result<Self> {
        let context_variable = environment.context.as_deref().filter(|name| !name.is_empty());
        if let Some(host) = environment.host.as_deref().map(str::trim).filter(|host| !host.is_empty()) {
            let chosen_by =
                if context_variable.is_some() { "DOCKER_HOST, which overrides DOCKER_CONTEXT" } else { "DOCKER_HOST" };
            let tls_folder = environment
                .tls_verify
                .then(|| environment.cert_path.clone().or_else(|| environment.config_dir.clone()))
                .map(|folder| folder.ok_or_else(no_certificate_folder))
                .transpose()?;
            let address = address::parse(host, tls_folder.as_deref(), chosen_by)?;
            return Ok(Self::new(address, chosen_by.to_owned(), Choice::Host));
        }
        let config_dir = environment.config_dir.as_deref();
        if let Some(name) = context_variable {
            return Self::of_context(name, &format!("context `{name}` (DOCKER_CONTEXT)"), config_dir, places);
        }
        if let Some((name, file)) = config_dir.map(context::current).transpose()?.flatten() {
            let chosen_by = format!("context `{name}` (currentContext in {})", file.display());
            return Self::of_context(&name, &chosen_by, config_dir, places);
        }
        Ok(Self::found(places))
    }

    fn of_context(name: &str, chosen_by: &str, config_dir: Option<&Path>, places: &Places) -> Result<Self> {
        // The docker command line gives this name to what is used without any context.
        let address =
            if name == "default" { places.platform.clone() } else { context::address(name, config_dir, chosen_by)? };
        Ok(Self::new(address, chosen_by.to_owned(), Choice::Context))
    }

    fn found(places: &Places) -> Self {
        let platform = || Self::new(places.platform.clone(), "the platform's socket".to_owned(), Choice::Found);
        let Some(socket) = places.rootless.iter().find(|path| is_socket(path)) else { return platform() };
        let mut endpoint =
            Self::new(Address::Unix(socket.clone()), "a rootless socket that is there".to_owned(), Choice::Found);
        endpoint.passed_over = match &places.platform {
            Address::Unix(path) if is_socket(path) => Some(path.clone()),
            _ => None,
        };
        endpoint
    }

    fn new(address: Address, chosen_by: String, choice: Choice) -> Self {
        Self { address, chosen_by, choice, passed_over: None, ssh_host_name: None }
    }

    /// Whether the daemon runs on this machine, as far as its address tells. A loopback address counts as local,
    /// although a tunnel may lead it elsewhere.
    pub fn is_local(&self) -> bool {
        self.host().is_none_or(is_own_address)
    }

    /// The daemon's host as a resolver knows it.
    fn host(&self) -> Option<&str> {
        self.ssh_host_name.as_deref().or(self.address.host())
    }

    /// The host under which published ports are reached; an IPv6 address stands without brackets.
    ///
    /// That is the address that `asked` names, if it is one; else 127.0.0.1 for a local daemon (never `localhost`, which
    /// may mean `::1`, where another server may listen), and the daemon's host for any other.
    pub fn database_host(&self, asked: Option<&Setting<IpAddr>>) -> String {
        match (asked.filter(|asked| !asked.value.is_unspecified()), self.host()) {
            (Some(asked), _) => asked.value.to_string(),
            (None, Some(host)) if !is_own_address(host) => host.to_owned(),
            _ => Ipv4Addr::LOCALHOST.to_string(),
        }
    }

    /// The address of the daemon's machine on which the port is published: the one that `asked` names, else 127.0.0.1 for
    /// a local daemon.
    ///
    /// The loopback of a remote machine cannot be reached from here. So a remote daemon publishes on the address that its
    /// host name stands for here, if that is one of a private network: reachable, and still not every address of that
    /// machine. An address that everyone can reach is used only if it is asked for. If the machine does not know the
    /// address as its own (network address translation, a jump host), the daemon refuses it when the container starts.
    pub async fn publish_address(&self, asked: Option<&Setting<IpAddr>>) -> Result<IpAddr> {
        if let Some(asked) = asked {
            return Ok(asked.value);
        }
        if self.is_local() {
            return Ok(Ipv4Addr::LOCALHOST.into());
        }
        let host = self.database_host(None);
        let addresses: Vec<IpAddr> = tokio::net::lookup_host((host.as_str(), 0))
            .await
            .map_err(|error| {
                Error::new(ErrorKind::NoEngine, format!("cannot find the address of the Docker host `{host}`"))
                    .caused_by(error)
                    .hint(format!("the database is published on that machine: make `{host}` resolve here"))
            })?
            .map(|address| address.ip())
            .collect();
        let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).ok_or_else(|| {
            Error::new(ErrorKind::NoEngine, format!("the name of the Docker host `{host}` stands for no address"))
        })?;
        if is_private(*address) { Ok(*address) } else { Err(public(&host, *address)) }
    }
}

/// What a person is to know of a database that is published on `address`; `None` for loopback.
pub fn exposure(host: &str, address: IpAddr) -> Option<String> {
    let whoever = match address {
        _ if address.is_loopback() => return None,
        _ if address.is_unspecified() => "whoever reaches any address of that machine".to_owned(),
        _ => "whoever reaches that address".to_owned(),
    };
    Some(format!(
        "The database is published on {address} of the Docker host and reached at {host}: {whoever} reaches it, and only \
         its passwords guard it; a profile with `ssl = on`, such as `prod`, encrypts what is sent"
    ))
}

/// Whether an address is one of this machine or of a private network: RFC 1918, 3927, 4193, 4291 § 2.5.6, and the shared
/// addresses of RFC 6598, which overlay networks use. Those of RFC 2544, 3849 and 5737 lead nowhere on the internet, so a
/// machine that has one is in a closed network too.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_documentation()
                || (first == 100 && (64..128).contains(&second))
                || (first == 198 && (18..20).contains(&second))
        }
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or_else(
            || {
                let is_documentation = matches!(address.segments(), [0x2001, 0xdb8, ..]);
                address.is_loopback()
                    || address.is_unique_local()
                    || address.is_unicast_link_local()
                    || is_documentation
            },
            |address| is_private(address.into()),
        ),
    }
}

fn public(host: &str, address: IpAddr) -> Error {
    let of = if host == address.to_string() { String::new() } else { format!(" `{host}`") };
    Error::new(
        ErrorKind::Refused,
        format!(
            "the Docker host{of} has the public address {address}, and tfdev publishes a database there only if it is told to"
        ),
    )
    .hint(format!(
        "`publish = \"{address}\"` in the section `[docker]` of tfdev.toml does so; only passwords guard it then, and \
         `--profile prod` encrypts what is sent"
    ))
    .hint(format!(
        "or keep it on that machine's loopback: `publish = \"127.0.0.1\"`, a number for `port` in the section `[database]`, \
         and `ssh -N -L PORT:127.0.0.1:PORT {host}` running beside"
    ))
}

impl fmt::Display for Endpoint {
    /// The address with what chose it, as it stands in messages.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` (chosen by {})", self.address, self.chosen_by)
    }
}

/// The sockets that are looked for when nothing is set.
struct Places {
    /// In the order in which they are tried.
    rootless: Vec<PathBuf>,
    platform: Address,
}

impl Places {
    fn of_this_machine(environment: &DockerEnvironment) -> Self {
        #[cfg(unix)]
        {
            let uid = rustix::process::getuid().as_raw();
            let rootless = [
                environment.runtime_dir.as_ref().map(|folder| folder.join("docker.sock")),
                // Docker Desktop's own socket, which needs no root either.
                environment.config_dir.as_ref().map(|folder| folder.join("run/docker.sock")),
                // For shells that were not started by a login and have no XDG_RUNTIME_DIR.
                Some(PathBuf::from(format!("/run/user/{uid}/docker.sock"))),
            ];
            Self {
                rootless: rootless.into_iter().flatten().collect(),
                platform: Address::Unix("/var/run/docker.sock".into()),
            }
        }
        #[cfg(not(unix))]
        {
            let _ = environment;
            Self { rootless: Vec::new(), platform: Address::NamedPipe("//./pipe/docker_engine".to_owned()) }
        }
    }
}

/// Whether there is a socket at `path`. A plain file or a dangling link is none.
fn is_socket(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
    }
    #[cfg(not(unix))]
    {
        path.exists()
    }
}

fn is_own_address(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn no_certificate_folder() -> Error {
    Error::new(ErrorKind::NoEngine, "DOCKER_TLS_VERIFY is set, but there is no folder with certificates")
        .hint("set DOCKER_CERT_PATH to the folder that holds `ca.pem`, `cert.pem` and `key.pem`")
}

/// Fails unless `folder` holds what a TLS connection needs: `ca.pem`, and `cert.pem` and `key.pem` both or neither.
fn check_certificates(folder: &Path, chosen_by: &str) -> Result<()> {
    let unusable = |name: &str| {
        let path = folder.join(name);
        // The TLS library would leave a broken certificate or key out without a word.
        let pem = std::fs::read_to_string(&path).and_then(|text| {
            let is_pem = text.contains("-----BEGIN ");
            if is_pem {
                Ok(())
            } else {
                Err(std::io::Error::other("there is no `-----BEGIN` in it, so it is not a PEM file"))
            }
        });
        pem.err().map(|cause| (path, cause))
    };
    let failed = |path: &Path, cause: std::io::Error| {
        Error::new(
            ErrorKind::NoEngine,
            format!("the TLS file `{}` for the Docker endpoint (chosen by {chosen_by}) cannot be read", path.display()),
        )
        .caused_by(cause)
        .hint("`ca.pem` must be there, and `cert.pem` and `key.pem` both or neither; DOCKER_CERT_PATH names the folder of DOCKER_HOST, `docker context update` brings those of a context")
    };
    if let Some((path, cause)) = unusable("ca.pem") {
        return Err(failed(&path, cause));
    }
    match (unusable("cert.pem"), unusable("key.pem")) {
        (None, None) => Ok(()),
        (Some((_, first)), Some((_, second))) if is_absent(&first) && is_absent(&second) => Ok(()),
        (Some((path, cause)), _) | (None, Some((path, cause))) => Err(failed(&path, cause)),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests;
