//! A real S3 server in a process of its own, and a proxy before it that does what networks and stores do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::{Side, assert_prefix};
use crate::support::{TestEngine, TestEnv, one, run_on, until};

/// Where the server's process finds its folder; only then [`server`] is one.
const FOLDER: &str = "TFDEV_TEST_S3_FOLDER";

const KEY: &str = "TESTKEY";
const SECRET: &str = "test-secret";

/// The server: this program again, as a process that ends when its input does.
#[test]
#[ignore = "it is the S3 server of other tests, which start it"]
fn server() {
    #[expect(clippy::disallowed_methods, reason = "how the other tests tell this process what it is")]
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let files = s3s_fs::FileSystem::new(&folder).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(files);
    builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY, SECRET));
    let service = builder.build();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0; 1]);
        std::process::exit(0);
    });
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        std::fs::write(Path::new(&folder).with_extension("port"), port.to_string()).unwrap();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let service = service.clone();
                    tokio::task::spawn_local(async move {
                        let io = hyper_util::rt::TokioIo::new(socket);
                        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                    });
                }
            })
            .await;
    });
}

/// A running server with one bucket.
struct Bucket {
    process: Child,
    _input: ChildStdin,
    port: u16,
}

impl Bucket {
    fn start(env: &TestEnv) -> Self {
        let folder = env.path("s3");
        std::fs::create_dir_all(folder.join("bucket")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "backup::s3::server", "--ignored", "--nocapture"]).env(FOLDER, &folder);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let port = until("the S3 server", || {
            std::fs::read_to_string(folder.with_extension("port")).ok().and_then(|text| text.parse().ok())
        });
        Self { process, _input: input, port }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the proxy does with requests.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// Passes them on.
    Pass,
    /// Answers so many with 503, then passes them on.
    Unavailable(u32),
    /// Cuts so many connections off in the middle of what is sent, then passes them on.
    Cut(u32),
    /// Says that it has written what it has not.
    Lie,
    /// Says that who asks was let in for some time only, which is over.
    Expired,
    /// Takes its time.
    Slow,
    /// Nobody is there.
    Down,
}

/// A proxy before the server.
#[derive(Clone)]
struct Proxy {
    mode: Arc<Mutex<Mode>>,
    port: u16,
}

