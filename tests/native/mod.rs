//! What is the native engine's alone: processes, folders, users and programs of this machine. All else is in `contract`
//! and `faults`, over every engine.
//!
//! What must hold: no test leaves a server or a data folder behind; and without PostgreSQL 15 each test says so.

mod choice;
mod faults;
mod lifecycle;
mod limits;
mod log;
mod machine;
mod space;
mod terminal;

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

pub(crate) use crate::support::process::{bin_dir, is_root, kill, servers, shell};
pub(crate) use crate::support::skipped::skip;
use crate::support::{Outcome, TestEngine, TestEnv, native};

/// A place for a test of the native engine.
pub(crate) struct Native {
    pub(crate) env: TestEnv,
}

impl Native {
    /// A place where whoever runs the tests runs tfdev; `None`, with the test noted as skipped, without PostgreSQL 15.
    pub(crate) fn new() -> Option<Self> {
        Some(Self { env: TestEnv::on(TestEngine::Native)? })
    }

    /// Each kind of user that can be tried here.
    pub(crate) fn each() -> Vec<Self> {
        let ordinary = is_root().then_some(TestEngine::NativeUser);
        let engines = std::iter::once(TestEngine::Native).chain(ordinary);
        engines.filter_map(|engine| Some(Self { env: TestEnv::on(engine)? })).collect()
    }

    /// A place where an ordinary user runs tfdev.
    pub(crate) fn ordinary() -> Option<Self> {
        let engine = if is_root() { TestEngine::NativeUser } else { TestEngine::Native };
        Some(Self { env: TestEnv::on(engine)? })
    }

    /// As [`Native::new`], with this `tfdev.toml`.
    pub(crate) fn with(file: &str) -> Option<Self> {
        let native = Self::new()?;
        native.env.write("tfdev.toml", file);
        Some(native)
    }

    /// tfdev with `arguments` and the native engine.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.env.command(arguments)
    }

    /// tfdev with `arguments`, which chooses the engine itself.
    pub(crate) fn command_by_choice(&self, arguments: &[&str]) -> Command {
        self.env.command_by_choice(&self.env.project, arguments)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome {
        self.env.run(arguments)
    }

    /// `up` with few rows; it must succeed.
    #[track_caller]
    pub(crate) fn up(&self) -> Value {
        self.env.up()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.env.status()
    }

    #[track_caller]
    pub(crate) fn url(&self) -> String {
        self.env.url()
    }

    /// The data folder of the running or stopped instance.
    #[track_caller]
    pub(crate) fn data(&self) -> PathBuf {
        native::data(&self.env)
    }

    /// The server's process number, as its pid file has it.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        native::pid(&self.env)
    }

    /// How many rows of the data set are there.
    #[track_caller]
    pub(crate) fn tasks(&self) -> String {
        self.env.tasks()
    }

    #[track_caller]
    pub(crate) fn destroy(&self) {
        self.run(&["destroy", "--yes"]).ok();
    }
}
