//! The whole way, on each engine that has a server of ours: back up, go on, recover, prove.

use serde_json::json;

use super::{Side, assert_prefix, history};
use crate::support::{TestEnv, on_every_engine, one, query, try_query};

on_every_engine!(@of_ours what_was_backed_up_comes_back);

fn what_was_backed_up_comes_back(env: &TestEnv) {
    let side = Side::up(env);
    side.add(1..=3);
    let made = side.backup(&["now"]).ok().json();
    let [logical, physical] = [0, 1].map(|index| made[index]["id"].as_str().unwrap().to_owned());
    assert!(logical.ends_with("-logical") && physical.ends_with("-physical"), "{made}");
    assert!(made[0]["tables"].as_u64().unwrap() > 3 && made[1]["tables"].as_u64().unwrap() > 3, "{made}");
    side.add(4..=5);
    side.backup(&["mark", "before it went wrong"]).ok();
    side.backup(&["mark", "before it went wrong"]).exits(6);
    side.sql("DELETE FROM history");
    side.ship();

    // Nothing is lost of what was committed a moment ago, and that is known.
    let status = side.backup(&["status"]).ok().json();
    assert_eq!(status["alarms"], json!([]), "{status}");
    assert!(status["rpo_seconds"].as_u64().unwrap() <= 60, "{status}");
    assert_eq!(status["agent"], json!(false));

    // A backup that nobody has restored is no proof of how long that takes.
    let unproven = [
        ("Full backup", "pass"),
        ("Point-in-time", "not_applicable"),
        ("Retention", "pass"),
        ("RTO", "fail"),
        ("RPO", "pass"),
    ];
    assert_eq!(source_rows(env), unproven.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())));

    let restored = side.restore(&["--to-name", "before it went wrong"], "restored");
    let url = restored["url"].as_str().unwrap();
    assert_prefix(url, 5);
    assert_eq!(history(&env.url()).0, "0", "the source goes on as it was");
    assert_eq!(query(url, "INSERT INTO history (id) VALUES (6) RETURNING id"), ["6"], "it was promoted");
    assert_eq!(one(url, "SHOW archive_mode"), "off");
    assert!(
        try_query(&env.url().replace(&port(&env.url()), &port(url)), "SELECT 1").is_err(),
        "its passwords are its own"
    );
    side.backup(&["restore", "--as", "restored"]).exits(6).says("already");
    side.backup(&["restore", "--as", "dev"]).exits(5);
    side.backup(&["restore", "--as", "other", "--to", "2020-01-01T00:00:00Z"]).exits(5).says("the backups reach from");
    side.backup(&["restore", "--as", "other", "--to-name", "nothing"]).exits(4);
    side.backup(&["restore", "--as", "other", "--to", "2020-01-01 00:00:00"]).exits(2);

    restored_ones_write_elsewhere(&side);
    side.destroy("restored");

    let copy = side.restore(&[&logical], "copy");
    assert_prefix(copy["url"].as_str().unwrap(), 3);
    side.destroy("copy");

    let proven = side.backup(&["verify"]).ok().json();
    assert_eq!(proven.as_array().unwrap().len(), 2);
    for one in proven.as_array().unwrap() {
        assert_eq!((&one["passed"], &one["problems"]), (&json!(true), &json!([])), "{one}");
        assert!(one["restore_ms"].as_u64().unwrap() > 0);
    }
    let status = side.backup(&["status"]).ok().json();
    assert!(status["last_verified"]["rto_ms"].as_u64().unwrap() > 0, "{status}");
    assert!(source_rows(env).contains(&("RTO".to_owned(), "pass".to_owned())));
    // What proved them is gone, and the source is as it was.
    assert_eq!(env.made(), crate::support::ONE_SERVER);
    assert_eq!(history(&env.url()).0, "0");
}

/// What `tfdev verify` says of each row of the source's § Backup & Recovery.
fn source_rows(env: &TestEnv) -> Vec<(String, String)> {
    let report = env.run(&["verify", "--json"]).json();
    let rows = report["rows"].as_array().unwrap().iter().filter(|row| row["section"] == json!("backup"));
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rows.map(|row| (text(&row["name"]), text(&row["outcome"]))).collect()
}

fn port(url: &str) -> String {
    let rest = url.rsplit_once(':').unwrap().1;
    format!(":{}/", rest.split('/').next().unwrap())
}

/// A restored instance archives nothing until it is told to, and then in a folder of its own.
fn restored_ones_write_elsewhere(side: &Side<'_>) {
    let before = side.stored();
    side.run(&["--instance", "restored", "backup", "now", "--only", "physical"]).exits(5).says("backup enable");
    side.run(&["--instance", "restored", "backup", "enable"]).ok();
    side.run(&["--instance", "restored", "up", "--dataset", "none"]).ok();
    side.run(&["--instance", "restored", "backup", "now", "--only", "physical"]).ok();
    let after = side.stored();
    assert!(before.iter().all(|path| after.contains(path)));
    let new: Vec<_> = after.iter().filter(|path| !before.contains(path)).collect();
    let own = format!("{}/restored/", side.env.id);
    assert!(!new.is_empty() && new.iter().all(|path| path.starts_with(&own)), "{new:?}");
    assert!(new.iter().any(|path| path.contains("/wal/00000002")), "on a timeline of its own: {new:?}");
}
