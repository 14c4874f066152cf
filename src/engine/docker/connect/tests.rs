#![cfg(unix)]

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::*;
use crate::engine::docker::testing::{FakeDaemon, at, at_socket, docker, json, pass_over, response, variable};

const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn failure(environment: &DockerEnvironment) -> Error {
    let error = connect(environment, LIMIT, &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEngine);
    assert!(error.to_string().contains("chosen by DOCKER_HOST"), "{error}");
    assert!(error.hints().last().unwrap().contains("unset DOCKER_HOST"), "{:?}", error.hints());
    let everything = format!("{error} {:?} {:?}", error.causes(), error.hints());
    assert!(!everything.contains("hyper") && !everything.contains("legacy"), "{everything}");
    error
}

#[tokio::test]
async fn the_daemon_answers_and_is_described() {
    let Some(connection) = docker().await else { return };
    let version = connection.docker.version().await.unwrap();
    assert_eq!(Some(connection.server_version), version.version);
    assert_eq!(connection.os, "linux");
    assert!(!connection.arch.is_empty());
}

#[tokio::test]
async fn a_missing_socket_says_how_to_start_docker() {
    let folder = tempfile::tempdir().unwrap();
    let error = failure(&at_socket(&folder.path().join("docker.sock"))).await;
    assert!(error.to_string().contains("no Docker daemon at `unix:///"), "{error}");
    assert!(error.to_string().ends_with("there is no such socket"), "{error}");
    assert!(error.hints()[0].starts_with("start Docker"), "{:?}", error.hints());

    let plain = folder.path().join("plain");
    fs::create_dir(&plain).unwrap();
    assert!(failure(&at_socket(&plain)).await.to_string().ends_with("the path is not a socket"));
}

#[tokio::test]
async fn a_dead_socket_says_that_nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = failure(&at_socket(&path)).await;
    assert!(error.to_string().ends_with("the socket is there, but nobody listens"), "{error}");
}

