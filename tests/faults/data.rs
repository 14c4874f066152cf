//! Data, records and passwords that are not as they should be (`FAILURES.md` § Readiness and § "Ports, names, volumes,
//! resources").

use serde_json::{Value, json};

use crate::support::{TestEnv, finish, on_every_engine, one, query, start, try_query};

on_every_engine!(
    changed_passwords_are_set_right_and_the_data_stays,
    lost_records_cost_no_data,
    a_broken_record_is_moved_aside,
    another_server_than_the_one_on_record_is_refused_before_any_write,
    data_with_another_identity_than_the_one_on_record_is_refused,
    a_dropped_database_is_made_anew,
    data_that_was_removed_by_hand_is_made_anew_with_a_warning,
);

fn changed_passwords_are_set_right_and_the_data_stays(env: &TestEnv) {
    let up = env.up();
    let url = env.url();
    let superuser = env.superuser_url(&up["port"], "postgres");
    if !env.engine().runs_the_server() {
        query(&superuser, "ALTER ROLE dev PASSWORD 'other'");
        env.run(&["up"]).exits(3).says("does not accept the password of the role `dev`");
        let mut command = env.command(&["up", "--dataset", "small"]);
        command.env("PGPASSWORD", "other");
        finish(start(command)).ok();
        query(&superuser, &format!("ALTER ROLE dev PASSWORD '{}'", env.password("user")));
        return assert_eq!(env.tasks(), "50");
    }
    query(&superuser, "ALTER ROLE taskflow PASSWORD 'other'");
    try_query(&url, "SELECT 1").unwrap_err();
    env.up();
    assert_eq!(one(&url, "SELECT count(*) FROM tasks"), "50");

    query(&superuser, "ALTER ROLE taskflow PASSWORD 'other'; ALTER ROLE postgres PASSWORD 'other'");
    env.run(&["up"]).ok().says("The server has other passwords");
    assert_eq!(one(&url, "SELECT count(*) FROM tasks"), "50");
    assert_eq!(one(&superuser, "SELECT 1"), "1");
}

fn lost_records_cost_no_data(env: &TestEnv) {
    let before = env.up();
    query(&env.url(), "DELETE FROM tasks");
    let marker = |up: &Value| {
        let registry = up["registry"].as_str().unwrap_or("postgres");
        one(&env.superuser_url(&up["port"], registry), "SELECT id FROM tfdev.instance")
    };
    let id = marker(&before);
    env.lose_records();
    let after = env.up();
    assert_eq!((&after["created"], &after["port"]), (&json!(false), &before["port"]));
    if env.engine().runs_the_server() {
        assert_ne!(after["url"], before["url"], "the passwords were lost, so there are others");
    } else {
        assert_eq!(after["url"], before["url"], "the password was never ours");
    }
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users"), "10");
    assert_eq!(env.tasks(), "0", "not seeded again");
    let old = try_query(before["url"].as_str().unwrap(), "SELECT 1");
    assert_eq!(old.is_err(), env.engine().runs_the_server());
    assert_eq!(marker(&after), id);

    // The same with the server stopped.
    env.run(&["down"]).ok();
    env.lose_records();
    env.up();
    assert_eq!(one(&env.url(), "SELECT count(*) FROM users"), "10");
}

fn a_broken_record_is_moved_aside(env: &TestEnv) {
    env.up();
    let record = env.instance_dir().join("instance.json");
    std::fs::write(&record, "{ not json").unwrap();
    env.run(&["up", "--dataset", "small"]).ok().says("instance.json.broken");
    assert_eq!(std::fs::read_to_string(record.with_file_name("instance.json.broken")).unwrap(), "{ not json");
    assert_eq!(env.tasks(), "50");
}

/// Changes the record of the instance `dev`.
fn edit_record(env: &TestEnv, change: impl FnOnce(&mut Value)) {
    let file = env.instance_dir().join("instance.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(file, record.to_string()).unwrap();
}

fn another_server_than_the_one_on_record_is_refused_before_any_write(env: &TestEnv) {
    let up = env.up();
    let url = up["url"].as_str().unwrap();
    query(url, "DELETE FROM users; DROP TABLE _sqlx_migrations");
    let written = "SELECT coalesce(to_regclass('_sqlx_migrations')::text, 'none') || (SELECT count(*) FROM users)";
    edit_record(env, |record| record["system_identifier"] = json!("1"));
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

fn data_with_another_identity_than_the_one_on_record_is_refused(env: &TestEnv) {
    env.up();
    edit_record(env, |record| record["uuid"] = json!("00000000-0000-4000-8000-000000000000"));
    env.run(&["up"]).exits(5).says("instance.json");
}

fn a_dropped_database_is_made_anew(env: &TestEnv) {
    let up = env.up();
    query(&env.superuser_url(&up["port"], "postgres"), "DROP DATABASE taskflow WITH (FORCE)");
    env.run(&["up", "--dataset", "small"]).ok().says("`taskflow` is gone");
    assert_eq!(env.tasks(), "50");
}

fn data_that_was_removed_by_hand_is_made_anew_with_a_warning(env: &TestEnv) {
    env.up();
    env.remove_by_hand();
    env.run(&["up", "--dataset", "small"]).ok().says("removed by something other than tfdev");
    assert_eq!(env.tasks(), "50");
    assert_eq!(env.up()["created"], json!(false));
}

/// Of the data folder, which is out of reach on a server of someone else; which versions of those are refused, the library
/// tries.
mod folder {
    use crate::support::{TestEnv, on_every_engine};

    on_every_engine!(@of_ours data_of_another_major_version_is_refused_with_the_way_out);

    fn data_of_another_major_version_is_refused_with_the_way_out(env: &TestEnv) {
        env.up();
        env.run(&["down"]).ok();
        env.write_data_file("PG_VERSION", "14\n");
        let error = env.run(&["up", "--json"]).exits(5).json_error();
        assert!(error["message"].as_str().unwrap().contains("PostgreSQL 14"), "{error}");
        assert!(error["hints"].to_string().contains("pg_dump"), "{error}");
        assert_eq!(env.state(), "stopped");
        env.write_data_file("PG_VERSION", "15\n");
        env.up();
        assert_eq!(env.tasks(), "50");
    }
}
