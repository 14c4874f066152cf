//! Calls to a daemon behind ssh: each connection is a program `ssh HOST docker system dial-stdio`, as the docker
//! command line does it, so keys, jump hosts and known hosts are those of the user's ssh configuration.
//!
//! What must hold: ssh asks nothing (a question would hang behind a progress bar), no program is left behind, and what
//! ssh says when it fails is what a person reads. A connection that is free is used again, because a new one costs a
//! login.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bollard::errors::Error as Failure;
use bollard::{BollardRequest, ClientVersion, Docker};
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;

/// How long a failed ssh may take to say why.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// Whom to call.
#[derive(Debug, Clone)]
pub(super) struct Command {
    pub(super) user: Option<String>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

impl Command {
    fn ssh(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("ssh");
        command.args(["-T", "-o", "BatchMode=yes"]);
        if let Some(port) = self.port {
            command.arg("-p").arg(port.to_string());
        }
        if let Some(user) = &self.user {
            command.arg("-l").arg(user);
        }
        // The address was checked not to begin with a dash; `--` says so once more.
        command.args(["--", &self.host]).kill_on_drop(true);
        command
    }
}

/// A client whose calls go through `command`.
pub(super) fn client(command: Command, limit_seconds: u64, version: &ClientVersion) -> Result<Docker, Failure> {
    let tunnel = Arc::new(Tunnel { command, free: Mutex::default() });
    let transport = move |request: BollardRequest| {
        let tunnel = Arc::clone(&tunnel);
        async move { tunnel.call(request).await }
    };
    Docker::connect_with_custom_transport(transport, Some("ssh://docker"), limit_seconds, version)
}

/// The host name that ssh's own configuration gives to `host`, which may be an alias that no resolver knows.
pub(super) async fn host_name(host: &str, port: Option<u16>) -> Option<String> {
    let mut command = tokio::process::Command::new("ssh");
    command.arg("-G");
    if let Some(port) = port {
        command.arg("-p").arg(port.to_string());
    }
    let output = command.args(["--", host]).stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find_map(|line| line.strip_prefix("hostname ")).map(|name| name.trim().to_owned())
}

/// The connections to one daemon.
struct Tunnel {
    command: Command,
    /// Connections whose last answer may still be on its way; they are free when that has been read.
    free: Mutex<Vec<Connection>>,
}

impl Tunnel {
    async fn call(&self, mut request: BollardRequest) -> Result<Response<Incoming>, Failure> {
        // Below the connection pool of an HTTP library, a request names the path only and the host in a header.
        if let Some(path) = request.uri().path_and_query().and_then(|path| path.as_str().parse().ok()) {
            *request.uri_mut() = path;
        }
        request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
        let mut connection = match self.take_free() {
            Some(connection) => connection,
            None => Connection::open(&self.command).await?,
        };
        match connection.sender.send_request(request).await {
            Ok(response) => {
                self.lock().push(connection);
                Ok(response)
            }
            Err(error) => match connection.last_words().await {
                Some(words) => Err(io::Error::other(words).into()),
                None => Err(error.into()),
            },
        }
    }

    fn take_free(&self) -> Option<Connection> {
        let mut free = self.lock();
        free.retain(|connection| !connection.sender.is_closed());
        let position = free.iter().position(|connection| connection.sender.is_ready())?;
        Some(free.swap_remove(position))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // A panic elsewhere leaves the list as good as it was.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names the type of a request's body, which bollard keeps to itself.
trait Request {
    type Body;
}

impl<B> Request for hyper::Request<B> {
    type Body = B;
}

/// One running `ssh`.
struct Connection {
    sender: SendRequest<<BollardRequest as Request>::Body>,
    complaints: JoinHandle<String>,
}

impl Connection {
    async fn open(command: &Command) -> Result<Self, Failure> {
        let mut child = command
            .ssh()
            .args(["docker", "system", "dial-stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(mut stderr)) = (stdout, stderr) else {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        };
        let complaints = tokio::spawn(async move {
            let mut text = Vec::new();
            // What was said before a failure to read is all there is.
            let _ = stderr.read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).into_owned()
        });
        let (sender, connection) = handshake(TokioIo::new(Pipe { stdin, stdout, _child: child })).await?;
        // Failures are told to whoever waits for the answer.
        tokio::spawn(connection.with_upgrades());
        Ok(Self { sender, complaints })
    }

    /// What ssh, or Docker on the other side, said before it ended.
    async fn last_words(self) -> Option<String> {
        drop(self.sender);
        let text = tokio::time::timeout(LAST_WORDS_LIMIT, self.complaints).await.ok()?.ok()?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// The input and output of a running `ssh`, which is killed when this is dropped.
struct Pipe {
    /// `None` after the end was written.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    _child: Child,
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(context, buffer)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only closing the pipe tells the other side.
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}
