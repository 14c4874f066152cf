//! Which engine an instance gets, and that it stays there.

use super::Native;
use crate::support::native::remove_all;
use crate::support::{TestEngine, TestEnv, finish, one, run_on, start};

/// A Docker that is not there.
const NO_DOCKER: (&str, &str) = ("DOCKER_HOST", "unix:///nowhere/docker.sock");

#[test]
fn without_docker_the_programs_of_this_machine_are_used_and_stay_chosen() {
    let Some(native) = Native::new() else { return };
    let run = |arguments: &[&str], docker: bool| {
        let mut command = native.command_by_choice(arguments);
        if !docker {
            command.env(NO_DOCKER.0, NO_DOCKER.1);
        }
        finish(start(command))
    };
    let status = run(&["status", "--json"], false).ok().json();
    assert_eq!((status["engine"].as_str(), status["state"].as_str()), (Some("native"), Some("absent")));
    assert!(status["engine_reason"].as_str().unwrap().starts_with("Docker cannot be used: "), "{status}");
    run(&["up", "--dataset", "small"], false).ok().says("Using PostgreSQL 15 of this machine: Docker cannot be used");
    assert_eq!(run(&["up", "--json"], false).ok().json()["engine"], "native");

    // Also once Docker is there again.
    let status = run(&["status", "--json"], true).ok().json();
    assert_eq!((status["engine"].as_str(), status["state"].as_str()), (Some("native"), Some("running")));
    let reason = status["engine_reason"].as_str().unwrap();
    assert!(reason.starts_with("Docker cannot be used: "), "the reason of then: {reason}");
    let refused = run(&["up", "--engine", "docker"], true).exits(5);
    refused
        .says("is on the engine native, and --engine asks for docker")
        .says("tfdev snapshot export")
        .says("--engine native");
    assert_eq!(one(&native.url(), "SELECT count(*) FROM tasks"), "50");

    // And without the record, by the data folder.
    std::fs::remove_file(native.env.instance_dir().join("instance.json")).unwrap();
    assert_eq!(run(&["up", "--json"], true).ok().json()["engine"], "native");
}

#[test]
fn without_docker_and_programs_both_reasons_are_told() {
    let Some(native) = Native::with("[native]\nbin_dir = \"/nowhere\"\n") else { return };
    let mut command = native.command_by_choice(&["up"]);
    command.env(NO_DOCKER.0, NO_DOCKER.1);
    let outcome = finish(start(command)).exits(3);
    outcome.says("/nowhere/docker.sock").says("there is no program `postgres`").says("install PostgreSQL 15");
}

/// Removes what a test on docker has made natively as well, however it ends.
struct AlsoNative<'a>(&'a TestEnv);

impl Drop for AlsoNative<'_> {
    fn drop(&mut self) {
        remove_all(self.0);
    }
}

#[test]
fn all_instances_are_stopped_and_removed_whichever_engine_is_asked_for() {
    if Native::new().is_none() {
        return;
    }
    run_on(TestEngine::Docker, |env: &TestEnv| {
        let _native = AlsoNative(env);
        env.up();
        env.run(&["--engine", "native", "--instance", "other", "up", "--dataset", "none"]).ok();
        env.run(&["--engine", "native", "down"]).exits(5).says("--engine asks for native");
        for asked in ["native", "docker"] {
            let down = env.run(&["--engine", asked, "down", "--all", "--json"]).ok().json();
            assert_eq!(down["instances"].as_array().unwrap().len(), 2, "{down}");
        }
        let gone = env.run(&["--engine", "native", "destroy", "--all", "--yes", "--json"]).ok().json();
        let gone = gone["instances"].to_string();
        assert!(gone.contains("volume tfdev-") && gone.contains("data folder "), "{gone}");
        env.assert_nothing_left();
    });
}
