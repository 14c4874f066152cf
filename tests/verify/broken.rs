//! Each row fails when its promise is broken on purpose, and no other row does.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{because, rows_with, verify};
use crate::support::docker::docker as run_docker;
use crate::support::native::{data, limit_memory, pid};
use crate::support::{Session, TestEngine, TestEnv, on_every_engine, query};

on_every_engine!(@of_ours_by_one_user each_row_fails_when_its_promise_is_broken);

/// What is broken, the row that must fail, and what it must say.
struct Break {
    sql: &'static str,
    row: &'static str,
    says: &'static str,
}

const fn breaks(sql: &'static str, row: &'static str, says: &'static str) -> Break {
    Break { sql, row, says }
}

/// Features and settings, each broken for itself.
const FEATURES: [Break; 9] = [
    breaks("DROP INDEX tasks_metadata_idx", "features: JSON/JSONB columns", "no valid GIN index"),
    breaks("DROP INDEX tasks_search_idx", "features: Full-text search", "no valid GIN index"),
    breaks("DROP TRIGGER tasks_notify_change ON tasks", "features: LISTEN/NOTIFY", "told of no more"),
    breaks("ALTER TABLE tasks REPLICA IDENTITY NOTHING", "features: WAL logical replication", "replica identity"),
    breaks("ALTER ROLE taskflow CONNECTION LIMIT 5", "features: Connection pooling support", "no connection left"),
    breaks(
        "ALTER DATABASE taskflow SET work_mem = '1MB'",
        "configuration: work_mem",
        "ALTER DATABASE taskflow RESET work_mem",
    ),
    breaks(
        "ALTER ROLE taskflow SET maintenance_work_mem = '32MB'",
        "configuration: maintenance_work_mem",
        "ALTER ROLE taskflow RESET",
    ),
    breaks(
        "ALTER ROLE taskflow IN DATABASE taskflow SET log_min_duration_statement = '5s'",
        "configuration: log_min_duration_statement",
        "IN DATABASE taskflow RESET",
    ),
    breaks("ALTER DATABASE taskflow SET log_statement = 'none'", "configuration: log_statement", "RESET log_statement"),
];

/// Keys of the schema, each broken for itself.
const KEYS: [Break; 4] = [
    breaks("ALTER TABLE users DROP CONSTRAINT users_email_key", "schema: users.email", "no valid unique index"),
    breaks("ALTER TABLE tasks DROP CONSTRAINT tasks_pkey", "schema: tasks.id", "not the primary key"),
    breaks("ALTER TABLE tasks DROP CONSTRAINT tasks_user_id_fkey", "schema: tasks.user_id", "no validated foreign key"),
    breaks("ALTER TABLE users DROP CONSTRAINT users_pkey", "schema: users.id", "not the primary key"),
];

/// Types of the schema, each made another one.
const TYPES: [Break; 12] = [
    breaks("ALTER TABLE users ALTER id DROP DEFAULT, ALTER id TYPE text", "schema: users.id", "text is not a uuid"),
    breaks("ALTER TABLE users ALTER email TYPE bytea USING email::bytea", "schema: users.email", "is not a string"),
    breaks("ALTER TABLE users ALTER password_hash TYPE name", "schema: users.password_hash", "is not a string"),
    breaks(
        "ALTER TABLE users ALTER created_at DROP DEFAULT, ALTER created_at TYPE date",
        "schema: users.created_at",
        "is not a timestamp",
    ),
    breaks("ALTER TABLE tasks ALTER id DROP DEFAULT, ALTER id TYPE text", "schema: tasks.id", "text is not a uuid"),
    breaks("ALTER TABLE tasks ALTER user_id TYPE text", "schema: tasks.user_id", "text is not a uuid"),
    breaks("ALTER TABLE tasks ALTER title TYPE name", "schema: tasks.title", "is not a string"),
    breaks("ALTER TABLE tasks DROP COLUMN description", "schema: tasks.description", "there is no such column"),
    // These two are changed with what hangs on them, before.
    breaks("SELECT 1", "schema: tasks.status", "is not a string"),
    breaks("SELECT 1", "schema: tasks.created_at", "is not a timestamp"),
    breaks("ALTER TABLE tasks ALTER due_date TYPE date", "schema: tasks.due_date", "is not a timestamp"),
    breaks(
        "ALTER TABLE tasks ALTER metadata DROP DEFAULT, ALTER metadata TYPE json",
        "schema: tasks.metadata",
        "json is not a jsonb",
    ),
];

