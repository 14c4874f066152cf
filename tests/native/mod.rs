//! The native engine: PostgreSQL 15 programs of this machine, as root and as an ordinary user.
//!
//! What must hold: no test leaves a server or a data folder behind; and without PostgreSQL 15 each test says so in one line.

mod choice;
mod faults;
mod lifecycle;
mod limits;
mod log;
mod machine;
mod space;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Outcome, TestEnv, finish, one, start};

/// Who runs tfdev in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever runs the tests.
    Us,
    /// An ordinary user, though root runs the tests.
    Ordinary,
}

/// The ordinary user that tests step down to; every system has it.
const ORDINARY: &str = "nobody";

/// A place for a test of the native engine.
pub(crate) struct Native {
    pub(crate) env: TestEnv,
    who: Who,
}

impl Native {
    /// A place where whoever runs the tests runs tfdev; `None`, after one line, without PostgreSQL 15.
    pub(crate) fn new() -> Option<Self> {
        Self::run_by(Who::Us)
    }

    /// Each kind of user that can be tried here.
    pub(crate) fn each() -> Vec<Self> {
        let ordinary = is_root().then_some(Who::Ordinary);
        std::iter::once(Who::Us).chain(ordinary).filter_map(Self::run_by).collect()
    }

    /// A place where an ordinary user runs tfdev.
    pub(crate) fn ordinary() -> Option<Self> {
        Self::run_by(if is_root() { Who::Ordinary } else { Who::Us })
    }

    fn run_by(who: Who) -> Option<Self> {
        if bin_dir().is_none() {
            skip("PostgreSQL 15 is not installed");
            return None;
        }
        let env = TestEnv::new();
        if who == Who::Ordinary {
            let root = env.path("");
            shell(&format!("chown -R {ORDINARY} {}", root.display()));
        }
        Some(Self { env, who })
    }

    /// As [`Native::new`], with this `tfdev.toml`.
    pub(crate) fn with(file: &str) -> Option<Self> {
        let native = Self::new()?;
        native.env.write("tfdev.toml", file);
        Some(native)
    }

    /// tfdev with `arguments` and the native engine.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command_by_choice(arguments);
        command.env("TFDEV_ENGINE", "native");
        command
    }

    /// tfdev with `arguments`.
    pub(crate) fn command_by_choice(&self, arguments: &[&str]) -> Command {
        let direct = self.env.command(arguments);
        if self.who == Who::Us {
            return direct;
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", ORDINARY, "--regid", "nogroup", "--clear-groups"]).arg(direct.get_program());
        command.args(direct.get_args()).env_clear().current_dir(&self.env.project);
        command.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("TFDEV_CACHE_DIR", self.env.path("cache"));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome {
        finish(start(self.command(arguments)))
    }

    /// `up` with few rows; it must succeed.
    #[track_caller]
    pub(crate) fn up(&self) -> Value {
        self.run(&["up", "--json", "--dataset", "small"]).ok().json()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.run(&["status", "--json"]).ok().json()
    }

    #[track_caller]
    pub(crate) fn url(&self) -> String {
        self.run(&["url"]).ok().stdout.trim().to_owned()
    }

    /// The data folder of the running or stopped instance.
    #[track_caller]
    pub(crate) fn data(&self) -> PathBuf {
        PathBuf::from(self.status()["data_dir"].as_str().unwrap())
    }

    /// The server's process number, as its pid file has it.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// How many rows of the data set are there.
    #[track_caller]
    pub(crate) fn tasks(&self) -> String {
        one(&self.url(), "SELECT count(*) FROM tasks")
    }

    #[track_caller]
    pub(crate) fn destroy(&self) {
        self.run(&["destroy", "--yes"]).ok();
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // A test that failed already has its own message.
        let _ = self.command(&["destroy", "--all", "--yes"]).output();
    }
}

/// The servers whose data folder is below `folder`, as process numbers.
pub(crate) fn servers(folder: &Path) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_server = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        arguments.len() > 2 && arguments[1] == "-D" && Path::new(arguments[2].as_ref()).starts_with(folder)
    };
    numbers.filter(is_server).collect()
}

pub(crate) fn kill(pid: u32, signal: &str) {
    shell(&format!("kill -{signal} {pid}"));
}

pub(crate) fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub(crate) fn is_root() -> bool {
    shell("id -u") == "0"
}

/// The folder of the programs of this machine, if they are in one of the places that tests know.
pub(crate) fn bin_dir() -> Option<PathBuf> {
    let folders = ["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/opt/homebrew/opt/postgresql@15/bin"];
    folders.iter().map(PathBuf::from).find(|folder| folder.join("initdb").exists())
}

/// Says that a test does not run here.
pub(crate) fn skip(reason: &str) {
    let thread = std::thread::current();
    #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
    {
        eprintln!("skipped: {} ({reason})", thread.name().unwrap_or_default());
    }
}
