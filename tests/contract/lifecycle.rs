//! From nothing to a database and back (`CLI.md` § Commands, § Output, § Profiles).

use serde_json::{Value, json};

use crate::support::{TestEnv, docker, finish, one, query, start, until};

#[test]
fn data_outlives_down_and_goes_with_destroy() {
    let Some(env) = TestEnv::docker() else { return };
    assert_eq!(env.state(), "absent");
    env.run(&["down"]).exits(4);
    env.up();
    assert_eq!(env.state(), "running");
    let count = env.run(&["psql", "--", "-Atc", "SELECT count(*) FROM users"]).ok();
    assert_eq!(count.stdout.trim(), "10");
    env.run(&["psql", "--", "-Atc", "INSERT INTO users (email, password_hash) VALUES ('kept@example.com', 'x')"]).ok();

    env.run(&["down"]).ok();
    assert_eq!(env.state(), "stopped");
    for command in ["url", "env", "psql", "seed", "migrate"] {
        env.run(&[command]).exits(4).says("start it with `tfdev up`");
    }

    let again = env.up();
    assert_eq!((&again["created"], &again["started"]), (&json!(false), &json!(true)));
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users WHERE email = 'kept@example.com'"), "1");

    env.run(&["destroy", "--yes"]).ok();
    assert_eq!(env.state(), "absent");
    assert_eq!(env.in_docker(), Vec::<String>::new());
    env.run(&["url"]).exits(4).says("make it with `tfdev up`");
}

#[test]
fn psql_without_a_program_on_this_machine_is_the_one_beside_the_server() {
    let Some(env) = TestEnv::docker() else { return };
    env.up();
    let mut command =
        env.command(&["psql", "--verbose", "--", "-Atc", "SELECT current_user || ' ' || count(*) FROM tasks"]);
    command.env("PATH", env.path("nothing-here"));
    let outcome = finish(start(command)).ok();
    assert_eq!(outcome.stdout.trim(), "taskflow 50");
    outcome.says("the one beside the server");
    let mut command = env.command(&["psql", "--", "-v", "ON_ERROR_STOP=1", "-c", "SELECT 1/0"]);
    command.env("PATH", env.path("nothing-here"));
    finish(start(command)).exits(1).says("division by zero");
}

#[test]
fn up_tells_the_keys_and_types_of_the_contract() {
    let Some(env) = TestEnv::docker() else { return };
    let mut report = env.up();
    let container = report["container"].as_str().unwrap().to_owned();
    assert_eq!(report["url"].as_str(), Some(env.url().as_str()));
    assert_eq!(report["volume"], json!(format!("{container}-data")));
    assert!(report["elapsed_ms"].take().as_u64().is_some_and(|elapsed| elapsed > 0));
    assert!(report["port"].take().as_u64().is_some_and(|port| port > 1024));
    assert!(report["image"].take().as_str().is_some_and(|image| image.contains("postgres")));
    for key in ["project", "container", "volume", "url"] {
        assert!(report[key].take().is_string(), "{key}");
    }
    assert_eq!(
        report,
        json!({
            "project": null, "instance": "dev", "engine": "docker", "profile": "dev", "state": "running",
            "created": true, "started": true, "container": null, "volume": null, "image": null, "data_dir": null,
            "host": "127.0.0.1", "port": null, "database": "taskflow", "user": "taskflow", "url": null,
            "migrations": { "applied": 3, "total": 3 },
            "seed": { "dataset": "small", "users": 10, "tasks": 50, "applied": true },
            "elapsed_ms": null,
        })
    );
}

#[test]
fn a_second_up_changes_nothing() {
    let Some(env) = TestEnv::docker() else { return };
    let first = env.up();
    let container = first["container"].as_str().unwrap();
    let (id, started) = (docker::id(container), docker::inspect(container)["State"]["StartedAt"].clone());
    let rows = query(&env.url(), "SELECT id FROM tasks ORDER BY id");
    let second = env.up();
    assert_eq!((&second["created"], &second["started"]), (&json!(false), &json!(false)));
    assert_eq!(second["seed"]["applied"], json!(false));
    for same in ["url", "container", "volume", "image", "migrations"] {
        assert_eq!(first[same], second[same]);
    }
    assert_eq!((docker::id(container), docker::inspect(container)["State"]["StartedAt"].clone()), (id, started));
    assert_eq!(query(&env.url(), "SELECT id FROM tasks ORDER BY id"), rows);
}

