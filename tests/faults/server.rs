//! Servers that end, or never begin (`FAILURES.md` § Readiness).

use std::time::Duration;

use serde_json::json;

use crate::support::docker::inspect;
use crate::support::{TestEngine, TestEnv, on_every_engine, one, query, try_query};

on_every_engine!(
    a_server_that_ends_at_once_is_told_at_once_with_its_own_words,
    a_server_that_was_killed_under_load_recovers,
    a_stop_waits_for_the_server_to_write_everything,
    a_setting_that_the_server_refuses_leaves_nothing_that_hinders_the_first_up,
);

/// Whether someone else runs the server; then no setting and no command of ours starts or ends it.
fn the_server_is_not_ours(env: &TestEnv) -> bool {
    if env.engine().runs_the_server() {
        return false;
    }
    env.write("tfdev.toml", "[profiles.dev]\nshared_preload_libraries = \"nonesuch\"\n");
    env.up();
    let born = env.born();
    env.run(&["down"]).ok();
    env.up();
    assert_eq!((env.born(), env.tasks().as_str()), (born, "50"));
    true
}

fn a_server_that_ends_at_once_is_told_at_once_with_its_own_words(env: &TestEnv) {
    if the_server_is_not_ours(env) {
        return;
    }
    env.up();
    query(&env.url(), "INSERT INTO users (email, password_hash) VALUES ('kept@example.com', 'x')");
    env.write("tfdev.toml", "[profiles.dev]\nshared_preload_libraries = \"nonesuch\"\n");
    let outcome = env.run(&["up", "--json"]).exits(1);
    assert!(outcome.elapsed < Duration::from_secs(30), "{:?}", outcome.elapsed);
    let error = outcome.json_error();
    assert!(error["causes"].to_string().contains("could not access file \\\"nonesuch\\\""), "{error}");
    assert!(error["hints"].to_string().contains("tfdev logs"), "{error}");
    // The settings of before are back.
    assert_eq!(env.state(), "running");

    env.write("tfdev.toml", "");
    env.up();
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users WHERE email = 'kept@example.com'"), "1");
}

fn a_setting_that_the_server_refuses_leaves_nothing_that_hinders_the_first_up(env: &TestEnv) {
    if the_server_is_not_ours(env) {
        return;
    }
    env.write("tfdev.toml", "[profiles.dev]\nshared_preload_libraries = \"nonesuch\"\n");
    let outcome = env.run(&["up"]).exits(1);
    assert!(outcome.elapsed < Duration::from_secs(30), "{:?}", outcome.elapsed);
    outcome.says("nonesuch");
    env.write("tfdev.toml", "");
    let up = env.up();
    assert_eq!(up["seed"]["applied"], json!(true));
    assert_eq!(env.tasks(), "50");
}

fn a_server_that_was_killed_under_load_recovers(env: &TestEnv) {
    if the_server_is_not_ours(env) {
        return;
    }
    let up = env.up();
    let url = env.url();
    query(&url, "CREATE TABLE load AS SELECT generate_series(1, 200000) AS n");
    let writer = std::thread::spawn({
        let url = url.clone();
        // Ends by itself when the server does.
        move || while try_query(&url, "INSERT INTO load SELECT generate_series(1, 1000)").is_ok() {}
    });
    env.kill_server();
    writer.join().unwrap();
    let again = env.run(&["up", "--json", "--dataset", "small"]).ok().json();
    assert_eq!((&again["created"], &again["started"]), (&json!(false), &json!(true)));
    assert_eq!(again["port"], up["port"]);
    let rows: u32 = one(&url, "SELECT count(*) FROM load").parse().unwrap();
    assert!(rows >= 200_000 && rows.is_multiple_of(1000), "{rows}");
}

fn a_stop_waits_for_the_server_to_write_everything(env: &TestEnv) {
    if the_server_is_not_ours(env) {
        return;
    }
    let up = env.up();
    query(&env.url(), "CREATE TABLE load AS SELECT generate_series(1, 500000) AS n");
    env.run(&["down"]).ok();
    if env.engine() == TestEngine::Docker {
        let state = inspect(up["container"].as_str().unwrap())["State"].clone();
        assert_eq!((&state["ExitCode"], &state["OOMKilled"]), (&json!(0), &json!(false)));
    }
    let log = env.server_log();
    assert!(log.trim_end().ends_with("database system is shut down"), "{log}");
}
