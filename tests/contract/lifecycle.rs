//! From nothing to a database and back (`CLI.md` § Commands, § Output, § Profiles).

use serde_json::{Value, json};

use crate::support::docker::inspect;
use crate::support::{
    TestEngine, TestEnv, assert_reached_as_before, finish, on_every_engine, one, query, start, try_query, until,
};

on_every_engine!(
    data_outlives_down_and_goes_with_destroy,
    psql_without_a_program_on_this_machine_is_the_one_beside_the_server,
    up_tells_the_keys_and_types_of_the_contract,
    a_second_up_changes_nothing,
    status_tells_absent_running_unhealthy_crashed_and_stopped,
    status_says_whether_limits_are_enforced_and_why_this_engine,
    url_and_env_serve_other_programs,
    logs_are_the_servers_own,
    the_dev_profile_is_what_the_server_runs_with,
    the_prod_profile_is_what_the_server_runs_with,
    the_test_profile_is_fast_and_in_memory,
    a_changed_setting_restarts_the_server_and_keeps_the_data,
    all_instances_of_a_project_are_stopped_and_removed_at_once,
);

fn data_outlives_down_and_goes_with_destroy(env: &TestEnv) {
    assert_eq!(env.state(), "absent");
    env.run(&["down"]).exits(4);
    env.up();
    assert_eq!(env.state(), "running");
    let count = env.run(&["psql", "--", "-Atc", "SELECT count(*) FROM users"]).ok();
    assert_eq!(count.stdout.trim(), "10");
    env.run(&["psql", "--", "-Atc", "INSERT INTO users (email, password_hash) VALUES ('kept@example.com', 'x')"]).ok();

    env.run(&["down"]).ok();
    let stops = env.engine().runs_the_server();
    assert_eq!(env.state(), if stops { "stopped" } else { "running" });
    if stops {
        for command in ["url", "env", "psql", "seed", "migrate"] {
            env.run(&[command]).exits(4).says("start it with `tfdev up`");
        }
    } else {
        env.run(&["down"]).ok().says("tfdev never stops it");
    }

    let again = env.up();
    assert_eq!((&again["created"], &again["started"]), (&json!(false), &json!(stops)));
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users WHERE email = 'kept@example.com'"), "1");

    env.run(&["destroy", "--yes"]).ok();
    assert_eq!(env.state(), "absent");
    env.assert_nothing_left();
    env.run(&["url"]).exits(4).says("make it with `tfdev up`");
}

fn psql_without_a_program_on_this_machine_is_the_one_beside_the_server(env: &TestEnv) {
    env.up();
    let sql = "SELECT current_user || ' ' || count(*) FROM tasks";
    let outcome = env.run_without_programs(&["psql", "--verbose", "--", "-Atc", sql]).ok();
    assert_eq!(outcome.stdout.trim(), format!("{} 50", env.user()));
    outcome.says("the one beside the server");
    let failing = env.run_without_programs(&["psql", "--", "-v", "ON_ERROR_STOP=1", "-c", "SELECT 1/0"]);
    failing.exits(1).says("division by zero");
}

/// What the instance is made of must be named if the engine has such a thing, and must else be null.
fn take_parts(env: &TestEnv, report: &mut Value) {
    let is_docker = env.engine() == TestEngine::Docker;
    let is_native = !is_docker && env.engine().runs_the_server();
    assert_eq!(report["registry"].take().is_string(), !env.engine().runs_the_server());
    let container = report["container"].as_str().map(str::to_owned);
    for (key, expected) in [
        ("container", is_docker.then(|| env.container_name())),
        ("volume", container.map(|container| format!("{container}-data"))),
    ] {
        assert_eq!(report[key].take(), json!(expected), "{key}");
    }
    let image = report["image"].take();
    assert_eq!(image.as_str().is_some_and(|image| image.contains("postgres")), is_docker, "{image}");
    let data_dir = report["data_dir"].take();
    let is_there = data_dir.as_str().is_some_and(|folder| std::path::Path::new(folder).join("PG_VERSION").exists());
    assert_eq!(is_there, is_native, "{data_dir}");
}

