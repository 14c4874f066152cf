//! A state comes back in all its parts, and what forbids a copy is named (`FAILURES.md` § Clones, snapshots, reset).

use serde_json::json;

use super::{names, registry, rows, snapshot, superuser, wait_for_order};
use crate::support::{TestEnv, on_every_engine, one, query};

on_every_engine!(
    all_that_belongs_to_a_database_comes_back,
    a_prepared_transaction_and_a_replication_slot_are_named,
    what_would_not_fit_is_refused_with_what_could_go,
    a_database_that_something_else_dropped_is_told_and_forgotten,
);

/// What belongs to the database beside its contents, as one text.
const PROPERTIES: &str = "SELECT concat_ws(' | ', pg_get_userbyid(datdba), datconnlimit, \
    (SELECT string_agg(concat_ws(':', grantor::regrole, grantee::regrole, privilege_type, is_grantable), ',' \
     ORDER BY grantor::regrole::text, grantee::regrole::text, privilege_type) FROM aclexplode(datacl)), \
    (SELECT string_agg(setrole::regrole || '=' || setconfig::text, ';' ORDER BY setrole::regrole::text) \
     FROM pg_db_role_setting WHERE setdatabase = d.oid), shobj_description(oid, 'pg_database'), \
    encoding, datcollate, datctype, datlocprovider, datallowconn, datistemplate) \
    FROM pg_database d WHERE datname = current_database()";

/// Parts of the contents that partial copies have lost.
const CONTENTS: &str = "SELECT concat_ws(' | ', (SELECT last_value || ' ' || is_called FROM counter), \
    (SELECT string_agg(md5(lo_get(oid)), ',' ORDER BY oid) FROM pg_largeobject_metadata), \
    (SELECT string_agg(extname || extversion, ',' ORDER BY extname) FROM pg_extension), \
    (SELECT string_agg(pubname || puballtables || pubinsert, ',' ORDER BY pubname) FROM pg_publication), \
    (SELECT string_agg(relname || relacl::text, ',' ORDER BY relname) FROM pg_class WHERE relacl IS NOT NULL \
     AND relnamespace = 'public'::regnamespace), (SELECT string_agg(defaclacl::text, ',') FROM pg_default_acl))";

