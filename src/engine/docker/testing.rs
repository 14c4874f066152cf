//! What the tests of this folder share: the daemon that they use, and servers that pretend to be one.

#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::connect::{DockerConnection, connect};
use crate::config::DockerEnvironment;
use crate::event::Events;

/// The daemon that tests use, or `None` after one line that says why not.
/// With `TFDEV_REQUIRE_DOCKER=1` a missing daemon is a failure.
pub(crate) async fn docker() -> Option<DockerConnection> {
    let environment = DockerEnvironment { host: variable("DOCKER_HOST"), ..DockerEnvironment::default() };
    match connect(&environment, Duration::from_secs(10), &Events::none()).await {
        Ok(connection) => Some(connection),
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

/// Notes that a test does not run because Docker or an image is missing, or fails it where Docker is required.
pub(crate) use crate::skipped::skip_without_docker as skip;

/// Notes that a test does not run because this machine lacks something other than Docker.
pub(crate) use crate::skipped::skip as pass_over;

/// An environment variable that steers tests.
#[expect(clippy::disallowed_methods, reason = "tests are steered from outside, apart from Settings")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A server on a Unix socket that answers what it is told to and remembers the request lines.
pub(crate) struct FakeDaemon {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeDaemon {
    /// Answers each request with `answer(path)`: a whole HTTP response, or `None` to never answer.
    pub(crate) fn start(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move {
                    let mut buffer = vec![0; 8192];
                    let count = stream.read(&mut buffer).await.unwrap_or(0);
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                    let reply = answer(&path);
                    seen.lock().unwrap().push(path);
                    match reply {
                        Some(reply) => drop(stream.write_all(reply.as_bytes()).await),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Self { folder, requests }
    }

    /// Answers `GET /version` like a daemon whose API goes from `oldest` to `newest`, and all else with an empty list.
    pub(crate) fn with_api(oldest: &'static str, newest: &'static str) -> Self {
        Self::start(move |path| {
            Some(if path.ends_with("/version") {
                json(&format!(
                    r#"{{"Version":"99.1","ApiVersion":"{newest}","MinAPIVersion":"{oldest}","Os":"linux","Arch":"amd64"}}"#
                ))
            } else {
                json("[]")
            })
        })
    }

    /// The socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// The paths that were asked for.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// A response with a JSON body.
pub(crate) fn json(body: &str) -> String {
    response("200 OK", "application/json", body)
}

/// A response.
pub(crate) fn response(status: &str, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// An environment whose `DOCKER_HOST` is the socket `path`.
pub(crate) fn at_socket(path: &Path) -> DockerEnvironment {
    at(&format!("unix://{}", path.display()))
}

/// An environment whose `DOCKER_HOST` is `address`.
pub(crate) fn at(address: &str) -> DockerEnvironment {
    DockerEnvironment { host: Some(address.to_owned()), ..DockerEnvironment::default() }
}