#[test]
fn status_tells_absent_running_unhealthy_crashed_and_stopped() {
    let Some(env) = TestEnv::docker() else { return };
    let status = || env.run(&["status", "--json"]).ok().json();
    let absent = status();
    assert_eq!(
        (&absent["state"], &absent["url"], &absent["container"]),
        (&json!("absent"), &json!(null), &json!(null))
    );

    let up = env.up();
    let container = up["container"].as_str().unwrap();
    let running = status();
    for key in up.as_object().unwrap().keys().filter(|key| !["elapsed_ms", "seed"].contains(&key.as_str())) {
        let expected = if ["created", "started"].contains(&key.as_str()) { &json!(false) } else { &up[key] };
        assert_eq!(&running[key], expected, "{key}");
    }
    assert!(running["storage"]["used_bytes"].as_u64().is_some_and(|used| used > 10_000_000));
    assert_eq!(running["storage"]["limit_bytes"], json!(10_u64 << 30));
    assert_eq!(running["connections"]["max"], json!(20));
    assert_eq!(running["snapshots"], json!([]));

    docker::docker(&["pause", container]);
    let paused = status();
    assert_eq!((&paused["state"], &paused["reason"]), (&json!("unhealthy"), &json!("the container is paused")));
    env.run(&["url"]).exits(4).says("paused");
    assert_eq!(env.up()["started"], json!(false), "a paused server is only woken");
    assert_eq!(status()["state"], json!("running"));

    docker::docker(&["kill", "--signal", "KILL", container]);
    let crashed = status();
    assert_eq!(crashed["state"], json!("crashed"));
    assert!(crashed["reason"].as_str().unwrap().contains("137"), "{crashed}");
    let outcome = env.run(&["up"]).ok();
    outcome.says("the server was not stopped in order");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");

    env.run(&["down"]).ok();
    let stopped = status();
    assert_eq!((&stopped["state"], &stopped["url"]), (&json!("stopped"), &json!(null)));
    assert_eq!(stopped["volume"], up["volume"]);
}

#[test]
fn url_env_and_logs_serve_other_programs() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let url = env.url();
    assert_eq!(one(&url, "SELECT current_user || ' ' || current_database()"), "taskflow taskflow");
    assert_eq!(one(&url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"), "f");
    assert_eq!(env.run(&["url", "--json"]).ok().json(), json!({ "url": url }));

    let variables = env.run(&["env", "--format", "json"]).ok().json();
    assert_eq!(variables["DATABASE_URL"], json!(url));
    let dotenv = env.run(&["env", "--format", "dotenv"]).ok().stdout;
    let shell = env.run(&["env"]).ok().stdout;
    for (name, value) in variables.as_object().unwrap() {
        let value = value.as_str().unwrap();
        assert!(dotenv.lines().any(|line| line == format!("{name}={value}")), "{name} in {dotenv}");
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", &format!("{shell}\nprintf %s \"${name}\"")]).env_clear();
        assert_eq!(finish(start(sh)).ok().stdout, value);
    }
    assert!(!variables.as_object().unwrap().contains_key("PGPASSWORD"));

    // With these variables a program of libpq needs nothing else.
    if std::process::Command::new("psql").arg("--version").output().is_ok() {
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", &format!("{shell}\npsql -w -Atc 'SELECT count(*) FROM users'")]);
        sh.env_remove("PGPASSWORD");
        assert_eq!(finish(start(sh)).ok().stdout.trim(), "10");
    }

    query(&url, "SELECT 'found in the log'");
    let log = until("the statement in the log", || {
        let log = env.run(&["logs"]).ok().stdout;
        log.contains("found in the log").then_some(log)
    });
    let lines = env.run(&["logs", "--json"]).ok().json();
    assert!(lines["lines"].as_array().unwrap().len() >= log.lines().count());
    let tail = env.run(&["logs", "--tail", "1"]).ok().stdout;
    assert_eq!(tail.lines().count(), 1, "{tail}");
    assert_eq!(up["state"], json!("running"));
}

/// Reads the settings back from the server; sizes are as the server writes them.
fn settings(url: &str, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(&one(url, &format!("SHOW {name}")), value, "{name}");
    }
}

