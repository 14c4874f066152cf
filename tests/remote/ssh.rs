//! Over ssh.

use serde_json::json;

use super::{everything_works, run};
use crate::support::TestEnv;
use crate::support::remote::{ADDRESS, Remote};

#[test]
fn a_remote_docker_over_ssh_does_everything_and_each_trouble_has_its_message() {
    let Some(env) = TestEnv::docker() else { return };
    let Some(mut remote) = Remote::start(&env) else { return };
    if !remote.start_ssh() {
        return;
    }
    everything_works(&remote, &|arguments| remote.ssh(&env, arguments));
    a_context_leads_there_too(&env, &remote);

    let refused = |remote: &Remote, words: &str, hint: &str| {
        let error = run(&|arguments| remote.ssh(&env, arguments), &["up", "--json"]).exits(3).json_error();
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
        assert!(error["hints"].to_string().contains(hint), "{error}");
    };
    remote.write_ssh("unknown", "client");
    refused(&remote, "ssh does not trust the host", "`ssh build docker version` shows why");
    remote.write_ssh("known", "stranger");
    refused(&remote, "ssh could not log in", "ssh-add");
    remote.write_ssh("known", "client");
    remote.kill_daemon();
    refused(&remote, "no Docker daemon answers through ssh", "that user must be allowed to use it");
    remote.stop_ssh();
    refused(&remote, "connection refused", "no ssh server answers");
}

fn a_context_leads_there_too(env: &TestEnv, remote: &Remote) {
    let config = env.path("docker-config");
    let mut create = std::process::Command::new("docker");
    create.args(["context", "create", "elsewhere", "--docker", "host=ssh://build"]).env("DOCKER_CONFIG", &config);
    crate::support::finish(crate::support::start(create)).ok();
    let by_context = |arguments: &[&str]| {
        let mut command = remote.ssh(env, arguments);
        command.env_remove("DOCKER_HOST").env("DOCKER_CONFIG", &config).env("DOCKER_CONTEXT", "elsewhere");
        command
    };
    let up = run(&by_context, &["up", "--json", "--dataset", "small"]).ok().json();
    assert_eq!(up["host"], json!(ADDRESS));
    run(&by_context, &["destroy", "--yes"]).ok();
    assert_eq!(remote.everything(), Vec::<String>::new());
}
