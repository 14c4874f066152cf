//! Snapshots on a server of someone else: only what carries the marker is touched, and all of it goes with the instance.

use serde_json::json;

use super::External;
use crate::support::{Session, finish, one, query, start, until};

const COUNT: &str = "SELECT count(*) FROM tasks";

/// A project with a snapshot `kept`.
fn with_snapshot() -> Option<External> {
    let external = External::new()?;
    external.up();
    external.run(&["snapshot", "create", "kept"]).ok();
    Some(external)
}

fn taskflow(external: &External) -> String {
    external.run(&["url"]).ok().stdout.trim().to_owned()
}

#[test]
fn what_takes_the_projects_name_carries_the_marker() {
    let Some(external) = with_snapshot() else { return };
    let marker = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'taskflow'";
    let first = external.server.read(marker);
    for command in [
        &["snapshot", "restore", "kept"][..],
        &["snapshot", "restore", "--undo"],
        &["reset", "--yes", "--dataset", "small"],
        &["snapshot", "restore", "kept"],
    ] {
        external.run(command).ok();
        assert_eq!(external.server.read(marker), first, "{command:?}");
        assert_eq!(external.run(&["status", "--json"]).ok().json()["state"], json!("running"));
        assert_eq!(one(&taskflow(&external), COUNT), "50");
    }
    // Without it, nothing is done; and a snapshot with another comment, however that came to be, gets it with the name.
    query(&taskflow(&external), "COMMENT ON DATABASE taskflow IS NULL");
    external.run(&["snapshot", "create", "other"]).exits(5).says("carries no marker of tfdev");
    external.server.sql(&format!("COMMENT ON DATABASE taskflow IS '{}'", first[0]));
    let database = "SELECT database FROM tfdev.snapshot WHERE kind = 'snapshot' AND name = 'kept'";
    let kept = one(&external.server.superuser_url(&external.registry_of_status()), database);
    external.server.sql(&format!("COMMENT ON DATABASE {kept} IS 'something else'"));
    external.run(&["snapshot", "restore", "kept"]).ok();
    assert_eq!(external.server.read(marker), first);
}

#[test]
fn a_database_that_took_the_projects_name_is_left_alone() {
    let Some(external) = with_snapshot() else { return };
    external.server.sql("ALTER DATABASE taskflow RENAME TO elsewhere");
    external.server.sql("CREATE DATABASE taskflow OWNER dev");
    query(&external.server.superuser_url("taskflow"), "CREATE TABLE precious ()");
    let copies = || external.server.databases().iter().filter(|name| name.starts_with("tfdev_s_")).count();
    until("the ready copy", || (copies() == 2).then_some(()));
    let before = external.server.databases();
    let mut session = Session::open(&external.server.superuser_url("taskflow"));
    for command in [&["snapshot", "create", "b"][..], &["snapshot", "restore", "kept"], &["reset", "--yes"]] {
        external.run(command).exits(5).says("`taskflow` carries no marker of tfdev");
    }
    session.run("SELECT * FROM precious");
    assert_eq!(external.server.databases(), before);
    external.run(&["destroy", "--yes"]).ok();
    assert!(external.server.databases().contains(&"taskflow".to_owned()));
}

#[test]
fn destroy_takes_all_that_the_registry_names_and_nothing_else() {
    let Some(external) = External::new() else { return };
    external.server.sql("CREATE DATABASE tfdev_s_0123456789abcdef OWNER dev");
    let before = external.server.databases();
    external.up();
    external.run(&["snapshot", "create", "a"]).ok();
    external.run(&["reset", "--yes", "--dataset", "small"]).ok();
    external.run(&["snapshot", "restore", "a"]).ok();
    // The one that the server is at work on at this moment goes, too.
    external.run(&["snapshot", "create", "b"]).ok();
    let destroyed = external.run(&["destroy", "--yes", "--json"]).ok().json();
    assert!(destroyed["instances"][0]["removed"].as_array().unwrap().len() >= 7, "{destroyed}");
    until("the end of all sessions", || {
        external.server.read("SELECT pid FROM pg_stat_activity WHERE usename = 'dev'").is_empty().then_some(())
    });
    assert_eq!(external.server.databases(), before);
    assert_eq!(external.run(&["status", "--json"]).ok().json()["state"], json!("absent"));
}

#[test]
fn the_session_of_another_role_is_named_and_nothing_is_changed() {
    let Some(external) = with_snapshot() else { return };
    external.server.sql("CREATE ROLE clerk LOGIN PASSWORD 'c'");
    let url = format!("postgres://clerk:c@127.0.0.1:{}/taskflow?application_name=till", external.server.port);
    let mut session = Session::open(&url);
    session.run("SELECT 1");
    let list = || external.run(&["snapshot", "list", "--json"]).ok().json();
    let before = list();
    for command in [&["snapshot", "create", "b"][..], &["snapshot", "restore", "kept"], &["reset", "--yes"]] {
        external.run(command).exits(5).says("of `till` (role `clerk`)").says("pg_signal_backend");
    }
    session.run("SELECT 1");
    assert_eq!(list()["snapshots"][0]["name"], before["snapshots"][0]["name"]);
    assert_eq!(list()["snapshots"].as_array().unwrap().len(), 1);
    external.server.sql("GRANT pg_signal_backend TO dev");
    external.run(&["snapshot", "restore", "kept"]).ok();
    assert_eq!(list()["left_overs"], json!([]));
}

#[test]
fn others_databases_do_not_count_for_the_limit() {
    let Some(external) = with_snapshot() else { return };
    external.server.sql("CREATE DATABASE others");
    // A file with a hole counts for the server as what it seems to be.
    external.server.sql(
        "DO $$ BEGIN EXECUTE format('COPY (SELECT 1) TO PROGRAM ''cat > /dev/null; dd if=/dev/null of=base/%s/999999 bs=1 count=0 \
         seek=20G''', (SELECT oid FROM pg_database WHERE datname = 'others')); END $$",
    );
    external.run(&["snapshot", "create", "b"]).ok();
    external.run(&["snapshot", "restore", "b"]).ok();
}

#[test]
fn what_a_killed_up_left_half_made_goes_with_the_next_command() {
    let Some(external) = External::new() else { return };
    // The name is taken when the new database is to get it; the tfdev that made it is killed before it can clean up.
    let mut holder = Session::open(&external.server.superuser_url("postgres"));
    holder.run("BEGIN; LOCK TABLE pg_shdescription IN SHARE MODE");
    let mut killed = start(external.command(&["up", "--dataset", "small"]));
    let half_made = || external.server.databases().into_iter().find(|name| name.ends_with("_new"));
    until("the half made database", half_made);
    killed.child.kill().unwrap();
    finish(killed);
    holder.run("COMMIT");
    external.server.sql("CREATE DATABASE taskflow");
    external.run(&["up", "--dataset", "small"]).exits(6).says("is not tfdev's");
    assert_eq!(half_made(), None, "a command that fails cleans up, too");
    external.server.sql("DROP DATABASE taskflow");
    external.up();
    external.run(&["destroy", "--yes"]).ok();
    assert_eq!(external.server.databases(), ["postgres", "template0", "template1"]);
}

#[test]
fn an_export_and_an_import_are_refused_with_another_way() {
    let Some(external) = with_snapshot() else { return };
    let file = external.env.path("a.tfsnap");
    let file = file.to_str().unwrap();
    std::fs::write(file, "").unwrap();
    for command in [&["snapshot", "import", file][..], &["snapshot", "export", file, "--snapshot", "kept"]] {
        external.run(command).exits(5).says("can't export or import a snapshot, because").says("pg_dump");
    }
}
