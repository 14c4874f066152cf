//! Why a Docker daemon cannot be used, and the way out of each.
//!
//! What must hold: missing, denied, refused and slow are four different messages; each names the endpoint and what chose
//! it; each has a hint that can be typed in.

use std::io;
use std::time::Duration;

use bollard::errors::Error as Failure;

use crate::engine::docker::endpoint::{Address, Choice, Endpoint};
use crate::engine::docker::errors::{chain, io_kind, words};
use crate::error::{Error, ErrorKind};

/// What is in the way. The text is the lower-level cause.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// There is no socket or pipe.
    Missing,
    /// The socket's path is something else, such as a plain file or a folder.
    NoSocket,
    /// This user may not use the socket.
    Denied,
    /// Nobody listens.
    Refused,
    /// No answer within this time.
    Slow(Duration),
    /// The host's name is unknown.
    UnknownHost(String),
    /// The host cannot be reached through the network.
    Unreachable(String),
    /// The daemon expects TLS and was spoken to without.
    NeedsTls,
    /// The daemon does not speak TLS.
    NeedsNoTls,
    /// We do not trust the daemon's certificate.
    Untrusted(String),
    /// The daemon does not trust our certificate, or misses it.
    NotTrusted(String),
    /// TLS failed in another way, for example a certificate file that cannot be read.
    Tls(String),
    /// There is no `ssh` program.
    NoSsh,
    /// ssh knows the host by another key, or does not know it.
    SshHostKey(String),
    /// ssh could not log in.
    SshDenied(String),
    /// ssh failed in another way, or Docker does not answer on the other side.
    Ssh(String),
    /// Something answers that is not Docker.
    NotDocker(String),
    /// Docker answers with an error.
    Faulty(String),
}

impl Problem {
    /// Finds what is behind `failure`.
    pub(super) fn of(endpoint: &Endpoint, failure: &Failure) -> Self {
        let cause = words(failure);
        let kind = io_kind(failure);
        if matches!(endpoint.address, Address::Ssh { .. }) {
            return Self::of_ssh(kind, cause);
        }
        if let Some(problem) = Self::of_connecting(failure, kind, &cause) {
            return problem;
        }
        match failure {
            Failure::RequestTimeoutError => Self::Slow(Duration::from_secs(super::CALL_LIMIT_SECONDS)),
            Failure::DockerResponseServerError { message, .. }
                if message.contains("HTTP request to an HTTPS server") =>
            {
                Self::NeedsTls
            }
            Failure::DockerResponseServerError { status_code, message } if is_dockers(*status_code, message) => {
                Self::Faulty(cause)
            }
            Failure::CertPathError { .. }
            | Failure::CertMultipleKeys { .. }
            | Failure::CertParseError { .. }
            | Failure::NoNativeCertsError { .. } => Self::Tls(failure.to_string()),
            Failure::LoadNativeCertsErrors { errors } => Self::Tls(format!(
                "cannot load this machine's own certificates: {}",
                errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )),
            _ if matches!(endpoint.address, Address::Tls { .. }) => Self::of_tls(cause),
            _ => Self::NotDocker(short(&cause)),
        }
    }

    /// Failures before the daemon could say anything.
    fn of_connecting(failure: &Failure, kind: Option<io::ErrorKind>, cause: &str) -> Option<Self> {
        if matches!(failure, Failure::SocketNotFoundError(_)) {
            return Some(Self::Missing);
        }
        // The resolver's errors have no kind of their own.
        if chain(failure).any(|error| error.to_string().contains("dns error")) {
            return Some(Self::UnknownHost(cause.to_owned()));
        }
        match kind? {
            io::ErrorKind::NotFound => Some(Self::Missing),
            io::ErrorKind::PermissionDenied => Some(Self::Denied),
            io::ErrorKind::ConnectionRefused => Some(Self::Refused),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::TimedOut => {
                Some(Self::Unreachable(cause.to_owned()))
            }
            _ => None,
        }
    }

    /// Tells TLS failures apart by the words of rustls, whose type is not ours to name.
    fn of_tls(cause: String) -> Self {
        if cause.contains("InvalidContentType") || cause.contains("corrupt message") {
            Self::NeedsNoTls
        } else if cause.contains("invalid peer certificate") {
            Self::Untrusted(cause)
        } else if cause.contains("alert") {
            Self::NotTrusted(cause)
        } else {
            Self::Tls(cause)
        }
    }

    /// Tells ssh's failures apart by its messages, which it does not translate.
    fn of_ssh(kind: Option<io::ErrorKind>, cause: String) -> Self {
        if kind == Some(io::ErrorKind::NotFound) {
            Self::NoSsh
        } else if cause.contains("Host key verification failed") || cause.contains("HOST IDENTIFICATION") {
            Self::SshHostKey(cause)
        } else if cause.contains("Permission denied (") || cause.contains("Too many authentication failures") {
            Self::SshDenied(cause)
        } else if cause.contains("Could not resolve") {
            Self::UnknownHost(cause)
        } else if cause.contains("Connection refused") {
            Self::Refused
        } else if cause.contains("connect to host") {
            Self::Unreachable(cause)
        } else {
            Self::Ssh(cause)
        }
    }

