//! `verify`: every row of the source passes where all is well, and fails when its promise is broken; and nothing of it is
//! left behind.

mod broken;
mod killed;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{TestEngine, TestEnv, on_every_engine, query};

/// How many rows the source has, and those of the diagram's relation and of what is in the cloud among them.
const ROWS: usize = 44;

/// The rows with this outcome, as `section: name`.
fn rows_with(report: &Value, outcome: &str) -> BTreeSet<String> {
    let rows = report["rows"].as_array().unwrap().iter().filter(|row| row["outcome"] == outcome);
    rows.map(|row| format!("{}: {}", row["section"].as_str().unwrap(), row["name"].as_str().unwrap())).collect()
}

/// Why the row is no pass.
fn because(report: &Value, name: &str) -> String {
    let row = report["rows"].as_array().unwrap().iter().find(|row| row["name"] == name && !row["because"].is_null());
    row.unwrap_or_else(|| panic!("{name} passed: {report}"))["because"].as_str().unwrap().to_owned()
}

/// What `verify` reports, however it ends.
#[track_caller]
fn verify(env: &TestEnv) -> Value {
    let outcome = env.run(&["verify", "--json"]);
    let report = outcome.json();
    assert_eq!(outcome.status.code(), Some(i32::from(report["failed"] != 0)), "{outcome:?}");
    assert_eq!(outcome.stderr, "");
    report
}

/// All that a command can leave in a server: rows, objects, settings, databases, roles, slots, publications.
fn traces(url: &str) -> Vec<String> {
    query(
        url,
        "SELECT 'class ' || c.oid::regclass || ' ' || c.relkind::text FROM pg_class c WHERE c.relnamespace::regnamespace::text NOT LIKE 'pg_toast%' \
         UNION ALL SELECT 'function ' || p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace \
         UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp' \
         UNION ALL SELECT 'database ' || datname FROM pg_database \
         UNION ALL SELECT 'role ' || rolname FROM pg_roles \
         UNION ALL SELECT 'setting ' || s::text FROM pg_db_role_setting s \
         UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots \
         UNION ALL SELECT 'publication ' || pubname FROM pg_publication \
         UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger \
         UNION ALL SELECT 'users ' || md5(string_agg(u::text, ',' ORDER BY id)) FROM users u \
         UNION ALL SELECT 'tasks ' || md5(string_agg(t::text, ',' ORDER BY id)) FROM tasks t ORDER BY 1",
    )
}

on_every_engine!(every_row_of_the_source_is_proven_and_nothing_is_left);

fn every_row_of_the_source_is_proven_and_nothing_is_left(env: &TestEnv) {
    env.run(&["verify"]).exits(4).says("make it with `tfdev up`");
    env.up();
    let before = traces(&env.url());
    let file = env.path("junit.xml");
    let arguments = ["verify", "--json", "--junit", file.to_str().unwrap()];
    if env.engine() == TestEngine::NativeUser {
        // The folder is its own.
        assert!(env.run(&["verify", "--junit", "/nowhere/at/all.xml"]).exits(1).stderr.contains("cannot write"));
    }
    let outcome = env.run(&arguments);
    let report = outcome.json();
    assert_eq!(traces(&env.url()), before);
    assert_eq!(report["rows"].as_array().unwrap().len(), ROWS);
    assert_eq!(report["profile"], "dev");
    for row in report["rows"].as_array().unwrap() {
        let passed = row["outcome"] == "pass";
        assert_eq!(row["because"].is_null(), passed, "{row}");
        assert!(!passed || !row["proof"].as_str().unwrap().is_empty(), "{row}");
    }
    let backup = ["Full backup", "Point-in-time", "Retention", "RTO", "RPO"];
    assert_eq!(rows_with(&report, "not_set_up"), backup.map(|name| format!("backup: {name}")).into());
    let xml = std::fs::read_to_string(&file).unwrap();
    assert_eq!(xml.matches("<testcase ").count(), ROWS);
    assert_eq!(json!(xml.matches("<failure ").count()), report["failed"]);
    assert_eq!(xml.matches("<skipped ").count() as u64, report["not_applicable"].as_u64().unwrap() + 5);

    if !env.engine().runs_the_server() {
        // A server of someone else has its own settings, and the role may make no slot.
        outcome.exits(1);
        let failed = rows_with(&report, "fail");
        assert!(
            failed
                .iter()
                .all(|row| row.starts_with("configuration: ") || row.starts_with("development_vs_production: ")),
            "{failed:?}"
        );
        assert!(failed.contains("configuration: max_connections"));
        assert!(because(&report, "WAL logical replication").contains("no REPLICATION attribute"));
        assert!(because(&report, "Memory").contains("run by someone else"));
        return;
    }
    let outcome = outcome.ok();
    assert_eq!(outcome.stderr, "");
    let mut not_applicable = BTreeSet::from(["deployment: EBS/Persistent disk".to_owned()]);
    if env.engine() != TestEngine::Docker {
        not_applicable
            .extend(["Docker image", "Data volume", "Named volume"].map(|name| format!("deployment: {name}")));
    } else if env.image() != "postgres:15-alpine" {
        not_applicable.insert("deployment: Docker image".to_owned());
    }
    if env.status()["limits_enforced"] == false {
        not_applicable.extend(["Memory", "CPU"].map(|name| format!("deployment: {name}")));
    }
    assert_eq!(rows_with(&report, "not_applicable"), not_applicable);
    let human = env.run(&["verify"]).ok().stdout;
    assert!(
        human.contains("Features Provided\n  pass  Connection pooling support") && human.contains(" 0 fail, "),
        "{human}"
    );
}

#[test]
fn what_a_profile_cannot_have_is_told_and_is_no_pass() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    env.run(&["up", "--instance", "test", "--dataset", "none"]).ok();
    let report = env.run(&["verify", "--instance", "test", "--json"]).ok().json();
    let not_applicable = rows_with(&report, "not_applicable");
    for row in
        ["configuration: wal_level", "development_vs_production: max_connections", "features: WAL logical replication"]
    {
        assert!(not_applicable.contains(row), "{row}: {not_applicable:?}");
    }
    assert!(because(&report, "WAL logical replication").contains("the profile `test` has wal_level = minimal"));
    assert!(rows_with(&report, "pass").contains("features: LISTEN/NOTIFY"));
}

#[test]
fn a_schema_of_the_projects_own_is_left_alone_and_the_features_are_proven_beside_it() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    env.write("tfdev.toml", "[migrations]\ndir = \"migrations\"\n[seed]\ndataset = \"none\"\n");
    env.write("migrations/1_notes.sql", "CREATE TABLE notes (id int PRIMARY KEY, body text);\n");
    env.run(&["up"]).ok();
    let tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1";
    let before = query(&env.url(), tables);
    let report = env.run(&["verify", "--json"]).ok().json();
    assert_eq!(query(&env.url(), tables), before);
    assert!(because(&report, "users.id").contains("the project has a schema of its own"));
    let passed = rows_with(&report, "pass");
    for feature in [
        "Connection pooling support",
        "LISTEN/NOTIFY",
        "JSON/JSONB columns",
        "Full-text search",
        "WAL logical replication",
    ] {
        assert!(passed.contains(&format!("features: {feature}")), "{feature}: {report}");
    }
}
