//! What comes back is what went in.

use super::{Side, fingerprint, text};
use crate::support::{TestEngine, TestEnv, query, try_query, until};

/// Roles of the server, which no file holds.
const ROLES: &str = "CREATE ROLE \"the reader\"; CREATE ROLE writer";

/// Something of everything that an ordinary role can make, and whatever of it a dump of one database omits.
const RICH: &str = r#"
    CREATE EXTENSION pg_trgm; CREATE EXTENSION pgcrypto;
    CREATE SCHEMA "Other ""schema""";
    CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
    CREATE FUNCTION even(integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1 % 2 = 0; END';
    CREATE TABLE things (id integer GENERATED ALWAYS AS IDENTITY, n positive CHECK (even(n)), m mood DEFAULT 'ok',
        t text, double integer GENERATED ALWAYS AS (n * 2) STORED, EXCLUDE USING gist (t gist_trgm_ops WITH =));
    INSERT INTO things (n, t) SELECT i * 2, encode(digest(i::text, 'sha256'), 'hex') || E'\t\\N\n' FROM generate_series(1, 500) i;
    UPDATE things SET m = 'sad' WHERE n % 3 = 0; DELETE FROM things WHERE n % 5 = 0;
    CREATE INDEX ON things USING gin (t gin_trgm_ops);
    CREATE TABLE parts (day date, n integer) PARTITION BY RANGE (day);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    INSERT INTO parts VALUES ('2026-01-05', 7);
    CREATE UNLOGGED TABLE "Other ""schema""".cache (v bytea); INSERT INTO "Other ""schema""".cache VALUES ('\x00ff');
    CREATE VIEW seen AS SELECT count(*) FROM things; CREATE MATERIALIZED VIEW counted AS SELECT * FROM seen;
    CREATE SEQUENCE numbers INCREMENT 7; SELECT setval('numbers', 4711);
    SELECT lo_from_bytea(424242, '\x0102030405'); COMMENT ON LARGE OBJECT 424242 IS 'large';
    ALTER TABLE things ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON things TO "the reader" USING (n > 0);
    CREATE PUBLICATION news FOR TABLE parts;
    GRANT SELECT (n), UPDATE (t) ON things TO "the reader"; GRANT USAGE ON SCHEMA "Other ""schema""" TO writer WITH GRANT OPTION;
    GRANT SELECT ON LARGE OBJECT 424242 TO writer; REVOKE EXECUTE ON FUNCTION even FROM PUBLIC;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO "the reader";
    ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
    COMMENT ON DATABASE taskflow IS 'it''s \ rich'; GRANT CREATE ON DATABASE taskflow TO writer;
    REVOKE TEMPORARY ON DATABASE taskflow FROM PUBLIC; ALTER DATABASE taskflow CONNECTION LIMIT 17;
    ALTER DATABASE taskflow SET search_path = public, "Other ""schema"""; ALTER DATABASE taskflow SET timezone = 'Asia/Tokyo';
    ALTER ROLE taskflow IN DATABASE taskflow SET work_mem = '5MB'
"#;

fn make_rich(side: &Side<'_>) {
    query(&side.superuser("taskflow"), ROLES);
    query(&side.url(), RICH);
}

#[test]
fn a_database_moves_from_engine_to_engine_and_back_whole() {
    let (Some(docker), Some(native)) = (TestEnv::on(TestEngine::Docker), TestEnv::on(TestEngine::Native)) else {
        return;
    };
    let (here, there) = (Side::up(&docker), Side::up(&native));
    make_rich(&here);
    query(&there.superuser("postgres"), ROLES);
    let (first, second) = (here.file("first.tfsnap"), there.file("second.tfsnap"));
    let before = fingerprint(&here.url());
    let (mut watch, mut other_watch) = (here.watch(), there.watch());

    here.export(&first).ok();
    let imported = there.run(&["snapshot", "import", text(&first), "--json"]).ok().json();
    assert_eq!(
        (imported["name"].as_str(), imported["left_out"].as_array().map(Vec::len)),
        (Some("first"), Some(0)),
        "{imported}"
    );
    assert_eq!(imported["migration"], 20_260_101_000_003_i64);
    there.run(&["snapshot", "restore", "first", "--yes"]).ok();
    assert_eq!(fingerprint(&there.url()), before);

    // Now a snapshot, and back.
    query(&there.url(), "DROP TABLE parts");
    there.run(&["snapshot", "export", text(&second), "--snapshot", "first", "--level", "19"]).ok();
    here.run(&["snapshot", "import", text(&second), "--as", "back again"]).ok();
    query(&here.url(), "TRUNCATE things");
    here.run(&["snapshot", "restore", "back again", "--yes"]).ok();
    assert_eq!(fingerprint(&here.url()), before);

    // Nobody can log in to a snapshot, and neither server has crashed meanwhile.
    for side in [&here, &there] {
        let open = "SELECT datname FROM pg_database WHERE datallowconn AND datname ~ '^tfdev_s'";
        assert_eq!(query(&side.superuser("postgres"), open), Vec::<String>::new());
        until("files to go", || side.files_beside().is_empty().then_some(()));
    }
    watch.run("SELECT 1");
    other_watch.run("SELECT 1");
}

#[test]
fn an_import_into_another_project_belongs_to_that_projects_role() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    let here = Side::up(&env);
    make_rich(&here);
    let file = here.file("a.tfsnap");
    here.export(&file).ok();
    let Some(other) = TestEnv::on(TestEngine::Native) else { return };
    other.write("tfdev.toml", "[database]\nname = \"shop\"\nuser = \"keeper\"\n");
    other.run(&["up", "--dataset", "none"]).ok();
    other.run(&["snapshot", "import", text(&file)]).exits(5).says("`the reader`, `writer`").says("CREATE ROLE");
    let other = Side(&other);
    query(&other.superuser("postgres"), ROLES);
    other.run(&["snapshot", "import", text(&file)]).ok();
    other.run(&["snapshot", "restore", "a", "--yes"]).ok();
    let there = fingerprint(&other.url());
    assert!(there.contains("keeper limit 17 comment it's") && there.contains("keeper has work_mem=5MB"), "{there}");
    assert_eq!(there.matches("taskflow_import").count() + there.matches("_import").count(), 0);
    assert_eq!(query(&other.url(), "SELECT count(*) FROM things"), ["400"]);
    // The old owner does not exist here, and nothing is left of the role that restored.
    assert!(!there.contains("OWNER TO taskflow") && there.contains("OWNER TO keeper"));
}