impl Proxy {
    fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let proxy = Self { mode: Arc::new(Mutex::new(Mode::Pass)), port: listener.local_addr().unwrap().port() };
        let own = proxy.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || drop(own.serve(socket, target)));
            }
        });
        proxy
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// What to do with this request.
    fn next(&self) -> Mode {
        let mut mode = self.mode.lock().unwrap();
        let now = *mode;
        *mode = match now {
            Mode::Unavailable(0) | Mode::Cut(0) => Mode::Pass,
            Mode::Unavailable(left) => Mode::Unavailable(left - 1),
            Mode::Cut(left) => Mode::Cut(left - 1),
            other => other,
        };
        now
    }

    /// One request for each connection.
    fn serve(&self, mut client: TcpStream, target: u16) -> std::io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let (mut head, mut length, mut is_write) = (Vec::new(), 0, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.to_lowercase();
            if head.is_empty() {
                is_write = line.starts_with("PUT");
            }
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                head.extend_from_slice(b"connection: close\r\n\r\n");
                break;
            }
            if !lower.starts_with("connection:") {
                head.extend_from_slice(line.as_bytes());
            }
        }
        let mode = self.next();
        if mode == Mode::Down {
            return Ok(());
        }
        if let Mode::Cut(1..) = mode {
            let mut half = vec![0; length / 2];
            reader.read_exact(&mut half)?;
            return Ok(());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        match mode {
            Mode::Unavailable(1..) => {
                client.write_all(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            }
            Mode::Lie if is_write => {
                client.write_all(b"HTTP/1.1 200 OK\r\netag: \"0\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            }
            Mode::Expired => {
                let text = "<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code>\
                            <Message>The provided token has expired.</Message></Error>";
                let length = text.len();
                write!(
                    client,
                    "HTTP/1.1 400 Bad Request\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
                )
            }
            _ => {
                if mode == Mode::Slow {
                    std::thread::sleep(std::time::Duration::from_millis(300));
                }
                let mut server = TcpStream::connect(("127.0.0.1", target))?;
                server.write_all(&head)?;
                server.write_all(&body)?;
                std::io::copy(&mut server, &mut client).map(drop)
            }
        }
    }
}

#[test]
fn backups_in_s3_come_through_all_that_networks_do() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let bucket = Bucket::start(env);
        let proxy = Proxy::start(bucket.port);
        let credentials = |key: &str, secret: &str| {
            let folder = env.path("home").join(".aws");
            std::fs::create_dir_all(&folder).unwrap();
            let text = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
            std::fs::write(folder.join("credentials"), text).unwrap();
        };
        credentials(KEY, SECRET);
        let endpoint = format!("store = \"s3://bucket/a/b?endpoint=http://127.0.0.1:{}\"\n", proxy.port);
        // The server of the tests makes names of files out of those of objects, which must not be too long.
        let project = &env.id[env.id.len() - 6..];
        let side = Side::up_as(env, project, &endpoint);
        side.add(1..=3);

        proxy.set(Mode::Unavailable(3));
        let id = side.base();
        proxy.set(Mode::Cut(3));
        side.backup(&["now", "--only", "logical"]).ok();
        proxy.set(Mode::Slow);
        side.add(4..=4);
        side.ship();
        proxy.set(Mode::Pass);
        assert_prefix(side.restore(&[], "restored")["url"].as_str().unwrap(), 4);
        side.destroy("restored");
        assert_prefix(side.restore(&[&id], "restored")["url"].as_str().unwrap(), 3);
        side.destroy("restored");
        side.backup(&["verify"]).ok();
        let stored = env.path("s3/bucket/a/b").join(project).join("dev");
        assert!(stored.is_dir(), "below the prefix");

        // What the store says is not believed: the segment stays in the spool.
        side.add(5..=5);
        one(&side.superuser(), "SELECT pg_switch_wal()");
        until("the log in the spool", || (!side.spooled().is_empty()).then_some(()));
        proxy.set(Mode::Lie);
        side.backup(&["agent", "--once"]).exits(1).says("said that it wrote");
        assert!(!side.spooled().is_empty());
        side.backup(&["now", "--only", "logical"]).exits(1);
        proxy.set(Mode::Pass);
        side.ship();

        credentials(KEY, "wrong");
        side.backup(&["now", "--only", "logical"]).exits(1).says("AWS_SECRET_ACCESS_KEY");
        side.backup(&["list"]).exits(1);
        credentials("UNKNOWNKEY", SECRET);
        side.backup(&["list"]).exits(1).says("AWS_ACCESS_KEY_ID");
        credentials(KEY, SECRET);

        // They run out while the agent is at work: the log waits, and goes on when there are others.
        side.add(6..=6);
        one(&side.superuser(), "SELECT pg_switch_wal()");
        until("the log in the spool", || (!side.spooled().is_empty()).then_some(()));
        proxy.set(Mode::Expired);
        side.backup(&["agent", "--once"]).exits(1).says("ExpiredToken").says("have expired");
        assert!(!side.spooled().is_empty());
        side.backup(&["restore", "--as", "other"]).exits(1).says("AWS_SESSION_TOKEN");
        side.backup(&["now", "--only", "logical"]).exits(1);
        proxy.set(Mode::Pass);
        side.ship();
        let status = side.backup(&["status"]).exits(1).json();
        assert!(status["alarms"].to_string().contains("since"), "what failed last is told: {status}");
        side.backup(&["now", "--only", "logical"]).ok();
        assert_eq!(side.backup(&["status"]).ok().json()["alarms"], json!([]));
        assert_prefix(side.restore(&[], "restored")["url"].as_str().unwrap(), 6);
    });
}
