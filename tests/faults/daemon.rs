//! Docker that cannot be used (`FAILURES.md` § Reaching Docker).

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use crate::support::{Outcome, TestEnv, finish, start};

/// `up --json` with this DOCKER_HOST.
fn up_with_host(env: &TestEnv, host: &str) -> Outcome {
    let mut command = env.command(&["up", "--engine", "docker", "--json", "--timeout", "1"]);
    command.env("DOCKER_HOST", host);
    finish(start(command))
}

/// The message of an error of kind `no_engine` that has at least one hint.
fn message(outcome: Outcome) -> String {
    let error = outcome.exits(3).json_error();
    assert_eq!(error["kind"], "no_engine");
    assert!(error["hints"].as_array().is_some_and(|hints| !hints.is_empty()), "{error}");
    assert!(!error.to_string().contains("hyper"), "a library's name helps nobody: {error}");
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn missing_dead_silent_and_strange_daemons_are_told_apart() {
    let env = TestEnv::new();
    let socket = |name: &str| env.path(name).display().to_string();
    let missing = message(up_with_host(&env, &format!("unix://{}", socket("missing.sock"))));
    assert!(missing.contains("no such socket") && missing.contains("DOCKER_HOST"), "{missing}");

    drop(UnixListener::bind(env.path("dead.sock")).unwrap());
    let dead = message(up_with_host(&env, &format!("unix://{}", socket("dead.sock"))));
    assert!(dead.contains("nobody listens"), "{dead}");

    let _listener = UnixListener::bind(env.path("silent.sock")).unwrap();
    let outcome = up_with_host(&env, &format!("unix://{}", socket("silent.sock")));
    assert!(outcome.elapsed < Duration::from_secs(5), "{:?}", outcome.elapsed);
    let silent = message(outcome);
    assert!(silent.contains("no answer within 1 s"), "{silent}");

    let listener = UnixListener::bind(env.path("strange.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(std::io::Write::write_all(&mut stream.unwrap(), b"220 mail.example.org ESMTP\r\n"));
        }
    });
    let strange = message(up_with_host(&env, &format!("unix://{}", socket("strange.sock"))));
    assert!(strange.contains("not Docker"), "{strange}");

    std::fs::create_dir(env.path("folder.sock")).unwrap();
    let folder = message(up_with_host(&env, &format!("unix://{}", socket("folder.sock"))));
    assert!(folder.contains("not a socket"), "{folder}");

    let unknown = up_with_host(&env, "carrier-pigeon://coop");
    assert!([3, 8].contains(&unknown.status.code().unwrap()), "{}", unknown.stderr);
    let unknown = unknown.json_error()["message"].as_str().unwrap().to_owned();
    assert!(unknown.contains("carrier-pigeon"), "{unknown}");
}

#[test]
fn a_daemon_that_may_not_be_used_is_told_as_that() {
    let env = TestEnv::new();
    let path = env.path("denied.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let open = |path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    for folder in ["", "home"] {
        open(env.path(folder), 0o777);
    }
    open(env.project.clone(), 0o777);
    open(path.clone(), 0o000);
    let tfdev = env.command(&["status", "--engine", "docker", "--json"]);
    // Root may do anything, so root becomes nobody first; with a copy of the program that nobody can reach.
    let program = env.path("tfdev");
    std::fs::copy(tfdev.get_program(), &program).unwrap();
    open(program.clone(), 0o755);
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let mut command = if is_root { Command::new("setpriv") } else { Command::new(&program) };
    if is_root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    }
    command.args(tfdev.get_args()).current_dir(&env.project).env_clear();
    command.envs(tfdev.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("DOCKER_HOST", format!("unix://{}", path.display()));
    let denied = message(finish(start(command)));
    assert!(denied.contains("no permission"), "{denied}");
}

#[test]
fn the_context_decides_unless_docker_host_does() {
    let env = TestEnv::new();
    let config = env.path("docker-config");
    let meta = config.join("contexts/meta/abc");
    std::fs::create_dir_all(&meta).unwrap();
    let host = format!("unix://{}", env.path("of-the-context.sock").display());
    let context = serde_json::json!({ "Name": "elsewhere", "Endpoints": { "docker": { "Host": host } } });
    std::fs::write(meta.join("meta.json"), context.to_string()).unwrap();
    let status = |variables: &[(&str, &str)]| {
        let mut command = env.command(&["status", "--engine", "docker", "--json"]);
        command.env("DOCKER_CONFIG", &config).envs(variables.iter().copied());
        message(finish(start(command)))
    };
    let by_variable = status(&[("DOCKER_CONTEXT", "elsewhere")]);
    assert!(by_variable.contains("of-the-context.sock") && by_variable.contains("elsewhere"), "{by_variable}");
    std::fs::write(config.join("config.json"), r#"{ "currentContext": "elsewhere" }"#).unwrap();
    let current = status(&[]);
    assert!(current.contains("of-the-context.sock"), "{current}");
    let host = status(&[("DOCKER_CONTEXT", "elsewhere"), ("DOCKER_HOST", "unix:///of/the/host.sock")]);
    assert!(host.contains("/of/the/host.sock") && host.contains("DOCKER_HOST"), "{host}");
    let unknown = status(&[("DOCKER_CONTEXT", "nowhere")]);
    assert!(unknown.contains("nowhere") && unknown.contains("elsewhere"), "{unknown}");
}

#[test]
fn the_choice_of_the_daemon_is_shown_if_asked() {
    let Some(env) = TestEnv::docker() else { return };
    let outcome = env.run(&["status", "--verbose"]).ok();
    assert!(outcome.stderr.contains("docker.sock"), "{}", outcome.stderr);
    let quiet = env.run(&["status"]).ok();
    assert_eq!(quiet.stderr, "");
}
