//! Who can reach a server, and who sees its secrets (`FAILURES.md` § Security).

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;

use crate::support::{TestEnv, finish, on_every_engine, one, query, start, try_query};

on_every_engine!(
    the_server_answers_on_loopback_alone,
    no_secret_is_seen_in_inspect_in_a_command_line_or_in_a_log,
    a_wrong_password_is_refused_over_the_published_port,
    two_instances_never_look_like_one_server,
    what_deletes_follows_the_project_and_never_database_url,
);

/// This machine's own address in its network, if it has one. Nothing is sent.
fn outside_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

fn the_server_answers_on_loopback_alone(env: &TestEnv) {
    let up = env.up();
    let port = u16::try_from(up["port"].as_u64().unwrap()).unwrap();
    let reach = |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2));
    reach([127, 0, 0, 1].into()).unwrap();
    // Another server of this machine may listen on every address at the same port, so an answer must not be ours.
    let outside = outside_address()
        .map(|address| format!("postgres://{}:{}@{address}:{port}/taskflow", env.user(), env.password("user")));
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

fn no_secret_is_seen_in_inspect_in_a_command_line_or_in_a_log(env: &TestEnv) {
    let up = env.up();
    let is_ours = env.engine().runs_the_server();
    if is_ours {
        // Also the way that mends a password, which sends a verifier.
        query(
            &env.superuser_url(&up["port"], "postgres"),
            "SET log_statement = 'none'; ALTER ROLE taskflow PASSWORD 'drifted'",
        );
        env.up();
    }
    let (superuser, user) = (env.password("superuser"), env.password("user"));
    assert!(!is_ours || superuser.len() >= 20 && user.len() >= 20 && superuser != user, "random, for each role");

    let log = env.server_log();
    let verbose = env.run(&["up", "--verbose", "--dataset", "small"]).ok();
    let status = env.run(&["status", "--verbose"]).ok();
    let places = [
        ("a command line", command_lines()),
        ("the server's log", log.clone()),
        ("a message of `up`", verbose.stderr),
        ("a message of `status`", status.stderr + &status.stdout),
    ];
    for (place, text) in env.seen_by_everyone().into_iter().chain(places) {
        for secret in [superuser.as_str(), user.as_str(), "SCRAM-SHA-256$"] {
            assert!(!text.contains(secret), "`{secret}` is in {place}");
        }
    }
    assert_eq!(log.contains("CREATE TABLE users"), is_ours, "statements are logged in this profile, just no secret");
    if !is_ours {
        let everything = std::process::Command::new("grep").args(["-rl", &user]).arg(env.state_dir()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&everything.stdout), "", "someone else's password is kept nowhere");
        return;
    }

    for file in ["superuser.password", "user.password", "instance.json"] {
        let mode = std::fs::metadata(env.instance_dir().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    env.run(&["env"]).ok();
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(env.instance_dir().join("pgpass")), mode(env.instance_dir())), (0o600, 0o700));
    assert_eq!(env.tasks(), "50");
}

fn a_wrong_password_is_refused_over_the_published_port(env: &TestEnv) {
    let up = env.up();
    for user in [env.user(), "postgres"] {
        let url = format!("postgres://{user}:wrong@127.0.0.1:{}/taskflow", up["port"]);
        let error = try_query(&url, "SELECT 1").unwrap_err().to_string();
        assert!(error.contains("password authentication failed"), "{error}");
    }
    if !env.engine().runs_the_server() {
        let mut command = env.command(&["up"]);
        command.env("PGPASSWORD", "wrong");
        finish(start(command)).exits(3).says("does not accept the password of the role `dev`");
        return;
    }
    // The data folder that new instances are copied from has a password of its own, which must be gone by now.
    let users = query(
        &env.superuser_url(&up["port"], "postgres"),
        "SELECT rolname FROM pg_authid WHERE rolpassword IS NULL AND rolcanlogin",
    );
    assert_eq!(users, Vec::<String>::new(), "every role that can log in has a password");
}

fn two_instances_never_look_like_one_server(env: &TestEnv) {
    let dev = env.up();
    let other = env.run(&["up", "--json", "--instance", "other", "--dataset", "none"]);
    if !env.engine().runs_the_server() {
        other.exits(5).says("belongs to the instance `dev`");
        return;
    }
    let other = other.ok().json();
    let identifier = |up: &Value| one(up["url"].as_str().unwrap(), "SELECT system_identifier FROM pg_control_system()");
    assert_ne!(identifier(&dev), identifier(&other));
    let url = other["url"].as_str().unwrap().replace(&other["port"].to_string(), &dev["port"].to_string());
    assert!(try_query(&url, "SELECT 1").is_err(), "the password of one opens the other");
}

/// Tools that follow `DATABASE_URL` have emptied the wrong server (FAILURES § Security, "the wrong server wiped").
fn what_deletes_follows_the_project_and_never_database_url(env: &TestEnv) {
    env.up();
    let precious = env.url();
    let other = env.other_project("other");
    if !env.engine().runs_the_server() {
        std::fs::write(other.join("tfdev.toml"), "[database]\nname = \"other\"\n").unwrap();
    }
    env.run_in(&other, &["up", "--dataset", "small"]).ok();
    for arguments in [
        &["seed", "--dataset", "small", "--users", "1", "--tasks", "1", "--replace", "--yes"][..],
        &["destroy", "--yes"],
    ] {
        let mut command = env.command_in(&other, arguments);
        command.env("DATABASE_URL", &precious).env("PGDATABASE", "precious");
        finish(start(command)).ok();
        assert_eq!(one(&precious, "SELECT count(*) FROM tasks"), "50", "after {arguments:?}");
    }
}