#[tokio::test]
async fn a_socket_that_is_not_for_us_says_which_group_to_join() {
    // Root may open everything, so root runs this test again as nobody, who then looks at the path given here.
    if let Some(path) = variable("TFDEV_TEST_DENIED_SOCKET") {
        let error = failure(&at_socket(Path::new(&path))).await;
        assert!(error.to_string().starts_with("no permission to use the Docker daemon at `unix:///"), "{error}");
        if cfg!(target_os = "linux") {
            assert!(error.hints()[0].contains("usermod -aG docker"), "{:?}", error.hints());
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).unwrap();
    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    let hidden = locked.join("docker.sock");
    let _hidden_listener = std::os::unix::net::UnixListener::bind(&hidden).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();

    // A copy, because nobody may not be able to enter the folder of the build.
    let program = folder.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [socket, hidden] {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let name = "engine::docker::connect::tests::a_socket_that_is_not_for_us_says_which_group_to_join";
        let output =
            command.args(["--exact", name, "--nocapture"]).env("TFDEV_TEST_DENIED_SOCKET", &path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn a_daemon_that_never_answers_ends_at_the_time_limit() {
    let daemon = FakeDaemon::start(|_| None);
    let started = Instant::now();
    let limit = Duration::from_millis(300);
    let error = connect(&at_socket(&daemon.socket()), limit, &Events::none()).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(error.kind(), ErrorKind::NoEngine);
    assert!(error.to_string().ends_with("gave no answer within 0.3 s"), "{error}");
    assert!(error.to_string().contains("chosen by DOCKER_HOST"), "{error}");
}

#[tokio::test]
async fn something_that_is_not_docker_is_told_from_docker() {
    let page = "<!DOCTYPE html>\n<html>hello</html>";
    for answer in [
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        String::new(),
        response("200 OK", "text/html", page),
        response("404 Not Found", "text/html", page),
        response("502 Bad Gateway", "text/html", page),
        json("{}"),
        json(r#"{"ApiVersion":"new"}"#),
    ] {
        let given = answer.clone();
        let daemon = FakeDaemon::start(move |_| Some(given.clone()));
        let error = failure(&at_socket(&daemon.socket())).await;
        assert!(
            error.to_string().starts_with("something that is not Docker answers at `unix:///"),
            "{answer}: {error}"
        );
        assert!(error.causes().iter().all(|cause| !cause.contains('\n')), "{:?}", error.causes());
    }
}

#[tokio::test]
async fn an_error_of_the_daemon_is_passed_on() {
    let answer = response("503 Service Unavailable", "application/json", r#"{"message":"Docker Desktop is paused"}"#);
    let daemon = FakeDaemon::start(move |_| Some(answer.clone()));
    let error = failure(&at_socket(&daemon.socket())).await;
    assert!(error.to_string().ends_with("answers with an error"), "{error}");
    assert_eq!(error.causes(), ["Docker Desktop is paused"]);
}

#[tokio::test]
async fn the_newest_api_that_both_know_is_spoken_after_one_round_trip() {
    for (oldest, newest, spoken) in [
        ("1.12", "1.41", "1.41"),
        ("1.24", "1.40", "1.40"),
        ("1.44", "1.52", "1.52"),
        ("1.44", "1.99", &ApiVersion::newest().to_string()),
    ] {
        let daemon = FakeDaemon::with_api(oldest, newest);
        let connection = connect(&at_socket(&daemon.socket()), LIMIT, &Events::none()).await.unwrap();
        assert_eq!(daemon.requests(), ["/version"]);
        assert_eq!(connection.api_version, spoken);
        let options = bollard::query_parameters::ListContainersOptionsBuilder::new().all(true).build();
        assert!(connection.docker.list_containers(Some(options)).await.unwrap().is_empty());
        let asked = daemon.requests().pop().unwrap();
        assert!(asked.starts_with(&format!("/v{spoken}/containers/json?all=true")), "{asked}");
    }
}

#[tokio::test]
async fn an_api_that_is_too_old_or_too_new_is_refused() {
    for (oldest, newest, problem, hint) in [
        ("1.12", "1.39", "it speaks API version 1.39, and tfdev needs 1.40 or newer", "update Docker"),
        ("1.99", "1.99", "it needs API version 1.99 or newer, and this tfdev speaks", "update tfdev"),
    ] {
        let daemon = FakeDaemon::with_api(oldest, newest);
        let error = connect(&at_socket(&daemon.socket()), LIMIT, &Events::none()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoEngine);
        assert!(error.to_string().contains(problem), "{error}");
        assert!(error.to_string().starts_with("Docker 99.1 at `unix:///"), "{error}");
        assert!(error.hints()[0].starts_with(hint), "{:?}", error.hints());
    }
}

#[tokio::test]
async fn network_trouble_is_named() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let error = failure(&at(&format!("tcp://{closed}"))).await;
    assert!(error.to_string().ends_with("connection refused"), "{error}");

    // `.invalid` never resolves (RFC 6761).
    let error = failure(&at("tcp://build.invalid:2375")).await;
    assert!(error.to_string().starts_with("the host of the Docker endpoint `tcp://build.invalid:2375`"), "{error}");
    assert!(error.to_string().ends_with("is unknown"), "{error}");
}

#[tokio::test]
async fn ssh_trouble_is_named() {
    if Command::new("ssh").arg("-V").output().is_err() {
        let error = failure(&at("ssh://127.0.0.1:1")).await;
        assert!(error.to_string().contains("needs the program `ssh`"), "{error}");
        return;
    }
    let error = failure(&at("ssh://127.0.0.1:1")).await;
    assert!(error.to_string().ends_with("connection refused"), "{error}");
    assert!(error.hints()[0].contains("`ssh -p 1 127.0.0.1 docker version`"), "{:?}", error.hints());
    let error = failure(&at("ssh://me@build.invalid")).await;
    assert!(error.to_string().ends_with("is unknown"), "{error}");
}

#[test]
fn ssh_failures_are_told_apart_by_their_words() {
    let endpoint = Endpoint::choose(&at("ssh://me@build")).unwrap();
    for (text, expected) in [
        ("ssh: connect to host build port 22: Connection refused", "connection refused"),
        ("ssh: connect to host build port 22: Connection timed out", "cannot be reached"),
        ("No ED25519 host key is known for build; Host key verification failed.", "does not trust the host"),
        ("me@build: Permission denied (publickey,password).", "could not log in"),
        ("ssh: Could not resolve hostname build: Name or service not known", "is unknown"),
        ("bash: line 1: docker: command not found", "no Docker daemon answers through ssh"),
        (
            "permission denied while trying to connect to the Docker daemon socket",
            "no Docker daemon answers through ssh",
        ),
    ] {
        let failure = bollard::errors::Error::from(std::io::Error::other(text));
        let error = Problem::of(&endpoint, &failure).explain(&endpoint);
        assert!(error.to_string().contains(expected), "{text}: {error}");
        assert!(error.to_string().contains("`ssh://me@build`"), "{error}");
    }
    let failure = bollard::errors::Error::from(std::io::Error::from(std::io::ErrorKind::NotFound));
    let error = Problem::of(&endpoint, &failure).explain(&endpoint);
    assert!(error.to_string().contains("needs the program `ssh`"), "{error}");
}

#[tokio::test]
async fn the_host_name_behind_an_ssh_alias_is_found() {
    if Command::new("ssh").arg("-V").output().is_err() {
        pass_over("there is no `ssh`");
        return;
    }
    // Without a configuration for it, the name is the host name.
    assert_eq!(ssh::host_name("build.example", Some(2222)).await.as_deref(), Some("build.example"));
}

/// The address by which this machine is known outside; no packet is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

/// Passes connections to a TCP port on to the real daemon's socket.
pub(super) async fn relay(address: std::net::IpAddr, socket: std::path::PathBuf) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
    let local = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut daemon = tokio::net::UnixStream::connect(&socket).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut daemon).await });
        }
    });
    local
}

#[tokio::test]
async fn a_daemon_behind_another_address_publishes_where_it_can_be_reached() {
    let Some(local) = docker().await else { return };
    let Address::Unix(socket) = local.endpoint.address else { return pass_over("the daemon is not on a socket") };
    let Some(address) = own_address() else { return pass_over("this machine has no address but loopback") };
    let server = relay(address, socket).await;
    let connection = connect(&at(&format!("tcp://{server}")), LIMIT, &Events::none()).await.unwrap();
    assert_eq!(connection.server_version, local.server_version);
    assert!(!connection.endpoint.is_local());
    assert_eq!(connection.endpoint.database_host(None), address.to_string());
    assert_eq!(connection.endpoint.publish_address(None).await.unwrap(), address);
}