    /// The error for a person.
    pub(super) fn explain(self, endpoint: &Endpoint) -> Error {
        let (message, cause, hints) = self.told(endpoint);
        let mut error = Error::new(ErrorKind::NoEngine, message);
        if let Some(cause) = cause {
            error = error.caused_by(cause);
        }
        let aside = self::step_aside(endpoint);
        hints.into_iter().chain(aside).fold(error, Error::hint)
    }

    /// Message, cause and hints.
    fn told(self, endpoint: &Endpoint) -> (String, Option<String>, Vec<String>) {
        match self {
            Self::Missing => (
                format!("no Docker daemon at {endpoint}: there is no such {}", kind_of_file(endpoint)),
                None,
                vec![start_docker().to_owned()],
            ),
            Self::NoSocket => (
                format!("no Docker daemon at {endpoint}: the path is not a socket"),
                None,
                vec!["a container that mounts a missing socket leaves a folder in its place: remove it and restart Docker".to_owned()],
            ),
            Self::Denied => (format!("no permission to use the Docker daemon at {endpoint}"), None, permission_hints()),
            Self::Refused => (nobody_listens(endpoint), None, vec![listen_hint(endpoint)]),
            Self::Slow(limit) => (
                format!("the Docker daemon at {endpoint} gave no answer within {}", seconds(limit)),
                None,
                vec![slow_hint(endpoint)],
            ),
            Self::UnknownHost(cause) => (
                format!("the host of the Docker endpoint {endpoint} is unknown"),
                Some(cause),
                vec!["check the name's spelling and the network".to_owned()],
            ),
            Self::Unreachable(cause) => (
                format!("the host of the Docker endpoint {endpoint} cannot be reached"),
                Some(cause),
                vec!["check the network and any firewall between here and there".to_owned()],
            ),
            Self::NeedsTls => (
                format!("the Docker daemon at {endpoint} wants TLS and was asked without"),
                None,
                vec![use_tls_hint(endpoint)],
            ),
            Self::NeedsNoTls => (
                format!("the Docker daemon at {endpoint} does not speak TLS on this port"),
                None,
                vec!["check the port (usually 2376 with TLS, 2375 without), or `unset DOCKER_TLS_VERIFY`".to_owned()],
            ),
            Self::Untrusted(cause) => (
                format!("the certificate of the Docker daemon at {endpoint} is not trusted"),
                Some(cause),
                vec![format!("{} must hold the authority that signed it, for the host name that is used", file(endpoint, "ca.pem"))],
            ),
            Self::NotTrusted(cause) => (
                format!("the Docker daemon at {endpoint} does not accept our certificate"),
                Some(cause),
                vec![format!("{} and `key.pem` beside it must hold a client certificate that the daemon's authority signed", file(endpoint, "cert.pem"))],
            ),
            Self::Tls(cause) => (
                format!("TLS with the Docker daemon at {endpoint} failed"),
                Some(cause),
                vec![format!("check {}, `cert.pem` and `key.pem`; `openssl s_client -connect HOST:PORT` shows the other side's", file(endpoint, "ca.pem"))],
            ),
            Self::NoSsh => (
                format!("the Docker endpoint {endpoint} needs the program `ssh`, which was not found"),
                None,
                vec!["install the OpenSSH client, for example `sudo apt install openssh-client`".to_owned()],
            ),
            Self::SshHostKey(cause) => (
                format!("ssh does not trust the host of the Docker endpoint {endpoint}"),
                Some(cause),
                vec![format!("`{}` shows why; if the machine was really set up anew, `ssh-keygen -R HOST` forgets its old key", ssh_command(endpoint))],
            ),
            Self::SshDenied(cause) => (
                format!("ssh could not log in for the Docker endpoint {endpoint}"),
                Some(cause),
                vec![format!("`{}` must work without a question: load the key with `ssh-add`", ssh_command(endpoint))],
            ),
            Self::Ssh(cause) => (
                format!("no Docker daemon answers through ssh at {endpoint}"),
                Some(cause),
                vec![format!("try `{}`: Docker must be there, and that user must be allowed to use it", ssh_command(endpoint))],
            ),
            Self::NotDocker(cause) => (
                format!("something that is not Docker answers at {endpoint}"),
                Some(cause),
                vec![not_docker_hint(endpoint)],
            ),
            Self::Faulty(cause) => (
                format!("the Docker daemon at {endpoint} answers with an error"),
                Some(cause),
                vec![start_docker().to_owned()],
            ),
        }
    }
}

