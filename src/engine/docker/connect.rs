//! The connection to the chosen Docker daemon, with the API version that both sides know.
//!
//! What must hold: one round trip tells whether Docker answers, which version it is and which API it speaks, because
//! every command pays for it; and a daemon that cannot be used ends in a message that names the endpoint, what chose
//! it and the way out (module `problem`), never in the words of the HTTP library.

mod problem;
mod ssh;

use std::fmt;
use std::time::Duration;

use bollard::models::SystemVersion;
use bollard::{API_DEFAULT_VERSION, Docker};

use self::problem::Problem;
use super::endpoint::{Address, Endpoint};
use crate::config::DockerEnvironment;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;

/// How long the daemon may take to begin its answer to one call, in seconds. Only a guard against a daemon that hangs:
/// it must be longer than any stop, upload or load of an image, and callers set their own, shorter limits.
const CALL_LIMIT_SECONDS: u64 = 600;

/// The oldest API that tfdev can use: Docker 19.03 of 2019, which Podman's service speaks too.
const OLDEST_API: ApiVersion = ApiVersion { major: 1, minor: 40 };

/// A daemon that has answered.
#[derive(Debug, Clone)]
pub struct DockerConnection {
    /// The client. Every call names [`DockerConnection::api_version`] in its path.
    pub docker: Docker,
    /// Which daemon it is, and where its published ports are reached.
    pub endpoint: Endpoint,
    /// The daemon's own version, for example `20.10.24`.
    pub server_version: String,
    /// The API version that is spoken, for example `1.41`.
    pub api_version: String,
    /// The daemon's operating system, for example `linux`.
    pub os: String,
    /// The daemon's processor in Docker's words, for example `amd64`.
    pub arch: String,
}

/// Connects to the daemon that `environment` asks for and waits at most `timeout` for its answer.
///
/// Fails with [`ErrorKind::NoEngine`] if it cannot be used, and as [`Endpoint::choose`] does.
pub async fn connect(environment: &DockerEnvironment, timeout: Duration, events: &Events) -> Result<DockerConnection> {
    connect_to(Endpoint::choose(environment)?, timeout, events).await
}

/// As [`connect`], to an endpoint that was chosen before.
pub async fn connect_to(mut endpoint: Endpoint, timeout: Duration, events: &Events) -> Result<DockerConnection> {
    events.detail(format!("Asking the Docker daemon at {endpoint}"));
    check_socket(&endpoint)?;
    let client = client(&endpoint)?;
    let answer = match tokio::time::timeout(timeout, client.version()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => return Err(Problem::of(&endpoint, &failure).explain(&endpoint)),
        Err(_) => return Err(Problem::Slow(timeout).explain(&endpoint)),
    };
    let api = negotiate(&endpoint, &answer)?;
    if let Address::Ssh { host, port, .. } = &endpoint.address {
        endpoint.ssh_host_name = ssh::host_name(host, *port).await;
    }
    let connection = DockerConnection {
        docker: speaking(client, api),
        endpoint,
        server_version: answer.version.unwrap_or_default(),
        api_version: api.to_string(),
        os: answer.os.unwrap_or_default(),
        arch: answer.arch.unwrap_or_default(),
    };
    events.detail(format!(
        "Docker {} answers ({}/{}), spoken to in API version {}; published ports are reached at {}",
        connection.server_version,
        connection.os,
        connection.arch,
        connection.api_version,
        connection.endpoint.database_host(None)
    ));
    Ok(connection)
}

/// Looks at the socket's file first, because the client says "not found" also where it may not look.
fn check_socket(endpoint: &Endpoint) -> Result<()> {
    #[cfg(unix)]
    if let Address::Unix(path) = &endpoint.address {
        use std::os::unix::fs::FileTypeExt;
        let problem = match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => return Ok(()),
            Ok(_) => Problem::NoSocket,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Problem::Denied,
            Err(_) => Problem::Missing,
        };
        return Err(problem.explain(endpoint));
    }
    let _ = endpoint;
    Ok(())
}