#[test]
fn the_dev_profile_is_what_the_server_runs_with() {
    let Some(env) = TestEnv::docker_with("[profiles.dev]\nrandom_page_cost = 1.5\n") else { return };
    env.up();
    settings(
        &env.url(),
        &[
            ("max_connections", "20"),
            ("shared_buffers", "128MB"),
            ("work_mem", "4MB"),
            ("maintenance_work_mem", "64MB"),
            ("wal_level", "logical"),
            ("log_statement", "all"),
            ("log_min_duration_statement", "1s"),
            ("ssl", "off"),
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
            ("random_page_cost", "1.5"),
            ("data_checksums", "on"),
        ],
    );
    assert!(one(&env.url(), "SHOW server_version").starts_with("15."));
}

#[test]
fn the_prod_profile_is_what_the_server_runs_with() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.run(&["up", "--json", "--profile", "prod", "--dataset", "small"]).ok().json();
    assert_eq!(up["profile"], json!("prod"));
    let url = up["url"].as_str().unwrap();
    settings(
        url,
        &[
            ("max_connections", "100"),
            ("shared_buffers", "256MB"),
            ("work_mem", "4MB"),
            ("maintenance_work_mem", "64MB"),
            ("wal_level", "logical"),
            ("log_statement", "ddl"),
            ("log_min_duration_statement", "1s"),
            ("ssl", "on"),
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
        ],
    );
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(one(url, encrypted), "t");
    let session = env.run(&["psql", "--profile", "prod", "--", "-Atc", encrypted]).ok();
    assert_eq!(session.stdout.trim(), "t");
    let inspected = docker::inspect(up["container"].as_str().unwrap());
    assert_eq!(
        (&inspected["HostConfig"]["Memory"], &inspected["HostConfig"]["NanoCpus"]),
        (&json!(1_u64 << 30), &json!(1_000_000_000))
    );
}

#[test]
fn the_test_profile_is_fast_and_in_memory() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.run(&["up", "--json", "--instance", "test", "--dataset", "small"]).ok().json();
    assert_eq!((&up["profile"], &up["volume"]), (&json!("test"), &Value::Null));
    let url = up["url"].as_str().unwrap();
    settings(
        url,
        &[
            ("max_connections", "200"),
            ("shared_buffers", "128MB"),
            ("work_mem", "4MB"),
            ("maintenance_work_mem", "64MB"),
            ("wal_level", "minimal"),
            ("log_statement", "none"),
            ("log_min_duration_statement", "1s"),
            ("ssl", "off"),
            ("fsync", "off"),
            ("synchronous_commit", "off"),
            ("full_page_writes", "off"),
        ],
    );
    let inspected = docker::inspect(up["container"].as_str().unwrap());
    let host = &inspected["HostConfig"];
    assert_eq!(host["Memory"], json!(4_u64 << 30));
    assert_eq!(host["NanoCpus"], json!(0), "all cores");
    let tmpfs = host["Tmpfs"]["/var/lib/postgresql/data"].as_str().unwrap();
    assert!(tmpfs.contains(&format!("size={}", 3_u64 << 30)), "{tmpfs}");
    assert_eq!(env.run(&["url"]).exits(4).stdout, "", "the instance `dev` is another one");
    assert_eq!(env.run(&["url", "--instance", "test"]).ok().stdout.trim(), url);
}

#[test]
fn all_instances_of_a_project_are_stopped_and_removed_at_once() {
    let Some(env) = TestEnv::docker() else { return };
    let dev = env.up();
    let other = env.run(&["up", "--json", "--instance", "other", "--dataset", "none"]).ok().json();
    assert_ne!(dev["port"], other["port"]);
    assert_ne!(dev["url"], other["url"]);
    assert_eq!(one(other["url"].as_str().unwrap(), "SELECT count(*) FROM tasks"), "0");
    env.run(&["down", "--all"]).ok();
    for instance in ["dev", "other"] {
        assert_eq!(env.run(&["status", "--json", "--instance", instance]).ok().json()["state"], json!("stopped"));
    }
    env.run(&["destroy", "--yes", "--instance", "other"]).ok();
    assert_eq!(env.state(), "stopped", "the other instance's data was not asked for");
    env.run(&["destroy", "--yes", "--all"]).ok();
    assert_eq!(env.in_docker(), Vec::<String>::new());
}
