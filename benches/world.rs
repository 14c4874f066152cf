//! What is measured on: an instance of its own, a container to compare with, and the way to look at both.
//!
//! What must hold: everything that a run makes carries the run's key and is removed at its end, also after a failure and
//! after Ctrl-C, which ends the running child and with it the measurement.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use wait4::Wait4 as _;

use crate::Outcome;

/// First argument of this program when it is to run another one and write down its peak memory.
pub(crate) const MEASURE_MEMORY: &str = "--measure-memory";

/// How often a login is tried: half as long as tfdev itself waits, so that the baseline loses nothing by it.
const LOGIN_EVERY: Duration = Duration::from_millis(5);

/// How long the first login of a new server may take.
const LOGIN_LIMIT: Duration = Duration::from_mins(2);

/// The container that tfdev is compared with; every part is that of tfdev's own.
pub(crate) struct Likeness {
    image: String,
    command: Vec<String>,
    limits: [String; 3],
    initdb_arguments: String,
}

/// The surroundings of a run.
pub(crate) struct World {
    key: String,
    folder: TempDir,
    runtime: Runtime,
}

impl World {
    pub(crate) fn new() -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // From now on Ctrl-C ends the children only, and this program cleans up after them.
        #[cfg(unix)]
        runtime
            .block_on(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map(drop) })?;
        let key = format!("tfdev-bench-{}", std::process::id());
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("project"))?;
        fs::write(folder.path().join("project/tfdev.toml"), format!("project = \"{key}\"\n"))?;
        Ok(Self { key, folder, runtime })
    }

    /// The key of the run's project.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// A file of this run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program that finds the instances of this run, and no settings of anyone else.
    pub(crate) fn without_settings(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TFDEV_") {
                command.env_remove(name);
            }
        }
        command
            .env("TFDEV_STATE_DIR", self.file("state"))
            .env("TFDEV_CACHE_DIR", self.file("cache"))
            .current_dir(self.file("project"))
            .stdin(Stdio::null());
        command
    }

    /// The program under test.
    pub(crate) fn tfdev(&self, arguments: &[&str]) -> Command {
        let mut command = self.without_settings(env!("CARGO_BIN_EXE_tfdev"));
        command.args(arguments);
        command
    }

    /// Runs the program under test; returns how long it took and its JSON.
    pub(crate) fn timed(&self, arguments: &[&str]) -> Outcome<(Duration, Value)> {
        let begin = Instant::now();
        let output = self.tfdev(arguments).arg("--json").output()?;
        let elapsed = begin.elapsed();
        let output = succeeded(&format!("tfdev {}", arguments.join(" ")), output)?;
        Ok((elapsed, serde_json::from_slice(&output.stdout)?))
    }

    /// The superuser's URL on the server of `url`, which is that of the instance `instance`.
    pub(crate) fn superuser_url(&self, url: &str, instance: &str) -> Outcome<String> {
        let file = self.file("state/projects").join(&self.key).join(instance).join("superuser.password");
        let password = fs::read_to_string(file)?;
        let place = url.rsplit_once('@').and_then(|(_, place)| place.split_once('/')).ok_or("a URL without a place")?.0;
        Ok(format!("postgres://postgres:{}@{place}/postgres", password.trim()))
    }

    /// Runs the program under test and returns its peak memory in MB.
    ///
    /// A program between takes the measure: what a child of this one had in memory before it became another program
    /// would count as well, and this one is large by now.
    pub(crate) fn peak_memory(&self, arguments: &[&str]) -> Outcome<f64> {
        let result = self.file("peak-memory");
        let this = std::env::current_exe()?;
        let mut command = self.without_settings(&this.to_string_lossy());
        command.arg(MEASURE_MEMORY).arg(&result).arg(env!("CARGO_BIN_EXE_tfdev")).args(arguments);
        succeeded(&format!("tfdev {}", arguments.join(" ")), command.output()?)?;
        let bytes: f64 = fs::read_to_string(result)?.parse()?;
        Ok(bytes / 1e6)
    }

    /// Runs such a container on a new volume and returns how long it took until its first login.
    pub(crate) fn run_likeness(&self, likeness: &Likeness) -> Outcome<Duration> {
        let port = free_port()?;
        let label = format!("dev.tfdev.bench={}", self.key);
        docker(&["volume", "create", "--label", &label, &self.key])?;
        let login = login("127.0.0.1", port, "postgres", "postgres", "bench");
        let mut command = Command::new("docker");
        command.args(["run", "--detach", "--name", &self.key, "--label", &label]);
        command.args(&likeness.limits);
        command.args(["--publish", &format!("127.0.0.1:{port}:5432")]);
        command.args(["--volume", &format!("{}:/var/lib/postgresql/data", self.key)]);
        command.args(["--env", "POSTGRES_PASSWORD=bench", "--env", &likeness.initdb_arguments]);
        command.arg(&likeness.image).args(&likeness.command);
        let elapsed = self.until_login(command, &login);
        docker(&["rm", "--force", &self.key])?;
        docker(&["volume", "rm", &self.key])?;
        elapsed
    }

    /// Runs `command`, which starts a container, and returns how long it took until the first login.
    ///
    /// Logins are tried from the command's end on, like tfdev does it. One that is tried while Docker is still setting up
    /// the container's network can hang for a second, and the baseline would be that much slower than it is.
    pub(crate) fn until_login(&self, mut command: Command, login: &PgConnectOptions) -> Outcome<Duration> {
        let begin = Instant::now();
        succeeded("docker", command.stdin(Stdio::null()).output()?)?;
        self.runtime.block_on(first_login(login, begin + LOGIN_LIMIT))?;
        Ok(begin.elapsed())
    }

    /// Waits for the first login.
    #[cfg(unix)]
    pub(crate) fn until_answers(&self, login: &PgConnectOptions) -> Outcome<()> {
        self.runtime.block_on(first_login(login, Instant::now() + LOGIN_LIMIT))
    }

    /// Runs a future to its end.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let destroyed = self.tfdev(&["destroy", "--all", "--yes", "--quiet"]).output();
        if !destroyed.is_ok_and(|output| output.status.success()) {
            crate::tell(&format!("could not destroy the instance of `{}`: `make clean-docker` does", self.key));
        }
        // These are there only if a measurement was cut off.
        let _ = docker(&["rm", "--force", &self.key]);
        let _ = docker(&["volume", "rm", "--force", &self.key]);
    }
}

