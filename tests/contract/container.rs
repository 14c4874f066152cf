//! The container as Docker sees it: limits, labels, ports (`CON-003-postgres.md` § Deployment; `FAILURES.md` § "Ports,
//! names, volumes, resources").

use std::process::Command;

use serde_json::json;

use crate::support::{TestEnv, docker, finish, skipped, start};

#[test]
fn the_container_has_the_limits_and_labels_of_the_source() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let container = docker::inspect(up["container"].as_str().unwrap());
    let host = &container["HostConfig"];
    assert_eq!(host["Memory"], json!(1_u64 << 30), "1 GB");
    assert_eq!(host["NanoCpus"], json!(1_000_000_000), "1 core");
    assert!(host["ShmSize"].as_u64().is_some_and(|size| size >= 256 << 20), "parallel queries need /dev/shm");
    assert!(container["Config"]["StopTimeout"].as_u64().is_some_and(|seconds| seconds >= 120));
    let check = container["Config"]["Healthcheck"]["Test"].to_string();
    assert!(check.contains("pg_stat_activity"), "{check}");
    assert!(host["Binds"].as_array().is_none_or(Vec::is_empty), "a remote daemon has no folder of ours");

    let mounts = container["Mounts"].as_array().unwrap();
    let data: Vec<_> =
        mounts.iter().filter(|mount| mount["Destination"] == json!("/var/lib/postgresql/data")).collect();
    assert_eq!((data.len(), mounts.len()), (1, 1), "{mounts:?}");
    assert_eq!((&data[0]["Type"], &data[0]["Name"]), (&json!("volume"), &up["volume"]));

    let labels = &container["Config"]["Labels"];
    let project = up["project"].as_str().unwrap();
    for (name, value) in [
        ("dev.tfdev.project", project),
        ("dev.tfdev.instance", "dev"),
        ("dev.tfdev.profile", "dev"),
        ("dev.tfdev.version", env!("CARGO_PKG_VERSION")),
        ("com.docker.compose.project", &format!("tfdev-{project}")),
        ("com.docker.compose.service", "dev"),
        ("com.docker.compose.oneoff", "False"),
        ("com.docker.compose.container-number", "1"),
    ] {
        assert_eq!(labels[name], json!(value), "{name}");
    }
    for name in ["dev.tfdev.spec-hash", "dev.tfdev.id", "com.docker.compose.config-hash"] {
        assert!(labels[name].as_str().is_some_and(|value| value.len() >= 16), "{name}");
    }
    let volume = docker::inspect(up["volume"].as_str().unwrap());
    assert_eq!(volume["Labels"]["dev.tfdev.project"], json!(project));
    assert_eq!(volume["Labels"]["dev.tfdev.id"], labels["dev.tfdev.id"]);

    until_healthy(&env, up["container"].as_str().unwrap());
}

/// The healthcheck that other tools see must pass; it is run by hand, because the engine runs it every 30 s only.
fn until_healthy(env: &TestEnv, container: &str) {
    let check = docker::inspect(container)["Config"]["Healthcheck"]["Test"][1].as_str().unwrap().to_owned();
    docker::docker(&["exec", container, "sh", "-c", &check]);
    env.run(&["status"]).ok();
}

#[test]
fn the_port_is_published_on_loopback_alone() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let container = docker::inspect(up["container"].as_str().unwrap());
    let published = json!([{ "HostIp": "127.0.0.1", "HostPort": up["port"].to_string() }]);
    assert_eq!(container["HostConfig"]["PortBindings"], json!({ "5432/tcp": published }));
    assert_eq!(container["NetworkSettings"]["Ports"], json!({ "5432/tcp": published }));
}

#[test]
fn a_changed_setting_makes_the_container_anew() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let container = up["container"].as_str().unwrap();
    let first = docker::id(container);
    env.write("tfdev.toml", "[profiles.dev]\nwork_mem = \"8MB\"\n");
    assert_eq!(env.up()["volume"], up["volume"]);
    let second = docker::id(container);
    assert_ne!(first, second);
    env.up();
    assert_eq!(docker::id(container), second);
}

#[test]
fn a_compose_project_in_the_same_folder_leaves_the_server_alone() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let container = up["container"].as_str().unwrap();
    let image = up["image"].as_str().unwrap();
    env.write(
        "docker-compose.yml",
        format!("version: '3'\nservices:\n  idle:\n    image: {image}\n    command: ['sleep', '300']\n    network_mode: none\n"),
    );
    let compose = |arguments: &[&str]| {
        let mut command = Command::new("docker-compose");
        command.args(arguments).current_dir(&env.project).env_remove("DOCKER_HOST");
        finish(start(command))
    };
    if Command::new("docker-compose").arg("version").output().is_err() {
        return skipped::skip("needs docker-compose");
    }
    let id = docker::id(container);
    compose(&["up", "--detach", "--remove-orphans"]).ok();
    compose(&["down", "--remove-orphans", "--volumes", "--timeout", "0"]).ok();
    assert_eq!(docker::id(container), id);
    assert_eq!(env.state(), "running");
}
