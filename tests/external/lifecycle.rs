//! From `up` to `destroy`.

use serde_json::json;

use super::{External, PASSWORD};
use crate::support::process::shell;
use crate::support::{finish, one, query, start};

#[test]
fn databases_are_made_used_and_dropped_by_a_role_that_may_do_nothing_else() {
    let Some(external) = External::new() else { return };
    external.server.sql("CREATE DATABASE others");
    let before = external.server.databases();

    let up = external.up();
    assert_eq!((&up["engine"], &up["created"], &up["started"]), (&json!("external"), &json!(true), &json!(false)));
    assert_eq!((&up["user"], &up["database"], &up["container"]), (&json!("dev"), &json!("taskflow"), &json!(null)));
    assert_eq!(up["registry"], json!(external.registry()));
    let url = up["url"].as_str().unwrap();
    assert_eq!(one(url, "SELECT current_user"), "dev");
    let tasks = one(url, "SELECT count(*) FROM tasks");
    assert_ne!(tasks, "0");

    let again = external.up();
    assert_eq!((&again["created"], &again["seed"]["applied"]), (&json!(false), &json!(false)));
    let status = external.run(&["status", "--json"]).ok().json();
    assert_eq!((&status["state"], &status["migrations"]["applied"]), (&json!("running"), &up["migrations"]["total"]));
    assert!(status["storage"]["used_bytes"].as_u64().unwrap() > 1 << 20, "{status}");
    assert_eq!(status["limits_enforced"], json!(false));
    external.run(&["migrate", "status"]).ok();
    external.run(&["seed", "--dataset", "small", "--replace", "--yes"]).ok();
    let counted = external.run(&["psql", "--", "-XAtc", "SELECT count(*) FROM tasks"]).ok();
    assert_eq!(counted.stdout.trim(), tasks);

    let down = external.run(&["down", "--json"]).ok().json();
    let stopped = &down["instances"][0];
    assert_eq!((&stopped["changed"], &stopped["running"]), (&json!(false), &json!(true)));
    assert_eq!(stopped["data_kept"], json!(true));
    external.run(&["down"]).ok().says("never stops it");
    assert_eq!(one(url, "SELECT count(*) FROM tasks"), tasks);

    let mut session = crate::support::Session::open(url);
    session.run("SELECT 1");
    let destroyed = external.run(&["destroy", "--yes", "--json"]).ok().json();
    assert_eq!(destroyed["instances"][0]["removed"].as_array().unwrap().len(), 2, "{destroyed}");
    assert_eq!(external.server.databases(), before);
    assert_eq!(external.run(&["status", "--json"]).ok().json()["state"], json!("absent"));
    assert_eq!(
        external.server.read("SELECT rolname FROM pg_roles WHERE rolname LIKE 'taskflow%'"),
        Vec::<String>::new()
    );
}

#[test]
fn the_password_is_kept_nowhere() {
    let Some(external) = External::new() else { return };
    let up = external.up();
    assert!(up["url"].as_str().unwrap().contains(PASSWORD), "the URL is for logging in");
    let state = external.env.state_dir();
    let found = shell(&format!("grep -rl '{PASSWORD}' '{}' || true", state.display()));
    assert_eq!(found, "");
    assert!(!external.server.log().contains(PASSWORD));
    let variables = external.run(&["env", "--json"]).ok().json();
    assert_eq!((&variables["PGUSER"], variables.get("PGPASSFILE")), (&json!("dev"), None));
    let psql = external.run(&["psql", "--", "-XAtc", r"\! cat /proc/$PPID/cmdline; echo; env"]).ok();
    assert!(!psql.stdout.contains(&format!("PGPASSWORD={PASSWORD}")), "{}", psql.stdout);
    let file = psql.stdout.lines().find_map(|line| line.strip_prefix("PGPASSFILE=")).unwrap();
    assert!(!std::path::Path::new(file).exists(), "the password file goes with psql");
}