fn all_that_belongs_to_a_database_comes_back(env: &TestEnv) {
    env.up();
    if !env.engine().runs_the_server() {
        return what_an_ordinary_role_may_set_comes_back(env);
    }
    let admin = superuser(env, "taskflow");
    for statement in [
        "CREATE ROLE reader; CREATE ROLE \"odd \"\"role\"; CREATE ROLE keeper",
        "ALTER DATABASE taskflow SET search_path TO \"$user\", public, \"a b\"",
        "ALTER DATABASE taskflow SET work_mem TO '5MB'; ALTER DATABASE taskflow SET taskflow.flavour TO 'it''s \\ \"x\"'",
        "ALTER DATABASE taskflow SET \"DateStyle\" TO 'German, DMY'",
        "ALTER ROLE reader IN DATABASE taskflow SET statement_timeout TO '7s'",
        "ALTER ROLE \"odd \"\"role\" IN DATABASE taskflow SET search_path TO ''",
        "REVOKE ALL ON DATABASE taskflow FROM PUBLIC; GRANT CONNECT ON DATABASE taskflow TO reader WITH GRANT OPTION",
        "SET ROLE reader; GRANT CONNECT ON DATABASE taskflow TO \"odd \"\"role\"; RESET ROLE",
        "GRANT CREATE, TEMPORARY ON DATABASE taskflow TO keeper; GRANT CREATE ON DATABASE taskflow TO PUBLIC",
        "ALTER DATABASE taskflow CONNECTION LIMIT 9; COMMENT ON DATABASE taskflow IS 'it''s ours'",
        "CREATE SEQUENCE counter; SELECT setval('counter', 42); SELECT lo_from_bytea(0, 'large')",
        "CREATE EXTENSION pg_trgm; CREATE PUBLICATION feed FOR TABLE tasks WITH (publish = 'insert')",
        "GRANT SELECT ON tasks TO reader; ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO reader",
    ] {
        query(&admin, statement);
    }
    let state = |env: &TestEnv| {
        let admin = superuser(env, "taskflow");
        (one(&admin, PROPERTIES), one(&admin, CONTENTS), rows(env))
    };
    let before = state(env);
    snapshot(env, &["create", "full"]);
    assert_eq!(state(env), before, "a copy changes nothing");
    let spoil = "ALTER DATABASE taskflow RESET ALL; ALTER DATABASE taskflow OWNER TO postgres; \
                 REVOKE ALL ON DATABASE taskflow FROM reader CASCADE; ALTER DATABASE taskflow CONNECTION LIMIT -1; \
                 ALTER ROLE reader IN DATABASE taskflow RESET ALL; COMMENT ON DATABASE taskflow IS NULL; \
                 GRANT CONNECT ON DATABASE taskflow TO PUBLIC; SELECT nextval('counter'), lo_unlink(oid) \
                 FROM pg_largeobject_metadata; DROP EXTENSION pg_trgm; DROP PUBLICATION feed; TRUNCATE tasks";
    for way in ["standby", "copy"] {
        query(&superuser(env, "taskflow"), spoil);
        let spoilt = state(env);
        assert_ne!(spoilt, before);
        assert_eq!(snapshot(env, &["restore", "full"])["way"], json!(way));
        assert_eq!(state(env), before);
        snapshot(env, &["restore", "--undo"]);
        assert_eq!(state(env), spoilt, "the state before is as it was in all parts, too");
        snapshot(env, &["restore", "--undo"]);
        // The next restore has no ready copy.
        env.write("tfdev.toml", "[snapshots]\nstandby = false\n");
        if way == "standby" {
            assert_eq!(snapshot(env, &["restore", "full"])["way"], json!("standby"));
        }
    }
    query(&superuser(env, "taskflow"), "ALTER DATABASE taskflow SET work_mem TO '6MB'");
    let properties = one(&superuser(env, "taskflow"), PROPERTIES);
    env.run(&["reset", "--dataset", "small", "--yes"]).ok();
    assert_eq!(one(&superuser(env, "taskflow"), PROPERTIES), properties, "a reset keeps what belongs to the database");
    // A role is the same one by another name, and one that a snapshot needs cannot go.
    query(&superuser(env, "taskflow"), "ALTER ROLE keeper RENAME TO finder");
    snapshot(env, &["restore", "full"]);
    let (properties, _, _) = state(env);
    assert_eq!(properties.replace("finder", "keeper").len(), before.0.len(), "{properties}");
    assert!(
        properties.contains("postgres:finder:CREATE") || properties.contains("taskflow:finder:CREATE"),
        "{properties}"
    );
    wait_for_order(env);
}

/// Where the superuser is someone else: what he alone may set is refused, by name, and never left out in silence.
fn what_an_ordinary_role_may_set_comes_back(env: &TestEnv) {
    env.server().sql("CREATE ROLE reader");
    for statement in [
        "ALTER DATABASE taskflow SET search_path TO \"$user\", public, \"a b\"; ALTER DATABASE taskflow SET work_mem TO '5MB'",
        "ALTER ROLE dev IN DATABASE taskflow SET statement_timeout TO '70s'",
        "REVOKE ALL ON DATABASE taskflow FROM PUBLIC; GRANT CONNECT ON DATABASE taskflow TO reader WITH GRANT OPTION",
        "ALTER DATABASE taskflow CONNECTION LIMIT 90; CREATE EXTENSION pg_trgm",
        "CREATE SEQUENCE counter; SELECT setval('counter', 42); SELECT lo_from_bytea(0, 'large')",
        "GRANT SELECT ON tasks TO reader; ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO reader",
    ] {
        query(&env.url(), statement);
    }
    let state = |env: &TestEnv| {
        let admin = superuser(env, "taskflow");
        (one(&admin, PROPERTIES), one(&admin, CONTENTS), rows(env))
    };
    let before = state(env);
    snapshot(env, &["create", "full"]);
    assert_eq!(state(env), before, "a copy changes nothing");
    let spoil = "ALTER DATABASE taskflow RESET ALL; REVOKE ALL ON DATABASE taskflow FROM reader CASCADE; \
                 GRANT CONNECT ON DATABASE taskflow TO PUBLIC; SELECT nextval('counter'); DROP EXTENSION pg_trgm; \
                 TRUNCATE tasks";
    query(&env.url(), spoil);
    let spoilt = state(env);
    assert_eq!(snapshot(env, &["restore", "full"])["way"], json!("standby"));
    assert_eq!(state(env), before);
    snapshot(env, &["restore", "--undo"]);
    assert_eq!(state(env), spoilt);

    env.server().sql("ALTER ROLE reader IN DATABASE taskflow SET statement_timeout TO '7s'");
    let states = (state(env), names(env));
    env.run(&["snapshot", "create", "other"])
        .exits(5)
        .says("ALTER ROLE \"reader\" IN DATABASE")
        .says("the role may not");
    env.run(&["reset", "--dataset", "small", "--yes"]).exits(5).says("the role may not");
    assert_eq!((state(env), names(env)), states);
    wait_for_order(env);
}

