//! A fault engine, for tests: it wraps any engine and fails, stalls or is killed on cue, before or after a named call.
//!
//! It is in debug builds alone. The cue is the variable `TFDEV_FAULT`, as in `start:after:kill`; when the call is reached,
//! the cue is written to the file [`MARK`] in the state folder, so that a test knows that it came to it.
//!
//! What must hold: every call of [`Engine`] that can fail is in [`STEPS`] and comes by its cue; nothing else changes.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use async_trait::async_trait;

use crate::config::{Setting, Settings};
use crate::engine::program::{Input, Program};
use crate::engine::{
    DataSource, Endpoint, Engine, EngineKind, LogReceiver, Observed, ProgramOutput, Resources, Source, StartRequest,
    Started,
};
use crate::error::{Context, Error, Result};
use crate::event::Events;
use crate::server::Server;

/// The calls of an engine that can fail, by their names.
pub const STEPS: [&str; 16] = [
    "observe",
    "resources",
    "source",
    "start",
    "restore",
    "before_rename",
    "renamed",
    "server",
    "check_alive",
    "flush",
    "run",
    "stream",
    "stop",
    "destroy",
    "logs",
    "interactive",
];

/// The file in the state folder that says which cue was reached.
pub const MARK: &str = "fault-reached";

/// When something is to happen, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cue {
    step: &'static str,
    when: When,
    fault: Fault,
}

/// On which side of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The call fails.
    Fail,
    /// The call never comes back; it can be dropped.
    Stall,
    /// The process is gone at once.
    Kill,
}

impl FromStr for Cue {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.split(':').collect();
        let cue = if let [step, when, fault] = parts[..] { Self::of(step, when, fault) } else { None };
        cue.ok_or_else(|| {
            Error::bad_input(format!("`TFDEV_FAULT` is `{text}`, which is no cue")).hint(format!(
                "write STEP:before or after:fail, stall or kill, with one of the steps {}",
                STEPS.join(", ")
            ))
        })
    }
}

impl Cue {
    fn of(step: &str, when: &str, fault: &str) -> Option<Self> {
        let when = match when {
            "before" => When::Before,
            "after" => When::After,
            _ => return None,
        };
        let fault = match fault {
            "fail" => Fault::Fail,
            "stall" => Fault::Stall,
            "kill" => Fault::Kill,
            _ => return None,
        };
        let step = STEPS.into_iter().find(|known| *known == step)?;
        Some(Self { step, when, fault })
    }
}

/// An engine with a cue.
pub struct FaultEngine {
    inner: Box<dyn Engine>,
    cue: Cue,
    mark: PathBuf,
}

impl FaultEngine {
    /// Wraps `inner`; the mark is written to `state_dir`.
    pub fn new(inner: Box<dyn Engine>, cue: Cue, state_dir: &Path) -> Self {
        Self { inner, cue, mark: state_dir.join(MARK) }
    }

    /// Makes the call `step`, unless the cue comes before it; what it gave is lost if the cue comes after it.
    async fn call<T>(&self, step: &str, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.reach(step, When::Before).await?;
        let outcome = call.await?;
        self.reach(step, When::After).await?;
        Ok(outcome)
    }

    async fn reach(&self, step: &str, when: When) -> Result<()> {
        if self.cue.step != step || self.cue.when != when {
            return Ok(());
        }
        std::fs::write(&self.mark, step).or_failed(|| format!("cannot write `{}`", self.mark.display()))?;
        match self.cue.fault {
            Fault::Fail => Err(Error::failed(format!("`{step}` failed on cue")).hint("unset `TFDEV_FAULT`")),
            Fault::Stall => std::future::pending().await,
            Fault::Kill => kill(),
        }
    }
}

/// Ends this process as `kill -9` does: nothing of it runs any more.
#[cfg(unix)]
fn kill() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// Ends this process at once.
#[cfg(not(unix))]
fn kill() -> ! {
    std::process::abort()
}