#[test]
fn names_and_files_that_are_taken_are_left_alone() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    let side = Side::up(&env);
    let file = side.file("a.tfsnap");
    side.export(&file).ok();
    let bytes = std::fs::read(&file).unwrap();
    side.export(&file).exits(5).says("there is a file").says("--yes");
    assert!(std::fs::read(&file).unwrap() == bytes);
    side.run(&["snapshot", "export", text(&file), "--yes"]).ok();
    side.run(&["snapshot", "export", "/nowhere/a.tfsnap"]).exits(8).says("there is no folder");
    side.run(&["snapshot", "export", text(&side.file("b.tfsnap")), "--snapshot", "none"])
        .exits(4)
        .says("no snapshot `none`");
    side.import(&file, "one").ok();
    side.import(&file, "one").exits(6).says("there is a snapshot `one` already").says("--as NAME");
    side.import(&file, "two\u{7}").exits(8);
    side.import(&side.file("missing.tfsnap"), "three").exits(8).says("cannot read");
    let listed = side.run(&["snapshot", "list", "--json"]).ok().json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 1, "{listed}");
}

#[test]
fn what_only_a_superuser_may_set_is_left_out_and_told() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    let side = Side::up(&env);
    let admin = side.superuser("taskflow");
    query(
        &admin,
        "CREATE ROLE app; ALTER DATABASE taskflow SET log_statement = 'none'; ALTER ROLE app IN DATABASE taskflow SET work_mem = '6MB'",
    );
    let file = side.file("a.tfsnap");
    side.export(&file).ok();
    let outcome = side.import(&file, "a").ok();
    outcome.says("left out: the setting `log_statement`").says("left out: the setting `work_mem` of the role `app`");
    assert!(try_query(&side.url(), "SELECT 1").is_ok());
}
