//! Another profile, or other settings of one, for an instance that runs.

use serde_json::{Value, json};

use super::{changes, on_docker_and_native, psql, settings, show, up};
use crate::support::{Session, TestEnv, docker, process};

on_docker_and_native!(a_profile_is_switched_with_the_data_kept, what_is_wrong_is_told_before_the_server_is_touched);

fn a_profile_is_switched_with_the_data_kept(env: &TestEnv) {
    let first = env.up();
    assert_eq!(changes(&first), Vec::<String>::new());
    let born = env.born();
    let container = first["container"].as_str().map(docker::id);
    let mut session = Session::open(&env.url());

    // What a running server takes is given to it while it runs.
    settings(env, "work_mem = \"8MB\"\nstatement_timeout = \"5min\"\n");
    let again = up(env, &[]).ok().json();
    assert_eq!(
        (&again["started"], changes(&again)),
        (&json!(false), vec!["statement_timeout default 5min".to_owned(), "work_mem 4MB 8MB".to_owned(),])
    );
    assert_eq!((show(env, "work_mem"), show(env, "statement_timeout")), ("8MB".into(), "5min".into()));
    session.run("SELECT 1");
    let nothing = up(env, &[]).ok().json();
    assert_eq!((&nothing["changes"], env.born()), (&json!([]), born.clone()));

    let outcome = up(env, &["--profile", "prod"]).ok();
    let prod = outcome.json();
    assert_eq!((&prod["profile"], &prod["started"]), (&json!("prod"), &json!(true)));
    assert_eq!(
        changes(&prod),
        [
            "log_statement all ddl",
            "max_connections 20 100",
            "shared_buffers 128MB 256MB",
            "ssl off on",
            "statement_timeout 5min default",
            "work_mem 8MB 4MB",
        ]
    );
    assert_ne!(env.born(), born);
    assert_eq!((env.tasks(), show(env, "max_connections")), ("50".into(), "100".into()));
    assert_eq!(show(env, "statement_timeout"), "0");
    assert_eq!(container, prod["container"].as_str().map(docker::id), "the container is the same");
    assert_eq!(env.status()["profile"], json!("prod"));
    prod_is_encrypted(env, prod["url"].as_str().unwrap());

    let born = env.born();
    let kept = up(env, &[]).ok().json();
    assert_eq!((&kept["profile"], changes(&kept), env.born()), (&json!("prod"), vec![], born));

    let back = up(env, &["--profile", "dev"]).ok().json();
    assert!(changes(&back).contains(&"work_mem 4MB 8MB".to_owned()), "{back}");
    assert!(!back["url"].as_str().unwrap().contains("sslmode"), "{back}");
    assert_eq!((show(env, "ssl"), env.tasks()), ("off".into(), "50".into()));

    let table = env.run(&["config", "diff", "dev", "prod", "--json"]).ok().json();
    let names: Vec<_> = table.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names[..4], ["log_statement", "max_connections", "shared_buffers", "ssl"]);
    let shown = env.run(&["config", "diff", "dev", "prod"]).ok().stdout;
    assert!(shown.contains("max_connections    20     100\n"), "{shown}");
}

/// psql gets in with the URL as it is, and no other way than with TLS.
fn prod_is_encrypted(env: &TestEnv, url: &str) {
    let variables = env.run(&["env", "--format", "json"]).ok().json();
    let root = variables["PGSSLROOTCERT"].as_str().unwrap();
    assert!(std::fs::read_to_string(root).unwrap().contains("BEGIN CERTIFICATE"));
    assert_eq!(variables["PGSSLMODE"], json!("verify-full"));
    if process::bin_dir().is_none() {
        return;
    }
    assert!(url.contains("sslmode=verify-full&sslrootcert="), "{url}");
    assert_eq!(psql(url).ok().stdout.trim(), "in");
    let bare = url.split('?').next().unwrap();
    psql(&format!("{bare}?sslmode=disable")).exits(2).says("no encryption");
    let localhost = url.replace("@127.0.0.1:", "@localhost:");
    assert_eq!(psql(&localhost).ok().stdout.trim(), "in", "it is in the certificate, too");
}

fn what_is_wrong_is_told_before_the_server_is_touched(env: &TestEnv) {
    settings(env, "shared_preload_libraries = \"pg_stat_statements\"\n");
    env.up();
    let born = env.born();
    let preload = "shared_preload_libraries = \"pg_stat_statements\"\n";
    for (line, words) in [
        // The table of tfdev knows no extension; the server that has loaded it does.
        ("\"pg_stat_statements.max\" = 50", "must be from 100 to "),
        ("\"pg_stat_statements.track\" = \"topp\"", "must be one of \"none\", \"top\", \"all\""),
        ("neon_something = true", "is not a setting of PostgreSQL 15"),
        ("timezone = \"Mars/Olympus\"", "invalid value for parameter \"TimeZone\": \"Mars/Olympus\""),
        ("work_men = \"8MB\"", "did you mean `work_mem`?"),
        ("work_mem = \"12X\"", "must be a size such as"),
        ("max_connections = 0", "must be from 1 to 262143"),
        ("max_connections = 5", "3 are reserved for superusers"),
        ("shared_buffers = \"64GB\"", "its memory limit leaves 1024 MB"),
        ("wal_level = \"minimal\"\nmax_wal_senders = 3", "needs more than `wal_level = \"minimal\"`"),
    ] {
        settings(env, &format!("{preload}{line}\n"));
        let outcome = up(env, &[]).exits(8);
        let error: Value = outcome.json_error();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words) && message.contains("tfdev.toml:"), "{line}: {error}");
    }
    settings(env, preload);
    let again = up(env, &[]).ok().json();
    assert_eq!((changes(&again), env.born(), show(env, "work_mem")), (vec![], born, "4MB".into()));
}
