//! The storage limit of 10 GB (`CON-003-postgres.md` § Deployment, Resource limits).

use serde_json::{Value, json};

use super::on_docker_and_native;
use crate::support::{TestEnv, docker, native, one, process};

on_docker_and_native!(storage_is_told_warned_of_and_refused_beforehand);

fn storage_is_told_warned_of_and_refused_beforehand(env: &TestEnv) {
    env.up();
    env.run(&["snapshot", "create", "before"]).ok();
    let storage = env.status()["storage"].clone();
    assert_eq!(storage["limit_bytes"], json!(10_u64 << 30));
    let of = |purpose: &str| -> Vec<Value> {
        let all = storage["databases"].as_array().unwrap().iter();
        all.filter(|one| one["purpose"] == purpose).cloned().collect()
    };
    assert_eq!((&of("project")[0]["database"], of("project").len()), (&json!("taskflow"), 1));
    assert_eq!(of("snapshot")[0]["snapshot"], json!("before"));
    assert_eq!(storage["growth"]["since"], json!("before"));
    let sum: u64 = storage["databases"].as_array().unwrap().iter().map(|one| one["size_bytes"].as_u64().unwrap()).sum();
    assert_eq!(storage["used_bytes"].as_u64().unwrap(), sum + storage["wal_bytes"].as_u64().unwrap());
    env.run(&["seed", "--dataset", "load", "--append", "--tasks", "100000000"])
        .exits(5)
        .says("the data set `load` needs ")
        .says("limit of 10240 MB");

    // A file with a hole counts for the server like any other.
    let number = one(&env.url(), "SELECT oid FROM pg_database WHERE datname = current_database()");
    in_data_folder(env, &format!("dd if=/dev/zero of=base/{number}/hole bs=1 count=1 seek=9600M"));
    let status = env.run(&["status"]).ok();
    let text = status.stdout.clone();
    status.says("% of this instance's storage is in use").says("the largest is `taskflow`");
    assert!(text.contains(" more than `before`)") && text.contains("1 snapshots"), "{text}");
    let used = env.status()["storage"]["used_bytes"].as_u64().unwrap();
    assert!(used > (8 << 30), "{used}");
    env.run(&["snapshot", "create", "too-much"]).exits(5).says("limit of 10240 MB").says("`before`");
    env.run(&["seed", "--dataset", "load", "--append"]).exits(5).says("the data set `load` needs ");
    env.run(&["seed", "--dataset", "small", "--append"]).ok();
    in_data_folder(env, &format!("rm base/{number}/hole"));
    let calm = env.run(&["status"]).ok();
    assert!(!calm.stderr.contains("storage is in use"), "{}", calm.stderr);
}

/// Runs a line of a shell in the data folder.
fn in_data_folder(env: &TestEnv, line: &str) {
    match env.status()["container"].as_str() {
        Some(container) => {
            drop(docker::docker(&["exec", container, "sh", "-c", &format!("cd /var/lib/postgresql/data && {line}")]));
        }
        None => drop(process::shell(&format!("cd {} && {line}", native::data(env).display()))),
    }
}