fn each_row_fails_when_its_promise_is_broken(env: &TestEnv) {
    let up = env.up();
    let superuser = env.superuser_url(&up["port"], "taskflow");
    let limits = env.status()["limits_enforced"] == true;
    triggers_of_the_project_are_respected(env, &superuser);
    privileges_are_missed(env);
    connections_are_missed(env, &env.url());
    limits_are_missed(env, limits);

    let none = BTreeSet::new();
    assert_all_fail(env, &superuser, &FEATURES, &none, |row| row != "development_vs_production: log_statement");
    // It takes its time to hear of nothing.
    query(&superuser, TRIGGER);
    // From here on only the schema counts: what it breaks, features break as well.
    let is_schema = |row: &str| row.starts_with("schema: ");
    let relation = BTreeSet::from([RELATION.to_owned()]);
    let keys = assert_all_fail(env, &superuser, &KEYS, &relation, is_schema);
    let before = rows_with(&keys, "fail").into_iter().filter(|row| is_schema(row)).collect();
    query(
        &superuser,
        "ALTER TABLE tasks ALTER status DROP DEFAULT, DROP CONSTRAINT tasks_status_check, ALTER status TYPE name, \
         ALTER created_at DROP DEFAULT, ALTER created_at TYPE date",
    );
    let report = assert_all_fail(env, &superuser, &TYPES, &before, is_schema);
    assert!(because(&report, "users ||--o{ tasks").contains("no validated foreign key"));
    query(&superuser, "DROP TABLE tasks, users");
    let report = verify(env);
    assert!(because(&report, "tasks.status").contains("no such table"));

    settings_of_the_server_are_missed(env);
}

const RELATION: &str = "schema: users ||--o{ tasks";

const TRIGGER: &str = "CREATE TRIGGER tasks_notify_change AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW \
                       EXECUTE FUNCTION notify_task_change()";

/// Breaks all at once; each row must fail for its own reason, and of those that `counts` no other but `others`.
#[track_caller]
fn assert_all_fail(
    env: &TestEnv,
    superuser: &str,
    all: &[Break],
    others: &BTreeSet<String>,
    counts: impl Fn(&str) -> bool,
) -> Value {
    for one in all {
        query(superuser, one.sql);
    }
    let report = verify(env);
    let failed: BTreeSet<_> = rows_with(&report, "fail").into_iter().filter(|row| counts(row)).collect();
    let expected: BTreeSet<_> = all.iter().map(|one| one.row.to_owned()).chain(others.clone()).collect();
    assert_eq!(failed, expected, "{report}");
    for one in all {
        let name = one.row.split_once(": ").unwrap().1;
        let because = because(&report, name);
        assert!(because.contains(one.says), "{}: {because}", one.row);
    }
    report
}

/// What a trigger writes elsewhere would stay, so its table is left alone.
fn triggers_of_the_project_are_respected(env: &TestEnv, superuser: &str) {
    query(
        superuser,
        "CREATE TABLE audit (task uuid); \
         CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NEW; END $$; \
         CREATE TRIGGER audit BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION audit(); GRANT INSERT ON audit TO taskflow",
    );
    let report = verify(env);
    assert_eq!(report["failed"], 0, "{report}");
    for feature in ["LISTEN/NOTIFY", "WAL logical replication"] {
        assert!(because(&report, feature).contains("(audit)"));
    }
    assert_eq!(query(superuser, "SELECT count(*) FROM audit"), ["0"]);
    query(
        superuser,
        "DROP TABLE audit; DROP FUNCTION audit() CASCADE; \
         CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NULL; END $$; \
         CREATE EVENT TRIGGER of_the_project ON ddl_command_end EXECUTE FUNCTION nothing()",
    );
    let report = verify(env);
    assert_eq!(report["failed"], 0, "{report}");
    assert!(because(&report, "WAL logical replication").contains("`of_the_project`"));
    query(superuser, "DROP EVENT TRIGGER of_the_project; DROP FUNCTION nothing()");
}

fn privileges_are_missed(env: &TestEnv) {
    let url = env.url();
    query(&url, "REVOKE INSERT ON tasks FROM taskflow");
    let report = verify(env);
    let expected = ["LISTEN/NOTIFY", "JSON/JSONB columns", "Full-text search"];
    assert_eq!(rows_with(&report, "fail"), expected.map(|name| format!("features: {name}")).into());
    assert!(because(&report, "Full-text search").contains("permission denied for table tasks"));
    query(&url, "GRANT INSERT ON tasks TO taskflow");
}

