//! An ordinary PostgreSQL 15 server that someone else runs: with roles, databases and rules of its own, and TLS if asked.
//!
//! What must hold: no server and no folder is left behind, however the test ends. The server is the child of a small shell
//! that waits for its standard input to close, then stops the server and removes the folder.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::sql;

const WATCHER: &str =
    r#"folder=$1; shift; "$@" & server=$!; read _; kill -QUIT $server; wait $server; rm -rf "$folder""#;

/// The superuser's password on every such server.
const PASSWORD: &str = "someone-elses";

/// Who may log in how, if nothing else is said.
const RULES: &str = "local all all trust\nhost all all all scram-sha-256\nhost replication all all scram-sha-256\n";

/// A server and all that belongs to it.
pub(crate) struct SomeonesServer {
    folder: PathBuf,
    pub(crate) port: u16,
    running: Option<(Child, ChildStdin)>,
}

impl SomeonesServer {
    /// A running server with these settings (`name=value`); `None` without PostgreSQL 15.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        let server = Self::initialise()?;
        Some(server.run(settings))
    }

    /// A running server with TLS, and its authority's certificate; `rules` are the lines of its pg_hba.conf.
    pub(crate) fn start_with_tls(rules: &str) -> Option<(Self, PathBuf)> {
        let server = Self::initialise()?;
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "the test's authority");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(parameters, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let root = server.folder.join("root.crt");
        std::fs::write(&root, authority.pem()).unwrap();
        server.write("data/server.crt", &certificate.pem());
        server.write("data/server.key", &key.serialize_pem());
        server.write("data/pg_hba.conf", rules);
        Some((server.run(&["ssl=on"]), root))
    }

    fn initialise() -> Option<Self> {
        let server = Self::folder()?;
        server.write("password", PASSWORD);
        let mut initdb = server.program("initdb");
        initdb.args([
            "--no-sync",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth=scram-sha-256",
        ]);
        initdb.arg(format!("--pwfile={}", server.folder.join("password").display()));
        output(initdb.arg("--pgdata").arg(server.data()));
        server.write("data/pg_hba.conf", RULES);
        Some(server)
    }

    /// A place for a server, without data.
    fn folder() -> Option<Self> {
        if crate::support::process::bin_dir().is_none() {
            crate::support::skipped::skip("PostgreSQL 15 is not installed");
            return None;
        }
        let folder = TempDir::with_prefix("tfdev-someone-").unwrap().keep();
        own(&folder);
        Some(Self { folder, port: free_port(), running: None })
    }

    /// A standby that follows this server.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self::folder().unwrap();
        let mut copy = self.program("pg_basebackup");
        copy.env("PGPASSWORD", PASSWORD).args(["--host=127.0.0.1", "--username=postgres", "--checkpoint=fast"]);
        copy.arg(format!("--port={}", self.port)).args(["--no-sync", "--write-recovery-conf", "--pgdata"]);
        output(copy.arg(standby.data()));
        standby.run(&[])
    }

    fn run(mut self, settings: &[&str]) -> Self {
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut server = self.program("postgres");
        server.arg("-D").arg(self.data()).arg("-k").arg(&self.folder);
        server.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "fsync=off"]);
        server.args(settings.iter().flat_map(|setting| ["-c", setting]));
        let mut watcher = Command::new("setsid");
        watcher.args(["sh", "-c", WATCHER, "sh"]).arg(&self.folder).arg(server.get_program()).args(server.get_args());
        watcher.current_dir("/").stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = watcher.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        self.running = Some((child, stdin));
        self.wait();
        self
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_mins(1);
        let url = format!("{}?sslmode=prefer", self.superuser_url("postgres"));
        while let Err(error) = sql::try_query(&url, "SELECT 1") {
            assert!(Instant::now() < deadline, "{error}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A program of PostgreSQL, run by an ordinary user.
    fn program(&self, name: &str) -> Command {
        let program = crate::support::process::bin_dir().unwrap().join(name);
        let mut command = Command::new(&program);
        if crate::support::process::is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
        }
        command.current_dir(&self.folder);
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the server has written to its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Writes a file of the server's, closed to others.
    fn write(&self, path: &str, text: &str) {
        let path = self.folder.join(path);
        std::fs::write(&path, text).unwrap();
        output(Command::new("chmod").arg("600").arg(&path));
        own(&path);
    }

    /// The superuser's URL to `database`.
    pub(crate) fn superuser_url(&self, database: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs statements as the superuser, in the database `postgres`.
    #[track_caller]
    pub(crate) fn sql(&self, statements: &str) {
        sql::query(&self.superuser_url("postgres"), statements);
    }

    /// What the superuser reads, in the database `postgres`.
    #[track_caller]
    pub(crate) fn read(&self, question: &str) -> Vec<String> {
        sql::query(&self.superuser_url("postgres"), question)
    }

    /// Names of all databases.
    #[track_caller]
    pub(crate) fn databases(&self) -> Vec<String> {
        self.read("SELECT datname FROM pg_database ORDER BY 1")
    }
}

impl Drop for SomeonesServer {
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

fn own(path: &Path) {
    if crate::support::process::is_root() {
        output(Command::new("chown").arg("nobody:nogroup").arg(path));
    }
}

/// A port that nothing listens on at the moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn output(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