fn a_prepared_transaction_and_a_replication_slot_are_named(env: &TestEnv) {
    env.write("tfdev.toml", "[profiles.dev]\nmax_prepared_transactions = 2\n");
    env.up();
    snapshot(env, &["create", "a"]);
    query(&env.url(), "BEGIN; CREATE TABLE pending (); PREPARE TRANSACTION 'two phase'");
    for command in [&["snapshot", "create", "b"][..], &["snapshot", "restore", "a"], &["reset", "--yes"]] {
        env.run(command).exits(5).says("the prepared transaction `two phase`").says("ROLLBACK PREPARED");
    }
    query(&env.url(), "ROLLBACK PREPARED 'two phase'");
    query(&superuser(env, "taskflow"), "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')");
    for command in [&["snapshot", "restore", "a"][..], &["reset", "--yes"]] {
        env.run(command).exits(5).says("the replication slot `feed`").says("pg_drop_replication_slot");
    }
    // It stays with the database, so a copy is no harm.
    snapshot(env, &["create", "b"]);
    query(&superuser(env, "taskflow"), "SELECT pg_drop_replication_slot('feed')");
    snapshot(env, &["restore", "a"]);
    assert_eq!(names(env).len(), 3);
}

fn what_would_not_fit_is_refused_with_what_could_go(env: &TestEnv) {
    env.up();
    snapshot(env, &["create", "small one"]);
    let before = rows(env);
    wait_for_order(env);
    // A file with a hole counts for the server as what it seems to be.
    let grow = "DO $$ BEGIN EXECUTE format('COPY (SELECT 1) TO PROGRAM ''cat > /dev/null; dd if=/dev/null of=base/%s/999999 bs=1 count=0 seek=6G''', \
                (SELECT oid FROM pg_database WHERE datname = 'taskflow')); END $$";
    query(&superuser(env, "postgres"), grow);
    let refused = env.run(&["snapshot", "create", "b"]).exits(5);
    refused.says("limit of 10240 MB").says("`tfdev snapshot delete NAME` frees those of `small one`");
    assert_eq!((names(env), rows(env)), (vec!["small one".to_owned()], before.clone()));
    let ready = |env: &TestEnv| snapshot(env, &["list"])["snapshots"][0]["standby"].clone();
    assert_eq!(ready(env), json!(false), "ready copies went first");
    // What fits is done as ever.
    snapshot(env, &["restore", "small one"]);
    assert_eq!(rows(env), before);
    wait_for_order(env);
}

fn a_database_that_something_else_dropped_is_told_and_forgotten(env: &TestEnv) {
    env.up();
    snapshot(env, &["create", "a"]);
    let admin = registry(env);
    let database = one(&admin, "SELECT database FROM tfdev.snapshot WHERE name = 'a'");
    wait_for_order(env);
    query(&admin, &format!("DROP DATABASE {database}"));
    env.run(&["snapshot", "restore", "a"]).exits(4).says("something dropped its database");
    assert_eq!(names(env), Vec::<String>::new());
    snapshot(env, &["create", "a"]);
    // What only looks like ours stays.
    query(&admin, "CREATE DATABASE tfdev_s_0123456789abcdef");
    snapshot(env, &["restore", "a"]);
    snapshot(env, &["delete", "a"]);
    assert_eq!(one(&admin, "SELECT count(*) FROM pg_database WHERE datname = 'tfdev_s_0123456789abcdef'"), "1");
}
