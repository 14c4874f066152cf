//! The store: it is full, or has what this version cannot restore.

use super::{Side, assert_prefix};
use crate::support::disk::Disk;
use crate::support::{ONE_SERVER, TestEngine, TestEnv, one, query, run_on, until};

#[test]
fn a_full_store_is_told_and_keeps_what_it_has() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let Some(_disk) = Disk::mount(env.path("store"), 64) else { return };
        let side = Side::up(env);
        side.add(1..=2);
        let first = side.base();
        let before = side.stored();
        let filler = side.store.join("filler");
        let fill = || {
            let mut file = std::fs::File::create(&filler).unwrap();
            let full = std::io::copy(&mut std::io::repeat(7), &mut file).unwrap_err();
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        };
        fill();
        side.backup(&["now", "--only", "physical"]).exits(1).says("No space left").says("make room for");
        side.backup(&["now", "--only", "logical"]).exits(1).says("No space left");
        side.add(3..=3);
        one(&side.superuser(), "SELECT pg_switch_wal()");
        until("the log in the spool", || (!side.spooled().is_empty()).then_some(()));
        side.backup(&["agent", "--once"]).exits(1).says("No space left");
        assert!(!side.spooled().is_empty(), "it waits");
        assert!(side.backup(&["status"]).exits(1).stdout.contains("No space left"));
        let good = |path: &&String| !path.ends_with("filler");
        let now = side.stored();
        assert_eq!(now.iter().filter(good).collect::<Vec<_>>(), before.iter().collect::<Vec<_>>(), "nothing is left");
        // Reading needs no room.
        assert_prefix(side.restore(&[&first], "restored")["url"].as_str().unwrap(), 2);
        side.destroy("restored");

        std::fs::remove_file(&filler).unwrap();
        side.ship();
        side.base();
        assert_prefix(side.restore(&[], "restored")["url"].as_str().unwrap(), 3);
    });
}

#[test]
fn what_a_newer_postgresql_or_tfdev_has_made_is_refused() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let side = Side::up(env);
        side.add(1..=1);
        let made = side.backup(&["now"]).ok().json();
        for index in [0, 1] {
            let id = made[index]["id"].as_str().unwrap();
            let path = side.stored_with(&[id, "manifest.json"]);
            let text = std::fs::read_to_string(&path).unwrap();
            let with = |from: &str, to: &str| {
                let changed = text.replacen(from, to, 1);
                assert_ne!(text, changed);
                std::fs::write(&path, changed).unwrap();
            };
            with("\"postgres\": \"15.", "\"postgres\": \"16.");
            side.backup(&["restore", id, "--as", "other"]).exits(5).says("is of PostgreSQL 16.").says("tfdev runs 15");
            let verified = side.backup(&["verify", id]).exits(1).json();
            assert!(verified[0]["problems"].to_string().contains("is of PostgreSQL 16."), "{verified}");
            with("\"format\": 1", "\"format\": 3");
            side.backup(&["restore", id, "--as", "other"]).exits(8).says("newer");
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(env.made(), ONE_SERVER, "nothing was begun");
        query(&env.url(), "SELECT 1");
        side.backup(&["verify"]).ok();
    });
}