fn up_tells_the_keys_and_types_of_the_contract(env: &TestEnv) {
    let mut report = env.up();
    take_parts(env, &mut report);
    assert_eq!(report["url"].as_str(), Some(env.url().as_str()));
    assert!(report["elapsed_ms"].take().as_u64().is_some_and(|elapsed| elapsed > 0));
    assert!(report["port"].take().as_u64().is_some_and(|port| port > 1024));
    for key in ["project", "url"] {
        assert!(report[key].take().is_string(), "{key}");
    }
    assert_eq!(
        report,
        json!({
            "project": null, "instance": "dev", "engine": env.engine().kind(), "profile": "dev", "state": "running",
            "created": true, "started": env.engine().runs_the_server(), "container": null, "volume": null, "image": null,
            "data_dir": null, "registry": null, "host": "127.0.0.1", "port": null, "database": "taskflow",
            "user": env.user(), "url": null, "changes": [],
            "migrations": { "applied": 3, "total": 3 },
            "seed": { "dataset": "small", "users": 10, "tasks": 50, "applied": true },
            "elapsed_ms": null,
        })
    );
}

fn a_second_up_changes_nothing(env: &TestEnv) {
    let first = env.up();
    let (made, born) = (env.made(), env.born());
    let rows = query(&env.url(), "SELECT id FROM tasks ORDER BY id");
    let second = env.up();
    assert_eq!((&second["created"], &second["started"]), (&json!(false), &json!(false)));
    assert_eq!(second["seed"]["applied"], json!(false));
    for same in ["url", "container", "volume", "image", "data_dir", "registry", "migrations"] {
        assert_eq!(first[same], second[same], "{same}");
    }
    assert_eq!((env.made(), env.born()), (made, born));
    assert_eq!(query(&env.url(), "SELECT id FROM tasks ORDER BY id"), rows);
}

fn status_tells_absent_running_unhealthy_crashed_and_stopped(env: &TestEnv) {
    let absent = env.status();
    assert_eq!((&absent["state"], &absent["url"]), (&json!("absent"), &json!(null)));
    assert_eq!((&absent["container"], &absent["data_dir"]), (&json!(null), &json!(null)));

    let up = env.up();
    let running = env.status();
    for key in up.as_object().unwrap().keys().filter(|key| !["elapsed_ms", "seed", "changes"].contains(&key.as_str())) {
        let expected = if ["created", "started"].contains(&key.as_str()) { &json!(false) } else { &up[key] };
        assert_eq!(&running[key], expected, "{key}");
    }
    assert!(running["storage"]["used_bytes"].as_u64().is_some_and(|used| used > 10_000_000));
    assert_eq!(running["storage"]["limit_bytes"], json!(10_u64 << 30));
    assert_eq!(running["snapshots"], json!([]));
    if !env.engine().runs_the_server() {
        env.run(&["destroy", "--yes"]).ok();
        assert_eq!(env.state(), "absent", "it is running or absent, whatever the server does");
        return;
    }
    assert_eq!(running["connections"]["max"], json!(20));

    env.freeze_server();
    let frozen = env.status();
    let (reason, word) = if env.engine() == TestEngine::Docker {
        ("the container is paused", "paused")
    } else {
        ("the server's process is stopped by a signal", "signal")
    };
    assert_eq!((&frozen["state"], &frozen["reason"]), (&json!("unhealthy"), &json!(reason)));
    env.run(&["url"]).exits(4).says(word);
    assert_eq!(env.up()["started"], json!(false), "a server that stands still is only woken");
    assert_eq!(env.state(), "running");
    env.freeze_server();
    env.run(&["down"]).ok();
    assert_eq!(env.state(), "stopped", "and stopped in order");
    env.up();

    env.kill_server();
    let crashed = until("the server's end", || Some(env.status()).filter(|status| status["state"] == "crashed"));
    let word = if env.engine() == TestEngine::Docker { "137" } else { "without having stopped in order" };
    assert!(crashed["reason"].as_str().unwrap().contains(word), "{crashed}");
    env.run(&["url"]).exits(4).says("start it with `tfdev up`");
    env.run(&["up"]).ok().says("the server was not stopped in order");
    assert_eq!(env.tasks(), "50");

    env.run(&["down"]).ok();
    let stopped = env.status();
    assert_eq!((&stopped["state"], &stopped["url"]), (&json!("stopped"), &json!(null)));
    assert_eq!((&stopped["volume"], &stopped["data_dir"]), (&up["volume"], &up["data_dir"]));
}