#[test]
fn other_instances_and_other_projects_share_the_server() {
    let Some(external) = External::new() else { return };
    external.up();
    let mut other = external.command(&["up", "--json", "--dataset", "small", "--instance", "other"]);
    other.env("TFDEV_QUIET", "1");
    let refused = finish(start(other)).exits(5);
    assert!(refused.stderr.contains("belongs to the instance `dev`"), "{}", refused.stderr);
    external.env.write("tfdev.toml", "[database]\nname = \"second\"\n");
    external.run(&["up", "--json", "--dataset", "small", "--instance", "other"]).ok();
    external.run(&["destroy", "--yes", "--instance", "other"]).ok();
    let left = external.server.databases();
    assert!(left.contains(&"taskflow".to_owned()) && !left.contains(&"second".to_owned()), "{left:?}");
}

#[test]
fn a_lost_record_is_found_again_from_the_same_checkout_only() {
    let Some(external) = External::new() else { return };
    let up = external.up();
    std::fs::remove_dir_all(external.env.state_dir()).unwrap();
    let again = external.up();
    assert_eq!((&again["created"], &again["registry"]), (&json!(false), &up["registry"]));
    std::fs::remove_dir_all(external.env.state_dir()).unwrap();
    let marker = one(
        &external.server.superuser_url("postgres"),
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'taskflow'",
    );
    assert!(marker.contains(external.env.project.to_str().unwrap()), "{marker}");
    let elsewhere = marker.replace(external.env.project.to_str().unwrap(), "/elsewhere").replace('\'', "''");
    let registry = up["registry"].as_str().unwrap();
    external.server.sql(&format!("COMMENT ON DATABASE taskflow IS '{elsewhere}'"));
    external.server.sql(&format!("COMMENT ON DATABASE {registry} IS '{elsewhere}'"));
    external.up_is_refused(5, &["belongs to the instance `dev`", "/elsewhere"]);
}

#[test]
fn what_was_dropped_by_hand_is_made_anew() {
    let Some(external) = External::new() else { return };
    external.up();
    external.server.sql("DROP DATABASE taskflow");
    let again = external.up();
    assert_eq!((&again["created"], &again["seed"]["applied"]), (&json!(true), &json!(true)));
    let registry = external.registry();
    external.server.sql("DROP DATABASE taskflow");
    external.server.sql(&format!("DROP DATABASE {registry}"));
    let status = external.run(&["status", "--json"]).ok().json();
    assert_eq!((&status["state"], &status["registry"]), (&json!("absent"), &json!(null)));
    external.run(&["url"]).exits(4).says("make it with `tfdev up`");
    external.run(&["up", "--dataset", "small"]).ok().says("removed by something other than tfdev");
    assert_eq!(external.registry(), registry);
}

#[test]
fn what_a_killed_run_left_unfinished_is_taken_up_and_dropped() {
    let Some(external) = External::new() else { return };
    external.up();
    let registry = external.registry();
    // As after a kill between the making of the project's database and its marking and naming.
    let dev = external.up()["url"].as_str().unwrap().to_owned();
    external.server.sql("DROP DATABASE taskflow");
    let own = dev.replace("/taskflow", &format!("/{registry}"));
    query(&own, &format!("CREATE DATABASE {registry}_new"));
    external.up();
    assert!(!external.server.databases().contains(&format!("{registry}_new")));
    query(&own, &format!("CREATE DATABASE {registry}_new"));
    external.run(&["destroy", "--yes"]).ok();
    assert!(external.server.databases().iter().all(|name| !name.starts_with("tfdev_")));
}

#[test]
fn an_instance_stays_on_the_server_that_has_it() {
    let Some(external) = External::new() else { return };
    external.up();
    let mut auto = external.command(&["status", "--json"]);
    auto.env_remove("TFDEV_ENGINE");
    assert_eq!(finish(start(auto)).ok().json()["engine"], json!("external"));
    let mut native = external.command(&["up"]);
    native.env("TFDEV_ENGINE", "native");
    finish(start(native)).exits(5).says("is on the engine external");
}

#[test]
fn a_profile_that_the_server_does_not_have_is_told_and_does_not_fail() {
    let Some(external) = External::with(&["max_connections=40"]) else { return };
    let outcome = external.run(&["up", "--dataset", "small", "--profile", "prod"]).ok();
    outcome.says("not tfdev's to change").says("max_connections is 40, not 100").says("ssl is off, not on");
}
