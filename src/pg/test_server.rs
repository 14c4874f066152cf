//! A throw-away PostgreSQL server for tests, from the programs of this machine, and fresh databases on it.
//!
//! What must hold: server and folder go when the test process ends, however it ends. A shell that holds the other end of a
//! pipe sees to it: `read` returns when the process is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Runs the server `$2…` until the pipe on the standard input closes, then removes the folder `$1`.
const WATCHER: &str = r#"folder=$1; shift; "$@" & read _; kill -QUIT $!; wait; rm -rf "$folder""#;

/// Makes an empty database of the ordinary role `taskflow` and returns how to connect as that role.
///
/// `None`, with a line that says so, if there are no PostgreSQL programs; a panic if `TFDEV_REQUIRE_DOCKER` forbids that.
pub(crate) async fn database() -> Option<PgConnectOptions> {
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let folder = server()?;
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let mut admin = connect_admin(folder).await;
    let create = format!("CREATE DATABASE {name} OWNER taskflow");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
    Some(options(folder).username("taskflow").database(&name))
}

fn options(folder: &Path) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass().socket(folder).port(5432).username("postgres").database("postgres")
}

/// Connects as the superuser, waiting for a server that has only just started; makes the role on the first time.
async fn connect_admin(folder: &Path) -> PgConnection {
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut admin = loop {
        match PgConnection::connect_with(&options(folder)).await {
            Ok(connection) => break connection,
            Err(error) => assert!(Instant::now() < deadline, "{error}: {:?}", fs::read_to_string(folder.join("log"))),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let role =
        "DO $$ BEGIN CREATE ROLE taskflow LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$";
    sqlx::raw_sql(role).execute(&mut admin).await.unwrap();
    admin
}

/// Starts the server on the first call and returns its folder, which holds the socket.
fn server() -> Option<&'static Path> {
    static SERVER: OnceLock<Option<(PathBuf, Child)>> = OnceLock::new();
    SERVER.get_or_init(start).as_ref().map(|(folder, _)| folder.as_path())
}

fn start() -> Option<(PathBuf, Child)> {
    if !Path::new(BIN).join("initdb").exists() {
        #[expect(clippy::disallowed_methods, reason = "a test has no Settings")]
        let required = std::env::var_os("TFDEV_REQUIRE_DOCKER").is_some();
        assert!(!required, "no PostgreSQL 15 in {BIN}, and TFDEV_REQUIRE_DOCKER forbids skipping");
        #[expect(clippy::print_stderr, reason = "who runs the tests must see what was not tested")]
        {
            eprintln!("skipped: no PostgreSQL 15 in {BIN}");
        }
        return None;
    }
    let folder = tempfile::Builder::new().prefix("tfdev-test-").tempdir().unwrap().keep();
    if rustix::process::geteuid().is_root() {
        assert!(Command::new("chown").arg("postgres:").arg(&folder).status().unwrap().success());
    }
    let initdb = program("initdb")
        .args(["--no-sync", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=trust", "--pgdata"])
        .arg(folder.join("data"))
        .output()
        .unwrap();
    assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
    let postgres = program("postgres");
    let log = fs::File::create(folder.join("log")).unwrap();
    let watcher = Command::new("setsid")
        .args(["sh", "-c", WATCHER, "sh"])
        .arg(&folder)
        .arg(postgres.get_program())
        .args(postgres.get_args())
        .args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"])
        .arg(&folder)
        .arg("-D")
        .arg(folder.join("data"))
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Some((folder, watcher))
}

/// A command for `name` of PostgreSQL, as the user `postgres` where we are root, which the server refuses to be.
fn program(name: &str) -> Command {
    let path = Path::new(BIN).join(name);
    if !rustix::process::geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
    command
}