fn status_says_whether_limits_are_enforced_and_why_this_engine(env: &TestEnv) {
    env.up();
    let status = env.status();
    let is_docker = env.engine() == TestEngine::Docker;
    let enforced = status["limits_enforced"].as_bool().unwrap();
    assert!(enforced || !is_docker, "Docker always can");
    assert_eq!(status["limits_reason"].is_string(), !enforced, "{status}");
    let reason = if is_docker { "the first that can be used" } else { "asked for by TFDEV_ENGINE" };
    assert_eq!(status["engine_reason"], json!(reason));
    let text = env.run(&["status"]).ok().stdout;
    assert_eq!(text.contains("not limited by this engine"), !enforced, "{text}");
}

fn url_and_env_serve_other_programs(env: &TestEnv) {
    env.up();
    let url = env.url();
    let expected = format!("{} taskflow", env.user());
    assert_eq!(one(&url, "SELECT current_user || ' ' || current_database()"), expected);
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

    // With these variables a program of libpq needs nothing else, unless the password is someone else's to keep.
    let is_whole = variables.as_object().unwrap().contains_key("PGPASSFILE");
    assert_eq!(is_whole, env.engine().runs_the_server());
    if is_whole && std::process::Command::new("psql").arg("--version").output().is_ok() {
        for (program, printed) in [("psql -w -Atc 'SELECT count(*) FROM users'", "10"), ("pg_isready -q", "")] {
            let mut sh = std::process::Command::new("sh");
            sh.args(["-c", &format!("{shell}\n{program}")]).env_remove("PGPASSWORD");
            assert_eq!(finish(start(sh)).ok().stdout.trim(), printed);
        }
    }
}

fn logs_are_the_servers_own(env: &TestEnv) {
    if !env.engine().runs_the_server() {
        env.up();
        env.run(&["logs"]).exits(5).says("can't show the server's log, because");
        return;
    }
    env.run(&["logs"]).exits(4);
    env.up();
    query(&env.url(), "SELECT 'found in the log'");
    let log = until("the statement in the log", || {
        let log = env.run(&["logs"]).ok().stdout;
        log.contains("found in the log").then_some(log)
    });
    assert!(log.contains("database system is ready to accept connections"), "{log}");
    let lines = env.run(&["logs", "--json"]).ok().json();
    assert!(lines["lines"].as_array().unwrap().len() >= log.lines().count());
    let tail = env.run(&["logs", "--tail", "1"]).ok().stdout;
    assert_eq!(tail.lines().count(), 1, "{tail}");
    env.run(&["down"]).ok();
    assert!(env.run(&["logs"]).ok().stdout.contains("database system is shut down"), "also of a stopped server");
}

/// Whether the engine leaves the server's settings to someone else; then `profile` is asked for, told, and not applied.
fn settings_are_not_ours(env: &TestEnv, profile: &str) -> bool {
    if env.engine().runs_the_server() {
        return false;
    }
    let outcome = env.run(&["up", "--json", "--profile", profile, "--dataset", "small"]).ok();
    assert_eq!(one(&env.url(), "SHOW work_mem"), "4MB", "the server's own");
    let told = env.run(&["up", "--profile", profile, "--dataset", "small"]).ok();
    told.says("The server's settings are not tfdev's to change").says(&format!("`{profile}` differ"));
    assert_eq!(outcome.json()["profile"], json!(profile));
    true
}

/// Reads the settings back from the server; sizes are as the server writes them.
fn settings(url: &str, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(&one(url, &format!("SHOW {name}")), value, "{name}");
    }
}

fn the_dev_profile_is_what_the_server_runs_with(env: &TestEnv) {
    if settings_are_not_ours(env, "dev") {
        return;
    }
    env.write("tfdev.toml", "[profiles.dev]\nrandom_page_cost = 1.5\nlog_line_prefix = \"it's, \\\\odd %m \"\n");
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
            ("log_line_prefix", "it's, \\odd %m "),
            ("data_checksums", "on"),
            ("server_encoding", "UTF8"),
        ],
    );
    assert!(one(&env.url(), "SHOW server_version").starts_with("15."));
}