#[async_trait]
impl Engine for FaultEngine {
    fn kind(&self) -> EngineKind {
        self.inner.kind()
    }

    fn certificate_host(&self) -> Option<String> {
        self.inner.certificate_host()
    }

    async fn observe(&self) -> Result<Observed> {
        self.call("observe", self.inner.observe()).await
    }

    async fn resources(&self) -> Result<Resources> {
        self.call("resources", self.inner.resources()).await
    }

    async fn start(&self, request: &StartRequest) -> Result<Started> {
        self.call("start", self.inner.start(request)).await
    }

    async fn check_alive(&self) -> Result<()> {
        self.call("check_alive", self.inner.check_alive()).await
    }

    async fn restore(&self, request: &StartRequest, data: DataSource) -> Result<()> {
        self.call("restore", self.inner.restore(request, data)).await
    }

    async fn stop(&self) -> Result<bool> {
        self.call("stop", self.inner.stop()).await
    }

    async fn destroy(&self) -> Result<Vec<String>> {
        self.call("destroy", self.inner.destroy()).await
    }

    async fn before_rename(&self) -> Result<()> {
        self.call("before_rename", self.inner.before_rename()).await
    }

    async fn renamed(&self) -> Result<()> {
        self.call("renamed", self.inner.renamed()).await
    }

    async fn flush(&self) -> Result<()> {
        self.call("flush", self.inner.flush()).await
    }

    async fn server(
        &self,
        settings: &Settings,
        endpoint: Endpoint,
        root_cert: Option<PathBuf>,
        events: &Events,
    ) -> Result<Server> {
        self.call("server", self.inner.server(settings, endpoint, root_cert, events)).await
    }

    async fn source(&self, requested: Option<&Setting<String>>, last: Option<&str>) -> Result<Source> {
        self.call("source", self.inner.source(requested, last)).await
    }

    async fn run(&self, command: &[&str], stdin: &[u8]) -> Result<ProgramOutput> {
        self.call("run", self.inner.run(command, stdin)).await
    }

    async fn stream(&self, command: &[&str], input: Input) -> Result<Program> {
        self.call("stream", self.inner.stream(command, input)).await
    }

    async fn interactive(&self, command: &[&str], terminal: bool) -> Result<i64> {
        self.call("interactive", self.inner.interactive(command, terminal)).await
    }

    async fn logs(&self, tail: Option<u32>, follow: bool, receive: &mut LogReceiver<'_>) -> Result<()> {
        self.call("logs", self.inner.logs(tail, follow, receive)).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The names of the asynchronous functions in `text`.
    fn calls(text: &str) -> BTreeSet<&str> {
        text.split("async fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next()).collect()
    }

    #[test]
    fn every_call_of_an_engine_is_a_step_and_comes_by_its_cue() {
        let seam = include_str!("mod.rs").split("pub trait Engine").nth(1).unwrap().split("\n}\n").next().unwrap();
        assert_eq!(calls(seam), BTreeSet::from(STEPS));
        let own = include_str!("fault.rs").split("impl Engine for FaultEngine").nth(1).unwrap();
        let own = own.split("\n}\n").next().unwrap();
        assert_eq!(calls(own), BTreeSet::from(STEPS));
        for step in STEPS {
            assert!(own.contains(&format!("self.call(\"{step}\", self.inner.{step}(")), "{step}");
        }
    }

    #[test]
    fn a_cue_is_a_step_a_side_and_a_fault() {
        let cue: Cue = "start:after:kill".parse().unwrap();
        assert_eq!(cue, Cue { step: "start", when: When::After, fault: Fault::Kill });
        for wrong in
            ["", "start", "start:after", "begin:after:kill", "start:during:kill", "start:after:sleep", "a:b:c:d"]
        {
            assert!(wrong.parse::<Cue>().unwrap_err().hints()[0].contains("check_alive"), "{wrong}");
        }
    }
}