/// What tfdev's container was made of.
pub(crate) fn likeness(container: &str) -> Outcome<Likeness> {
    let inspected: Value = serde_json::from_str(&docker(&["container", "inspect", container])?)?;
    let (config, host) = (&inspected[0]["Config"], &inspected[0]["HostConfig"]);
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let arguments = texts(&config["Env"]).into_iter().find(|variable| variable.starts_with("POSTGRES_INITDB_ARGS"));
    // The settings are in a file of tfdev's; a container by hand has them on its command line.
    let file = docker(&["exec", container, "cat", "/etc/tfdev/postgresql.conf"])?;
    let lines = file.lines().filter_map(|line| line.split_once(" = ")).filter(|(name, _)| *name != "include");
    let settings = lines.flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={}", value.trim_matches('\''))]);
    let cores = host["NanoCpus"].as_f64().ok_or("the container has no limit of processor time")? / 1e9;
    Ok(Likeness {
        image: config["Image"].as_str().ok_or("the container has no image")?.to_owned(),
        command: std::iter::once("postgres".to_owned()).chain(settings).collect(),
        limits: [
            format!("--memory={}", host["Memory"]),
            format!("--shm-size={}", host["ShmSize"]),
            format!("--cpus={cores}"),
        ],
        initdb_arguments: arguments.unwrap_or_default(),
    })
}

/// A port that is free now.
pub(crate) fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A login without encryption.
pub(crate) fn login(host: &str, port: u16, database: &str, user: &str, password: &str) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass().host(host).port(port).database(database);
    options.username(user).password(password).ssl_mode(PgSslMode::Disable)
}

async fn first_login(login: &PgConnectOptions, deadline: Instant) -> Outcome<()> {
    loop {
        let attempt = tokio::time::timeout(Duration::from_secs(1), PgConnection::connect_with(login)).await;
        if let Ok(Ok(mut connection)) = attempt {
            sqlx::raw_sql("SELECT 1").execute(&mut connection).await?;
            connection.close().await?;
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("no login within {} s", LOGIN_LIMIT.as_secs()).into());
        }
        tokio::time::sleep(LOGIN_EVERY).await;
    }
}

/// Runs docker's command line and returns what it wrote.
pub(crate) fn docker(arguments: &[&str]) -> Outcome<String> {
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output()?;
    let output = succeeded(&format!("docker {}", arguments.join(" ")), output)?;
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) fn succeeded(what: &str, output: Output) -> Outcome<Output> {
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("`{what}`: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// Runs the program that `arguments` name after a file, and writes its peak memory in bytes into the file.
pub(crate) fn measure_memory(arguments: &[String]) -> Outcome<bool> {
    let [file, program, arguments @ ..] = arguments else {
        return Err("expected a file and a program".into());
    };
    let used = Command::new(program).args(arguments).spawn()?.wait4()?;
    fs::write(file, used.rusage.maxrss.to_string())?;
    Ok(used.status.success())
}