fn the_prod_profile_is_what_the_server_runs_with(env: &TestEnv) {
    if settings_are_not_ours(env, "prod") {
        return;
    }
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
    let plain = format!("{}?sslmode=disable", url.split('?').next().unwrap());
    assert!(try_query(&plain, "SELECT 1").unwrap_err().to_string().contains("pg_hba.conf"));
    if let Some(container) = up["container"].as_str() {
        let host = inspect(container)["HostConfig"].clone();
        assert_eq!((&host["Memory"], &host["NanoCpus"]), (&json!(1_u64 << 30), &json!(1_000_000_000)));
    }
}

fn the_test_profile_is_fast_and_in_memory(env: &TestEnv) {
    if settings_are_not_ours(env, "test") {
        return;
    }
    let up = env.run(&["up", "--json", "--instance", "test", "--dataset", "small"]).ok().json();
    assert_eq!((&up["profile"], &up["volume"]), (&json!("test"), &Value::Null), "no data on a disk");
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
    if let Some(container) = up["container"].as_str() {
        let host = inspect(container)["HostConfig"].clone();
        assert_eq!(host["Memory"], json!(4_u64 << 30));
        assert_eq!(host["NanoCpus"], json!(0), "all cores");
        let tmpfs = host["Tmpfs"]["/var/lib/postgresql/data"].as_str().unwrap();
        assert!(tmpfs.contains(&format!("size={}", 3_u64 << 30)), "{tmpfs}");
    }
    assert_eq!(env.run(&["url"]).exits(4).stdout, "", "the instance `dev` is another one");
    assert_eq!(env.run(&["url", "--instance", "test"]).ok().stdout.trim(), url);

    let down = env.run(&["down", "--json", "--instance", "test"]).ok().json();
    assert_eq!(down["instances"][0]["data_kept"], json!(false));
    let again = env.run(&["up", "--json", "--instance", "test", "--dataset", "small"]).ok().json();
    assert_eq!(again["created"], json!(true));
    assert_reached_as_before(&up, &again);
    assert_eq!(one(url, "SELECT count(*) FROM tasks"), "50");
    env.run(&["destroy", "--yes", "--instance", "test"]).ok();
    env.assert_nothing_left();
}

fn a_changed_setting_restarts_the_server_and_keeps_the_data(env: &TestEnv) {
    let first = env.up();
    let born = env.born();
    query(&env.url(), "INSERT INTO users (email, password_hash) VALUES ('kept@example.com', 'x')");
    env.write("tfdev.toml", "[seed]\ndataset = \"small\"\n");
    env.up();
    assert_eq!(env.born(), born, "a key that is no part of the server changes nothing");

    env.write("tfdev.toml", "[profiles.dev]\nwork_mem = \"8MB\"\nmax_connections = 33\n");
    let second = env.up();
    if !env.engine().runs_the_server() {
        assert_eq!(env.born(), born, "the server's settings are someone else's");
        assert_eq!(one(&env.url(), "SELECT count(*) FROM users WHERE email = 'kept@example.com'"), "1");
        return;
    }
    let restarted = env.born();
    assert_ne!(restarted, born);
    assert_eq!((&second["created"], &second["started"]), (&json!(false), &json!(true)));
    for same in ["volume", "data_dir"] {
        assert_eq!(first[same], second[same], "{same}");
    }
    assert_reached_as_before(&first, &second);
    settings(&env.url(), &[("work_mem", "8MB"), ("max_connections", "33")]);
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users WHERE email = 'kept@example.com'"), "1");
    assert_eq!(env.up()["started"], json!(false));
    assert_eq!(env.born(), restarted);
}

fn all_instances_of_a_project_are_stopped_and_removed_at_once(env: &TestEnv) {
    let dev = env.up();
    let other = env.run(&["up", "--json", "--instance", "other", "--dataset", "none"]);
    if !env.engine().runs_the_server() {
        other.exits(5).says("belongs to the instance `dev`");
        env.run(&["destroy", "--yes", "--all"]).ok();
        return env.assert_nothing_left();
    }
    let other = other.ok().json();
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
    env.assert_nothing_left();
}
