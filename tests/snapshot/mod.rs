//! Snapshots, restore and reset through the command line, over every engine.
//!
//! - `daily` is what people do with them.
//! - `exact` is that a state comes back in all its parts, and what is refused.
//! - `sessions` is what programs that use the database meanwhile see.
//! - `kills` is the kill matrix.

mod daily;
mod exact;
mod kills;
mod sessions;

use serde_json::Value;

use crate::support::{TestEnv, one, query, until};

/// A fingerprint of the rows of the data set and of whatever else a test changes in them.
const ROWS: &str = "SELECT md5((SELECT coalesce(string_agg(u::text, ',' ORDER BY id), '') FROM users u) || \
                    (SELECT coalesce(string_agg(t::text, ',' ORDER BY id), '') FROM tasks t))";

/// The fingerprint of the project's database.
#[track_caller]
fn rows(env: &TestEnv) -> String {
    one(&env.url(), ROWS)
}

/// Changes the project's database, so that it is like no state before.
#[track_caller]
fn change(env: &TestEnv) {
    query(&env.url(), "INSERT INTO users (email, password_hash) VALUES (gen_random_uuid() || '@example.com', 'x')");
}

#[track_caller]
fn snapshot(env: &TestEnv, arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["snapshot"].iter().chain(arguments).copied().chain(["--json"]).collect();
    env.run(&all).ok().json()
}

/// The names of all snapshots, oldest first.
#[track_caller]
fn names(env: &TestEnv) -> Vec<String> {
    let list = snapshot(env, &["list"]);
    let all = list["snapshots"].as_array().unwrap().iter();
    all.map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
}

/// The names of the automatic ones.
#[track_caller]
fn automatic(env: &TestEnv) -> Vec<String> {
    names(env).into_iter().filter(|name| name.starts_with("auto-")).collect()
}

/// The superuser's connection URL to `database`.
#[track_caller]
fn superuser(env: &TestEnv, database: &str) -> String {
    env.superuser_url(&env.status()["port"], database)
}

/// The superuser's connection URL to the database in which the list of snapshots is.
#[track_caller]
fn registry(env: &TestEnv) -> String {
    let status = env.status();
    env.superuser_url(&status["port"], status["registry"].as_str().unwrap_or("postgres"))
}

/// Waits until each database of ours is one that the list of snapshots names, and nothing is left over.
#[track_caller]
fn wait_for_order(env: &TestEnv) {
    let admin = registry(env);
    let question = "SELECT coalesce(string_agg(coalesce(d.datname, s.database) || ' ' || coalesce(s.stage, 'unknown'), \
                    ', '), '') FROM (SELECT * FROM pg_database WHERE datname LIKE 'tfdev\\_%' \
                    AND datname <> current_database()) d \
                    FULL JOIN tfdev.snapshot s ON s.database = d.datname \
                    WHERE d.datname IS NULL AND s.stage <> 'dropping' OR s.id IS NULL OR \
                    d.datname IS NOT NULL AND (s.stage = 'dropping' OR d.datconnlimit = -2)";
    until("order among the databases", || one(&admin, question).is_empty().then_some(()));
    assert_eq!(env.status()["left_overs"], serde_json::json!([]));
}
