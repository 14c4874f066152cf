//! Volumes and passwords that are not as they should be (`FAILURES.md` § Readiness and § "Ports, names, volumes,
//! resources").

use serde_json::{Value, json};

use crate::support::{TestEnv, docker, one, query, try_query};

#[test]
fn data_of_another_major_version_is_refused_with_the_way_out() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let container = up["container"].as_str().unwrap();
    env.run(&["down"]).ok();
    let set_version = |version: &str| {
        let file = env.path("PG_VERSION");
        std::fs::write(&file, version).unwrap();
        docker::docker(&["cp", file.to_str().unwrap(), &format!("{container}:/var/lib/postgresql/data/PG_VERSION")]);
    };
    set_version("14\n");
    let error = env.run(&["up", "--json"]).exits(5).json_error();
    assert!(error["message"].as_str().unwrap().contains("PostgreSQL 14"), "{error}");
    assert!(error["hints"].to_string().contains("pg_dump"), "{error}");
    assert_eq!(env.state(), "stopped");
    set_version("15\n");
    env.up();
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

#[test]
fn changed_passwords_are_set_right_and_the_data_stays() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let url = env.url();
    let superuser = env.superuser_url(&up["port"], "postgres");
    query(&superuser, "ALTER ROLE taskflow PASSWORD 'other'");
    try_query(&url, "SELECT 1").unwrap_err();
    env.up();
    assert_eq!(one(&url, "SELECT count(*) FROM tasks"), "50");

    query(&superuser, "ALTER ROLE taskflow PASSWORD 'other'; ALTER ROLE postgres PASSWORD 'other'");
    env.up();
    assert_eq!(one(&url, "SELECT count(*) FROM tasks"), "50");
    assert_eq!(one(&superuser, "SELECT 1"), "1");
}

#[test]
fn a_lost_state_folder_costs_no_data() {
    let Some(env) = TestEnv::docker() else { return };
    let before = env.up();
    query(&env.url(), "DELETE FROM tasks");
    let id = docker::inspect(before["volume"].as_str().unwrap())["Labels"]["dev.tfdev.id"].clone();
    std::fs::remove_dir_all(env.state_dir()).unwrap();
    let after = env.up();
    assert_eq!((&after["created"], &after["port"]), (&json!(false), &before["port"]));
    assert_ne!(after["url"], before["url"], "the passwords were lost, so there are others");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users"), "10");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "0", "not seeded again");
    try_query(before["url"].as_str().unwrap(), "SELECT 1").unwrap_err();
    assert_eq!(docker::inspect(after["volume"].as_str().unwrap())["Labels"]["dev.tfdev.id"], id);

    // The same with the server stopped.
    env.run(&["down"]).ok();
    std::fs::remove_dir_all(env.state_dir()).unwrap();
    env.up();
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users"), "10");
}

#[test]
fn a_broken_record_is_moved_aside() {
    let Some(env) = TestEnv::docker() else { return };
    env.up();
    let record = env.instance_dir().join("instance.json");
    std::fs::write(&record, "{ not json").unwrap();
    env.run(&["up", "--dataset", "small"]).ok().says("instance.json.broken");
    assert_eq!(std::fs::read_to_string(record.with_file_name("instance.json.broken")).unwrap(), "{ not json");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

/// Changes the record of the instance `dev`.
fn edit_record(env: &TestEnv, change: impl FnOnce(&mut Value)) {
    let file = env.instance_dir().join("instance.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(file, record.to_string()).unwrap();
}

#[test]
fn another_server_than_the_one_on_record_is_refused_before_any_write() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let url = up["url"].as_str().unwrap();
    query(url, "DELETE FROM users; DROP TABLE _sqlx_migrations");
    let written = "SELECT coalesce(to_regclass('_sqlx_migrations')::text, 'none') || (SELECT count(*) FROM users)";
    edit_record(&env, |record| record["system_identifier"] = json!("1"));
    for command in [
        &["up"] as &[&str],
        &["migrate"],
        &["migrate", "status"],
        &["seed", "--dataset", "small"],
        &["seed", "--dataset", "small", "--replace", "--yes"],
        &["status"],
    ] {
        env.run(command).exits(5).says("nothing was written");
        assert_eq!(one(url, written), "none0", "{command:?}");
    }
}

#[test]
fn data_with_another_identity_than_the_one_on_record_is_refused() {
    let Some(env) = TestEnv::docker() else { return };
    env.up();
    edit_record(&env, |record| record["uuid"] = json!("00000000-0000-4000-8000-000000000000"));
    env.run(&["up"]).exits(5).says("instance.json");
}

/// The labels of a volume as a killed run leaves it, for `docker volume create`.
fn labels(project: &str) -> Vec<String> {
    let id = "0f4de2b5-6c39-4b1e-9a51-6f1d1f8a4f10";
    ["project=".to_owned() + project, "instance=dev".to_owned(), format!("id={id}")]
        .iter()
        .flat_map(|label| ["--label".to_owned(), format!("dev.tfdev.{label}")])
        .collect()
}

/// Makes the volume of the test's instance `dev` by hand, filled by `script`.
fn make_volume(env: &TestEnv, script: &str) -> String {
    let volume = format!("{}-data", env.container_name());
    let labels = labels(&env.settled("project").0);
    let mut create = vec!["volume", "create"];
    create.extend(labels.iter().map(String::as_str));
    create.push(&volume);
    docker::docker(&create);
    run_on_volume(&volume, env.image(), script);
    volume
}

/// Runs a shell script in a container that has `volume` at `/there`.
fn run_on_volume(volume: &str, image: &str, script: &str) -> String {
    let mount = format!("{volume}:/there");
    docker::docker(&["run", "--rm", "--network", "none", "--entrypoint", "sh", "--volume", &mount, image, "-c", script])
}

#[test]
fn a_volume_that_a_killed_run_left_half_filled_is_completed() {
    for script in [
        "true",
        "mkdir -p /there/base /there/global; echo 15 > /there/PG_VERSION; echo rubbish > /there/global/pg_control",
    ] {
        let Some(env) = TestEnv::docker() else { return };
        let volume = make_volume(&env, script);
        let up = env.up();
        assert_eq!((&up["created"], &up["volume"]), (&json!(true), &json!(volume)));
        assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
        assert_eq!(env.up()["created"], json!(false));
    }
}

#[test]
fn a_data_folder_that_tfdev_did_not_make_is_never_overwritten() {
    let Some(env) = TestEnv::docker() else { return };
    let volume = make_volume(&env, "echo 15 > /there/PG_VERSION; echo precious > /there/postmaster.opts");
    env.run(&["up"]).exits(5).says(&volume);
    assert_eq!(run_on_volume(&volume, env.image(), "cat /there/postmaster.opts"), "precious");
}

#[test]
fn a_dropped_database_is_made_anew() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    query(&env.superuser_url(&up["port"], "postgres"), "DROP DATABASE taskflow WITH (FORCE)");
    env.run(&["up", "--dataset", "small"]).ok().says("`taskflow` is gone");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}
