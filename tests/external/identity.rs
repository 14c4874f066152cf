//! Whose server it is, before the first write.

use serde_json::json;

use super::{External, PASSWORD};
use crate::support::process::shell;
use crate::support::{SomeonesServer, one, query};

#[test]
fn another_server_at_the_url_is_refused() {
    let Some(external) = External::new() else { return };
    external.up();
    let other = External::on(SomeonesServer::start(&[]).unwrap());
    let before = other.server.databases();
    for command in [&["up"][..], &["destroy", "--yes"]] {
        let outcome = external.run_at(&other.url(), command);
        if command == ["up"] {
            outcome.exits(5).says("is another one: its system identifier is").says("nothing was written");
        }
    }
    assert_eq!(other.server.databases(), before);
}

#[test]
fn a_restored_copy_is_refused() {
    let Some(external) = External::new() else { return };
    external.up();
    let registry = external.registry();
    let copy = External::on(SomeonesServer::start(&[]).unwrap());
    let markers = "SELECT format('COMMENT ON DATABASE %I IS %L', datname, shobj_description(oid, 'pg_database')) \
                   FROM pg_database WHERE datname LIKE 'tfdev\\_%' OR datname = 'taskflow' ORDER BY datname";
    for (name, mark) in ["taskflow", &registry].into_iter().zip(external.server.read(markers)) {
        copy.server.sql(&format!("CREATE DATABASE {name} OWNER dev"));
        copy.server.sql(&mark);
    }
    let before = copy.server.databases();
    for command in [&["up"][..], &["destroy", "--yes"], &["seed", "--yes"]] {
        external.run_at(&copy.url(), command).exits(5).says("system identifier");
    }
    external.run_at(&copy.url(), &["up"]).exits(5).says("is a copy of this instance's server");
    assert_eq!(copy.server.databases(), before);
}

#[test]
fn a_look_alike_with_another_marker_is_refused() {
    let Some(external) = External::new() else { return };
    let up = external.up();
    let registry = external.registry();
    let own = up["url"].as_str().unwrap().replace("/taskflow", &format!("/{registry}"));
    let other = "a0000000-0000-4000-8000-000000000000";
    let id = one(&own, "SELECT id FROM tfdev.instance");
    query(&own, &format!("UPDATE tfdev.instance SET id = '{other}'"));
    external.run(&["up"]).exits(5).says(other).says("nothing was written");
    query(&own, &format!("UPDATE tfdev.instance SET id = '{id}'"));
    external.up();

    let comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'taskflow'";
    let marker = one(&own, comment);
    let foreign = marker.replace(&id, other);
    for (comment, says) in
        [(format!("'{foreign}'"), "the marker of the instance a0000000"), ("NULL".into(), "no marker")]
    {
        external.server.sql(&format!("COMMENT ON DATABASE taskflow IS {comment}"));
        external.run(&["seed", "--yes"]).exits(5).says(says);
        let code = external.run(&["up"]).status.code();
        assert_eq!(code, Some(if comment == "NULL" { 6 } else { 5 }));
        external.server.sql(&format!("COMMENT ON DATABASE taskflow IS '{marker}'"));
    }
    external.server.sql("COMMENT ON DATABASE taskflow IS NULL");
    external.run(&["destroy", "--yes"]).ok();
    assert!(external.server.databases().contains(&"taskflow".to_owned()), "what is not marked is not dropped");
}

#[test]
fn where_the_system_identifier_may_not_be_read_the_marker_counts() {
    let Some(external) = External::new() else { return };
    for database in ["template0", "template1"] {
        if database == "template0" {
            external.server.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true");
        }
        let url = external.server.superuser_url(database);
        query(&url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public");
    }
    external.server.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS false");
    assert_eq!(external.up()["created"], json!(true));
    assert_eq!(external.up()["created"], json!(false));
    let state = external.env.instance_dir().join("instance.json");
    assert!(!shell(&format!("cat '{}'", state.display())).contains("system_identifier"));
    let other = External::on(SomeonesServer::start(&[]).unwrap());
    external.run_at(&other.url(), &["up"]).exits(5).says("carries no marker of the instance");
    let url = external.run(&["url"]).ok();
    assert!(url.stdout.contains(PASSWORD));
}
