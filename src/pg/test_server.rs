//! Real throw-away PostgreSQL servers for unit tests, from the programs of this machine.
//!
//! What must hold: no server and no folder is left behind, however the test process ends. Each server is the child of a
//! small shell that waits for its standard input to close, which happens when the process goes, and then stops the
//! server and removes the folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use sqlx::{AssertSqlSafe, Connection};

use super::connect::{Login, connect, wait_ready};
use super::programs::{Programs, SearchPlaces};
use super::tls::Tls;

/// The superuser's password in each test server.
const PASSWORD: &str = "superuser-secret";

/// Waits for its standard input to close, stops the server (its command line follows the folder `$1`) at once and
/// removes the folder.
const WATCHER: &str =
    r#"folder=$1; shift; "$@" & server=$!; read _; kill -QUIT $server; wait $server; rm -rf "$folder""#;

/// Finds the folder of PostgreSQL 15's programs.
pub(crate) fn programs() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(|| Programs::find(&SearchPlaces::default()).ok().map(|programs| programs.bin_dir)).clone()
}

/// Says on one line that a test is skipped, or fails it where the environment says that nothing may be skipped.
fn skip() {
    #[expect(clippy::disallowed_methods, reason = "a test has no Settings")]
    let required = std::env::var_os("TFDEV_REQUIRE_DOCKER").is_some_and(|value| !value.is_empty());
    assert!(!required, "PostgreSQL 15's programs are missing, and TFDEV_REQUIRE_DOCKER forbids skipping");
    crate::skipped::skip("PostgreSQL 15 is not installed");
}

/// Gives `file`, readable for its owner alone, to the user that the server runs as.
pub(crate) fn own(file: &Path) {
    output(Command::new("chmod").arg("0600").arg(file));
    if geteuid().is_root() {
        output(Command::new("chown").arg("postgres:postgres").arg(file));
    }
}

/// A command for `program` of PostgreSQL, run as the user `postgres` if we are root, which the server refuses to be.
pub(crate) fn command(program: &str) -> Command {
    let program = programs().expect("the caller looked").join(program);
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command.current_dir("/");
    command
}

/// Runs `command` and gives its output; a failure fails the test with the program's own words.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// A data folder of its own and, while it runs, its server.
pub(crate) struct Cluster {
    folder: PathBuf,
    running: Option<(Child, ChildStdin)>,
    /// The superuser's login while the server runs.
    pub(crate) login: Login,
}

