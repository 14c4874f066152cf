//! The container as the engine sees it: limits, labels, ports, secrets (`CON-003-postgres.md` § Deployment;
//! `FAILURES.md` § "Ports, names, volumes, resources" and § Security).

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{TestEnv, docker, finish, one, query, start, try_query};

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
    assert!(check.contains("pg_isready"), "{check}");
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

/// This machine's own address in its network, if it has one. Nothing is sent.
fn outside_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[test]
fn the_server_is_published_on_loopback_alone() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let container = docker::inspect(up["container"].as_str().unwrap());
    let published = json!([{ "HostIp": "127.0.0.1", "HostPort": up["port"].to_string() }]);
    assert_eq!(container["HostConfig"]["PortBindings"], json!({ "5432/tcp": published }));
    assert_eq!(container["NetworkSettings"]["Ports"], json!({ "5432/tcp": published }));

    let port = u16::try_from(up["port"].as_u64().unwrap()).unwrap();
    let reach = |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2));
    reach([127, 0, 0, 1].into()).unwrap();
    // Another server of this machine may listen on every address at the same port, so an answer must not be ours.
    let outside = outside_address()
        .map(|address| format!("postgres://taskflow:{}@{address}:{port}/taskflow", env.password("user")));
    for url in
        outside.into_iter().chain([format!("postgres://taskflow:{}@[::1]:{port}/taskflow", env.password("user"))])
    {
        assert!(try_query(&url, "SELECT 1").is_err(), "the server answers on {url}");
    }
}

/// The command lines of all processes of this machine.
fn command_lines() -> String {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    let texts = processes.filter_map(|file| std::fs::read(file).ok());
    texts.map(|text| String::from_utf8_lossy(&text).replace('\0', " ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_secret_is_seen_in_inspect_in_a_command_line_or_in_a_log() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let container = up["container"].as_str().unwrap();
    // Also the way that mends a password, which sends a verifier.
    query(
        &env.superuser_url(&up["port"], "postgres"),
        "SET log_statement = 'none'; ALTER ROLE taskflow PASSWORD 'drifted'",
    );
    env.up();
    let (superuser, user) = (env.password("superuser"), env.password("user"));
    assert!(superuser.len() >= 20 && user.len() >= 20 && superuser != user, "random, for each role");

    let log = docker::run(&["logs", container]).ok();
    let verbose = env.run(&["up", "--verbose", "--dataset", "small"]).ok();
    let logs = env.run(&["status", "--verbose"]).ok();
    for (place, text) in [
        ("inspect", docker::inspect(container).to_string()),
        ("inspect of the volume", docker::inspect(up["volume"].as_str().unwrap()).to_string()),
        ("docker top", docker::docker(&["top", container])),
        ("a command line", command_lines()),
        ("the server's log", format!("{}{}", log.stdout, log.stderr)),
        ("the environment of the server", docker::docker(&["exec", container, "env"])),
        ("a message of `up`", verbose.stderr),
        ("a message of `status`", logs.stderr + &logs.stdout),
    ] {
        for secret in [superuser.as_str(), user.as_str(), "SCRAM-SHA-256$"] {
            assert!(!text.contains(secret), "`{secret}` is in {place}");
        }
    }
    assert!(log.stderr.contains("CREATE TABLE users"), "statements are logged in this profile, just no secret");

    for file in ["superuser.password", "user.password", "instance.json"] {
        let mode = std::fs::metadata(env.instance_dir().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    env.run(&["env"]).ok();
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(env.instance_dir().join("pgpass")), mode(env.instance_dir())), (0o600, 0o700));
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

#[test]
fn a_wrong_password_is_refused_over_the_published_port() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    for user in ["taskflow", "postgres"] {
        let url = format!("postgres://{user}:wrong@127.0.0.1:{}/taskflow", up["port"]);
        let error = try_query(&url, "SELECT 1").unwrap_err().to_string();
        assert!(error.contains("password authentication failed"), "{error}");
    }
    // The data folder that new instances are copied from has a password of its own, which must be gone by now.
    let users = query(
        &env.superuser_url(&up["port"], "postgres"),
        "SELECT rolname FROM pg_authid WHERE rolpassword IS NULL AND rolcanlogin",
    );
    assert_eq!(users, Vec::<String>::new(), "every role that can log in has a password");
}

#[test]
fn two_instances_never_look_like_one_server() {
    let Some(env) = TestEnv::docker() else { return };
    let dev = env.up();
    let other = env.run(&["up", "--json", "--instance", "other", "--dataset", "none"]).ok().json();
    let identifier = |up: &Value| one(up["url"].as_str().unwrap(), "SELECT system_identifier FROM pg_control_system()");
    assert_ne!(identifier(&dev), identifier(&other));
    let url = other["url"].as_str().unwrap().replace(&other["port"].to_string(), &dev["port"].to_string());
    assert!(try_query(&url, "SELECT 1").is_err(), "the password of one opens the other");
}

#[test]
fn a_changed_setting_makes_the_container_anew_and_keeps_the_data() {
    let Some(env) = TestEnv::docker() else { return };
    let first = env.up();
    let container = first["container"].as_str().unwrap();
    let id = docker::id(container);
    query(&env.url(), "INSERT INTO users (email, password_hash) VALUES ('kept@example.com', 'x')");
    env.write("tfdev.toml", "[seed]\ndataset = \"small\"\n");
    env.up();
    assert_eq!(docker::id(container), id, "a key that is no part of the server changes nothing");

    env.write("tfdev.toml", "[profiles.dev]\nwork_mem = \"8MB\"\n");
    let second = env.up();
    assert_ne!(docker::id(container), id);
    assert_eq!((&second["created"], &second["started"]), (&json!(false), &json!(true)));
    assert_eq!((&second["port"], &second["url"], &second["volume"]), (&first["port"], &first["url"], &first["volume"]));
    assert_eq!(one(&env.url(), "SHOW work_mem"), "8MB");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users WHERE email = 'kept@example.com'"), "1");
    let id = docker::id(container);
    assert_eq!(env.up()["started"], json!(false));
    assert_eq!(docker::id(container), id);
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
        #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
        {
            eprintln!("skipped: needs docker-compose");
        }
        return;
    }
    let id = docker::id(container);
    compose(&["up", "--detach", "--remove-orphans"]).ok();
    compose(&["down", "--remove-orphans", "--volumes", "--timeout", "0"]).ok();
    assert_eq!(docker::id(container), id);
    assert_eq!(env.state(), "running");
}