/// A client for `endpoint`, which has not said anything yet.
fn client(endpoint: &Endpoint) -> Result<Docker> {
    let client = match &endpoint.address {
        #[cfg(unix)]
        Address::Unix(path) => {
            let path = path.to_str().ok_or_else(|| {
                Error::bad_input(format!("the path of the Docker endpoint {endpoint} is not valid UTF-8"))
            })?;
            Docker::connect_with_unix(path, CALL_LIMIT_SECONDS, API_DEFAULT_VERSION)
        }
        #[cfg(windows)]
        Address::NamedPipe(path) => Docker::connect_with_named_pipe(path, CALL_LIMIT_SECONDS, API_DEFAULT_VERSION),
        Address::Tcp { .. } => {
            Docker::connect_with_http(&endpoint.address.to_string(), CALL_LIMIT_SECONDS, API_DEFAULT_VERSION)
        }
        Address::Tls { folder, .. } => Docker::connect_with_ssl(
            &endpoint.address.to_string(),
            &folder.join("key.pem"),
            &folder.join("cert.pem"),
            &folder.join("ca.pem"),
            CALL_LIMIT_SECONDS,
            API_DEFAULT_VERSION,
        ),
        Address::Ssh { user, host, port } => {
            let command = ssh::Command { user: user.clone(), host: host.clone(), port: *port };
            ssh::client(command, CALL_LIMIT_SECONDS, API_DEFAULT_VERSION)
        }
        #[cfg(windows)]
        Address::Unix(_) => return Err(not_on_this_system(endpoint)),
        #[cfg(unix)]
        Address::NamedPipe(_) => return Err(not_on_this_system(endpoint)),
    };
    client.map_err(|failure| Problem::of(endpoint, &failure).explain(endpoint))
}

fn not_on_this_system(endpoint: &Endpoint) -> Error {
    let system = std::env::consts::OS;
    Error::new(ErrorKind::NoEngine, format!("the Docker endpoint {endpoint} cannot be used on {system}"))
        .hint("`tcp://` with TLS works on every system")
}

/// A version of the Docker API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ApiVersion {
    major: usize,
    minor: usize,
}

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// The newest version that our client knows.
    fn newest() -> Self {
        Self { major: API_DEFAULT_VERSION.major_version, minor: API_DEFAULT_VERSION.minor_version }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// The newest version that both sides know.
fn negotiate(endpoint: &Endpoint, answer: &SystemVersion) -> Result<ApiVersion> {
    let Some(newest) = answer.api_version.as_deref().and_then(ApiVersion::parse) else {
        return Err(Problem::NotDocker("its answer names no API version".to_owned()).explain(endpoint));
    };
    let oldest = answer.min_api_version.as_deref().and_then(ApiVersion::parse);
    let server = answer.version.as_deref().unwrap_or("of an unknown version");
    let unusable = |problem: String| {
        Error::new(ErrorKind::NoEngine, format!("Docker {server} at {endpoint} cannot be used: {problem}"))
    };
    if newest < OLDEST_API {
        let problem = format!("it speaks API version {newest}, and tfdev needs {OLDEST_API} or newer");
        return Err(unusable(problem).hint("update Docker to 19.03 or newer"));
    }
    if let Some(oldest) = oldest.filter(|oldest| *oldest > ApiVersion::newest()) {
        let problem = format!("it needs API version {oldest} or newer, and this tfdev speaks {}", ApiVersion::newest());
        return Err(unusable(problem).hint("update tfdev"));
    }
    Ok(newest.min(ApiVersion::newest()))
}

/// Puts `version` into the path of every call.
///
/// The client itself leaves it out, and then each daemon speaks the newest version it has, perhaps one whose answers
/// this client cannot read.
fn speaking(client: Docker, version: ApiVersion) -> Docker {
    client.with_request_modifier(move |mut request| {
        let uri = request.uri();
        if let (Some(scheme), Some(authority), Some(path)) = (uri.scheme_str(), uri.authority(), uri.path_and_query())
            && let Ok(versioned) = format!("{scheme}://{authority}/v{version}{path}").parse()
        {
            *request.uri_mut() = versioned;
        }
        request
    })
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