/// Some connections are an application's: that is told. All of them: then there is no pool, and the server is not ready.
fn connections_are_missed(env: &TestEnv, url: &str) {
    let mut application: Vec<_> = (0..10).map(|_| Session::open(url)).collect();
    let report = verify(env);
    assert_eq!(report["failed"], 0, "{report}");
    assert!(because(&report, "Connection pooling support").contains("10 of 17 connections are open already"));
    application.extend((0..7).map(|_| Session::open(url)));
    for session in &mut application {
        session.run("BEGIN");
    }
    let report = verify(env);
    let failed = rows_with(&report, "fail");
    for row in ["features: Connection pooling support", "health: Readiness"] {
        assert!(failed.contains(row), "{row}: {failed:?}");
    }
    drop(application);
    crate::support::until("free connections", || (verify(env)["failed"] == 0).then_some(()));
}

/// Docker's and the kernel's own word counts, not tfdev's.
fn limits_are_missed(env: &TestEnv, limits: bool) {
    if !limits {
        return;
    }
    let change = |memory: u64, cpus: &str| match env.engine() {
        TestEngine::Docker => {
            let memory = memory.to_string();
            let arguments =
                ["update", "--memory", &memory, "--memory-swap", "-1", "--cpus", cpus, &env.container_name()];
            drop(run_docker(&arguments));
        }
        _ => limit_memory(env, memory),
    };
    change(768 << 20, "0.5");
    let report = verify(env);
    let mut expected = BTreeSet::from(["deployment: Memory".to_owned()]);
    if env.engine() == TestEngine::Docker {
        expected.insert("deployment: CPU".to_owned());
    }
    assert_eq!(rows_with(&report, "fail"), expected);
    change(1 << 30, "1");
}

/// What only a start can change: the project asks for it, and the line that does is named.
fn settings_of_the_server_are_missed(env: &TestEnv) {
    env.run(&["destroy", "--yes"]).ok();
    env.write(
        "tfdev.toml",
        "[profiles.dev]\nmax_connections = 25\nshared_buffers = \"64MB\"\nwal_level = \"replica\"\nssl = \"on\"\n",
    );
    env.up();
    let report = verify(env);
    let expected = [
        "configuration: max_connections",
        "configuration: shared_buffers",
        "configuration: wal_level",
        "development_vs_production: max_connections",
        "development_vs_production: shared_buffers",
        "development_vs_production: ssl",
        "features: WAL logical replication",
    ];
    assert_eq!(rows_with(&report, "fail"), expected.map(str::to_owned).into(), "{report}");
    assert!(because(&report, "wal_level").ends_with("tfdev.toml:4"), "{report}");
    assert!(because(&report, "WAL logical replication").contains("logical decoding requires wal_level >= logical"));
}

#[test]
fn a_prod_server_that_lets_plain_logins_in_fails() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    let up = env.run(&["up", "--json", "--profile", "prod", "--dataset", "small"]).ok().json();
    let report = verify(&env);
    assert_eq!(
        (&report["failed"], &report["profile"]),
        (&serde_json::json!(0), &serde_json::json!("prod")),
        "{report}"
    );
    let ssl = report["rows"].as_array().unwrap().iter().find(|row| row["name"] == "ssl").unwrap();
    assert!(ssl["has"].as_str().unwrap().contains("a login without TLS is refused"), "{ssl}");
    // The rows of the other column.
    let dev = env.run(&["verify", "--json", "--profile", "dev"]).exits(1).json();
    assert!(because(&dev, "max_connections").contains("the server runs with the profile `prod`"));
    let rules = data(&env).with_file_name("pg_hba.conf");
    let text = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, text.replace("hostssl", "host")).unwrap();
    query(up["url"].as_str().unwrap(), "SELECT 1");
    crate::support::process::kill(pid(&env), "HUP");
    crate::support::until("the new rules", || {
        let report = verify(&env);
        let failed = rows_with(&report, "fail");
        (!failed.is_empty()).then(|| {
            assert_eq!(failed, BTreeSet::from(["development_vs_production: ssl".to_owned()]), "{report}");
            assert!(because(&report, "ssl").contains("a login without TLS is let in"));
        })
    });
}
