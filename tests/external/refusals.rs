//! What is refused, and in which words.

use serde_json::json;

use super::External;
use crate::support::{Session, SomeonesServer, finish, start};

#[test]
fn a_database_that_is_not_ours_is_left_alone() {
    let Some(external) = External::new() else { return };
    external.server.sql("CREATE DATABASE taskflow OWNER dev");
    external.up_is_refused(6, &["`taskflow` that is not tfdev's", "under `[database]`"]);
    external.run(&["destroy", "--yes"]).ok();
    assert!(external.server.databases().contains(&"taskflow".to_owned()));
}

#[test]
fn what_needs_the_machine_is_refused_with_the_reason() {
    let Some(external) = External::new() else { return };
    external.up();
    external.run(&["logs"]).exits(5).says("the external engine can't show the server's log, because");
    external.run(&["compose"]).exits(5).says("can't be written as a Compose file, because");
    external.run(&["up", "--image", "postgres:15"]).exits(5).says("can't run an image, because");
    external.run(&["up", "--port", "6000"]).exits(5).says("can't choose the server's port, because");
}

#[test]
fn a_url_is_needed_and_holds_no_password() {
    let Some(external) = External::new() else { return };
    let mut command = external.command(&["up"]);
    finish(start(command)).ok();
    command = external.command(&["up"]);
    command.env_remove("TFDEV_EXTERNAL_URL");
    finish(start(command)).exits(8).says("TFDEV_EXTERNAL_URL");
    let refused = external.run_at("postgres://dev:s3cret@127.0.0.1/db", &["up"]).exits(8);
    assert!(refused.stderr.contains("must not hold a password") && !refused.stderr.contains("s3cret"));
    external.run_at("postgres://127.0.0.1/db", &["up"]).exits(8).says("names no role");
}

#[test]
fn a_role_that_may_not_create_databases_is_told() {
    let Some(external) = External::new() else { return };
    external.server.sql("ALTER ROLE dev NOCREATEDB");
    external.up_is_refused(3, &["may not create databases", "CREATEDB"]);
}

#[test]
fn a_read_only_server_is_told() {
    let Some(external) = External::new() else { return };
    external.server.sql("ALTER ROLE dev SET default_transaction_read_only = on");
    external.up_is_refused(3, &["read-only", "default_transaction_read_only"]);
}

#[test]
fn a_standby_is_told_and_its_primary_looks_like_production() {
    let Some(external) = External::new() else { return };
    let standby = external.server.standby();
    let url = external.url_at(standby.port);
    external.run_at(&url, &["up"]).exits(3).says("it is a standby");
    crate::support::until("the standby to be attached", || {
        (external.server.read("SELECT count(*) FROM pg_stat_replication") == ["1"]).then_some(())
    });
    external.up_is_refused(5, &["1 replicas or other receivers", "allow_remote = \"127.0.0.1/taskflow\""]);
}

#[test]
fn a_server_in_use_looks_like_production_unless_it_is_named() {
    let Some(external) = External::new() else { return };
    external.server.sql("CREATE DATABASE shop");
    external.server.sql("CREATE ROLE app LOGIN PASSWORD 'app'");
    let url = format!("postgres://app:app@127.0.0.1:{}/shop", external.server.port);
    let session = Session::open(&url);
    external.up_is_refused(5, &["the role `app` has a session in the database `shop`", "production"]);
    let mut allowed = external.command(&["up", "--json", "--dataset", "small"]);
    allowed.env("TFDEV_EXTERNAL_ALLOW_REMOTE", "127.0.0.1/other");
    finish(start(allowed)).exits(5);
    let mut allowed = external.command(&["up", "--json", "--dataset", "small"]);
    allowed.env("TFDEV_EXTERNAL_ALLOW_REMOTE", "127.0.0.1/taskflow");
    assert_eq!(finish(start(allowed)).ok().json()["created"], json!(true));
    // What is ours already stays so, whoever else comes.
    external.up();
    drop(session);
}

#[test]
fn names_and_addresses_of_servers_in_earnest_are_refused_before_any_login() {
    let Some(external) = External::new() else { return };
    for (url, sign) in [
        ("postgres://dev@prod-db.invalid/x", "its host `prod-db.invalid` has `prod` in its name"),
        ("postgres://dev@192.0.2.7/x", "the address 192.0.2.7, which is neither loopback nor private"),
    ] {
        external.run_at(url, &["up"]).exits(5).says(sign).says("nothing was written");
    }
    external.run_at("postgres://dev@nowhere.invalid/x", &["up"]).exits(3).says("cannot be found");
    external.env.write("tfdev.toml", "[database]\nname = \"shop_live\"\n");
    external.up_is_refused(5, &["its database `shop_live` has `live` in its name"]);
}

#[test]
fn a_server_that_does_not_answer_is_told() {
    let Some(server) = SomeonesServer::start(&[]) else { return };
    let external = External::on(server);
    let closed = external.url_at(crate::support::free_port());
    external.run_at(&closed, &["up"]).exits(3).says("does not answer").says("tfdev never starts a server");
    external.up();
    let status = external.run_at(&closed, &["status", "--json"]).ok().json();
    assert_eq!(status["state"], json!("unhealthy"), "{status}");
}

#[test]
fn a_pooler_that_shares_sessions_is_told() {
    let Some(external) = External::new() else { return };
    let Some(transaction) = super::login::Pooler::start(&external, "transaction") else { return };
    let before = external.server.databases();
    let url = external.url_at(transaction.port);
    external.run_at(&url, &["up"]).exits(3).says("a pooler stands in front of it");
    assert_eq!(external.server.databases(), before);
    let session = super::login::Pooler::start(&external, "session").unwrap();
    external.run_at(&external.url_at(session.port), &["up", "--dataset", "small"]).ok();
}
