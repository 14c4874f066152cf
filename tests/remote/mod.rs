//! A Docker daemon on another machine, over TLS and over ssh: everything that works with the one of this machine, and
//! what a person reads when it cannot be reached. Each test has a second daemon of its own, so each is a long one.

mod identity;
mod ssh;
mod tls;

use std::process::Command;

use serde_json::json;

use crate::support::remote::{ADDRESS, Remote};
use crate::support::{Outcome, finish, one, query, start};

/// A way to the daemon: tfdev with these arguments, set to it.
type Way<'a> = dyn Fn(&[&str]) -> Command + 'a;

fn run(way: &Way<'_>, arguments: &[&str]) -> Outcome {
    finish(start(way(arguments)))
}

/// The work of a day. It leaves nothing.
fn everything_works(remote: &Remote, way: &Way<'_>) {
    assert!(run(way, &["image", "ensure", "--json"]).ok().json()[0]["reference"].is_string());
    run(way, &["up", "--dataset", "small"]).ok().says("only its passwords guard it").says(ADDRESS);
    let again = run(way, &["up"]).ok();
    assert!(!again.stderr.contains("guard"), "told once: {}", again.stderr);
    let up = run(way, &["up", "--json"]).ok().json();
    assert_eq!((&up["engine"], &up["host"], &up["started"]), (&json!("docker"), &json!(ADDRESS), &json!(false)));
    let url = up["url"].as_str().unwrap();
    assert_eq!(one(url, "SELECT count(*) FROM tasks"), "50");
    let container = up["container"].as_str().unwrap();
    let published = "{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}} {{end}}{{end}}";
    assert_eq!(remote.docker(&["inspect", "--format", published, container]), ADDRESS, "and on no other address");

    let status = run(way, &["status", "--json"]).ok().json();
    assert_eq!((&status["state"], &status["host"], &status["url"]), (&json!("running"), &json!(ADDRESS), &up["url"]));
    assert_eq!(run(way, &["url"]).ok().stdout.trim(), url);
    assert!(run(way, &["env"]).ok().stdout.contains(ADDRESS));
    assert_eq!(run(way, &["psql", "--", "-Atc", "SELECT count(*) FROM users"]).ok().stdout.trim(), "10");
    assert!(run(way, &["logs"]).ok().stdout.contains("ready to accept connections"));
    assert_eq!(run(way, &["migrate", "--json"]).ok().json()["applied"], json!(3));
    query(url, "DELETE FROM tasks");
    run(way, &["seed", "--dataset", "small", "--replace", "--yes"]).ok();
    assert_eq!(one(url, "SELECT count(*) FROM tasks"), "50");

    run(way, &["down"]).ok();
    assert_eq!(run(way, &["status", "--json"]).ok().json()["state"], json!("stopped"));
    run(way, &["psql"]).exits(4);
    // The certificate names the host under which the database is reached.
    let prod = run(way, &["up", "--json", "--profile", "prod"]).ok().json();
    let url = prod["url"].as_str().unwrap();
    assert!(url.contains(ADDRESS) && url.contains("sslmode=verify-full"), "{url}");
    assert_eq!(one(url, "SELECT count(*) FROM tasks"), "50");
    assert_eq!(one(url, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "t");
    assert_eq!(run(way, &["psql", "--", "-Atc", "SHOW ssl"]).ok().stdout.trim(), "on");

    run(way, &["destroy", "--yes"]).ok();
    assert_eq!(remote.everything(), Vec::<String>::new());
}