impl Cluster {
    /// Initialises a cluster with `options` for initdb, not started.
    pub(crate) fn initialise(options: &[&str]) -> Option<Self> {
        if programs().is_none() {
            skip();
            return None;
        }
        let folder = tempfile::Builder::new().prefix("tfdev-pg-").tempdir().unwrap().keep();
        let password = folder.join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        if geteuid().is_root() {
            output(Command::new("chown").args(["-R", "postgres:postgres"]).arg(&folder));
        }
        output(
            command("initdb")
                .args(["--no-sync", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"])
                .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
                .arg(format!("--pwfile={}", password.display()))
                .arg(format!("--pgdata={}", folder.join("data").display()))
                .args(options),
        );
        let login = Login {
            host: "127.0.0.1".into(),
            port: 0,
            database: "postgres".into(),
            user: "postgres".into(),
            password: PASSWORD.into(),
            tls: Tls::Disable,
            application_name: "tfdev-test".into(),
        };
        Some(Self { folder, running: None, login })
    }

    /// The data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Starts the server with `options` on a free port and waits until it answers.
    pub(crate) async fn start(&mut self, options: &[&str]) {
        self.start_process(options);
        wait_ready(&self.login, Instant::now() + Duration::from_mins(1), || async { Ok(()) })
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", self.log()));
    }

    /// Starts the server without waiting.
    pub(crate) fn start_process(&mut self, options: &[&str]) {
        assert!(self.running.is_none());
        self.login.port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let server = command("postgres");
        let mut watcher = Command::new("setsid");
        watcher.args(["sh", "-c", WATCHER, "sh"]).arg(&self.folder).arg(server.get_program()).args(server.get_args());
        watcher.arg("-D").arg(self.data()).arg("-k").arg(&self.folder);
        watcher.args(["-h", "127.0.0.1", "-p", &self.login.port.to_string()]);
        watcher.args(["-c", "fsync=off", "-c", "log_statement=all", "-c", "max_connections=100"]);
        watcher.args(["-c", "log_line_prefix=%m [%p] %d "]);
        for option in options {
            watcher.args(["-c", option]);
        }
        let mut child = watcher
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        self.running = Some((child, stdin));
    }

    /// Sends `signal` to the server.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.server_pid()).unwrap(), signal).unwrap();
    }

    /// The process id of the server, from its pid file.
    fn server_pid(&self) -> i32 {
        let file = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        file.lines().next().unwrap().parse().unwrap()
    }

    /// Stops the server the orderly way (checkpoint, then exit) or, not `clean`, by kill -9, and keeps the folder.
    pub(crate) fn stop(&mut self, clean: bool) {
        let (mut watcher, stdin) = self.running.take().expect("the server runs");
        let server = self.server_pid();
        let children = output(Command::new("ps").args(["-o", "pid=", "--ppid", &server.to_string()]));
        // The watcher would remove the folder, so it goes first, without being asked.
        watcher.kill().unwrap();
        watcher.wait().unwrap();
        drop(stdin);
        let signal = if clean { Signal::INT } else { Signal::KILL };
        kill_process(Pid::from_raw(server).unwrap(), signal).unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        let pids = children.split_whitespace().map(|pid| pid.parse().unwrap()).chain([server]);
        for pid in pids {
            while is_running(pid) {
                assert!(Instant::now() < deadline, "process {pid} of the server did not stop");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if !clean {
            // Where nobody reaps the dead server its number is still taken, and the next start would refuse.
            std::fs::remove_file(self.data().join("postmaster.pid")).unwrap();
        }
    }

    /// What the server has written to its log.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("log")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        match self.running.take() {
            Some((mut watcher, stdin)) => {
                drop(stdin);
                let _ = watcher.wait();
            }
            None => {
                let _ = std::fs::remove_dir_all(&self.folder);
            }
        }
    }
}

/// Whether a process runs; one that is dead but not yet reaped does not.
fn is_running(pid: i32) -> bool {
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    !zombie && test_kill_process(Pid::from_raw(pid).unwrap()).is_ok()
}

/// The server of this test process. Statics are not dropped: the watcher ends it.
static SERVER: OnceLock<Option<Cluster>> = OnceLock::new();

fn server() -> Option<&'static Cluster> {
    SERVER
        .get_or_init(|| {
            let mut cluster = Cluster::initialise(&[])?;
            cluster.start_process(&[]);
            Some(cluster)
        })
        .as_ref()
}

/// Makes a fresh database in this process's server and gives the superuser's login to it; `None`, and one line that says
/// so, if PostgreSQL 15 is not installed.
pub(crate) async fn database() -> Option<Login> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let server = server()?;
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut connection = wait_ready(&server.login, deadline, || async { Ok(()) })
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", server.log()));
    let database = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let statement = AssertSqlSafe(format!("CREATE DATABASE {database} TEMPLATE template0"));
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    Some(Login { database, ..server.login.clone() })
}

/// The lines that this process's server has written to its log about the database of `login`; other tests may share the
/// server.
pub(crate) fn log(login: &Login) -> String {
    let prefix = format!(" {} ", login.database);
    let log = server().expect("a test that reads the log has a server").log();
    log.lines().filter(|line| line.contains(&prefix)).collect::<Vec<_>>().join("\n")
}

/// A connection for the test itself.
pub(crate) async fn session(login: &Login) -> sqlx::PgConnection {
    connect(login, Instant::now() + Duration::from_secs(30)).await.unwrap()
}

/// Copies a data folder with its owners and modes.
pub(crate) fn copy(from: &Path, to: &Path) {
    output(Command::new("cp").arg("-a").arg(from).arg(to));
}
