//! Docker's command line: the one place where tests look at, and meddle with, what tfdev made.

use std::process::Command;

use serde_json::Value;

use super::{Outcome, finish, start};

/// The filter for everything that belongs to a project of tfdev.
pub(crate) const OURS: &str = "label=dev.tfdev.project";

/// Runs `docker` with `arguments` on the platform's daemon, as the tests' tfdev does.
pub(crate) fn run(arguments: &[&str]) -> Outcome {
    let mut command = Command::new("docker");
    command.args(arguments).env_remove("DOCKER_HOST").env("DOCKER_CONTEXT", "default");
    finish(start(command))
}

/// Runs `docker` and gives what it printed; it must succeed.
#[track_caller]
pub(crate) fn docker(arguments: &[&str]) -> String {
    run(arguments).ok().stdout.trim().to_owned()
}

/// The lines that `docker` prints.
pub(crate) fn listed(arguments: &[&str]) -> Vec<String> {
    docker(arguments).lines().map(str::to_owned).collect()
}

/// What `docker inspect` says of a container or volume.
#[track_caller]
pub(crate) fn inspect(name: &str) -> Value {
    let all: Value = serde_json::from_str(&docker(&["inspect", name])).unwrap();
    all[0].clone()
}

/// The container's content address, which tells whether it was made anew.
#[track_caller]
pub(crate) fn id(name: &str) -> String {
    inspect(name)["Id"].as_str().unwrap().to_owned()
}

/// Whether there is a daemon; else why not.
pub(crate) fn is_there() -> Result<(), String> {
    let there = Command::new("docker").arg("--version").output();
    there.map_err(|_| "there is no `docker` program".to_owned())?;
    let outcome = run(&["version", "--format", "{{.Server.Version}}"]);
    if outcome.status.success() { Ok(()) } else { Err(outcome.stderr.trim().replace('\n', " ")) }
}

/// Removes every container and volume whose name holds `id`. It says nothing of failures: a test that failed already
/// has its own.
pub(crate) fn remove_all(id: &str) {
    let name = format!("name={id}");
    let containers = run(&["ps", "--all", "--quiet", "--filter", &name]).stdout;
    let containers: Vec<_> = containers.lines().collect();
    if !containers.is_empty() {
        run(&[&["rm", "--force", "--volumes"], containers.as_slice()].concat());
    }
    let volumes = run(&["volume", "ls", "--quiet", "--filter", &name]).stdout;
    let volumes: Vec<_> = volumes.lines().collect();
    if !volumes.is_empty() {
        run(&[&["volume", "rm", "--force"], volumes.as_slice()].concat());
    }
}
