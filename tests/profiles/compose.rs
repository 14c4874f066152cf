//! The Compose file and the running instance, row by row.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::up;
use crate::support::{Outcome, TestEnv, docker, finish, free_port, one, query, skipped, start, try_query, until};

/// The Compose tool of this machine; `None`, with the test noted as skipped, if there is none.
fn tool() -> Option<Vec<&'static str>> {
    let works = |words: &[&str]| {
        Command::new(words[0]).args(&words[1..]).arg("version").output().is_ok_and(|output| output.status.success())
    };
    let tools = [vec!["docker", "compose"], vec!["docker-compose"]];
    let found = tools.into_iter().find(|words| works(words));
    if found.is_none() {
        skipped::skip("needs `docker compose` or `docker-compose`");
    }
    found
}

fn compose(tool: &[&str], folder: &Path, project: &str, arguments: &[&str]) -> Outcome {
    let mut command = Command::new(tool[0]);
    command.args(&tool[1..]).args(["-p", project, "-f", "compose.yaml"]).args(arguments);
    command.current_dir(folder).env_remove("DOCKER_HOST").env("DOCKER_CONTEXT", "default");
    finish(start(command))
}

/// All settings, for a comparison; those of the session are the client's.
fn shown(url: &str) -> Vec<String> {
    let question = "SELECT name || '=' || setting FROM pg_settings WHERE name <> 'application_name' ORDER BY name";
    query(url, question)
}

#[test]
fn what_compose_starts_equals_the_instance_row_by_row() {
    let Some(env) = TestEnv::docker() else { return };
    let Some(tool) = tool() else { return };
    for profile in ["dev", "prod"] {
        let own = up(&env, &["--profile", profile]).ok().json();
        let folder = env.path(&format!("compose-{profile}"));
        let files = env.run(&["compose", "--json", "--write", folder.to_str().unwrap()]).ok().json();
        let (port, own_port) = (free_port(), own["port"].as_u64().unwrap());
        let file = folder.join("compose.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, env.run(&["compose"]).ok().stdout);
        for secret in files["files"].as_array().unwrap().iter().skip(1) {
            let secret = std::fs::read_to_string(secret.as_str().unwrap()).unwrap();
            assert!(!text.contains(secret.trim()), "no secret is in the file");
        }
        std::fs::write(&file, text.replace(&format!("127.0.0.1:{own_port}:"), &format!("127.0.0.1:{port}:"))).unwrap();
        let project = format!("tfdev-{}-compose", env.id);
        compose(&tool, &folder, &project, &["up", "--detach"]).ok();

        let password = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let options = match profile {
            "prod" => format!("?sslmode=verify-full&sslrootcert={}", folder.join("root.crt").display()),
            _ => String::new(),
        };
        let url = format!("postgres://taskflow:{}@127.0.0.1:{port}/taskflow{options}", password("user-password"));
        until("the server of Compose", || try_query(&url, "SELECT 1").ok());
        let superuser =
            format!("postgres://postgres:{}@127.0.0.1:{port}/postgres{options}", password("superuser-password"));
        let own_url = env.url();
        let (_, own_options) = own_url.split_once('?').unwrap_or((&own_url, ""));
        let own_superuser = format!("{}?{own_options}", env.superuser_url(&own["port"], "postgres"));
        let (theirs, ours) = (shown(&superuser), shown(&own_superuser));
        assert!(ours.len() > 300, "{}", ours.len());
        for (their, our) in theirs.iter().zip(&ours) {
            assert_eq!(their, our, "{profile}");
        }
        assert_eq!(theirs.len(), ours.len());

        for question in [
            "SELECT pg_get_userbyid(datdba) || ' ' || encoding || ' ' || datcollate || ' ' || datctype \
             FROM pg_database WHERE datname = 'taskflow'",
            "SELECT rolsuper || ' ' || rolcreatedb || ' ' || rolcanlogin || ' ' || rolreplication || ' ' || rolconnlimit \
             FROM pg_roles WHERE rolname = 'taskflow'",
            "SELECT string_agg(concat_ws(' ', type, database, user_name, address, auth_method), ',' ORDER BY line_number) \
             FROM pg_hba_file_rules",
        ] {
            assert_eq!(one(&superuser, question), one(&own_superuser, question), "{profile}: {question}");
        }
        let plain = format!("{}?sslmode=disable", url.split('?').next().unwrap());
        assert_eq!(try_query(&plain, "SELECT 1").is_ok(), profile == "dev", "only TLS is let in with prod");
        let container = compose(&tool, &folder, &project, &["ps", "--quiet"]).ok().stdout.trim().to_owned();
        same_container(profile, &docker::inspect(&container), &docker::inspect(own["container"].as_str().unwrap()));
        let log = docker::run(&["logs", &container]).ok();
        for name in ["superuser-password", "user-password"] {
            assert!(!(log.stdout.clone() + &log.stderr).contains(&password(name)), "{name} is in the log");
        }
        compose(&tool, &folder, &project, &["down", "--volumes", "--timeout", "20"]).ok();
    }
}

/// Compares what Docker tells of both containers. What differs, and may: names, labels, the entrypoint (it brings what
/// tfdev uploads) and where the secrets come from.
fn same_container(profile: &str, theirs: &Value, ours: &Value) {
    for (section, name) in [
        ("Config", "Cmd"),
        ("Config", "Healthcheck"),
        ("Config", "StopTimeout"),
        ("Config", "StopSignal"),
        ("Config", "ExposedPorts"),
        ("Config", "User"),
        ("Config", "WorkingDir"),
        ("HostConfig", "Memory"),
        ("HostConfig", "NanoCpus"),
        ("HostConfig", "ShmSize"),
        ("HostConfig", "Privileged"),
        ("HostConfig", "ReadonlyRootfs"),
    ] {
        assert_eq!(theirs[section][name], ours[section][name], "{profile}: {section}.{name}");
    }
    assert_eq!(theirs["Image"], ours["Image"]);
    let environment = |container: &Value| {
        let mut all: Vec<String> = serde_json::from_value(container["Config"]["Env"].clone()).unwrap();
        all.sort();
        all
    };
    assert_eq!(environment(theirs), environment(ours), "{profile}");
    let host = |container: &Value| container["HostConfig"]["PortBindings"]["5432/tcp"][0]["HostIp"].clone();
    assert_eq!((host(theirs), host(ours)), (json!("127.0.0.1"), json!("127.0.0.1")));
    let data = |container: &Value| {
        let mounts = container["Mounts"].as_array().unwrap().iter();
        let all: Vec<_> = mounts.filter(|mount| mount["Destination"] == "/var/lib/postgresql/data").cloned().collect();
        assert_eq!(all.len(), 1);
        (all[0]["Type"].clone(), all[0]["RW"].clone())
    };
    assert_eq!((data(theirs), data(ours)), ((json!("volume"), json!(true)), (json!("volume"), json!(true))));
}
