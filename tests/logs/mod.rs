//! `logs`: what is slow, what failed, what was run; and following it.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::support::{Session, TestEnv, on_every_engine, query, try_query, until};

on_every_engine!(@of_ours_by_one_user the_log_tells_what_is_slow_what_failed_and_what_was_run);

/// `logs -f --json` with more arguments, which is ended with the test.
struct Follower {
    child: Child,
    path: PathBuf,
}

impl Follower {
    fn start(env: &TestEnv, view: &str) -> Self {
        let path = env.path(view.trim_start_matches('-'));
        let mut command = env.command(&["logs", "--follow", "--json", view]);
        command.stdin(Stdio::null()).stdout(File::create(&path).unwrap());
        Self { child: command.spawn().unwrap(), path }
    }

    fn entries(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn wait(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        until(what, || self.entries().into_iter().find(&condition))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The groups of a view, once there is one for which `condition` holds: a log is a little behind.
fn group(env: &TestEnv, view: &str, condition: impl Fn(&Value) -> bool) -> Value {
    until(view, || {
        let report = env.run(&["logs", view, "--json"]).ok().json();
        report["groups"].as_array().unwrap().iter().find(|group| condition(group)).cloned()
    })
}

fn the_log_tells_what_is_slow_what_failed_and_what_was_run(env: &TestEnv) {
    env.run(&["logs", "--slow"]).exits(4);
    env.up();
    let url = env.url();
    assert_eq!(env.run(&["logs", "--slow"]).ok().stdout, "no slow statement is in the log\n");
    let errors = Follower::start(env, "--errors");
    query(&url, "SELECT pg_sleep(1.05),\n  'ERROR:  of \"a'' kind'\n\tAS x");
    query(&url, "select  PG_SLEEP(1.01), 'another' AS x");
    try_query(&url, "SELECT *\nFROM nowhere -- at all").unwrap_err();
    try_query(&url, "SELECT *\nFROM nowhere").unwrap_err();

    // With all statements logged, the line with the duration has no text.
    let slow = group(env, "--slow", |group| group["count"] == 2);
    assert_eq!(slow["statement"], "SELECT pg_sleep(?), ? AS x");
    assert_eq!(slow["slowest"], "SELECT pg_sleep(1.05),\n  'ERROR:  of \"a'' kind'\n\tAS x");
    assert!(slow["total_ms"].as_f64().unwrap() >= 2060.0 && slow["max_ms"].as_f64().unwrap() >= 1050.0, "{slow}");
    let failed = group(env, "--errors", |group| group["message"].as_str().unwrap().contains("nowhere"));
    assert_eq!((&failed["count"], &failed["statement"]), (&json!(2), &json!("SELECT *\nFROM nowhere")));
    let run = group(env, "--statements", |group| group["statement"] == "SELECT * FROM nowhere");
    assert_eq!(run["count"], 2);
    let entry = errors.wait("the error", |entry| entry["message"].as_str().unwrap().contains("nowhere"));
    assert!(entry["severity"] == "error" && entry["pid"].is_number() && entry["at"].is_string(), "{entry}");
    let human = env.run(&["logs", "--slow"]).ok().stdout;
    assert!(human.contains("SELECT pg_sleep(?), ? AS x"), "{human}");
    env.run(&["logs", "--slow", "--errors"]).exits(2);
    // Plain logs are what they were.
    assert!(env.run(&["logs"]).ok().stdout.contains("FROM nowhere -- at all"));
    assert!(env.run(&["logs", "-n", "3", "--json"]).ok().json()["lines"].as_array().unwrap().len() == 3);

    another_prefix_is_read_too(env);
}

/// As in production: the text stands with the duration, and the prefix is the project's.
fn another_prefix_is_read_too(env: &TestEnv) {
    env.write(
        "tfdev.toml",
        "[profiles.dev]\nlog_statement = \"ddl\"\nlog_min_duration_statement = 0\nlog_line_prefix = \"%t:%r:%u@%d:[%p]:%q app=%a \"\n",
    );
    env.up();
    let follower = Follower::start(env, "--slow");
    let mut session = Session::open(&format!("{}?application_name=LOG:  shop", env.url()));
    session.run("SELECT 'of the\nshop'");
    let entry = follower.wait("the statement", |entry| {
        entry["statement"].as_str().is_some_and(|statement| statement.contains("of the\nshop"))
    });
    assert_eq!((&entry["user"], &entry["database"]), (&json!("taskflow"), &json!("taskflow")));
    assert_eq!(entry["application"], "LOG:  shop");
    let run = group(env, "--statements", |group| group["statement"] == "SELECT ?");
    assert!(run["count"].as_u64().unwrap() >= 1);
}