/// How to use another daemon, where a setting chose this one.
fn step_aside(endpoint: &Endpoint) -> Option<String> {
    match endpoint.choice {
        Choice::Host => Some("`unset DOCKER_HOST` uses the Docker of this machine".to_owned()),
        Choice::Context => Some(
            "`docker context ls` lists other contexts; DOCKER_CONTEXT=default uses the Docker of this machine"
                .to_owned(),
        ),
        Choice::Found => {
            let other = endpoint.passed_over.as_ref()?;
            Some(format!("`export DOCKER_HOST=unix://{}` uses the other socket that is there", other.display()))
        }
    }
}

fn start_docker() -> &'static str {
    if cfg!(target_os = "macos") {
        "start Docker Desktop with `open -a Docker`, or install it: https://docs.docker.com/get-started/get-docker/"
    } else if cfg!(windows) {
        "start Docker Desktop, or install it: https://docs.docker.com/get-started/get-docker/"
    } else {
        "start Docker with `sudo systemctl start docker` (without systemd: `sudo dockerd &`), or install it: https://docs.docker.com/engine/install/"
    }
}

fn permission_hints() -> Vec<String> {
    if cfg!(target_os = "linux") {
        vec![
            "`sudo usermod -aG docker $USER`, then log in again or run `newgrp docker` (members of that group are as powerful as root)".to_owned(),
            "or run Docker without root: https://docs.docker.com/engine/security/rootless/".to_owned(),
        ]
    } else {
        vec!["start Docker Desktop as the same user".to_owned()]
    }
}

fn kind_of_file(endpoint: &Endpoint) -> &'static str {
    if matches!(endpoint.address, Address::NamedPipe(_)) { "pipe" } else { "socket" }
}

fn nobody_listens(endpoint: &Endpoint) -> String {
    match endpoint.address {
        Address::Unix(_) => {
            format!("the Docker daemon at {endpoint} does not run: the socket is there, but nobody listens")
        }
        _ => format!("no Docker daemon at {endpoint}: connection refused"),
    }
}

fn listen_hint(endpoint: &Endpoint) -> String {
    match &endpoint.address {
        Address::Ssh { .. } => format!("no ssh server answers; try `{}`", ssh_command(endpoint)),
        _ if endpoint.is_local() => start_docker().to_owned(),
        _ => "start Docker on that machine, and check the port and that the daemon listens on it (`\"hosts\"` in its daemon.json)".to_owned(),
    }
}

fn slow_hint(endpoint: &Endpoint) -> String {
    match &endpoint.address {
        Address::Ssh { .. } => format!("try `{}`; `--timeout SECONDS` waits longer", ssh_command(endpoint)),
        _ if endpoint.is_local() && cfg!(target_os = "linux") => {
            "it may hang or still be starting: look with `sudo journalctl -u docker -n 50`, restart it with `sudo systemctl restart docker`; `--timeout SECONDS` waits longer".to_owned()
        }
        _ if endpoint.is_local() => "it may still be starting: look at Docker Desktop; `--timeout SECONDS` waits longer".to_owned(),
        _ => "check the network and any firewall between here and there; `--timeout SECONDS` waits longer".to_owned(),
    }
}

fn use_tls_hint(endpoint: &Endpoint) -> String {
    match endpoint.choice {
        Choice::Context => format!(
            "`docker context update NAME --docker host={},ca=ca.pem,cert=cert.pem,key=key.pem`",
            endpoint.address
        ),
        _ => "`export DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=FOLDER`, the folder of `ca.pem`, `cert.pem` and `key.pem`"
            .to_owned(),
    }
}

fn not_docker_hint(endpoint: &Endpoint) -> String {
    match &endpoint.address {
        Address::Tcp { .. } => {
            "check host and port; if Docker is there and uses TLS, set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH"
                .to_owned()
        }
        _ => "check that this is Docker's socket".to_owned(),
    }
}

fn file(endpoint: &Endpoint, name: &str) -> String {
    match &endpoint.address {
        Address::Tls { folder, .. } => format!("`{}`", folder.join(name).display()),
        _ => format!("`{name}`"),
    }
}

/// What a person can run to see the same failure with all its words.
fn ssh_command(endpoint: &Endpoint) -> String {
    let Address::Ssh { user, host, port } = &endpoint.address else { return "ssh HOST docker version".to_owned() };
    let port = port.map(|port| format!("-p {port} ")).unwrap_or_default();
    let user = user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    format!("ssh {port}{user}{host} docker version")
}

/// Whether an error answer is from Docker, or a proxy in front of it, and not a page of some web server.
fn is_dockers(status: u16, message: &str) -> bool {
    // Docker has the path that was asked for, so it never answers that there is no such thing.
    status != 404 && !message.trim_start().starts_with('<')
}

/// The first line of `text`, at most 200 characters of it: the rest of a web page helps nobody.
fn short(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// `5 s`, or `0.3 s` for parts.
fn seconds(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
