//! Reading an address such as `tcp://build-host:2376` as the docker command line reads it.
//!
//! What must hold: an address that is not understood in full is an error, never a guess; and no part of it can become
//! an option of the `ssh` program.

use std::path::{Path, PathBuf};

use super::{Address, check_certificates};
use crate::error::{Error, ErrorKind, Result};

/// Ports of the docker command line for `tcp://` without and with TLS.
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// Reads `text`. A `tcp://` address uses TLS if `tls_folder` names a folder with certificates; without a scheme a
/// host and port mean `tcp://`, as they do for the docker command line.
pub(super) fn parse(text: &str, tls_folder: Option<&Path>, chosen_by: &str) -> Result<Address> {
    let malformed = |problem: &str| malformed(text, problem, chosen_by);
    let (scheme, rest) = match text.split_once("://") {
        Some(parts) => parts,
        None if text.starts_with(['/', '.', '~', '\\']) => {
            return Err(malformed("it has no scheme").hint(format!("write `unix://{text}` for a socket")));
        }
        None => ("tcp", text),
    };
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Address::Unix(PathBuf::from(rest))),
        "unix" => Err(malformed("the socket's path is not absolute").hint("write for example `unix:///run/docker.sock`")),
        "npipe" if !rest.is_empty() => Ok(Address::NamedPipe(rest.replace('\\', "/"))),
        "npipe" => Err(malformed("it names no pipe").hint("write for example `npipe:////./pipe/docker_engine`")),
        "tcp" => tcp(rest, tls_folder, chosen_by, &malformed),
        "ssh" => ssh(rest, &malformed),
        _ => Err(Error::new(
            ErrorKind::NoEngine,
            format!("the Docker endpoint `{text}` (chosen by {chosen_by}) has the scheme `{scheme}`, which tfdev does not know"),
        )
        .hint("use `unix://`, `npipe://`, `tcp://` or `ssh://`")),
    }
}

fn tcp(rest: &str, tls_folder: Option<&Path>, chosen_by: &str, malformed: &impl Fn(&str) -> Error) -> Result<Address> {
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = split_port(authority).map_err(|problem| malformed(&problem).hint(TCP_EXAMPLE))?;
    // An empty host means this machine, as it does for the docker command line.
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    check_host(host).map_err(|problem| malformed(&problem).hint(TCP_EXAMPLE))?;
    let host = host.to_owned();
    let Some(folder) = tls_folder else { return Ok(Address::Tcp { host, port: port.unwrap_or(PLAIN_PORT) }) };
    check_certificates(folder, chosen_by)?;
    Ok(Address::Tls { host, port: port.unwrap_or(TLS_PORT), folder: folder.to_owned() })
}

const TCP_EXAMPLE: &str = "write for example `tcp://build-host:2375` or `tcp://[fd00::1]:2375`";
const SSH_EXAMPLE: &str = "write for example `ssh://me@build-host` or `ssh://build-host:2222`";

fn ssh(rest: &str, malformed: &impl Fn(&str) -> Error) -> Result<Address> {
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (user, server) = match authority.rsplit_once('@') {
        Some((user, server)) => (Some(user), server),
        None => (None, authority),
    };
    let wrong = |problem: String| malformed(&problem).hint(SSH_EXAMPLE);
    if let Some(user) = user {
        if user.contains(':') {
            return Err(wrong("it holds a password, which ssh takes from its agent or key files only".to_owned()));
        }
        if user.is_empty() || user.starts_with('-') || !user.chars().all(is_host_character) {
            return Err(wrong(format!("`{user}` is not a user name")));
        }
    }
    let (host, port) = split_port(server).map_err(wrong)?;
    check_host(host).map_err(wrong)?;
    Ok(Address::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port })
}

/// Splits `host:port`, `[v6]:port`, `host` or `[v6]`.
fn split_port(authority: &str) -> std::result::Result<(&str, Option<u16>), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("a `]` is missing")?;
        (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or("after `]` comes no port")?) })
    } else if let Some((host, port)) = authority.split_once(':') {
        if port.contains(':') {
            return Err("an IPv6 address needs brackets".to_owned());
        }
        (host, Some(port))
    } else {
        (authority, None)
    };
    let port = port
        .map(|text| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("`{text}` is not a port (1 to 65535)")),
        })
        .transpose()?;
    Ok((host, port))
}

fn check_host(host: &str) -> std::result::Result<(), String> {
    // A leading dash would make the ssh program take the host for an option.
    if host.is_empty() {
        Err("it names no host".to_owned())
    } else if host.starts_with('-') || !host.chars().all(|character| is_host_character(character) || character == ':') {
        Err(format!("`{host}` is not a host name"))
    } else {
        Ok(())
    }
}

fn is_host_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_')
}

fn malformed(text: &str, problem: &str, chosen_by: &str) -> Error {
    Error::bad_input(format!("the Docker endpoint `{text}` (chosen by {chosen_by}) is not an address: {problem}"))
}
