//! Files that an enemy made: an import of them fails whole, or does no harm.

use super::dumps::{dump_of, patched, with_check};
use super::{Side, pack, text};
use crate::support::{TestEngine, TestEnv, on_every_engine, one, until};

on_every_engine!(@of_ours a_damaged_file_changes_nothing);

#[test]
fn a_dump_that_wants_to_be_superuser_changes_nothing() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    let side = Side::up(&env);
    let (good, bad) = (side.file("good.tfsnap"), side.file("bad.tfsnap"));
    side.export(&good).ok();
    let marker = side.file("marker");
    let program = format!("COPY (SELECT 1) TO PROGRAM ''touch {}''", marker.display());
    let evils = [
        program.as_str(),
        "PERFORM pg_read_file(''/etc/passwd'')",
        "ALTER ROLE taskflow SUPERUSER",
        "CREATE ROLE intruder",
        "PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ''postgres''",
        "COPY pg_authid TO ''/tmp/enemy''",
        "PERFORM lo_import(''/etc/passwd'')",
        "PERFORM 1 FROM pg_authid",
    ];
    let mut watch = side.watch();
    for evil in evils {
        pack(&with_check(&side, evil), &good, &bad);
        side.import(&bad, "bad").exits(8).says("cannot be restored").says("nothing was changed");
        assert_eq!(side.made(), Vec::<String>::new(), "{evil}");
        assert!(!marker.exists(), "{evil}");
    }
    watch.run("SELECT 1");
    assert_eq!(
        one(&side.superuser("postgres"), "SELECT rolsuper::text FROM pg_roles WHERE rolname = 'taskflow'"),
        "false"
    );
    assert_eq!(one(&side.url(), "SELECT count(*) FROM tasks"), "50");
}

#[test]
fn statements_in_the_place_of_others_harm_no_other_database() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    let side = Side::up(&env);
    let (good, bad) = (side.file("good.tfsnap"), side.file("bad.tfsnap"));
    side.export(&good).ok();
    side.run(&["snapshot", "create", "kept"]).ok();
    let kept = one(&side.superuser("postgres"), "SELECT database FROM tfdev.snapshot WHERE name = 'kept'");
    let comment = format!("COMMENT ON TABLE public.t IS '{}'", "x".repeat(200));
    let dump = dump_of(&side, &format!("CREATE TABLE t (n integer); {comment}"));
    let marker = side.file("marker");
    let before = side.made();
    for evil in [
        "DROP DATABASE taskflow WITH (FORCE); --".to_owned(),
        format!("DROP DATABASE {kept}; --"),
        "ALTER DATABASE taskflow RENAME TO gone; --".to_owned(),
        "ALTER ROLE taskflow PASSWORD 'x'; --".to_owned(),
        "SET SESSION AUTHORIZATION taskflow; --".to_owned(),
        format!("\\! touch {}\n--", marker.display()),
        format!("\\copy t to '{}'\n--", marker.display()),
    ] {
        pack(&patched(&dump, &comment, &evil), &good, &bad);
        side.import(&bad, "bad").exits(8);
        assert_eq!(side.made(), before, "{evil}");
        assert!(!marker.exists());
    }
    assert_eq!(one(&side.url(), "SELECT count(*) FROM tasks"), "50");
    side.run(&["snapshot", "restore", "kept", "--yes"]).ok();
}

#[test]
fn what_an_import_brings_is_never_run_by_the_superuser() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    let side = Side::up(&env);
    let (good, bad) = (side.file("good.tfsnap"), side.file("bad.tfsnap"));
    side.export(&good).ok();
    // In the place of functions of the server that tfdev's own questions use; harmless to an ordinary role.
    let body = "BEGIN IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN ALTER ROLE taskflow SUPERUSER; END IF; RETURN ''x''; END";
    let trap = |name: &str, arguments: &str| {
        format!("CREATE FUNCTION public.{name}({arguments}) RETURNS text LANGUAGE plpgsql AS '{body}';")
    };
    let sql = [
        trap("format", "text, name, name"),
        trap("format", "text, name"),
        trap("md5", "text"),
        trap("format_type", "oid, integer"),
        trap("pg_get_expr", "pg_node_tree, oid"),
        trap("current_setting", "text"),
        "CREATE TABLE t (n integer);".to_owned(),
    ];
    let comment = format!("COMMENT ON TABLE public.t IS '{}'", "x".repeat(300));
    let dump = dump_of(&side, &(sql.concat() + &comment));
    // The role of the import owns its database, so this is allowed; it must not last.
    let path = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$; --";
    pack(&patched(&dump, &comment, path), &good, &bad);
    side.import(&bad, "trap").ok();
    side.run(&["snapshot", "restore", "trap", "--yes"]).ok();
    side.run(&["snapshot", "create", "again"]).ok();
    side.run(&["snapshot", "export", text(&side.file("again.tfsnap"))]).ok();
    assert_eq!(
        one(&side.superuser("postgres"), "SELECT rolsuper::text FROM pg_roles WHERE rolname = 'taskflow'"),
        "false"
    );
}

fn a_damaged_file_changes_nothing(env: &TestEnv) {
    let side = Side::up(env);
    let (good, bad) = (side.file("good.tfsnap"), side.file("bad.tfsnap"));
    side.export(&good).ok();
    let whole = std::fs::read(&good).unwrap();
    let mut watch = side.watch();
    let damaged = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let cases = [
        whole[..0].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        damaged(20),
        damaged(whole.len() / 2),
        damaged(whole.len() - 1),
    ];
    for bytes in cases {
        std::fs::write(&bad, bytes).unwrap();
        side.import(&bad, "bad").exits(8);
        assert_eq!(side.made(), Vec::<String>::new());
        // A daemon has to hear of the end first.
        until("its file to go", || side.files_beside().is_empty().then_some(()));
    }
    // What no PostgreSQL wrote, with right checksums.
    for dump in [&b"PGDMP\x01\x0e\x00"[..], b"not a dump", &[0; 9_000]] {
        pack(dump, &good, &bad);
        side.import(&bad, "bad").exits(8);
        assert_eq!(side.made(), Vec::<String>::new());
    }
    watch.run("SELECT 1");
}
