//! Over TCP with TLS.

use serde_json::json;

use super::{everything_works, run};
use crate::support::remote::{ADDRESS, Remote};
use crate::support::{TestEnv, one, start, until};

#[test]
fn a_remote_docker_over_tls_does_everything_and_each_trouble_has_its_message() {
    let Some(env) = TestEnv::docker() else { return };
    let Some(mut remote) = Remote::start(&env) else { return };
    everything_works(&remote, &|arguments| remote.tls(&env, arguments));
    run(&|arguments| remote.tls(&env, arguments), &["image", "build"]).ok();
    a_context_leads_there_too(&env, &remote);
    a_setting_says_where_to_publish(&env, &remote);
    certificates_that_do_not_fit_are_told_apart(&env, &remote);
    a_daemon_that_goes_away_is_named(&env, &mut remote);
}

fn a_context_leads_there_too(env: &TestEnv, remote: &Remote) {
    let config = env.path("docker-config");
    let file = |name: &str| remote.certificates("client").join(name).display().to_string();
    let endpoint =
        format!("host=tcp://{ADDRESS}:2376,ca={},cert={},key={}", file("ca.pem"), file("cert.pem"), file("key.pem"));
    let mut create = std::process::Command::new("docker");
    create.args(["context", "create", "elsewhere", "--docker", &endpoint]).env("DOCKER_CONFIG", &config);
    crate::support::finish(start(create)).ok();
    let by_context = |arguments: &[&str]| {
        let mut command = env.command(arguments);
        command.env("TFDEV_ENGINE", "docker").env("DOCKER_CONFIG", &config).env("DOCKER_CONTEXT", "elsewhere");
        command
    };
    let up = run(&by_context, &["up", "--json", "--dataset", "small"]).ok().json();
    assert_eq!(up["host"], json!(ADDRESS));
    let status = run(&|arguments| remote.tls(env, arguments), &["status", "--json"]).ok().json();
    assert_eq!((&status["state"], &status["url"]), (&json!("running"), &up["url"]), "the same server by either way");
    std::fs::write(config.join("config.json"), r#"{"currentContext":"elsewhere"}"#).unwrap();
    let by_current = |arguments: &[&str]| {
        let mut command = env.command(arguments);
        command.env("TFDEV_ENGINE", "docker").env("DOCKER_CONFIG", &config);
        command
    };
    assert_eq!(run(&by_current, &["url"]).ok().stdout.trim(), up["url"].as_str().unwrap());
}

/// With the server of the test before.
fn a_setting_says_where_to_publish(env: &TestEnv, remote: &Remote) {
    let way = |arguments: &[&str]| remote.tls(env, arguments);
    env.write("tfdev.toml", format!("project = \"{}\"\n[docker]\npublish = \"0.0.0.0\"\n", env.settled("project").0));
    run(&way, &["up"]).ok().says("any address of that machine");
    let up = run(&way, &["up", "--json"]).ok().json();
    assert_eq!((&up["host"], &up["started"], &up["created"]), (&json!(ADDRESS), &json!(false), &json!(false)));
    assert_eq!(one(up["url"].as_str().unwrap(), "SELECT count(*) FROM tasks"), "50");
    // An address that the other machine does not have.
    env.write(
        "tfdev.toml",
        format!("project = \"{}\"\n[docker]\npublish = \"10.99.99.9\"\n", env.settled("project").0),
    );
    let error = run(&way, &["up", "--json"]).exits(1).json_error();
    assert!(error["hints"].to_string().contains("`publish` in the section `[docker]`"), "{error}");
    env.write("tfdev.toml", format!("project = \"{}\"\n", env.settled("project").0));
    let up = run(&way, &["up", "--json"]).ok().json();
    assert_eq!(one(up["url"].as_str().unwrap(), "SELECT count(*) FROM tasks"), "50");
}

fn certificates_that_do_not_fit_are_told_apart(env: &TestEnv, remote: &Remote) {
    for (certificates, words) in [
        ("stranger", "does not accept our certificate"),
        ("expired", "does not accept our certificate"),
        ("foreign", "is not trusted"),
    ] {
        let mut command = remote.tls(env, &["up", "--json"]);
        command.env("DOCKER_CERT_PATH", remote.certificates(certificates));
        let error = run(&|_| clone(&command), &[]).exits(3).json_error();
        assert!(error["message"].as_str().unwrap().contains(words), "{certificates}: {error}");
        assert!(error["hints"].to_string().contains(".pem"), "{certificates}: {error}");
    }
    let mut command = remote.tls(env, &["up"]);
    command.env_remove("DOCKER_TLS_VERIFY");
    run(&|_| clone(&command), &[]).exits(3).says("wants TLS and was asked without");
}

/// The same program, arguments, folder and variables.
fn clone(command: &std::process::Command) -> std::process::Command {
    let mut copy = std::process::Command::new(command.get_program());
    copy.args(command.get_args()).current_dir(command.get_current_dir().unwrap()).env_clear();
    copy.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    copy
}

fn a_daemon_that_goes_away_is_named(env: &TestEnv, remote: &mut Remote) {
    let following = start(remote.tls(env, &["logs", "-f"]));
    let url = run(&|arguments| remote.tls(env, arguments), &["url"]).ok().stdout;
    until("a client of the log", || one(url.trim(), "SELECT 1").parse::<i32>().ok());
    remote.kill_daemon();
    crate::support::finish(following).exits(3).says("the connection to the Docker daemon was lost");
    for command in [&["up"] as &[&str], &["status"], &["down"], &["destroy", "--yes"]] {
        let outcome = run(&|arguments| remote.tls(env, arguments), command).exits(3);
        let outcome = outcome.says(&format!("no Docker daemon at `tcp://{ADDRESS}:2376`"));
        outcome.says("start Docker on that machine");
    }
    remote.start_daemon();
    let up = run(&|arguments| remote.tls(env, arguments), &["up", "--json"]).ok().json();
    assert_eq!(up["created"], json!(false));
    assert_eq!(one(up["url"].as_str().unwrap(), "SELECT count(*) FROM tasks"), "50", "the data outlived it");
}
